"""The works as longrope_jax does them."""

import dataclasses
import os
import time
from functools import partial
from pathlib import Path
from statistics import median

import jax
import numpy as np
import optax

import longrope_jax
from benchmarks.work import SPEC, Sizes
from configs import base_frequency_ablation
from longrope_jax import generate, llama, rotary, sharding, weights
from longrope_jax.data import suites as suites_data
from longrope_jax.evaluation import requests as requests_lib
from longrope_jax.evaluation import suites
from longrope_jax.evaluation.requests import Request
from longrope_jax.model import open_model
from longrope_jax.training import optimizer, step

NAME = "longrope_jax"
VOCAB = 2048  # pieces of the tokenizer that the ablation trains


def export(sizes: Sizes, folder: Path) -> None:
    """Writes the random weights that all contenders read: of the model and of the ablation's."""
    for name, config in (("model", sizes.model), ("ablation", ablation_model(sizes))):
        weights.save(folder / name, config, draw(config), SPEC, context_length=sizes.long)


def draw(config: llama.LlamaConfig) -> dict:
    """Random parameters; numpy draws them, with nothing to compile."""
    rng = np.random.default_rng(0)

    def one(path, x):
        if path[-1].key == "scale":
            return np.ones(x.shape, np.float32)
        return rng.standard_normal(x.shape, np.float32) * np.float32(config.d_model**-0.5)

    return jax.tree_util.tree_map_with_path(one, shapes(config))


def shapes(config: llama.LlamaConfig) -> dict:
    """Parameters as ShapeDtypeStructs."""
    return jax.eval_shape(partial(llama.init_params, config), jax.random.key(0))


def tokens(config: llama.LlamaConfig, rows: int, count: int) -> np.ndarray:
    """Random int32 [rows, count], the same for every contender."""
    return np.random.default_rng(0).integers(0, config.vocab_size, (rows, count), np.int32)


def logits(sizes: Sizes, folder: Path) -> np.ndarray:
    """[T, V] of a few tokens."""
    loaded = longrope_jax.load(folder / "model")
    row = tokens(loaded.config, 1, sizes.prompt)[:, :64]
    f = jax.jit(llama.logits, static_argnums=0)
    return np.asarray(f(loaded.config, loaded.params, row, _rotary(loaded.config, 64)))[0]


def prefill(sizes: Sizes, folder: Path):
    """`generate` up to the first new token: the cache in chunks, and one step."""
    loaded = longrope_jax.load(folder / "model")
    prompt = tokens(loaded.config, 1, sizes.prefill)

    def once():
        done = generate.generate(loaded.config, loaded.params, SPEC, prompt, 1)
        return done.prefill_seconds + done.decode_seconds, done.tokens[0], sizes.prefill

    return once


def forward(sizes: Sizes, folder: Path):
    """The model over the whole prompt at once, no cache, and the next token."""
    loaded = longrope_jax.load(folder / "model")
    config, prompt = loaded.config, tokens(loaded.config, 1, sizes.prefill)

    @jax.jit
    def next_token(params, prompt, rot):
        hidden, _ = llama.Llama(config).apply({"params": params}, prompt, rotary=rot)
        return llama.unembed(config, params, hidden[:, -1]).argmax(-1)

    args = loaded.params, prompt, _rotary(config, sizes.prefill)
    run = next_token.lower(*args).compile()

    def once():
        seconds, token = timed(run, *args)
        return seconds, np.asarray(token), sizes.prefill

    return once


def decode(sizes: Sizes, folder: Path):
    """The decoding phase of `generate`."""
    loaded = longrope_jax.load(folder / "model")
    prompt = tokens(loaded.config, 1, sizes.prompt)

    def once():
        done = generate.generate(loaded.config, loaded.params, SPEC, prompt, sizes.new)
        return done.decode_seconds, done.tokens[0][:8], sizes.new

    return once


def requests(sizes: Sizes) -> list[Request]:
    """What is asked: four choices of each of HellaSwag's first items, as ids of SmolLM2."""
    if not sizes.items:
        rng = np.random.default_rng(0)
        parts = [[rng.integers(0, 64, n, np.int32) for n in (9, 3, 5)] for _ in range(4)]
        return [Request(context, one) for context, *choices in parts for one in choices]
    suite = suites_data.load("hellaswag", limit=sizes.items)
    header = open_model("smollm2-135m")
    return requests_lib.encode(
        lambda text: header.encode(text, bos=False),
        suites.pairs(suite),
        first=header.beginning(),
        alone=0,
    )


def choices(sizes: Sizes, folder: Path):
    """Log-likelihoods of all requests; tokens are those of contexts with their continuations."""
    loaded, asked = longrope_jax.load(folder / "model"), requests(sizes)

    def once():
        began = time.perf_counter()
        found = requests_lib.score(loaded.config, loaded.params, SPEC, asked)
        seconds = time.perf_counter() - began
        return seconds, found.log_likelihood, sum(len(c) + len(x) for c, x in asked)

    return once


def gradient(sizes: Sizes, folder: Path, *, length: str = "train", remat: str = "none"):
    """Loss and gradient of one row; values are the loss and the gradient's norm."""
    loaded = longrope_jax.load(folder / "model")
    config, T = dataclasses.replace(loaded.config, remat=remat), getattr(sizes, length)
    run = jax.jit(jax.value_and_grad(mean_loss(config)))
    args = loaded.params, _rotary(config, T), batch(tokens(config, 1, T + 1))
    run = run.lower(*args).compile()
    norm = jax.jit(optax.tree.norm)

    def once():
        seconds, (loss, grads) = timed(run, *args)
        return seconds, np.asarray([loss, norm(grads)]), T

    return once


def mean_loss(config: llama.LlamaConfig):
    """Function (params, rotary, batch) to the loss in nats per token."""

    def loss(params, rot, batch):
        return step.weighted_nll(config, params, rot, batch) / batch["weights"].sum()

    return loss


def point(sizes: Sizes, *, length: int, run: bool, backward: bool, **changes) -> dict:
    """Compiled memory of the loss or its gradient; its seconds if it is to run and fits."""
    config = dataclasses.replace(sizes.model, **changes)
    f, args = mean_loss(config), (_rotary(config, length), batch(tokens(config, 1, length + 1)))
    f = jax.jit(jax.value_and_grad(f) if backward else f)
    compiled = f.lower(shapes(config), *args).compile()
    found = {"temporary_bytes": compiled.memory_analysis().temp_size_in_bytes}
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if run and found["temporary_bytes"] < 0.75 * memory:
        params = jax.device_put(draw(config))
        seconds = [timed(compiled, params, *args)[0]]
        while sum(seconds) < 5 and len(seconds) < 4:
            seconds.append(timed(compiled, params, *args)[0])
        # The first has touched the memory for the others.
        found["seconds"] = median(seconds[1:] or seconds)
    return found


def train_step(sizes: Sizes, remat: str):
    """Compiled step of one row, its state, and its other arguments; the state is donated."""
    config = dataclasses.replace(sizes.model, remat=remat)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    adam = optimizer.OptimizerConfig(learning_rate=1e-4, total_steps=100, warmup_steps=0)
    state = step.init_state(config, adam, mesh, params=draw(config))
    rows = batch(tokens(config, 1, sizes.train + 1))
    micro = sharding.shard_batch(mesh, {k: x[None] for k, x in rows.items()}, axis=1)
    rest = _rotary(config, sizes.train), micro, None
    with jax.set_mesh(mesh):
        run = step.make_train_step(config, adam, mesh).jitted.lower(state, *rest).compile()
    return run, state, rest


def batch(rows: np.ndarray) -> dict[str, np.ndarray]:
    """What training takes, of rows [B, T + 1] that are one document each."""
    B, T = rows.shape[0], rows.shape[1] - 1
    starts = np.zeros((B, T), np.int32)
    return {"tokens": rows, "weights": np.ones((B, T), np.float32), "segment_start": starts}


def ablation(sizes: Sizes, folder: Path, *, phase: str):
    """Steps of the ablation's training: forward, backward, AdamW; the last loss is the value."""
    settings = ablation_phase(sizes, phase)
    loaded, mesh = longrope_jax.load(folder / "ablation"), sharding.make_mesh(data=-1)
    adam = optimizer.OptimizerConfig(**settings.adam)
    train = step.make_train_step(loaded.config, adam, mesh)
    rot = _rotary(loaded.config, settings.length)
    rows = tokens(loaded.config, settings.batch, settings.length + 1)
    state = step.init_state(loaded.config, adam, mesh, params=loaded.params)

    def once():
        nonlocal state
        began = time.perf_counter()
        for _ in range(sizes.ablation_steps):
            micro = {name: x[None] for name, x in batch(rows).items()}
            micro = sharding.shard_batch(mesh, micro, axis=1)
            state, metrics = train(state, rot, micro)
        loss = float(metrics["loss"])
        seconds = time.perf_counter() - began
        return seconds, np.asarray([loss]), sizes.ablation_steps * rows[:, 1:].size

    return once


@dataclasses.dataclass(frozen=True)
class Phase:
    """A phase of the ablation: rows, tokens per row, AdamW at a constant rate."""

    batch: int
    length: int
    adam: dict


def ablation_phase(sizes: Sizes, phase: str) -> Phase:
    """ "pretraining" or "continuation" of the preset."""
    config = base_frequency_ablation.get_config(sizes.ablation)
    settings = config[phase]
    length = config.length * (1 if phase == "pretraining" else config.factor)
    adam = {"learning_rate": settings.learning_rate, "weight_decay": settings.weight_decay}
    adam |= {"total_steps": settings.steps, "warmup_steps": 0, "final_ratio": 1.0}
    return Phase(settings.batch, length, adam)


def ablation_model(sizes: Sizes) -> llama.LlamaConfig:
    """The preset's model, with its tokenizer's vocabulary."""
    config = base_frequency_ablation.get_config(sizes.ablation)
    fields = {name: value for name, value in config.model.items() if name != "preset"}
    return llama.LlamaConfig(vocab_size=VOCAB, **fields)


def timed(f, *args):
    """Seconds of f(*args) until its results exist, and the results."""
    began = time.perf_counter()
    out = jax.block_until_ready(f(*args))
    return time.perf_counter() - began, out


def use_threads(count: int) -> int:
    """XLA has as many as the process has cores."""
    return count


def _rotary(config: llama.LlamaConfig, length: int) -> rotary.Rotary:
    return rotary.make(SPEC, head_dim=config.head_dim, seq_len=length)
