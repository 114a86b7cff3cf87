"""Presets of experiments/base_bound.py."""

from ml_collections import ConfigDict

from longrope_jax.errors import unknown_name


def _k(*counts: int) -> tuple[int, ...]:
    return tuple(1024 * count for count in counts)


_CPU = {
    "head_dim": 128,
    "lengths": _k(1, 2, 4, 8, 16, 32),  # tokens, whose smallest base is found
    "interval_lengths": _k(1, 2, 4, 8),  # tokens, whose every base is decided
    # Bases in use: RoFormer and LLaMA, SmolLM2, Llama 2 Long and Llama 3, Code Llama, and 1e7.
    "bases": (1e4, 1e5, 5e5, 1e6, 1e7),
    # The model whose reach with those bases 2310.05209 predicts: tokens of pretraining, of tuning.
    "trained": 4096,
    "tuned": 16_384,
    "machine": {},  # fields of lab.Machine
}

_PRESETS = {
    "tiny": {"lengths": (64, 256, 1024), "interval_lengths": (64, 1024), "bases": (1e4,)},
    "cpu": {},
    "full": {
        "lengths": _k(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
        "interval_lengths": _k(1, 2, 4, 8, 16, 32),
    },
}


def get_config(preset: str = "cpu") -> ConfigDict:
    if preset not in _PRESETS:
        raise ValueError(unknown_name("preset of base_bound", preset, _PRESETS))
    return ConfigDict(_CPU | _PRESETS[preset])
