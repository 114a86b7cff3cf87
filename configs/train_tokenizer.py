"""Presets of experiments/train_tokenizer.py."""

from ml_collections import ConfigDict

from longrope_jax.errors import unknown_name

_LLAMA = {
    "corpus": "",  # your text: --config.corpus=DIR
    "held_out": 2,  # documents, or their names
    "vocab_size": 32_000,  # pieces (2302.13971, Llama 2)
    "character_coverage": 0.99995,  # share of characters with a piece of their own
}

_PRESETS = {
    "llama": {},
    "small": {"corpus": "plays", "held_out": 8, "vocab_size": 4096},
    "tiny": {"corpus": "plays", "held_out": 36, "vocab_size": 400},
}


def get_config(preset: str = "llama") -> ConfigDict:
    if preset not in _PRESETS:
        raise ValueError(unknown_name("preset of train_tokenizer", preset, _PRESETS))
    return ConfigDict(_LLAMA | _PRESETS[preset])
