"""Presets of experiments/method_atlas.py."""

from ml_collections import ConfigDict

from longrope_jax.errors import unknown_name

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
        "n_kv_heads": 8,
    },
    # Texts in place of the above for some names, as rotary.parse reads them.
    "specs": {
        "by_layer": "by_layer:pattern=(0,0,0,1),methods=((rope),(nope))",
        "llama3": "llama3:base=10_000,factor=8,original_length={trained}",
        "resonance": "resonance:inner=(yarn:factor={factor},original_length={trained})",
        "xpos_abf": "xpos_abf:scale_base={trained}",
        # Remapped so that the extended length stays within the trained one (STRING: moves within).
        "rerope": "rerope:window={trained_2}",
        "leaky_rerope": "leaky_rerope:window={trained_2},factor=16",
        "self_extend": "self_extend:window={trained_4},group=16",
        "string": "string:original_length={trained},window={trained_32}",
    },
}

_PRESETS = {"paper": {}, "tiny": {"head_dim": 16, "trained": 64, "factor": 4}}


def get_config(preset: str = "paper") -> ConfigDict:
    if preset not in _PRESETS:
        raise ValueError(unknown_name("preset of method_atlas", preset, _PRESETS))
    return ConfigDict(_PAPER | _PRESETS[preset])
