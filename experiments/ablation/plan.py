"""What the study consists of: runs with a fingerprint each, sizes, hypotheses; no model needed."""

import dataclasses
import hashlib
import json
import re

from ml_collections import ConfigDict

from longrope_jax import rotary
from longrope_jax.errors import unknown_name
from longrope_jax.llama import LlamaConfig, preset
from longrope_jax.training.flops import train_flops_per_token
from longrope_jax.weights.foreign import ForeignCheckpoint

BLOCKS = 64  # in which loss by position is kept, of twice the continued length

# The parts of a config that decide what a run computes.
_PARTS = (
    "corpus", "tokenizer", "bos", "held_out", "length", "factor", "base_per_token", "abf_factor",
    "init_checkpoint", "model", "retrieval", "evaluation", "pretraining", "continuation",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Run:
    """One continuation of one pretrained model under one method.

    Attributes:
        row: label in the tables.
        method: spec, as data.
        seed: of initialisation and data order; rows share the pretrained model of their seed.
        taught: whether training windows teach retrieval, in pretraining and continuation.
        rate: learning rate of the continuation relative to the config's.
        slug: name of its folder and files, with a fingerprint of all that decides its numbers.
        pretrained: name of the pretraining it starts from.
    """

    row: str
    method: rotary.Method
    seed: int
    taught: bool
    rate: float
    slug: str
    pretrained: str


def continued_length(config: ConfigDict) -> int:
    """Tokens of the continuation's windows: the pretraining length times the factor."""
    return config.length * config.factor


def bases(config: ConfigDict) -> dict[str, float]:
    """What method texts may name: the base scales with the pretraining length."""
    base = config.base_per_token * config.length
    return {
        "base": base,
        "abf": base * config.abf_factor,
        "length": config.length,
        "factor": config.factor,
    }


def pretraining_method(config: ConfigDict) -> rotary.RoPE:
    """RoPE with the small base."""
    return rotary.RoPE(base=bases(config)["base"])


def method(config: ConfigDict, row: ConfigDict) -> rotary.Method:
    """The row's method, with the config's sizes filled in.

    Raises:
        ValueError: an unknown placeholder, method or option.
    """
    values = bases(config)
    values["swept"] = values["base"] * row.times
    try:
        return rotary.parse(row.method.format(**values))
    except KeyError as error:
        raise ValueError(unknown_name("placeholder", str(error).strip("'"), values)) from error


def runs(config: ConfigDict) -> list[Run]:
    """All runs: rows of several seeds first, seed by seed; cut short, a study still says much."""
    planned = []
    for row, settings in config.rows.items():
        spec = method(config, settings)
        for seed in range(settings.seeds):
            taught, rate = settings.taught, settings.rate
            mark = _fingerprint(config, spec, seed, taught, rate)
            name = re.sub(r"[^a-z0-9]+", "-", row.lower()).strip("-")
            slug = f"{name}-seed{seed}-{mark}"
            pretrained = pretraining_slug(config, seed, taught)
            planned.append(Run(row, spec, seed, taught, rate, slug, pretrained))
    return sorted(planned, key=lambda run: (config.rows[run.row].seeds == 1, run.seed))


def pretraining_slug(config: ConfigDict, seed: int, taught: bool) -> str:
    """Name of a pretraining's folder; what comes after it does not change its fingerprint."""
    parts = {k: v for k, v in _parts(config).items() if k not in ("continuation", "evaluation")}
    mark = _hash(parts | {"seed": seed, "taught": taught})
    return f"pretraining{'' if taught else '-not-taught'}-seed{seed}-{mark}"


def _fingerprint(config: ConfigDict, spec, seed, taught, rate) -> str:
    run = {"spec": repr(spec), "seed": seed, "taught": taught, "rate": rate}
    return _hash(_parts(config) | run)


def _parts(config: ConfigDict) -> dict:
    plain = json.loads(config.to_json_best_effort())
    return {name: plain[name] for name in _PARTS}


def _hash(parts: dict) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]


def model_config(config: ConfigDict, vocab_size: int) -> LlamaConfig:
    """The model: a published preset with changes, or a shape of its own.

    Raises:
        ValueError: a published vocabulary too small for the tokenizer.
    """
    fields = {k: v for k, v in config.model.items() if k != "preset"}
    if not config.model.preset:
        return LlamaConfig(vocab_size=vocab_size, **fields)
    model = preset(config.model.preset, **fields)
    if model.vocab_size < vocab_size:
        raise ValueError(
            f"{config.model.preset} has {model.vocab_size} tokens, the tokenizer {vocab_size}"
        )
    return model


def fitted_config(config: ConfigDict, model: LlamaConfig, given: ForeignCheckpoint) -> LlamaConfig:
    """The model as an external checkpoint has it, to be computed as the study's.

    Raises:
        ValueError: another shape, trained length or method than the config's pretraining.
    """
    found = given.config
    same = ("d_model", "n_layers", "n_heads", "n_kv_heads", "head_dim", "d_ff", "tie_embeddings")
    pairs = [(f"model.{name}", getattr(found, name), getattr(model, name)) for name in same]
    pairs.append(("length", given.context_length or config.length, config.length))
    pairs.append(("base_per_token", given.rotary, pretraining_method(config)))
    for name, theirs, ours in pairs:
        if theirs != ours:
            where = config.init_checkpoint
            raise ValueError(f"{where} has {theirs}, this study {ours}: see --config.{name}")
    if found.vocab_size < model.vocab_size and not config.model.preset:
        size = f"{found.vocab_size} tokens, the tokenizer {model.vocab_size}"
        raise ValueError(f"{config.init_checkpoint} has {size}")
    own = ("vocab_size", "norm_eps", "rotary_layout")
    return dataclasses.replace(model, **{name: getattr(found, name) for name in own})


def retrieval_lengths(config: ConfigDict) -> list[int]:
    """Lengths in tokens at which retrieval is tested; the last is the continued length."""
    full = continued_length(config)
    return [round(share * full) for share in config.evaluation.lengths]


@dataclasses.dataclass(frozen=True)
class Costs:
    """FLOPs of one token, for the progress bar."""

    pretraining: float
    continuation: float
    evaluation: float


def costs(config: ConfigDict, model: LlamaConfig) -> Costs:
    """FLOPs per token: training at both lengths, scoring at the continued one."""
    long = train_flops_per_token(model, continued_length(config))
    return Costs(train_flops_per_token(model, config.length), long, long / 3)


def phase_tokens(config: ConfigDict, name: str) -> int:
    """Tokens that a phase trains on."""
    length = config.length if name == "pretraining" else continued_length(config)
    return config[name].steps * config[name].batch * length


def evaluation_tokens(config: ConfigDict, documents: int) -> int:
    """Tokens that the evaluation of one run scores, all parts counted."""
    e, full = config.evaluation, continued_length(config)
    windows = documents * e.windows_per_document
    per_length = (2 * e.samples + e.generated) * sum(retrieval_lengths(config))
    # Controls are scored and generated; scales and the curve have a window and a sample each.
    side = 5 * e.generated + (len(e.scales) - 1) * windows + len(e.scales) * e.generated
    side += len(config.continuation.evaluate_at) * (windows + e.generated)
    return 2 * windows * 2 * full + per_length + side * full
