"""Properties are measured, and a method that lacks one is found out."""

import dataclasses

import numpy as np
import pytest

from longrope_jax import rotary
from longrope_jax.rotary import arrays, promises


def found(spec, **sizes):
    sizes = {"head_dim": 32, "seq_len": 4096} | sizes
    return {one.says: one for one in rotary.properties(spec, **sizes)}


def test_every_method_can_be_asked(spec):
    every = found(spec).values()
    assert all(one.found and "\n" not in str(one) for one in every)
    assert [one.holds for one in every if one.says.startswith("it comes back")] == [True]
    # Whatever a method is, what was measured of its phases is exact.
    assert [one for one in every if one.says.startswith("cos") and one.holds is False] == []


def test_rope_has_them_all():
    assert all(one.holds for one in found("rope:base=5e5").values())
    assert str(next(iter(found("rope").values()))).startswith("yes  cos and sin are exact")


@pytest.mark.parametrize(
    ("text", "lacks"),
    [
        ("log_n:inner=(rope),original_length=512", "scores depend on the distance alone"),
        ("partial:inner=(rope),fraction=0.5", "it shares RoPE's compiled program"),
        ("dynamic_ntk:original_length=512", "its frequencies are those of every length"),
        ("giraffe_power", "a Hugging Face config can say it"),
    ],
)
def test_what_a_method_lacks_is_said(text, lacks):
    assert [says for says, one in found(text).items() if not one.holds] == [
        lacks,
        *(["a Hugging Face config can say it"] * (text.startswith("log_n"))),
    ]


def test_a_method_without_a_name_has_no_text():
    @dataclasses.dataclass(frozen=True)
    class Mine:
        def frequencies(self, *, head_dim, seq_len):
            return rotary.Frequencies(rotary.rope_inv_freq(1e4, head_dim) / 2)

    assert found(Mine())["it comes back from its text"].holds is False


def test_phases_that_are_off_are_found(monkeypatch):
    def rounded(rot, positions):
        return arrays.phases(rot, np.asarray(positions) + 1)

    monkeypatch.setattr(promises, "arrays", _With(arrays, phases=rounded))
    assert found("rope")["cos and sin are exact up to the last token"].holds is False


def test_a_sequence_that_is_too_short_is_refused():
    with pytest.raises(ValueError, match="seq_len must be at least 128 tokens, got 64"):
        rotary.properties("rope", head_dim=32, seq_len=64)


class _With:
    """A module with some names replaced."""

    def __init__(self, module, **names):
        self.__dict__.update(vars(module) | names)
