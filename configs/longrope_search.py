"""Presets of experiments/longrope_search.py; `study` holds the model and its pretraining."""

from ml_collections import ConfigDict

from configs import base_frequency_ablation
from longrope_jax.errors import unknown_name

_COMMON = {
    "factors": (2, 4),  # target length over trained length
    "model_seed": 0,  # of the pretraining
    "search_documents": 5,  # of the held-out ones; the rest is the test
    "windows": 10,  # of a fitness: text windows for LongRoPE, needles for LongRoPE2
    "test_windows_per_document": 4,
    "test_needles": 100,
    "individuals_at_once": 2,  # vmapped together; memory and speed, not results
    # LongRoPE's paper: population 64, mutants 16, crossovers 16, parents 32, generations 40.
    "evolution": {
        "population": 24,
        "mutants": 6,
        "crossovers": 6,
        "parents": 12,
        "generations": 12,
        "probability": 0.3,
        "seeds": 3,
    },
    "start_counts": (0, 1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 64, 128, 256),  # LongRoPE, table 4
    "learning_rate": 0.03,  # of Adam on log lambda
}

_PRESETS = {
    "tiny": {
        "search_documents": 2,
        "windows": 8,
        "test_windows_per_document": 1,
        "test_needles": 4,
        "evolution": {
            "population": 4,
            "mutants": 1,
            "crossovers": 1,
            "parents": 2,
            "generations": 2,
            "probability": 0.3,
            "seeds": 2,
        },
        "study": ("tiny", {"held_out": 4, "factor": 4, "evaluation": {"tokens_per_batch": 1024}}),
    },
    "cpu": {"study": ("laptop", {"held_out": 15, "factor": 4})},
}


def get_config(preset: str = "cpu") -> ConfigDict:
    if preset not in _PRESETS:
        raise ValueError(unknown_name("preset of longrope_search", preset, _PRESETS))
    config = ConfigDict(_COMMON | _PRESETS[preset] | {"preset": preset})
    name, changes = _PRESETS[preset]["study"]
    with config.ignore_type():
        config.study = base_frequency_ablation.get_config(name)
    config.study.update(changes)
    # Only the lengths of the targets must fit into the held-out documents.
    config.study.evaluation.windows_per_document = 1
    return config
