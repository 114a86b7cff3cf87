"""docs/scaling.md: its verdicts, its energy, and that it is what the committed results say."""

import pytest

from benchmarks import maxtext, scaling, scaling_page, scaling_tables
from longrope_jax.aot import compilation
from longrope_jax.aot.workload import Workload

GIB = 2**30


def result(peak=None, refused=None):
    """What a compilation says, with round numbers."""
    found = {"tokens": 2**22, "lower_seconds": 1.0, "compile_seconds": 60.0}
    found |= {"host_bytes": 2 * GIB, "versions": {"libtpu": "1"}}
    if refused:
        return found | {"refused": f"exceeds: HLO temporaries ({refused}G)"}
    sizes = dict.fromkeys(("argument", "temp", "output", "alias", "generated_code"), GIB)
    flops = {"matmul_flops": 459e12, "matmul_flops_once": 1e12, "model_flops": 229.5e12}
    measured = flops | {"kernel_flops": 0.0, "hbm_bytes": 1e9, "hbm_bytes_once": 1e8}
    found |= {"memory": sizes | {"peak": int(peak * GIB)}, "xla": {"flops": 1e12, "bytes": 1e8}}
    return found | {"measured": measured | {"collectives": []}}


def test_the_page_names_the_smallest_slice_that_leaves_five_percent(tmp_path):
    at = [("2x2x4", {"fsdp": 16}), ("2x2x2", {"fsdp": 8}), ("2x2x2", {"fsdp": 4, "tensor": 2})]
    at += [("2x2x1", {"fsdp": 4}), ("2x2x1", {"tensor": 4})]
    works = [
        Workload("train", "llama2_long_7b", 32_768, f"v5p:{slice_}", tuple(mesh.items()))
        for slice_, mesh in at
    ]
    # 95 GiB fit, with 0.8 % to spare.
    results = [*map(result, (40.0, 90.0, 80.0, 95.0)), result(refused="99.50")]
    found = list(zip(works, results, strict=True))
    tables = scaling_tables.tables(found)
    (row,) = next(t for t in tables if t.title.startswith("Smallest")).rows
    assert row[3:5] == ["v5p:2x2x2", "fsdp=4,tensor=2"]
    assert row[5] == pytest.approx(100 * (1 - 80 / 95.74), rel=1e-6)
    assert "v5p:2x2x1 fsdp=4: 0.7729 % spare" in row[-1]
    assert "v5p:2x2x1 tensor=4: refused, needs 99.5 GiB" in row[-1]
    assert "2x2x4" not in row[-1]
    text = scaling_page.markdown(tables, found)
    assert all(f"## {table.title}" in text for table in tables)
    scaling_page.draw_memory(found, tmp_path / "memory.png")
    scaling_page.save_numbers(found, tmp_path / "cells.csv")
    header, *rows = (tmp_path / "cells.csv").read_text().splitlines()
    assert {line.count(",") - line.count('"') // 2 for line in rows} <= {header.count(",")}
    # 100,000 steps of one second on 16 chips of 400 W.
    energy = next(t for t in tables if t.title == "Energy").rows[0]
    assert energy[2:4] == pytest.approx([1e5 * 16 / 3600, 1e5 * 16 / 3600 * 400 * 1.1 / 1e6])


def test_energy_is_llamas():
    # 2,638 MWh are 122 days on 2,048 GPUs of 400 W (2302.13971 table 15 by its formula).
    mwh = scaling_tables.energy_mwh(122 * 24 * 2048, 400)
    assert mwh == pytest.approx(2638, rel=1e-3)
    assert scaling_tables.co2_tonnes(2638) == pytest.approx(1015, rel=1e-3)


def test_the_page_is_what_the_committed_results_say():
    """If this fails: python -m benchmarks.scaling."""
    cells = scaling.ROOT / "docs/results/compile_tpu/cells"
    assert {f"{work.slug}.json" for work in scaling.WORKLOADS} == {
        path.name for path in cells.glob("*.json")
    }
    found = [(w, compilation.compiled(w, scaling.TOKENS, cells)) for w in scaling.WORKLOADS]
    page = (scaling.ROOT / "docs/scaling.md").read_text()
    assert scaling_page.markdown(scaling_tables.tables(found, maxtext.kept()), found) == page
