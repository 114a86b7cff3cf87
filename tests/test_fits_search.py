"""`longrope fits MODEL --topology CHIP`: the smallest slice that trains a model, by compiling."""

import pytest
from test_aot import arguments

from longrope_jax.aot import chips, command, search
from longrope_jax.aot.workload import Workload

GIB = 2**30
TOKENS = 2**22
EVERYTHING = {"matmul_flops": 0.0, "kernel_flops": 0.0, "model_flops": 1.0, "collectives": []}


class Compiler:
    """Says what a closed form says, times a factor, and remembers what it was asked for."""

    def __init__(self, factor, slow=()):
        self.factor, self.slow, self.asked = factor, slow, []

    def __call__(self, work):
        self.asked.append(work)
        peak = self.factor * search.at_least(work)
        common = {"tokens": TOKENS, "versions": {"libtpu": "1"}}
        if peak > chips.chip(work.topology).hbm:
            return common | {"refused": f"exceeds: HLO temporaries ({peak / GIB:.2f}G)"}
        tensor, again = work.axis("tensor"), {"full": 4, "attention": 3, "linear": 2}[work.remat]
        measured = EVERYTHING | {"hbm_bytes": 1e12 * again * tensor / work.rows}
        return common | {"memory": {"peak": peak}, "measured": measured}


def test_the_smallest_slice_is_named_with_the_fastest_way_to_train_there():
    compiler = Compiler(factor=1.5)
    tried = search.smallest("llama2_long_7b", 32_768, "v5e", TOKENS, compiler)
    assert {work for work, _ in tried} == set(compiler.asked)
    assert len(tried) == len(compiler.asked)  # nothing twice
    best, result = tried[-1]
    # 16 bytes for each of 6.74e9 parameters are 100.4 GiB: 8 chips of 15.75 GiB hold them and 3.2
    # GiB beside, which half as much again for what a program needs exceeds.
    assert best.topology == "v5e:4x4" and best.chips == 16
    seconds = {str(w): search._seconds(w, r) for w, r in tried if search._fits(w, r)}
    assert seconds[str(best)] == min(seconds.values())
    assert "refused" not in result
    assert {w.topology for w in compiler.asked} <= {"v5e:2x4", "v5e:4x4"}  # 2x2 needs no compiler


def test_what_cannot_fit_is_never_compiled_and_what_is_close_to_the_limit_does_not_count():
    compiler = Compiler(factor=1.0)
    tried = search.smallest("llama2_long_70b", 16_384, "v5p", TOKENS, compiler)
    assert all(search.at_least(w) <= 0.95 * chips.chip("v5p").hbm for w in compiler.asked)
    assert tried[-1][0].topology == "v5p:2x2x4"
    # The same with 3 % left: the next larger slice.
    near = 0.97 * chips.chip("v5p").hbm / min(map(search.at_least, compiler.asked))
    tried = search.smallest("llama2_long_70b", 16_384, "v5p", TOKENS, Compiler(near))
    assert tried[-1][0].topology == "v5p:2x4x4"


def test_a_length_with_fewer_sequences_than_chips_is_divided_over_a_ring():
    found = search.meshes("llama2_long_7b", 2**20, "v5p:4x4x4", TOKENS)
    assert all(work.axis("sequence") >= 2 and work.context == "ring" for work in found)
    assert (("fsdp", 4), ("sequence", 16)) in {work.mesh for work in found}
    for work in found:
        assert work.accumulated(TOKENS) * work.batch * work.length == TOKENS


def test_the_closed_form_is_below_what_the_compiler_found():
    """Of docs/scaling.md: peaks in GiB of training steps."""
    for model, length, topology, mesh, peak in [
        ("7b", 32_768, "v5p:2x2x1", {"fsdp": 4}, 49.0),
        ("13b", 32_768, "v5p:2x2x1", {"fsdp": 4}, 87.3),
        ("34b", 16_384, "v5p:2x2x2", {"tensor": 8}, 89.4),
        ("70b", 16_384, "v5p:2x2x4", {"sequence": 2, "tensor": 8}, 90.5),
        ("7b", 32_768, "v5e:4x4", {"fsdp": 4, "tensor": 4}, 12.9),
    ]:
        work = Workload("train", f"llama2_long_{model}", length, topology, tuple(mesh.items()))
        assert 0.5 * peak < search.at_least(work) / GIB < peak


def test_what_a_search_cannot_use_is_refused():
    with pytest.raises(ValueError, match=r"no slice of v5e .* v5e:16x16"):
        search.smallest("llama2_long_70b", 2**20, "v5e", 2**20, Compiler(9.0))
    with pytest.raises(ValueError, match=r"multiple of 32,768, .* got 1,000"):
        search.smallest("llama2_long_7b", 32_768, "v5e", 1000, Compiler(1.0))
    words = "llama2_7b", "--length=4096", "--topology=v5e"
    with pytest.raises(ValueError, match=r"--mesh, --rows cannot be given with a chip alone"):
        command.smallest(arguments(*words, "--mesh=fsdp=4", "--rows=2"))
    with pytest.raises(ValueError, match=r"v7x.*v5"):
        command.smallest(arguments(*words[:2], "--topology=v7x"))
