"""Presets of experiments/filter_gain.py."""

from ml_collections import ConfigDict

from configs.common import chosen

_HYPOTHESES = {
    f"H{i}": {
        "claim": f"filtering lowers the loss on {what} at equal tokens",
        # Whether a difference as large as that of twice the training could be seen at all.
        "gates": (f"{kind}: filtered, half the steps - filtered > 0",),
        "checks": (f"{kind}: unfiltered - filtered > 0",),
    }
    for i, (kind, what) in enumerate(
        {"pages": "held-out pages as filtered", "addresses": "text of another source"}.items(), 1
    )
}

_COMMON = {
    "seeds": 3,
    # Of the filters; see configs/prepare_corpus.py.
    "filter": {"clean": "austen+moby-dick", "language": "en", "citations": 8, "every": 1},
    "held_out": 12,  # pages, and as many addresses
    "newest": "19[5-9]|20",  # addresses whose names begin so may be held out
    "bos": "<bos>",
    "sentence_tokens": (8, 400),  # windows begin at sentences of that many bytes
    "windows_per_document": 4,
    "shape": {"d_model": 64, "n_layers": 2, "n_heads": 2, "head_dim": 32, "d_ff": 192},
    "method": "rope:base=10_000",
    "length": 256,
    "batch": 8,
    "steps": 400,
    "learning_rate": 3e-3,
    "hypotheses": _HYPOTHESES,
    "machine": {"log_every": 50, "checkpoint_every": 200},
}

_TINY = {
    "seeds": 2,
    "filter": {"clean": "moby-dick", "language": "en", "citations": 2, "every": 3},
    "held_out": 2,
    "windows_per_document": 1,
    "shape": {"d_model": 16, "n_layers": 1, "n_heads": 1, "head_dim": 16, "d_ff": 32},
    "length": 64,
    "batch": 8,
    "steps": 4,
    "machine": {"log_every": 2, "checkpoint_every": 2, "steps_per_dispatch": 2},
}


def get_config(preset: str = "cpu") -> ConfigDict:
    return chosen("filter_gain", _COMMON, {"cpu": {}, "tiny": _TINY}, preset)
