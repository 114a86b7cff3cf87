"""Presets of experiments/attention_decay.py."""

from ml_collections import ConfigDict

from longrope_jax.errors import unknown_name

_PAPER = {
    # Methods as rotary.parse reads them: name:option=value,option=value.
    "methods": ("rope", "pi:factor=8", "abf", "xpos_abf"),
    "head_dims": (128,),
    "max_distance": 32_383,  # tokens, the last point of Figure 4
    "heatmap_points": 256,  # positions along each axis of the heat maps
}

_PRESETS = {
    "paper": {},
    "bases": {"methods": tuple(f"rope:base={b}" for b in ("1e4", "1e5", "5e5", "1e6", "1e7"))},
    "head_dims": {"methods": ("rope", "abf"), "head_dims": (64, 128, 256)},
    "tiny": {"head_dims": (16,), "max_distance": 255, "heatmap_points": 16},
}


def get_config(preset: str = "paper") -> ConfigDict:
    if preset not in _PRESETS:
        raise ValueError(unknown_name("preset of attention_decay", preset, _PRESETS))
    return ConfigDict(_PAPER | _PRESETS[preset])
