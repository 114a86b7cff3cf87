"""The ledger of claims names only what exists."""

import ast
import importlib
from pathlib import Path

import pytest

from docs.tools import claims
from longrope_jax import cli

ROOT = Path(__file__).parents[1]
PROOFS = sorted({proof for claim in claims.claims() for proof in claim["proof"]})


def test_the_page_is_current():
    assert claims.PAGE.read_text(encoding="utf-8") == claims.page()


def test_a_claim_says_what_was_found_and_has_a_known_status():
    keys = {"about", "says", "status", "found", "proof"}
    for claim in claims.claims():
        assert claim.keys() == keys and claim["says"] and claim["found"], claim
        assert claim["status"] in claims.STATUSES, claim


def test_what_is_said_to_be_shown_has_a_proof():
    shown = ("reproduced", "in miniature", "refuted here", "implemented")
    without = [c["says"] for c in claims.claims() if c["status"] in shown and not c["proof"]]
    assert without == ["13B runs on one GPU of 32 GB"]  # arithmetic


@pytest.mark.parametrize("proof", PROOFS)
def test_what_is_named_exists(proof):
    if " " not in proof:
        path, _, test = proof.partition("::")
        assert (ROOT / path).exists()
        if test:
            tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
            assert test in {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
    elif proof.startswith("longrope "):
        assert proof.split()[1] in cli.COMMANDS
    else:
        _, dash, module, config, workdir = proof.split()
        assert dash == "-m" and importlib.util.find_spec(module)
        path, preset = config.removeprefix("--config=").split(":")
        assert importlib.import_module(path[:-3].replace("/", ".")).get_config(preset)
        folder = workdir.removeprefix("--workdir=")
        assert folder == "DIR" or (ROOT / folder).is_dir()
