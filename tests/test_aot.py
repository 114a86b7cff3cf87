"""`longrope fits`: the reader of compiled programs, the sums, and tiny programs for real slices."""

import argparse
import dataclasses
import gzip
import importlib.util
import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from checkpoints import CONFIG, write
from hypothesis import given
from hypothesis import strategies as st

from longrope_jax import llama, rotary
from longrope_jax.aot import chips, command, compilation, costs, hlo, memory, roofline
from longrope_jax.aot.collectives import collectives
from longrope_jax.aot.workload import PROGRAMS, Workload, default_mesh
from longrope_jax.sharding import AXES
from longrope_jax.training.loss import token_scores

ROOT = Path(__file__).parents[1]
GIB = 2**30

# The forms that TPU programs have, shortened: a loop of 32 turns in one of 8, a fusion.
TEXT = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%all-reduce-scatter.1 (input: bf16[64,16]) -> bf16[16,16] {
  %input = bf16[64,16]{1,0:T(8,128)(2,1)} parameter(0)
  %reduced = bf16[64,16]{1,0:T(8,128)(2,1)} all-reduce(%input), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %zero = s32[]{:T(128)} constant(0)
  ROOT %mine = bf16[16,16]{1,0} dynamic-slice(%reduced, %zero, %zero), dynamic_slice_sizes={16,16}
}

%body.2 (p.2: (s32[], bf16[64,16])) -> (s32[], bf16[64,16]) {
  %p.2 = (s32[]{:T(128)}, bf16[64,16]{1,0:T(8,128)(2,1)}) parameter(0)
  %x.2 = bf16[64,16]{1,0:T(8,128)(2,1)} get-tuple-element(%p.2), index=1
  %gathered = bf16[64,16]{1,0:T(8,128)(2,1)} all-gather(%x.2), replica_groups=mesh['data'=2,'tensor'=4] {'data'}, dimensions={0}
  %scattered = bf16[16,16]{1,0} fusion(%gathered), kind=kCustom, calls=%all-reduce-scatter.1
  %passed = (bf16[64,16]{1,0}, bf16[64,16]{1,0}, u32[]{:S(2)}) collective-permute-start(%x.2), source_target_pairs={{0,1},{1,2},{2,3},{3,0},{4,5},{5,6},{6,7},{7,4}}
  %arrived = bf16[64,16]{1,0} collective-permute-done(%passed)
  ROOT %out.2 = (s32[], bf16[64,16]) tuple(%i.2, %arrived)
}

%condition.2 (c.2: (s32[], bf16[64,16])) -> pred[] {
  %c.2 = (s32[], bf16[64,16]) parameter(0)
  %bound.2 = s32[]{:T(128)} constant(32), metadata={op_name="jit(step)/while"}
  %i.c2 = s32[] get-tuple-element(%c.2), index=0
  ROOT %less.2 = pred[]{:T(512)} compare(%i.c2, %bound.2), direction=LT
}

%body.1 (p.1: (s32[], bf16[64,16])) -> (s32[], bf16[64,16]) {
  %p.1 = (s32[], bf16[64,16]) parameter(0)
  ROOT %inner = (s32[], bf16[64,16]{1,0:T(8,128)(2,1)}) while(%p.1), condition=%condition.2, body=%body.2
}

%condition.1 (c.1: (s32[], bf16[64,16])) -> pred[] {
  %c.1 = (s32[], bf16[64,16]) parameter(0)
  %i.c1 = s32[] get-tuple-element(%c.1), index=0
  %end.c1 = s32[] get-tuple-element(%c.1), index=0
  ROOT %less.1 = pred[]{:T(512)} compare(%i.c1, %end.c1), direction=LT
}

ENTRY %main (arg: (s32[], bf16[64,16])) -> (s32[], bf16[64,16]) {
  %arg = (s32[], bf16[64,16]) parameter(0)
  %everyone = f32[128]{0} all-reduce(%arg), replica_groups=[1,8]<=[8], to_apply=%add
  ROOT %outer = (s32[], bf16[64,16]) while(%arg), condition=%condition.1, body=%body.1
}
"""  # noqa: E501
MESH = {"data": 2, "fsdp": 1, "sequence": 1, "tensor": 4}


def test_collectives_count_by_axis_as_often_as_the_loops_around_them_run():
    found = {(c.kind, c.axes): c for c in collectives(hlo.parse(TEXT, turns=[8]), MESH)}
    whole, runs = 64 * 16 * 2, 8 * 32
    gather = found["all-gather", ("data",)]
    assert (gather.count, gather.bytes, gather.sent) == (runs, runs * whole, runs * whole / 2)
    scatter = found["reduce-scatter", ("tensor",)]
    assert (scatter.count, scatter.bytes) == (runs, runs * whole)
    assert scatter.sent == runs * whole * 3 / 4
    ring = found["collective-permute", ("tensor",)]
    assert (ring.asynchronous, ring.asynchronous_bytes) == (runs, runs * whole)
    everyone = found["all-reduce", ("data", "tensor")]
    assert (everyone.count, everyone.sent) == (1, 128 * 4 * 2 * 7 / 8)
    assert len(found) == 4


def test_a_collective_that_is_written_at_its_start_and_at_its_end_counts_once():
    part = """
%%%s (p: bf16[16,16]) -> bf16[64,16] {
  %%p = bf16[16,16]{1,0} parameter(0)
  %%g = bf16[64,16]{1,0} all-gather(%%p), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}, \
frontend_attributes={chain_id="0"}
  ROOT %%c = bf16[64,16]{1,0} custom-call(%%g), custom_call_target="%s"
}
"""
    names = {"start": "AsyncCollectiveStart", "beside": "Other", "done": "AsyncCollectiveDone"}
    lines = [f"  %{n} = bf16[64,16]{{1,0}} fusion(%a), kind=kCustom, calls=%{n}.1" for n in names]
    text = "".join(part % (f"{n}.1", target) for n, target in names.items())
    text += "ENTRY %main (a: bf16[16,16]) -> bf16[64,16] {\n" + "\n".join(lines) + "\n}\n"
    (gather,) = collectives(hlo.parse(text), MESH)
    assert (gather.count, gather.asynchronous, gather.bytes) == (1, 1, 64 * 16 * 2)


def test_a_loop_that_depends_on_data_needs_its_turns_from_the_caller():
    with pytest.raises(ValueError, match=r"loop outer: .* depends on data"):
        hlo.parse(TEXT)
    assert hlo.parse(TEXT, turns=[8]).depends_on_data == ("outer",)
    with pytest.raises(ValueError, match="not the text of a compiled program"):
        hlo.parse("module @jit_step {}")


@pytest.mark.parametrize(
    ("result", "left", "right", "attributes", "expected"),
    [
        # As TPU programs write them: D x F; heads as a window; batched heads; two axes summed.
        ((512, 160), (512, 64), (64, 160), "dim_labels=bf_io->bf", 512 * 160 * 64),
        ((512, 160), (64, 512), (160, 64), "dim_labels=fb_oi->bf", 512 * 160 * 64),
        (
            (512, 4, 16),
            (512, 64, 1),
            (64, 4, 16),
            "window={size=4 pad=3_3 rhs_reversal=1}, dim_labels=bf0_i0o->b0f",
            512 * 64 * 4 * 16,
        ),
        (
            (4, 256, 128),
            (4, 256, 16),
            (4, 128, 16),
            "window={size=4 stride=3 lhs_dilate=4}, dim_labels=0bf_0oi->0bf",
            4 * 256 * 128 * 16,
        ),
        (
            (512, 64, 1),
            (512, 4, 16),
            (4, 16, 64),
            "window={size=4}, dim_labels=b0f_0io->bf0",
            512 * 64 * 4 * 16,
        ),
    ],
)
def test_matrix_products_written_as_convolutions(result, left, right, attributes, expected):
    shape = "bf16[{}]{{0}}".format
    lines = [
        f"  %l = {shape(','.join(map(str, left)))} parameter(0)",
        f"  %r = {shape(','.join(map(str, right)))} parameter(1)",
        f"  ROOT %o = {shape(','.join(map(str, result)))} convolution(%l, %r), {attributes}",
    ]
    program = hlo.parse("ENTRY %main (l: bf16[]) -> bf16[] {\n" + "\n".join(lines) + "\n}\n")
    assert costs.matmul_flops(program) == 2 * expected


def test_traffic_counts_slices_by_their_part_and_nothing_on_the_chip():
    text = """
%fused (param_0: f32[32,1024], param_1: f32[1024]) -> f32[32,1024] {
  %param_0 = f32[32,1024]{1,0} parameter(0)
  %param_1 = f32[1024]{0} parameter(1)
  %one = f32[1,1024]{1,0} bitcast(%param_1)
  %zero = s32[] constant(0)
  ROOT %put = f32[32,1024]{1,0} dynamic-update-slice(%param_0, %one, %zero, %zero)
}

ENTRY %main (a: f32[32,1024], b: f32[1024]) -> f32[32,1024] {
  %a = f32[32,1024]{1,0} parameter(0)
  %b = f32[1024]{0} parameter(1)
  %near = f32[1024]{0:T(1024)S(1)} negate(%b)
  ROOT %fusion = f32[32,1024]{1,0} fusion(%a, %near), kind=kLoop, calls=%fused
}
"""
    row = 1024 * 4
    assert costs.hbm_bytes(hlo.parse(text)) == row + row  # b is read, one row is written


def test_kernels_count_by_row_and_a_fused_backward_by_itself():
    whole = "f32[512,128]{1,0}, f32[2048,128]{1,0}"
    lines = {
        "splash_mha_fwd_segmented_residuals.3": f"({whole}, bf16[2,4,512,128]{{3,2,1,0}})",
        "splash_mha_dkv_segmented_no_residuals": f"({whole}, bf16[4,512,128]{{2,1,0}})",
        "splash_mha_dkv_segmented_no_residuals.7": (
            f"({whole}, bf16[3,2,4,512,128]{{4,3,2,1,0}}, bf16[3,4,512,128]{{3,2,1,0}})"
        ),
    }
    body = "".join(f"  %{n} = {s} custom-call(%a)\n" for n, s in lines.items())
    program = hlo.parse("ENTRY %main (a: bf16[]) -> bf16[] {\n" + body + "}\n")
    calls = {"splash_mha_fwd": 2.0, "splash_mha_dq": 0.0, "splash_mha_dkv": 1.0}
    assert costs.kernel_calls(program) == calls | {"splash_mha_dkv_fused": 3.0}
    products = 2 * 2 + 1 * 4 + 3 * 5
    assert costs.splash_flops(costs.kernel_calls(program), 10.0, 4, 128) == products * 2 * 10 * 512


def test_squares_of_a_ring_are_the_pairs_of_one_device_but_for_half_blocks_on_the_diagonal():
    length, parts = 65_536, 4
    mesh = (("sequence", parts),)
    gathered, ring = (
        Workload("train", "llama2_7b", length, "v5p:2x2x1", mesh, context=context)
        for context in ("all_gather", "ring")
    )
    squares = 2 + 1 + 2 * (parts - 1)  # on the diagonal, of the device itself, and in later steps
    assert roofline.pairs(ring) * squares == roofline.pairs(gathered)


def forbidden(text, lengths, vocab):
    """Sizes of arrays with two axes of a sequence's length, or of one and the vocabulary."""
    shapes = {
        tuple(map(int, sizes.split(",")))
        for sizes in re.findall(r"\b(?:pred|bf16|[suf]\d+)\[([\d,]+)\]", text)
    }
    long = {sizes: [n for n in sizes if n in lengths] for sizes in shapes}
    return sorted(s for s, n in long.items() if len(n) > 1 or (n and vocab in s))


def test_forbidden_shapes_are_seen_in_a_program_that_has_them():
    T, V = 96, 56
    config = llama.LlamaConfig(V, 32, 2, 4, 2, 16, 80)
    params = jax.eval_shape(partial(llama.init_params, config), jax.random.key(0))
    rot = rotary.make(rotary.RoPE(), head_dim=16, seq_len=T)
    tokens = jax.ShapeDtypeStruct((1, T), jnp.int32)

    def text(backend, whole):
        c = dataclasses.replace(config, attention=backend)

        def run(params, tokens):
            if whole:
                return llama.logits(c, params, tokens, rot)
            hidden, _ = llama.Llama(c).apply({"params": params}, tokens, rotary=rot)
            return token_scores(c, params, hidden, tokens, chunk=24).nll

        return jax.jit(run).lower(params, tokens).compile().as_text()

    with_scores = forbidden(text("reference", whole=False), {T}, V)
    assert with_scores and all(sizes.count(T) > 1 for sizes in with_scores)
    with_logits = forbidden(text("blockwise", whole=True), {T}, V)
    assert any({T, V} <= set(sizes) for sizes in with_logits)


@pytest.mark.parametrize(
    ("model", "per_token", "gib"),
    [  # reference: 2 L K H 2 bytes, published as 3, 12 and 100 GB for 13B at 4k, 16k and 128k
        ("llama2_7b", 524_288, {4096: 2.0, 131_072: 64.0}),
        ("llama2_13b", 819_200, {4096: 3.125, 16_384: 12.5, 131_072: 100.0}),
        ("llama2_34b", 196_608, {16_384: 3.0}),
        ("llama2_70b", 327_680, {16_384: 5.0, 131_072: 40.0}),
    ],
)
def test_kv_cache_sizes(model, per_token, gib):
    config = llama.preset(model)
    assert roofline.kv_cache_bytes(config, 1) == per_token
    for length, expected in gib.items():
        assert roofline.kv_cache_bytes(config, length) == expected * GIB
    cache = jax.eval_shape(lambda: llama.init_cache(config, 1, 4096, dtype="bfloat16"))
    held = sum(x.size * x.dtype.itemsize for x in (cache.k, cache.v))
    assert held == roofline.kv_cache_bytes(config, 4096)


def test_model_flops_of_decoding_every_token_are_those_of_the_prefill_and_the_logits():
    length = 64
    prefill = Workload("prefill", "llama2_7b", length, "v5e:2x2", (("tensor", 4),))
    config, decoded = prefill.config(), 0.0
    for n in range(1, length + 1):
        work = dataclasses.replace(prefill, program="decode", length=n)
        decoded += roofline.model_flops(work, 0)
    head = 2.0 * config.d_model * config.vocab_size * length
    # A causal forward is counted as T / 2 keys per query, decoding as (T + 1) / 2.
    diagonal = 2.0 * config.n_layers * config.n_heads * config.head_dim * length
    assert decoded == pytest.approx(roofline.model_flops(prefill, 0) + head + diagonal, rel=1e-12)


SMALL = Workload("train", "llama2_7b", 32_768, "v5p:2x2x1", (("fsdp", 4),))


def test_training_flops_of_one_step_of_7b():
    work = SMALL
    matrices = 6_738_415_616 - 32_000 * 4096 - 65 * 4096  # without the lookup and the norms
    attention = 6 * 32 * 4096 * 32_768  # 12 L D T, halved: causal
    expected = 2.0**22 * (6 * matrices + attention)
    assert roofline.model_flops(work, 2**22) == pytest.approx(expected, rel=1e-12)


def test_links_are_two_where_the_slice_closes_to_a_ring():
    line = [[x, 0, 0] for x in range(4)]
    assert chips.links("v5p:4x4x4", line) == 2
    assert chips.links("v5e:4x4", line) == 1
    assert chips.links("v5p:2x2x1", [[x, y, 0] for x in range(2) for y in range(2)]) == 2
    cube = [[x, y, z] for x in range(4) for y in range(4) for z in range(4)]
    assert chips.links("v5p:4x4x4", cube) == 6
    assert chips.links("v5p:4x4x4", line[:2]) == 1
    with pytest.raises(ValueError, match=r"v6x.*v5"):
        chips.chip("v6x:2x2")


def test_every_bound_limits_the_step():
    work = SMALL
    gather = {"axes": ["fsdp"], "seconds": 3.0, "bytes": 4.0, "asynchronous_bytes": 1.0}
    measured = {"matmul_flops": 459e12, "kernel_flops": 459e12, "model_flops": 459e12}
    measured |= {"hbm_bytes": 2765e9, "collectives": [gather]}
    times = roofline.roofline(work, measured)
    assert (times["compute"], times["hbm"], times["ici"]) == (2.0, 1.0, {"fsdp": 3.0})
    assert times["bound"] == 3.0
    assert times["as_compiled"] == 2.0 + 3.0 * 3 / 4
    assert times["mfu_bound"] == pytest.approx(1 / 3)
    assert times["computed_per_model_flop"] == 2.0


@given(
    st.sampled_from(PROGRAMS),
    st.sampled_from(sorted(llama.PRESETS)),
    st.lists(st.sampled_from([1, 2, 4]), min_size=3, max_size=3),
    st.permutations(AXES),
    st.sampled_from(["full", "linear"]),
)
def test_the_process_compiles_the_workload_that_was_meant(program, model, sizes, axes, remat):
    mesh = tuple(zip(axes, sizes, strict=False))
    topology = "v5p:" + "x".join(map(str, sizes))
    work = Workload(program, model, 8192, topology, mesh, remat=remat)
    assert compilation.read_workload(json.dumps(dataclasses.asdict(work))) == work
    assert work.batch == work.axis("data") * work.axis("fsdp")
    assert work.chips == sizes[0] * sizes[1] * sizes[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"program": "tran"}, "'train'"),
        ({"model": "llama2_8b"}, "llama2_7b"),
        ({"mesh": (("fspd", 4),)}, "fsdp"),
        ({"mesh": (("fsdp", 8),)}, "fsdp=8 .* 4 chips"),
        ({"topology": "v5p"}, "chip:AxB.*'v5p'"),
        ({"remat": "ful"}, "full"),
        ({"length": 0}, "length .* 0"),
    ],
)
def test_a_wrong_workload_is_refused_in_one_line(change, message):
    with pytest.raises(ValueError, match=message) as error:
        dataclasses.replace(SMALL, **change)
    assert "\n" not in str(error.value)


def test_a_batch_that_is_not_a_whole_number_of_microbatches_is_refused():
    assert SMALL.accumulated(2**22) == 32
    with pytest.raises(ValueError, match="4 sequences of 32,768 tokens, got 8,192"):
        SMALL.accumulated(2**13)


def arguments(*words):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(words)


def test_the_command_asks_for_all_programs_of_one_model_on_one_slice():
    works = command.workloads(arguments("llama2_7b", "--length=32768", "--topology=v5p:4x4x4"))
    assert [str(work) for work in works] == [
        "train llama2_7b 32768 v5p:4x4x4 fsdp=64",
        "prefill llama2_7b 32768 v5p:4x4x4 data=8 tensor=8",
        "decode llama2_7b 32768 v5p:4x4x4 data=8 tensor=8",
    ]
    where = ("llama2_7b", "--length=4096", "--topology=v5e:2x4")
    (work,) = command.workloads(
        arguments(*where, "--programs", "train", "--mesh=fsdp=2,tensor=4", "--remat=linear")
    )
    assert str(work) == "train llama2_7b 4096 v5e:2x4 fsdp=2 tensor=4 remat=linear"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("llama2_7", "--topology=v5p:4x4x4"), "llama2_7b"),
        (("llama2_7b", "--topology=v9:4x4"), "v5p"),
        (("llama2_7b", "--topology=v5e:2x2", "--mesh=fsdp4"), "axis=size.*fsdp4"),
        (("llama2_7b", "--topology=v5e:2x2", "--tokens-per-batch=1000"), "got 1,000"),
    ],
)
def test_the_command_refuses_before_it_compiles(words, message):
    with pytest.raises(ValueError, match=message):
        command.workloads(arguments(*words, "--length=4096"))


def test_a_checkpoint_is_asked_for_its_shape(tmp_path):
    path, _ = write(tmp_path, "hf")
    work = Workload("decode", str(path), 128, "v5e:2x2", (("data", 4),))
    assert work.config() == dataclasses.replace(
        CONFIG, dtype="bfloat16", param_dtype="bfloat16", rotary_layout=work.config().rotary_layout
    )
    assert "/" not in work.slug


def test_a_mesh_is_found_for_whoever_names_none():
    config = llama.preset("llama2_7b")
    assert default_mesh("train", config, 131_072, "v5p:4x4x4", 2**22) == (
        ("fsdp", 32),
        ("sequence", 2),
    )
    odd = llama.preset("smollm2_135m")  # three key heads
    assert default_mesh("decode", odd, 1024, "v5e:2x2", 0) == (("data", 4),)


def test_what_a_refusal_says_is_read():
    text = "RESOURCE_EXHAUSTED: ... required for HLO temporaries (104.39G) exceeds available HBM"
    assert memory.needed(text) == 104.39
    assert memory.needed("Ran out of memory. Used 18.60G of 15.75G hbm. Exceeded") == 18.6


def test_the_answer_says_what_fits_and_what_does_not():
    gather = {"kind": "all-gather", "axes": ["fsdp"], "count": 32.0, "bytes": 2e9}
    gather |= {"asynchronous": 0.0, "asynchronous_bytes": 0.0, "seconds": 0.25}
    measured = {"matmul_flops": 459e12, "kernel_flops": 0.0, "model_flops": 229.5e12}
    measured |= {"hbm_bytes": 1e9, "collectives": [gather]}
    fits = {"memory": {"peak": 50 * GIB}, "measured": measured}
    common = {"tokens": 2**22, "versions": {"libtpu": "1"}}
    train = common | fits
    refused = common | {"refused": "exceeds: HLO temporaries (99.50G)"}
    decode = dataclasses.replace(SMALL, program="decode")
    text = command.report([(SMALL, train), (decode, refused)])
    lines = {line.split("  ")[0]: line.split()[-2:] for line in text.splitlines()}
    assert lines["peak memory, GiB"] == ["50", "99.5"]
    assert lines["verdict"][-1] == "fit"
    assert lines["seconds at least"] == ["1.25", "-"]
    assert lines["MFU at most"] == ["0.4", "-"]
    assert "all-gather" in text and "fsdp=4" in text


# What follows asks the compiler; tests/aot_driver.py has the sizes of the model.
T, V, L = 1536, 2176, 3
LONG = 64 * T  # a cache that does not fit on the chip
REAL = {
    "products": ("train", T, "v5p:2x2x1", {"fsdp": 2, "tensor": 2}),
    "gathered": ("train", T, "v5e:2x2", {"sequence": 2, "tensor": 2}),
    "ring": ("train", T, "v5e:2x2", {"fsdp": 2, "sequence": 2}, "full", "ring"),
    "prefill": ("prefill", LONG, "v5e:2x2", {"data": 4}),
    "decode": ("decode", LONG, "v5e:2x2", {"data": 4}),
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """What the compiler said of each workload of REAL, all compiled in one process."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("NOTHING WAS COMPILED FOR TPUS: install the extra [aot] to test that")
    folder = tmp_path_factory.mktemp("tpu")
    line = [sys.executable, "-m", "tests.aot_driver", str(folder), json.dumps(REAL)]
    environment = os.environ | compilation.ENVIRONMENT
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {}
    for path in folder.glob("*/*.json"):
        program = gzip.decompress(path.with_suffix(".hlo.gz").read_bytes()).decode()
        found[path.parent.name] = json.loads(path.read_text()) | {"text": program}
    return found


def kinds(result):
    return {(c["kind"], tuple(c["axes"])) for c in result["measured"]["collectives"]}


@pytest.mark.slow
def test_nothing_of_length_times_length_or_vocabulary_is_in_a_tpu_program(compiled):
    lengths = {T, T // 2, LONG}  # of a sequence, and a device's share of it
    found = {name: forbidden(r["text"], lengths, V) for name, r in compiled.items()}
    assert found == {name: [] for name in REAL}


@pytest.mark.slow
def test_splash_computes_attention_in_training(compiled):
    for name, rows in (("products", 8), ("gathered", 16)):  # microbatches per step
        forward = {"splash_mha_fwd": 2.0 * L * rows}  # once more in the backward: full remat
        backward = {"splash_mha_dq": 1.0 * L * rows, "splash_mha_dkv": 1.0 * L * rows}
        backward["splash_mha_dkv_fused"] = 0.0
        assert compiled[name]["measured"]["kernels"] == forward | backward
    squares = 5 * L * 8  # of half chunks, see `roofline.pairs`; a fused backward
    ring = {"splash_mha_fwd": 2.0 * squares, "splash_mha_dkv_fused": 1.0 * squares}
    ring |= {"splash_mha_dq": 0.0, "splash_mha_dkv": 0.0}
    assert compiled["ring"]["measured"]["kernels"] == ring


@pytest.mark.slow
def test_collectives_that_each_axis_is_for(compiled):
    products, gathered, ring = (kinds(compiled[n]) for n in ("products", "gathered", "ring"))
    assert {("all-gather", ("fsdp",)), ("reduce-scatter", ("fsdp",))} <= products
    assert ("all-gather", ("tensor",)) in products
    assert {("all-gather", ("sequence",)), ("collective-permute", ("sequence",))} <= gathered
    assert ("collective-permute", ("sequence",)) in ring
    sent = [c for c in compiled["ring"]["measured"]["collectives"] if "permute" in c["kind"]]
    assert sum(c["asynchronous"] for c in sent) == sum(c["count"] for c in sent)
    assert not any("fsdp" in axes for _, axes in kinds(compiled["decode"]))


@pytest.mark.slow
def test_flops_read_from_the_text_are_the_compilers_and_the_models(compiled):
    for name in ("products", "gathered", "ring", "prefill"):
        once = compiled[name]["measured"]["matmul_flops_once"]
        assert once == pytest.approx(compiled[name]["xla"]["flops"], rel=0.03)
    m = compiled["products"]["measured"]
    # 8 for 6: the forward twice, but for each layer's last product, which nothing needs again.
    weights = L * (256 * 128 * (2 * 4 + 2 * 2) + 3 * 256 * 640) + 256 * V
    exchanges = L * 128 * 128 * (4 + 2)  # of the halves of q and k, forward twice and backward
    expected = 8 * weights - 2 * L * 640 * 256 + 6 * exchanges
    assert m["matmul_flops"] * 4 == 24_576 * expected
    # Attention: 11 products of whole blocks for 6 of T / 2 keys.
    assert m["kernel_flops"] * 4 == 11 * 2 * L * 4 * 128 * 16 * T * (T + 512) / 2


@pytest.mark.slow
def test_the_state_and_the_cache_are_donated(compiled):
    for result in compiled.values():
        memory = result["memory"]
        assert memory["alias"] == pytest.approx(memory["output"], rel=0.02)
        assert memory["argument"] < memory["peak"]


@pytest.mark.slow
def test_the_cache_is_never_copied(compiled):
    whole = L * LONG * 2 * 128 * 2  # keys of one row, bfloat16
    for name in ("prefill", "decode"):
        program = hlo.parse(compiled[name]["text"], turns=(1, 1))
        moved = [i for _, i, _ in program.instructions() if i.opcode in ("copy", "transpose")]
        assert not [i.name for i in moved if i.arrays[0].size >= whole]


@pytest.mark.slow
def test_a_decoded_token_moves_weights_and_cache_once(compiled):
    result = compiled["decode"]
    assert result["measured"]["hbm_bytes"] < 1.5 * result["memory"]["argument"]
