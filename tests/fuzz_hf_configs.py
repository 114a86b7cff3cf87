"""Random legal configs, read by us and by transformers: the same frequencies and amplitude?

python tests/fuzz_hf_configs.py --configs 2000 --seed 0

Prints every config whose frequencies differ by more than 1e-5 of their size, or that one side alone
accepts; the exit status is 1 if there is any. transformers and a CPU torch are needed.
"""

import argparse
import random
import sys
import warnings
from collections.abc import Sequence

import numpy as np
from transformers import AutoConfig, logging
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from longrope_jax import rotary

HEAD = 16
SIZES = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": HEAD}
SIZES |= {"num_hidden_layers": 4, "vocab_size": 40, "intermediate_size": 48}
WHOLE = ("llama", "mistral", "qwen2", "qwen3", "mixtral", "cohere", "olmo2", "gemma2")
PARTIAL = ("phi", "glm", "nemotron", "stablelm")  # a share of the head alone turns
MIXED = ("gemma3_text", "olmo3")
TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")


def block(rng: random.Random, kind: str, spellings: Sequence[str]) -> dict:
    """Random parameters of a rope_type."""
    factor, original = rng.choice([1.0, 2.0, 4.0, 8.5, 32.0]), rng.choice([64, 512, 4096])
    found = {rng.choice(spellings): kind}
    if kind != "default":
        found["factor"] = factor
    if kind in ("yarn", "longrope", "llama3"):
        found["original_max_position_embeddings"] = original
    if kind == "yarn":
        options = {"beta_fast": rng.choice([32.0, 16.0, 4.0]), "beta_slow": rng.choice([1.0, 2.0])}
        options |= {"attention_factor": 0.9} if rng.random() < 0.3 else {"mscale": 0.7}
        options |= {"mscale_all_dim": rng.choice([0.5, 0.7])} if "mscale" in options else {}
        found |= {key: value for key, value in options.items() if rng.random() < 0.5}
    if kind == "longrope":
        for key in ("short_factor", "long_factor"):
            found[key] = [rng.uniform(1, 40) for _ in range(HEAD // 2)]
    if kind == "llama3":
        found |= {"low_freq_factor": rng.choice([1.0, 2.0]), "high_freq_factor": 4.0}
    return found


def config(rng: random.Random) -> tuple[dict, str | None]:
    """A random config, and the layer type to read."""
    model_type = rng.choice(WHOLE + PARTIAL + MIXED)
    mixed, partial = model_type in MIXED, model_type in PARTIAL
    # Dynamic and partial ones of a rope_type of lists depend on more than the config.
    kinds = ("default", "linear", "yarn", "llama3") if mixed or partial else TYPES
    found = SIZES | {"model_type": model_type}
    found["max_position_embeddings"] = rng.choice([128, 2048, 8192, 131_072])
    # transformers 5 gives OLMo 3's windowed layers its family's base where the config is flat.
    bases = [5e5] if model_type == "olmo3" else [1e4, 5e5, 1e6, 7.5e4]
    if rng.random() < 0.7:
        found["rope_theta"] = rng.choice(bases)
    if partial and rng.random() < 0.5:
        found["partial_rotary_factor"] = rng.choice([0.25, 0.5])
    if rng.random() < 0.8:
        # transformers 5 passes over the spelling "type" in these families' flat configs.
        spellings = ("rope_type",) if mixed else ("rope_type", "type")
        found["rope_scaling" if mixed else rng.choice(["rope_scaling", "rope_parameters"])] = block(
            rng, rng.choice(kinds), spellings
        )
    if mixed:
        return found, rng.choice(["full_attention", "sliding_attention"])
    return found, None


def theirs(found: dict, layer: str | None) -> tuple[np.ndarray, float]:
    """Frequencies and amplitude of transformers for a short sequence."""
    rest = {key: value for key, value in found.items() if key != "model_type"}
    read = AutoConfig.for_model(found["model_type"], **rest)
    parameters = read.rope_parameters if layer is None else read.rope_parameters[layer]
    kind = parameters["rope_type"]
    if kind == "default":
        pairs = int(HEAD * parameters.get("partial_rotary_factor", 1.0)) // 2
        return float(parameters["rope_theta"]) ** (-np.arange(pairs) / pairs), 1.0
    options = {} if layer is None else {"layer_type": layer}
    frequencies, amplitude = ROPE_INIT_FUNCTIONS[kind](read, "cpu", **options)
    return frequencies.double().numpy(), float(amplitude)


def ours(found: dict, layer: str | None) -> tuple[np.ndarray, float]:
    """Frequencies and amplitude here, for a sequence as short."""
    spec = rotary.from_hf(found, layer_type=layer)
    if layer is not None:  # the whole config gives the same method to these layers
        whole = rotary.from_hf(found | {"num_hidden_layers": 12})
        assert spec in rotary.distinct(whole)
    f = spec.frequencies(head_dim=HEAD, seq_len=32)
    return f.inv_freq, f.amplitude


def outcome(function, *arguments):
    """What a function returns, or the error that it raises."""
    try:
        return function(*arguments)
    except Exception as error:  # transformers raises errors of many types
        return error


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--configs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.set_verbosity(logging.CRITICAL)
    rng, apart, compared = random.Random(args.seed), 0, 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(args.configs):
            found, layer = config(rng)
            one, other = (outcome(side, dict(found), layer) for side in (ours, theirs))
            if isinstance(one, Exception) and isinstance(other, Exception):
                continue
            compared += 1
            refused = isinstance(one, Exception) or isinstance(other, Exception)
            if refused or not _same(one, other):
                apart += 1
                print(layer, found, "ours:", one, "transformers:", other, sep="\n  ")
    print(f"{compared} of {args.configs} configs are legal, {apart} apart")
    return min(apart, 1)


def _same(one, other) -> bool:
    (a, gain_a), (b, gain_b) = one, other
    return (
        a.shape == b.shape
        and np.allclose(a, b, rtol=1e-5, atol=0)
        and abs(gain_a - gain_b) < 1e-5 * abs(gain_b)
    )


if __name__ == "__main__":
    sys.exit(main())
