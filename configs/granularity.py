"""Presets of experiments/granularity.py."""

from ml_collections import ConfigDict

from longrope_jax.errors import unknown_name

_PAPER = {
    "head_dim": 128,
    "base": 10_000.0,
    "alphas": (1 / 4, 1 / 8),  # of Position Interpolation: trained over extended length
    "betas": (50.0,),  # of ABF: adjusted base over base
    "trained": 4096,  # tokens
    "extended": 32_768,  # tokens
    "vectors": 1,  # random ones, beside all ones, for granularity and distance
    "widest": 4096,  # head dimension up to which the limit is approached
    "seed": 0,
}

_PRESETS = {
    "paper": {},
    "tiny": {"head_dim": 16, "trained": 32, "extended": 64, "vectors": 1, "widest": 64},
}


def get_config(preset: str = "paper") -> ConfigDict:
    if preset not in _PRESETS:
        raise ValueError(unknown_name("preset of granularity", preset, _PRESETS))
    return ConfigDict(_PAPER | _PRESETS[preset])
