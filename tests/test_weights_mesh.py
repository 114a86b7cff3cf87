"""Checkpoints straight to their shards: on meshes, by two processes, in little host memory."""

import dataclasses
import json
import math
import os
import socket
import subprocess
import sys
import textwrap

import jax
import pytest
import weights_driver
from checkpoints import CONFIG, assert_same, tokenizer_json, write

import longrope_jax
from longrope_jax import llama, sharding
from longrope_jax.data import tokenizers
from longrope_jax.weights import layout

pytest.importorskip("gguf", reason="LOUD SKIP: pip install gguf to test GGUF")


def test_tensors_go_to_their_shards(tmp_path, monkeypatch):
    from longrope_jax.weights import stream

    monkeypatch.setattr(stream, "SLICE_VALUES", 400)  # many slices, cut across shards
    path, params = write(tmp_path, "gguf", dataclasses.replace(CONFIG, rotary_layout="interleaved"))
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    loaded = longrope_jax.load(path, mesh=mesh)
    assert_same(params, loaded.params)
    wq = loaded.params["layers"]["attention"]["wq"]
    assert wq.sharding.spec == sharding.partition_spec("layers", "embed", "heads", "head_dim")
    assert {shard.data.shape for shard in wq.addressable_shards} == {(2, 16, 2, 8)}


@pytest.mark.parametrize("axes", [{"fsdp": 2, "tensor": 2}, {"data": 2, "sequence": 4}])
def test_the_text_tells_the_layout_on_a_mesh_too(tmp_path, axes):
    tokenizer = tokenizers.HuggingFaceTokenizer("random", tokenizer_json())
    path, _ = write(tmp_path, "hf", tokenizer=tokenizer)
    alone, devices = longrope_jax.load(path), jax.devices()[: math.prod(axes.values())]
    on_mesh = longrope_jax.load(path, mesh=sharding.make_mesh(**axes, devices=devices))
    one, other = (layout.score(x.config, x.params, x.method, x.tokenizer) for x in (alone, on_mesh))
    tokens = len(tokenizer.encode(layout.TEXT))
    assert one == pytest.approx(other, abs=1e-5 if tokens % 8 == 0 or "tensor" in axes else 0.05)


@pytest.mark.slow
def test_two_processes_load_their_own_shards_and_say_the_same(tmp_path):
    """Each half of the heads lies on one process; the probes of the layout need both."""
    tokenizer = tokenizers.HuggingFaceTokenizer("random", tokenizer_json())
    path, _ = write(tmp_path, "hf", tokenizer=tokenizer)
    with socket.socket() as s:
        s.bind(("localhost", 0))
        address = f"localhost:{s.getsockname()[1]}"
    command = [sys.executable, weights_driver.__file__, address]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment}
    started = [subprocess.Popen([*command, str(i), str(path)], **pipes) for i in range(2)]
    found = []
    try:
        for process in started:
            out, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors.decode()[-2000:]
            found.append(json.loads(out.decode().splitlines()[-1]))
    finally:
        for process in started:
            process.kill()
    one, other = found
    assert one["equal"] and other["equal"]
    assert set(one["wq"]).isdisjoint(other["wq"]) and len(one["wq"]) == 2
    assert one["share"] == other["share"] < 0.6  # norms lie on every device
    assert one["notes"] == other["notes"]
    alone = longrope_jax.load(path)
    expected = layout.score(alone.config, alone.params, alone.method, alone.tokenizer)
    assert one["losses"] == other["losses"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_host_memory_beside_the_devices_stays_below_one_and_a_half_tensors(tmp_path):
    """8 layers, the largest tensor 24 MiB: anything that keeps tensors on the host shows."""
    config = llama.LlamaConfig(6144, 1024, 8, 8, 2, 128, 2048, tie_embeddings=True)
    script = f"""
        import ctypes, resource, sys, jax, numpy as np
        import longrope_jax
        from longrope_jax import llama, rotary, weights
        from longrope_jax.weights import names, stream
        config = llama.{config!r}
        rng = np.random.default_rng(0)
        stream.fetch = lambda c, p, leaf, *rest: rng.random(
            names.file_shape(c, leaf), np.float32).astype(rest[1])
        weights.save({str(tmp_path / "big")!r}, config, {{}}, rotary.RoPE())
        weights.save({str(tmp_path / "big.gguf")!r}, config, {{}}, rotary.RoPE(), format="gguf")
    """
    run_python(script)
    for path in (tmp_path / "big", tmp_path / "big.gguf"):
        measure = f"""
            import gc, jax
            import longrope_jax
            from longrope_jax import weights
            def status(key):
                lines = open("/proc/self/status").read().splitlines()
                return next(int(x.split()[1]) for x in lines if x.startswith(key)) * 1024
            small = longrope_jax.load({str(path)!r})     # compiles every update
            size = sum(x.nbytes for x in jax.tree.leaves(small.params))
            del small
            gc.collect()
            before = status("VmRSS")
            open("/proc/self/clear_refs", "w").write("5")   # VmHWM starts again
            loaded = longrope_jax.load({str(path)!r})
            print(status("VmHWM") - before, size)
        """
        over, size = (int(n) for n in run_python(measure).split())
        largest = 6144 * 1024 * 4
        assert size > 8 * largest
        print(path.name, (over - size) / largest)
        assert over - size < 1.5 * largest, f"{path.name}: {(over - size) / largest:.2f} tensors"


def run_python(script):
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout
