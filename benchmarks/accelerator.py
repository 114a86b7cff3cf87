"""One GPU or TPU, ten minutes: attention, a training step and decoding, beside PyTorch on that GPU.

    python -m benchmarks.accelerator --out results.json
    python -m benchmarks.accelerator --out results.json --size tiny     # on a CPU, in two minutes

It needs jax for the device, flax, optax and numpy alone; torch with CUDA and transformers are
measured where they are. Each part runs in a process of its own, so that one which runs out of
memory or time costs only its row; what is done is saved after each part, and done again only where
it failed. `check` compares the device's attention with float32 on the host.

Training: parameters, gradients and Adam's moments are float32, products bfloat16, activations are
computed again in the backward pass, on both sides. MFU counts 6 FLOPs per weight and token and the
causal half of the scores.
"""

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

# A stock machine has no jaxtyping, whose shapes only the tests check.
if importlib.util.find_spec("jaxtyping") is None:

    class _Shape:
        def __class_getitem__(cls, item):
            return Any

    _stub = types.ModuleType("jaxtyping")
    _stub.__dict__["__getattr__"] = lambda name: _Shape
    sys.modules["jaxtyping"] = _stub


@dataclasses.dataclass(frozen=True)
class Size:
    """What is measured; lengths in tokens.

    Attributes:
        model: sizes of the architecture, as `LlamaConfig` names them.
        lengths: of attention and of training steps.
        tokens: per training step and per call of attention, at least one row.
        prompt, new: of decoding.
        seconds: of repeated calls of one measurement.
        dtype: of products in training; XLA's CPU back end lacks some of bfloat16.
    """

    model: dict
    lengths: tuple[int, ...]
    tokens: int
    prompt: int
    new: int
    seconds: float
    dtype: str = "bfloat16"


def _model(V: int, D: int, L: int, N: int, K: int, H: int, F: int) -> dict:
    names = ("vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "head_dim", "d_ff")
    return dict(zip(names, (V, D, L, N, K, H, F), strict=True))


SIZES = {
    # 1.07 billion parameters.
    "1b": Size(
        _model(32_768, 2048, 16, 16, 8, 128, 8192), (2048, 8192, 32_768), 16_384, 512, 256, 3
    ),
    "tiny": Size(_model(64, 32, 2, 4, 2, 16, 64), (32, 64), 64, 16, 8, 0.1, "float32"),
}
BASE = 500_000.0


def timed(run: Callable[[], object], seconds: float) -> float:
    """Median seconds of a call that waits for the device; the first call is left out."""
    run()
    taken: list[float] = []
    while not taken or (sum(taken) < seconds and len(taken) < 50):
        begun = time.perf_counter()
        run()
        taken.append(time.perf_counter() - begun)
    return median(taken)


def attention_flops(model: dict, rows: int, length: int, backward: bool) -> float:
    """Floating-point operations of causal attention: only the half of both products that is needed.

    The backward pass has five such products where the forward pass has two, 2.5 times as many.
    """
    forward = 2.0 * rows * length**2 * model["n_heads"] * model["head_dim"]
    return forward * (3.5 if backward else 1.0)


# This package.


def _config(size: Size, **changes):
    from longrope_jax.architecture import LlamaConfig

    return LlamaConfig(**size.model, tie_embeddings=True, **changes)


def _arrays(size: Size, rows: int, length: int):
    import jax
    import jax.numpy as jnp

    m = size.model
    heads = (m["n_heads"], m["n_kv_heads"], m["n_kv_heads"])
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(rows, length, n, m["head_dim"]) for n in heads]
    return [jax.random.normal(k, s, jnp.bfloat16) for k, s in zip(keys, shapes, strict=True)]


def _mfu(flops_per_second: float) -> float | None:
    import jax

    from longrope_jax.training.flops import mfu

    return mfu(flops_per_second * jax.device_count())  # one device is measured


def check(size: Size) -> list[dict]:
    """The device's attention and its gradients against float32 einsum on the host."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from longrope_jax.attention import attend

    T = min(512, size.lengths[-1])
    start = np.repeat([0, T // 4 + 3], [T // 4 + 3, T - T // 4 - 3])[None].astype(np.int32)
    rows, cpu = [], jax.devices("cpu")[0]

    def both(backend, packed):
        def loss(q, k, v):
            out = attend(q, k, v, segment_start=start if packed else None, backend=backend)
            return jnp.sum(out.astype(jnp.float32) ** 2), out

        return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))

    for packed in (False, True):
        arrays = _arrays(size, 1, T)
        (_, found), grads = both("auto", packed)(*arrays)
        with jax.default_device(cpu):
            host = [jnp.asarray(np.asarray(x, np.float32)) for x in arrays]
            (_, wanted), exact = both("reference", packed)(*host)
        errors = [
            float(np.abs(np.asarray(a, np.float32) - np.asarray(b)).max() / np.abs(b).max())
            for a, b in zip([found, *grads], [wanted, *exact], strict=True)
        ]
        what = "packed" if packed else "causal"
        bound = 0.03  # bfloat16 has 8 bits
        rows.append({"what": what, "error": max(errors), "passed": max(errors) < bound})
    return rows


def attention_ours(size: Size) -> list[dict]:
    """`attend` alone, as the device's back end does it."""
    import jax
    import jax.numpy as jnp

    from longrope_jax.attention import attend

    rows = []
    for T in size.lengths:
        B = max(1, size.tokens // T)
        arrays = _arrays(size, B, T)
        forward = jax.jit(attend)
        both = jax.jit(
            jax.grad(lambda *x: jnp.sum(attend(*x).astype(jnp.float32)), argnums=(0, 1, 2))
        )
        for name, run, backward in (("forward", forward, False), ("forward+backward", both, True)):
            seconds = timed(lambda run=run, a=arrays: jax.block_until_ready(run(*a)), size.seconds)
            flops = attention_flops(size.model, B, T, backward)
            rows.append({"what": name, "length": T, "rows": B, "seconds": seconds, "flops": flops})
    return rows


def train_ours(size: Size) -> list[dict]:
    """A training step: forward, backward and AdamW."""
    import jax
    import numpy as np

    from longrope_jax import rotary, sharding
    from longrope_jax.training import optimizer, step
    from longrope_jax.training.flops import train_flops_per_token

    rows = []
    config = _config(size, dtype=size.dtype, remat="full")
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    adamw = optimizer.OptimizerConfig(1e-4, 1000, warmup_steps=0)
    with jax.set_mesh(mesh):
        state = step.init_state(config, adamw, mesh, seed=0)
        run = step.make_train_step(config, adamw, mesh)
        for T in size.lengths:
            B = max(1, size.tokens // T)
            rot = rotary.make(rotary.RoPE(BASE), head_dim=config.head_dim, seq_len=T)
            tokens = np.random.default_rng(0).integers(
                0, config.vocab_size, (1, B, T + 1), np.int32
            )
            starts = np.zeros((1, B, T), np.int32)
            batch = {"tokens": tokens, "weights": np.ones((1, B, T), np.float32)}
            batch = sharding.shard_batch(mesh, batch | {"segment_start": starts}, axis=1)
            held = [state]

            def once(held=held, rot=rot, batch=batch):
                held[0], metrics = run(held[0], rot, batch)
                jax.block_until_ready(metrics)

            seconds = timed(once, size.seconds)
            state = held[0]
            flops = train_flops_per_token(config, T)
            rows.append(
                {"what": "step", "length": T, "rows": B, "seconds": seconds, "tokens": B * T}
                | {"flops": flops * B * T, "mfu": _mfu(flops * B * T / seconds)}
            )
    return rows


def decode_ours(size: Size) -> list[dict]:
    """Decoding one row, tokens after the prompt."""
    import jax
    import numpy as np

    from longrope_jax import generate, llama, rotary

    config = _config(size, dtype="bfloat16", param_dtype="bfloat16")
    params = jax.jit(lambda key: llama.init_params(config, key))(jax.random.key(0))
    prompt = np.random.default_rng(0).integers(0, config.vocab_size, (1, size.prompt), np.int32)
    spec, found = rotary.RoPE(BASE), []
    for _ in range(3):  # the first compiles
        found.append(generate.generate(config, params, spec, prompt, size.new).decode_seconds)
    seconds = median(found[1:])
    return [{"what": "decode", "rows": 1, "seconds": seconds, "tokens": size.new}]


# PyTorch, on the same device.


def _torch_device():
    import torch

    return torch, "cuda" if torch.cuda.is_available() else "cpu"


def _waiting(torch, device: str, run: Callable[[], object]) -> Callable[[], object]:
    def once():
        run()
        if device == "cuda":
            torch.cuda.synchronize()

    return once


def attention_torch(size: Size) -> list[dict]:
    """PyTorch's scaled_dot_product_attention by its flash and cuDNN kernels."""
    torch, device = _torch_device()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    m, rows = size.model, []
    kernels = {"flash": SDPBackend.FLASH_ATTENTION}
    if device == "cuda":
        kernels["cudnn"] = SDPBackend.CUDNN_ATTENTION
    for T in size.lengths:
        B = max(1, size.tokens // T)
        heads = (m["n_heads"], m["n_kv_heads"], m["n_kv_heads"])
        q, k, v = (
            torch.randn(
                B, n, T, m["head_dim"], device=device, dtype=torch.bfloat16
            ).requires_grad_()
            for n in heads
        )

        def forward(q=q, k=k, v=v):
            f = torch.nn.functional.scaled_dot_product_attention
            return f(q, k, v, is_causal=True, enable_gqa=True)

        def both(forward=forward, q=q, k=k, v=v):
            torch.autograd.grad(forward().float().sum(), (q, k, v))

        for kernel, backend in kernels.items():
            for name, run, back in (("forward", forward, False), ("forward+backward", both, True)):
                row = {"what": name, "kernel": kernel, "length": T, "rows": B}
                try:
                    with sdpa_kernel(backend):
                        seconds = timed(_waiting(torch, device, run), size.seconds)
                except RuntimeError as error:
                    rows.append(row | {"error": str(error).partition("\n")[0]})
                    continue
                rows.append(row | {"seconds": seconds, "flops": attention_flops(m, B, T, back)})
    return rows


def _peer(size: Size, **options):
    import transformers

    m = size.model
    make: Any = transformers.LlamaConfig
    config = make(
        vocab_size=m["vocab_size"],
        hidden_size=m["d_model"],
        num_hidden_layers=m["n_layers"],
        num_attention_heads=m["n_heads"],
        num_key_value_heads=m["n_kv_heads"],
        head_dim=m["head_dim"],
        intermediate_size=m["d_ff"],
        max_position_embeddings=max(size.lengths),
        tie_word_embeddings=True,
        attn_implementation="sdpa",
        eos_token_id=None,
    )
    torch, device = _torch_device()
    with torch.device(device):
        model: Any = transformers.LlamaForCausalLM(config)
    return model.to(**options), torch, device


def train_torch(size: Size) -> list[dict]:
    """The same training step by transformers."""
    from longrope_jax.training.flops import train_flops_per_token

    model, torch, device = _peer(size)
    model.gradient_checkpointing_enable()
    model.train()
    adam = torch.optim.AdamW(model.parameters(), 1e-4, fused=device == "cuda")
    rows = []
    for T in size.lengths:
        B = max(1, size.tokens // T)
        tokens = torch.randint(0, size.model["vocab_size"], (B, T), device=device)

        def once(tokens=tokens):
            with torch.autocast(device, torch.bfloat16):
                loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adam.step()
            adam.zero_grad(set_to_none=True)

        row = {"what": "step", "length": T, "rows": B, "tokens": B * T}
        try:
            seconds = timed(_waiting(torch, device, once), size.seconds)
        except torch.OutOfMemoryError as error:
            rows.append(row | {"error": str(error).partition("\n")[0]})
            adam.zero_grad(set_to_none=True)
            continue
        flops = train_flops_per_token(_config(size), T) * B * T
        rows.append(row | {"seconds": seconds, "flops": flops, "mfu": _mfu(flops / seconds)})
    return rows


def decode_torch(size: Size) -> list[dict]:
    """Decoding by transformers' generate."""
    model, torch, device = _peer(size, dtype=_torch_device()[0].bfloat16)
    prompt = torch.randint(0, size.model["vocab_size"], (1, size.prompt), device=device)

    def new(count: int) -> float:
        options = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False}
        run = _waiting(torch, device, lambda: model.eval().generate(prompt, **options))
        return timed(run, size.seconds)

    seconds = new(size.new + 1) - new(1)  # without the prompt
    return [{"what": "decode", "rows": 1, "seconds": seconds, "tokens": size.new}]


PARTS = {
    "check": check,
    "attention ours": attention_ours,
    "attention torch": attention_torch,
    "train ours": train_ours,
    "train transformers": train_torch,
    "decode ours": decode_ours,
    "decode transformers": decode_torch,
}


def device() -> dict[str, Any]:
    """The device and versions, for the head of the results."""
    import jax

    found = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name):
            found[name] = importlib.metadata.version(name)
    return found


def measured(part: str, size: str, seconds: float) -> dict[str, Any]:
    """What a part gives, from a process of its own: {"rows": [...]} or {"error": "..."}."""
    command = [sys.executable, "-m", "benchmarks.accelerator", "--part", part, "--size", size]
    # PyTorch and JAX each see the whole memory, since no two parts run at a time.
    env = os.environ | {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92", "TOKENIZERS_PARALLELISM": "false"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=env)
    except subprocess.TimeoutExpired:
        return {"error": f"not done within {seconds:.0f} s"}
    lines = done.stdout.splitlines()
    if done.returncode == 0 and lines:
        return json.loads(lines[-1])
    told = [line for line in done.stderr.splitlines() if line.strip()]
    return {"error": told[-1][:300] if told else f"exit status {done.returncode}"}


def table(results: dict[str, Any]) -> str:
    """The results as lines of text, a row of a part each."""
    lines = [f"{results['size']}: " + ", ".join(f"{k} {v}" for k, v in results["on"].items())]
    for part, found in results["parts"].items():
        for row in found.get("rows", [{"what": "", **found}]):
            text = f"{part:20} {row.get('kernel', ''):6} {row['what']:17} "
            text += f"{row.get('length', ''):>6} x {row.get('rows', ''):<3} "
            if "seconds" in row:
                text += f"{row['seconds'] * 1e3:10.2f} ms"
            if row.get("flops"):
                text += f" {row['flops'] / row['seconds'] / 1e12:8.2f} TFLOP/s"
            if "tokens" in row and "seconds" in row:
                text += f" {row['tokens'] / row['seconds']:10,.0f} tokens/s"
            if row.get("mfu"):
                text += f"  MFU {row['mfu']:.0%}"
            if "passed" in row:
                text += f" {'passed' if row['passed'] else 'FAILED'}, {row['error']:.2g} off"
            elif "error" in row:
                text += f" {row['error']}"
            lines.append(text.rstrip())
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Measures what is missing from --out; 1 if a check failed or nothing could be measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", default="accelerator.json", help="results, saved after each part")
    parser.add_argument("--size", default="1b", choices=SIZES)
    parser.add_argument("--minutes", type=float, default=10.0, help="no part begins after them")
    parser.add_argument("--part", choices=[*PARTS, "device"], help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.part:
        print(
            json.dumps(
                device() if args.part == "device" else {"rows": PARTS[args.part](SIZES[args.size])}
            )
        )
        return 0
    out, end = Path(args.out), time.monotonic() + 60 * args.minutes
    results = json.loads(out.read_text()) if out.is_file() else {"size": args.size, "parts": {}}
    if results["size"] != args.size:
        parser.error(f"--out={out} holds --size={results['size']}: give another file")
    results["on"] = measured("device", args.size, 120)
    for part in PARTS:
        needs = {"torch": ["torch"], "transformers": ["torch", "transformers"]}
        if not all(map(importlib.util.find_spec, needs.get(part.split()[-1], []))):
            continue
        if "rows" in results["parts"].get(part, {}):
            continue
        left = end - time.monotonic()
        print(f"{part} ...", flush=True)
        results["parts"][part] = (
            measured(part, args.size, left) if left > 5 else {"error": "no time was left"}
        )
        temporary = out.with_name(f".{out.name}.tmp")
        temporary.write_text(json.dumps(results, indent=1) + "\n")
        os.replace(temporary, out)
    print(table(results))
    rows = [row for found in results["parts"].values() for row in found.get("rows", [])]
    return int(not rows or not all(row.get("passed", True) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
