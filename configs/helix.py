"""Presets of experiments/helix.py."""

from ml_collections import ConfigDict

from longrope_jax.errors import unknown_name

_PAPER = {
    "panels": ("8a", "8b", "8c"),
    # The change of base whose effect on the fast pairs the report states.
    "head_dim": 128,
    "base": 10_000.0,
    "new_base": 500_000.0,
}

_PRESETS = {"paper": {}}


def get_config(preset: str = "paper") -> ConfigDict:
    if preset not in _PRESETS:
        raise ValueError(unknown_name("preset of helix", preset, _PRESETS))
    return ConfigDict(_PAPER | _PRESETS[preset])
