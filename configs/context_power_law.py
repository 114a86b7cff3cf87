"""Presets of experiments/context_power_law.py."""

from ml_collections import ConfigDict

from longrope_jax.errors import unknown_name

_SMOLLM2 = {
    "model": "smollm2-135m",  # what longrope_jax.load reads
    "trained_length": 0,  # tokens; 0: as the model declares
    "dtype": "float32",  # of activations
    "contexts": tuple(2**i for i in range(14)),  # tokens that a prediction sees
    "targets": 64,  # tokens that are scored, the last ones of each window
    "corpus": "plays+sotu+austen+moby-dick",
    # Nothing is trained, so the documents are held out of nothing: how many, or their names.
    "held_out": 40,
    "windows_per_document": 3,
    "bos": "",  # token that begins a window; "": the checkpoint's own
    "sentence_tokens": (8, 20),  # of a sentence that a window may begin at
    "machine": {},  # fields of lab.Machine
}

_PRESETS = {
    "smollm2": {},
    "tiny": {
        "contexts": (1, 4, 16, 64),
        "targets": 4,
        "corpus": "plays",
        "held_out": 6,
        "windows_per_document": 1,
    },
}


def get_config(preset: str = "smollm2") -> ConfigDict:
    if preset not in _PRESETS:
        raise ValueError(unknown_name("preset of context_power_law", preset, _PRESETS))
    return ConfigDict(_SMOLLM2 | _PRESETS[preset])
