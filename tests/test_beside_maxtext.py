"""MaxText's settings say what a workload says, and the page's ratios are those of the results."""

import json
import sys

import pytest
from test_scaling import result

from benchmarks import maxtext, scaling_tables


def test_maxtext_is_given_the_same_work():
    for work in maxtext.WORKLOADS:
        given = dict(word.split("=", 1) for word in maxtext.settings(work, 2**22))
        rows = float(given["per_device_batch_size"]) * work.chips
        steps = int(given["gradient_accumulation_steps"])
        assert rows * steps * int(given["max_target_length"]) == 2**22
        axes = [int(given[f"ici_{a}_parallelism"]) for a in ("fsdp", "context", "tensor")]
        assert axes[0] * axes[1] * axes[2] == work.chips
        assert given["compile_topology"] == f"v5p-{2 * work.chips}"  # v5p counts cores
        assert ("context_parallel_strategy" in given) == (work.context == "ring")


def test_ratios_are_ours_over_maxtexts_and_a_refusal_has_none():
    work = maxtext.WORKLOADS[0]
    versions = {"versions": {"maxtext": "1", "libtpu": "2"}}
    found = {"ours": result(40.0), "maxtext": result(50.0) | versions}
    table = scaling_tables.beside_maxtext([(work, found)])
    by_name = {row[1]: row[2:] for row in table.rows}
    assert by_name["peak, GiB"] == pytest.approx([40, 50, 0.8])
    assert by_name["HBM traffic, TB"][-1] == 1
    assert "maxtext 1, libtpu 2" in table.note
    refused = {"ours": result(40.0), "maxtext": result(refused="114.60") | versions}
    by_name = {row[1]: row[2:] for row in scaling_tables.beside_maxtext([(work, refused)]).rows}
    assert by_name["peak, GiB"] == [40.0, "refused, needs 114.6", None]
    assert by_name["HBM traffic, TB"][1:] == [None, None]


def test_an_interpreter_without_maxtext_is_said_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"maxtext_compile.py.*No module named 'maxtext'"):
        maxtext.compiled(maxtext.WORKLOADS[0], 2**22, sys.executable, tmp_path / "out")
    assert not list(tmp_path.rglob("*.json"))


def test_kept_results_are_read_and_not_made_again(tmp_path):
    work = maxtext.WORKLOADS[1]
    (tmp_path / f"{work.slug}.json").write_text(json.dumps({"workload": str(work)}))
    assert maxtext.compiled(work, 2**22, "no such interpreter", tmp_path)["workload"] == str(work)
    assert [one for one, _ in maxtext.kept(tmp_path)] == [work]
