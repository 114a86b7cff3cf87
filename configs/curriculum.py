"""Presets of experiments/curriculum.py: overnight on two cores, cpu, tiny, and a pod's.

Length is width, as in the paper's 7B (4,096 both), so the cost of a curriculum is the paper's.
"""

from ml_collections import ConfigDict

from configs.common import chosen

_LONG = "long throughout"
_SWITCHED = {20: "switch at 20%", 40: "switch at 40%", 80: "switch at 80%"}
_LATE = "switch at 40%, base too"
_SHORT = "short throughout"

# `switch`: share of the steps with short windows; `first`: another method until then.
_ROWS = {
    _LONG: {"switch": 0.0, "first": ""},
    **{name: {"switch": share / 100, "first": ""} for share, name in _SWITCHED.items()},
    _LATE: {"switch": 0.4, "first": "rope:base={base}"},
    _SHORT: {"switch": 1.0, "first": ""},
}

_SEES_LENGTH = (f"gain from long context: {_LONG} - 0.02 > 0",)
_FINDS_KEYS = (f"keys when short: {_LONG} - 0.9 > 0",)

# Written before any run. The paper: Tables 10 and 11, Figure 6 (2309.16039 section 4.4).
_HYPOTHESES = {
    "H1": {
        "claim": "no switched arm has a loss above long throughout by 0.02 or more",
        "gates": _SEES_LENGTH,
        "checks": tuple(
            f"loss over long throughout: {row} - 0.02 < 0" for row in _SWITCHED.values()
        ),
    },
    "H2": {
        "claim": "switched arms find as many keys, to 5 points",
        "gates": _FINDS_KEYS,
        "checks": tuple(f"keys: |{row} - {_LONG}| <= 0.05" for row in _SWITCHED.values()),
    },
    "H3": {
        "claim": "the latest switch finds fewest keys of the switched arms",
        "gates": _FINDS_KEYS,
        "checks": tuple(f"keys: {_SWITCHED[80]} - {_SWITCHED[p]} < 0" for p in (20, 40)),
    },
    "H4": {
        "claim": "within 5 % of the steps after the switch the training loss is back to 0.02",
        "gates": _SEES_LENGTH,
        "checks": tuple(
            f"training loss after the switch: {r} - 0.02 < 0" for r in _SWITCHED.values()
        ),
    },
    "H5": {
        "claim": "short throughout gains less from long context (control)",
        "gates": _SEES_LENGTH,
        "checks": (f"gain from long context: {_SHORT} - {_LONG} < 0",),
    },
}

_COMMON = {
    "corpus": "plays+sotu+austen+moby-dick",  # a name, a path, or a folder of `longrope tokenize`
    "tokenizer": "bpe:2048",  # "": that of the token cache
    "bos": "<s>",
    "held_out": 0,
    "sentence_tokens": (8, 20),
    "width": 128,  # of the model; windows are `width` tokens, then `factor` times as many
    "factor": 8,
    "model": {"preset": "", "n_layers": 2, "n_heads": 2, "head_dim": 64, "tie_embeddings": True},
    "dtype": "float32",
    "param_dtype": "float32",
    "method": "rope:base={adjusted}",
    "base_per_token": 10_000 / 4096,  # {base} is this times the short length
    "adjusted_factor": 50,  # {adjusted} over {base}
    "rows": _ROWS,
    "reference": _LONG,
    "seeds": 3,
    "training": {
        "steps": 5860,  # 12 million tokens
        "batch": 2,  # long windows of an update, or `factor` times as many short ones
        "learning_rate": 3e-3,
        "warmup_steps": 100,
        "decay": 0.2,
        "final_ratio": 0.05,
        "weight_decay": 0.1,
        "eps": 1e-8,
    },
    "asked": {"share": 1.0, "every": 64, "fact": " {name} {key}.", "prompt": " {name} "},
    "evaluation": {"windows_per_document": 2, "samples": 200},
    "hypotheses": _HYPOTHESES,
    "machine": {"log_every": 10, "checkpoint_every": 500},
}

PRESETS = {
    "overnight": {},
    "cpu": {
        "width": 64,
        "training": _COMMON["training"] | {"steps": 400, "batch": 2, "warmup_steps": 20},
        "evaluation": {"windows_per_document": 1, "samples": 50},
        "seeds": 1,
        "model": _COMMON["model"] | {"n_heads": 2, "head_dim": 32},
        "rows": {row: _ROWS[row] for row in (_LONG, _SWITCHED[40], _SHORT)},
        "hypotheses": {
            "H1": _HYPOTHESES["H1"]
            | {"checks": (f"loss over long throughout: {_SWITCHED[40]} - 0.02 < 0",)},
            "H5": _HYPOTHESES["H5"],
        },
    },
    "tiny": {
        "corpus": "plays",
        "tokenizer": "bytes",
        "bos": "<bos>",
        "held_out": 2,
        "width": 32,
        "factor": 4,
        "model": _COMMON["model"] | {"n_layers": 1, "n_heads": 1, "head_dim": 16},
        "rows": {row: _ROWS[row] for row in (_LONG, _LATE, _SHORT)},
        "seeds": 2,
        "training": _COMMON["training"] | {"steps": 10, "batch": 8, "warmup_steps": 1},
        "asked": _COMMON["asked"] | {"every": 32},
        "evaluation": {"windows_per_document": 1, "samples": 4},
        "hypotheses": {
            "H1": {
                "claim": "the control gains less",
                "gates": _SEES_LENGTH,
                "checks": (f"loss over long throughout: {_SHORT} - 0.02 < 0",),
            },
            "H4": {
                "claim": "the training loss is back",
                "checks": (f"training loss after the switch: {_LATE} - 0.02 < 0",),
            },
        },
        "machine": {"log_every": 1, "checkpoint_every": 5},
    },
    # 7B from scratch at 4M tokens a step (Table 10): 100,000 steps of 128 windows of 32k.
    "pod_7b": {
        "corpus": "",  # a folder of `longrope tokenize`: --config.corpus=DIR
        "tokenizer": "",
        "width": 4096,
        "model": {"preset": "llama2_7b"},
        "dtype": "bfloat16",
        "sentence_tokens": (),
        "held_out": 40,
        "seeds": 1,
        "training": _COMMON["training"]
        | {"steps": 100_000, "batch": 128, "learning_rate": 3e-4, "warmup_steps": 2000}
        | {"decay": 0.0, "final_ratio": 0.1, "eps": 1e-5},
        "asked": _COMMON["asked"] | {"share": 0.0, "every": 0},
        "machine": {"data": 1, "fsdp": -1, "remat": "full", "checkpoint_every": 500},
    },
}


def get_config(preset: str = "cpu") -> ConfigDict:
    return chosen("curriculum", _COMMON, PRESETS, preset)
