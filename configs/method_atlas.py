"""Presets of experiments/method_atlas.py."""

from ml_collections import ConfigDict

from longrope_jax.rotary import unknown

_PAPER = {
    "head_dim": 128,
    "trained": 4096,  # tokens
    "factor": 8,  # extended over trained length
    "methods": (),  # registered names; all of them if empty
    # A value for each option that a method may lack; every method with a trained length gets it.
    "options": {
        "inner": "rope",
        "fraction": 0.5,
        "long_factor": 8.0,
        "window": 32,
        "group": 8,
        "n_kv_heads": 8,
    },
    # Texts in place of the above for some names, as rotary.parse reads them.
    "specs": {
        "llama3": "llama3:base=10_000,factor=8,original_length={trained}",
        "resonance": "resonance:inner=(yarn:factor={factor},original_length={trained})",
        "xpos_abf": "xpos_abf:scale_base={trained}",
    },
}

_PRESETS = {"paper": {}, "tiny": {"head_dim": 16, "trained": 64, "factor": 4}}


def get_config(preset: str = "paper") -> ConfigDict:
    if preset not in _PRESETS:
        raise ValueError(unknown("preset of method_atlas", preset, _PRESETS))
    return ConfigDict(_PAPER | _PRESETS[preset])
