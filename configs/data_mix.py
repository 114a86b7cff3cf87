"""Presets of experiments/data_mix.py: overnight on two cores, cpu, tiny, and a pod's."""

from ml_collections import ConfigDict

from configs.common import SMALL, chosen, phase

_CUT, _LONG, _SHORT = "cut", "long upsampled", "short documents"

# `long`: share of long documents in the tokens, -1 as the corpus has it; `pieces`: of a window
# that documents are cut into, 0 leaves them whole.
_ROWS = {
    "natural": {"long": -1.0, "pieces": 0},
    _CUT: {"long": -1.0, "pieces": 4},
    _LONG: {"long": 0.8, "pieces": 0},
    _SHORT: {"long": 0.0, "pieces": 0},
}

_SEES_LENGTH = ("gain from long context: natural - 0.02 > 0",)
_FINDS_KEYS = ("keys when short: before - 0.8 > 0", "keys: natural - before > 0.1")

# Written before any run.
_HYPOTHESES = {
    "H1": {
        "claim": "cut documents give at least nine tenths of the gain in keys",
        "gates": _FINDS_KEYS,
        "checks": (f"keys, less 0.9 of natural's gain: {_CUT} - 0 > 0",),
    },
    "H2": {
        "claim": "short documents give at least nine tenths of the gain in keys",
        "gates": _FINDS_KEYS,
        "checks": (f"keys, less 0.9 of natural's gain: {_SHORT} - 0 > 0",),
    },
    "H3": {
        "claim": "more long documents find as many keys, to 2 points",
        "gates": _FINDS_KEYS,
        "checks": (f"keys: |{_LONG} - natural| <= 0.02",),
    },
    "H4": {
        "claim": "cut documents teach as much use of long context, to 0.01 nats",
        "gates": _SEES_LENGTH,
        "checks": (f"gain from long context: |{_CUT} - natural| <= 0.01",),
    },
    "H5": {
        "claim": "no arm costs 0.02 nats at short range",
        "checks": tuple(
            f"short loss over natural: {row} - 0.02 < 0" for row in (_CUT, _LONG, _SHORT)
        ),
    },
}

_COMMON = SMALL | {
    "held_out": 40,  # documents that hold a long window, chosen by the hash of their names
    "method": "rope:base={adjusted}",  # of the continuation
    "before": "rope:base={base}",  # of the pretraining
    "factor": 8,  # a long window over a short one
    "long_document": 32,  # windows that a long document holds at least
    "rows": _ROWS,
    "reference": "natural",
    "pretraining": phase(4800, 32, 3e-3, 50),
    "training": phase(1950, 4, 1.5e-3, 20),  # 4 million tokens
    "evaluation": {"windows_per_document": 2, "samples": 200},
    "hypotheses": _HYPOTHESES,
}

PRESETS = {
    "overnight": {},  # 10 + 4 x 4 million tokens a seed
    "cpu": {  # 3.3 + 4 x 0.4 million tokens
        "pretraining": phase(1600, 32, 3e-3, 50),
        "training": phase(200, 4, 1.5e-3, 20),
        "evaluation": {"windows_per_document": 1, "samples": 100},
        "seeds": 1,
    },
    "tiny": {
        "corpus": "plays",
        "tokenizer": "bytes",
        "bos": "<bos>",
        "held_out": 2,
        "short": 32,
        "factor": 4,
        "long_document": 960,
        "model": SMALL["model"] | {"n_layers": 1, "n_heads": 1, "head_dim": 16},
        "width": 16,
        "seeds": 2,
        "pretraining": phase(4, 8, 1e-3, 1),
        "training": phase(4, 8, 1e-3, 1),
        "evaluation": {"windows_per_document": 1, "samples": 2},
        "machine": {"log_every": 1, "checkpoint_every": 2},
    },
    # 7B at 4M tokens a step, 100B tokens before and 20B after: the documents are the question, so
    # the pretraining may be shorter than Llama's.
    "pod_7b": {
        "corpus": "",  # a folder of `longrope tokenize`: --config.corpus=DIR
        "tokenizer": "",
        "width": 4096,
        "short": 4096,
        "long_document": 1,
        "model": {"preset": "llama2_7b"},
        "dtype": "bfloat16",
        "seeds": 1,
        "pretraining": phase(24_000, 1024, 3e-4, 2000, eps=1e-5, decay=0.0, final_ratio=0.1),
        "training": phase(4800, 128, 2e-5, 200, eps=1e-5, decay=0.0, final_ratio=0.1),
        "asked": SMALL["asked"] | {"every": 2048},
        "machine": {"data": 1, "fsdp": -1, "remat": "full", "checkpoint_every": 500},
    },
}


def get_config(preset: str = "cpu") -> ConfigDict:
    return chosen("data_mix", _COMMON, PRESETS, preset)
