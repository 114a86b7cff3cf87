"""Programs compiled for TPUs: the reader of their text, the sums, and tiny ones for real slices."""

import dataclasses
import gzip
import importlib.util
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import llama2_7b_long, scaling
from configs.compile_tpu import get_config
from experiments import compile_tpu
from experiments.tpu import account, cells, chips, hlo, page, tables, work
from experiments.tpu.collectives import collectives
from longrope_jax import llama, rotary
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
    assert work.matmul_flops(program) == 2 * expected


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
    assert work.hbm_bytes(hlo.parse(text)) == row + row  # b is read, one row is written


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

    with_scores = hlo.forbidden(text("reference", whole=False), {T}, V)
    assert with_scores and all(sizes.count(T) > 1 for sizes in with_scores)
    with_logits = hlo.forbidden(text("blockwise", whole=True), {T}, V)
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
    assert account.kv_cache_bytes(config, 1) == per_token
    for length, expected in gib.items():
        assert account.kv_cache_bytes(config, length) == expected * GIB
    cache = jax.eval_shape(lambda: llama.init_cache(config, 1, 4096, dtype="bfloat16"))
    held = sum(x.size * x.dtype.itemsize for x in (cache.k, cache.v))
    assert held == account.kv_cache_bytes(config, 4096)


def test_energy_of_llama():
    # 2,638 MWh are 122 days on 2,048 GPUs of 400 W (2302.13971 table 15 by its formula).
    mwh = account.energy_mwh(122 * 24 * 2048, 400)
    assert mwh == pytest.approx(2638, rel=1e-3)
    assert account.co2_tonnes(2638) == pytest.approx(1015, rel=1e-3)


def test_model_flops_of_decoding_every_token_are_those_of_the_prefill_and_the_logits():
    length = 64
    prefill = cells.parse(f"prefill llama2_long_7b {length} v5e:2x2 tensor=4")
    config, decoded = prefill.config(), 0.0
    for n in range(1, length + 1):
        cell = dataclasses.replace(prefill, program="decode", length=n)
        decoded += account.model_flops(cell, 0)
    head = 2.0 * config.d_model * config.vocab_size * length
    # A causal forward is counted as T / 2 keys per query, decoding as (T + 1) / 2.
    diagonal = 2.0 * config.n_layers * config.n_heads * config.head_dim * length
    assert decoded == pytest.approx(account.model_flops(prefill, 0) + head + diagonal, rel=1e-12)


def test_training_flops_of_one_step_of_7b():
    cell = cells.parse("train llama2_long_7b 32768 v5p:2x2x1 fsdp=4")
    matrices = 6_738_415_616 - 32_000 * 4096 - 65 * 4096  # without the lookup and the norms
    attention = 6 * 32 * 4096 * 32_768  # 12 L D T, halved: causal
    expected = 2.0**22 * (6 * matrices + attention)
    assert account.model_flops(cell, 2**22) == pytest.approx(expected, rel=1e-12)


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
    cell = cells.parse("train llama2_long_7b 32768 v5p:2x2x1 fsdp=4")
    gather = {"axes": ["fsdp"], "seconds": 3.0, "bytes": 4.0, "asynchronous_bytes": 1.0}
    measured = {"matmul_flops": 459e12, "kernel_flops": 459e12, "model_flops": 459e12}
    measured |= {"hbm_bytes": 2765e9, "collectives": [gather]}
    times = account.roofline(cell, measured)
    assert (times["compute"], times["hbm"], times["ici"]) == (2.0, 1.0, {"fsdp": 3.0})
    assert times["bound"] == 3.0
    assert times["as_compiled"] == 2.0 + 3.0 * 3 / 4
    assert times["mfu_bound"] == pytest.approx(1 / 3)
    assert times["computed_per_model_flop"] == 2.0


@given(
    st.sampled_from(cells.PROGRAMS),
    st.sampled_from(sorted(llama.PRESETS)),
    st.lists(st.sampled_from([1, 2, 4]), min_size=3, max_size=3),
    st.permutations(AXES),
    st.sampled_from(["full", "linear"]),
)
def test_a_cell_is_its_text(program, model, sizes, axes, remat):
    mesh = " ".join(f"{a}={n}" for a, n in zip(axes, sizes, strict=False))
    topology = "v5p:" + "x".join(map(str, sizes))
    cell = cells.parse(f"{program} {model} 8192 {topology} {mesh} remat={remat}")
    assert cells.parse(str(cell)) == cell
    assert cell.batch == cell.axis("data") * cell.axis("fsdp")
    assert cell.chips == sizes[0] * sizes[1] * sizes[2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train llama2_7b v5p:2x2x1", "expected 'program model length topology"),
        ("tran llama2_7b 4096 v5p:2x2x1 fsdp=4", "'?train'?"),
        ("train llama2_8b 4096 v5p:2x2x1 fsdp=4", "llama2_7b"),
        ("train llama2_7b 4096 v5p:2x2x1 fspd=4", "fsdp"),
        ("train llama2_7b 4096 v5p:2x2x1 fsdp=8", "4 chips"),
        ("train llama2_7b 4096 v5p:2x2x1 fsdp=four", "fsdp=four"),
        ("train llama2_7b 4096 v5p fsdp=4", "v5p"),
        ("train llama2_7b 4096 v5p:2x2x1 fsdp=4 remat=ful", "full"),
    ],
)
def test_a_wrong_cell_is_refused_in_one_line(text, message):
    with pytest.raises(ValueError, match=message) as error:
        cells.parse(text)
    assert "\n" not in str(error.value)


def test_a_batch_that_is_no_whole_number_of_microbatches_is_refused():
    cell = cells.parse("train llama2_7b 4096 v5p:2x2x1 fsdp=4")
    assert cell.accumulated(2**22) == 256
    with pytest.raises(ValueError, match="no multiple of 4 sequences of 4,096"):
        cell.accumulated(2**13)


def test_every_committed_cell_parses_and_takes_the_papers_batch():
    for text in get_config("table").cells:
        cell = cells.parse(text)
        assert cell.program != "train" or cell.accumulated(scaling.TOKENS) >= 1
    with pytest.raises(ValueError, match="table"):
        get_config("tabel")


def test_the_command_of_one_model_and_one_slice():
    argv = compile_tpu.arguments(
        ["x", "--config=configs/llama2_7b_long.py", "--topology=v5p:4x4x4"]
    )
    assert "--config.topology=v5p:4x4x4" in argv
    assert f"--workdir={compile_tpu.WORKDIR}" in argv
    assert compile_tpu.arguments(["x", "--workdir=a"]) == ["x", "--workdir=a"]
    chosen = compile_tpu.select(llama2_7b_long.get_config().cells, "v5p:4x4x4")
    assert {"train", "prefill", "decode"} == {cell.program for cell in chosen}
    with pytest.raises(ValueError, match=r"v5p:4x4x5.*v5p:4x4x4"):
        compile_tpu.select(llama2_7b_long.get_config().cells, "v5p:4x4x5")


def test_what_a_refusal_says_is_read():
    text = "RESOURCE_EXHAUSTED: ... required for HLO temporaries (104.39G) exceeds available HBM"
    assert tables.needed(text) == 104.39
    assert tables.needed("Ran out of memory. Used 18.60G of 15.75G hbm. Exceeded") == 18.6


def a_result(cell, peak=None, refused=None):
    """What the worker writes, with round numbers."""
    result = {"cell": str(cell), "tokens": 2**22, "lower_seconds": 1.0, "compile_seconds": 60.0}
    result |= {"host_bytes": 2 * GIB, "versions": {"libtpu": "1"}}
    if refused:
        return result | {"refused": f"exceeds: HLO temporaries ({refused}G)"}
    sizes = dict.fromkeys(("argument", "temp", "output", "alias", "generated_code"), GIB)
    flops = {"matmul_flops": 459e12, "matmul_flops_once": 1e12, "model_flops": 229.5e12}
    measured = flops | {"kernel_flops": 0.0, "hbm_bytes": 1e9, "hbm_bytes_once": 1e8}
    result |= {"memory": sizes | {"peak": int(peak * GIB)}, "xla": {"flops": 1e12, "bytes": 1e8}}
    return result | {"measured": measured | {"collectives": []}}


def test_the_page_names_the_smallest_slice_that_leaves_five_percent(tmp_path):
    texts = {
        "train llama2_long_7b 32768 v5p:2x2x4 fsdp=16": {"peak": 40.0},
        "train llama2_long_7b 32768 v5p:2x2x2 fsdp=8": {"peak": 90.0},
        "train llama2_long_7b 32768 v5p:2x2x2 fsdp=4 tensor=2": {"peak": 80.0},
        "train llama2_long_7b 32768 v5p:2x2x1 fsdp=4": {"peak": 95.0},  # fits, 0.8 % spare
        "train llama2_long_7b 32768 v5p:2x2x1 tensor=4": {"refused": "99.50"},
    }
    chosen = [cells.parse(text) for text in texts]
    results = [a_result(cell, **texts[str(cell)]) for cell in chosen]
    found = tables.tables(chosen, results, llama2_7b_long.get_config())
    (row,) = next(t for t in found if t.title.startswith("Smallest")).rows
    assert row[3:5] == ["v5p:2x2x2", "fsdp=4 tensor=2"]
    assert row[5] == pytest.approx(100 * (1 - 80 / 95.74), rel=1e-6)
    assert "v5p:2x2x1 fsdp=4: 0.7729 % spare" in row[-1]
    assert "v5p:2x2x1 tensor=4: refused, needs 99.5 GiB" in row[-1]
    assert "2x2x4" not in row[-1]
    text = page.markdown(found, {"jax": "1"})
    assert all(f"## {table.title}" in text for table in found)
    page.draw_memory(chosen, results, tmp_path / "memory.png")
    header, rows = page.flat(chosen, results)
    assert {len(r) for r in rows} == {len(header)}
    energy = next(t for t in found if t.title == "Energy").rows[0]
    # 100,000 steps of one second on 16 chips of 400 W.
    assert energy[2:4] == pytest.approx([1e5 * 16 / 3600, 1e5 * 16 / 3600 * 400 * 1.1 / 1e6])


# What follows asks the compiler: tests/compile_tpu_driver.py has the sizes.
T, V, L = 1536, 2176, 3
LONG = 64 * T  # a cache that does not fit on the chip
REAL = {
    "products": f"train tiny {T} v5p:2x2x1 fsdp=2 tensor=2",
    "gathered": f"train tiny {T} v5e:2x2 sequence=2 tensor=2",
    "ring": f"train tiny {T} v5e:2x2 fsdp=2 sequence=2 context=ring",
    "prefill": f"prefill tiny {LONG} v5e:2x2 data=4",
    "decode": f"decode tiny {LONG} v5e:2x2 data=4",
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """What the worker wrote for each cell of REAL, compiled in one process of its own."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("NOTHING WAS COMPILED FOR TPUS: install the extra [aot] to test that")
    folder = tmp_path_factory.mktemp("tpu")
    command = [sys.executable, "-m", "tests.compile_tpu_driver", str(folder), *REAL.values()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr[-3000:]
    found, names = {}, {text: name for name, text in REAL.items()}
    for path in folder.glob("*.json"):
        result = json.loads(path.read_text())
        program = gzip.decompress(path.with_suffix(".hlo.gz").read_bytes())
        found[names[result["cell"]]] = result | {"text": program.decode()}
    return found


def kinds(result):
    return {(c["kind"], tuple(c["axes"])) for c in result["measured"]["collectives"]}


@pytest.mark.slow
def test_nothing_of_length_times_length_or_vocabulary_is_in_a_tpu_program(compiled):
    assert {name: r["measured"]["forbidden"] for name, r in compiled.items()} == {
        name: [] for name in REAL
    }


@pytest.mark.slow
def test_splash_computes_attention_in_training(compiled):
    for name, rows in (("products", 8), ("gathered", 16)):  # microbatches per step
        forward = {"splash_mha_fwd": 2.0 * L * rows}  # once more in the backward: full remat
        backward = {"splash_mha_dq": 1.0 * L * rows, "splash_mha_dkv": 1.0 * L * rows}
        assert compiled[name]["measured"]["kernels"] == forward | backward
    assert not any(compiled["ring"]["measured"]["kernels"].values())


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
    assert m["matmul_flops"] * 4 == 24_576 * (8 * weights - 2 * L * 640 * 256)
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
