"""Presets of experiments/trained_heads.py."""

from ml_collections import ConfigDict

from longrope_jax.errors import unknown_name

_PLAYS = {
    "model": "",  # what longrope_jax.load reads: --config.model=WORKDIR/runs/NAME
    "trained_length": 0,  # tokens, also of the windows that are measured; 0: as the model declares
    # Methods as rotary.parse reads them, with {base}, {abf} and {length}.
    "methods": (
        "rope",
        "pi:factor=8",
        "rope:base={abf}",
        "xpos:base={abf},gamma=0.8,scale_base={length}",
    ),
    "max_distance": 4095,  # tokens
    "corpus": "plays",
    "held_out": 10,  # documents that are measured: how many, or their names
    "windows": 3,  # of each of them
    "bos": "",  # token that begins a window; "": the checkpoint's own
    "sentence_tokens": (8, 20),  # of a sentence that a window may begin at
    "machine": {},  # fields of lab.Machine
}

_PRESETS = {
    "plays": {},
    "tiny": {"max_distance": 255, "held_out": 2, "windows": 1},
}


def get_config(preset: str = "plays") -> ConfigDict:
    if preset not in _PRESETS:
        raise ValueError(unknown_name("preset of trained_heads", preset, _PRESETS))
    return ConfigDict(_PLAYS | _PRESETS[preset])
