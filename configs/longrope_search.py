"""Presets of experiments/longrope_search.py.

In a method {factor} is the target over the trained length, {abf} the base times `abf_factor`, and
{PI}, {NTK} and {YaRN} are these methods' factors for all pairs; options that a text leaves open
(base, original_length) are the trained model's.
"""

from ml_collections import ConfigDict

from configs.common import chosen

_PUBLISHED = ("PI", "NTK", "YaRN")


def _below(name: str, kind: str, *others: str) -> tuple[str, ...]:
    return tuple(f"{kind} at {{x}}: {name} - {other} < 0" for other in others)


# Each hypothesis is judged at every target {x}. The monotone gradient was added after results of a
# first run had been seen.
_HYPOTHESES = {
    "LongRoPE": {
        "claim": "its search lowers the loss of text below the published methods'",
        "gates": ("text at {x}: RoPE - YaRN > 0",),
        "checks": _below("LongRoPE", "text", *_PUBLISHED),
    },
    "LongRoPE2": {
        "claim": "its search lowers the loss of needles below the published methods'",
        "gates": ("tokens right at 1x: RoPE - 0.5 > 0",),
        "checks": _below("LongRoPE2", "needle", *_PUBLISHED),
    },
    "gradient": {
        "claim": "on text it is below the published methods and below LongRoPE",
        "gates": ("text at {x}: RoPE - YaRN > 0",),
        "checks": _below("gradient", "text", *_PUBLISHED, "LongRoPE"),
    },
    "gradient, monotone": {
        "claim": "on text it is below the published methods and LongRoPE without start tokens",
        "gates": ("text at {x}: RoPE - YaRN > 0",),
        "checks": _below("gradient, monotone", "text", *_PUBLISHED, "LongRoPE, no start tokens"),
    },
    "gradient, needle": {
        "claim": "on needles it is below the published methods and below LongRoPE2",
        "gates": ("tokens right at 1x: RoPE - 0.5 > 0",),
        "checks": _below("gradient, needle", "needle", *_PUBLISHED, "LongRoPE2"),
    },
}

_COMMON = {
    # What longrope_jax.load takes, trained with plain RoPE; "": a model that is pretrained here.
    "model": "",
    "trained_length": 256,  # L, tokens
    "corpus": "plays",  # a name of data.corpora, or a path to your own text
    "held_out": 15,  # documents for searches and test, chosen by the hash of their names
    "search_documents": 5,  # of the held-out ones; the rest is the test
    "bos": "<bos>",
    "sentence_tokens": (8, 20),  # of sentences that windows begin at and that needles ask for
    "needles": {"prompt": "<retrieve>", "end": "<answer_end>"},
    "factors": (2, 4),  # target length over trained length
    "windows": 10,  # of a fitness: text windows for LongRoPE, needles for LongRoPE2
    "test_windows_per_document": 4,
    "test_needles": 100,
    # LongRoPE's paper: population 64, mutants 16, crossovers 16, parents 32, generations 40.
    "evolution": {
        "population": 24,
        "mutants": 6,
        "crossovers": 6,
        "parents": 12,
        "generations": 12,
    },
    "models": 1,  # that are pretrained, each from another seed
    "searches": ("LongRoPE", "LongRoPE2", "gradient", "gradient, monotone", "gradient, needle"),
    "seeds": 3,  # of the evolutions, on each model
    "restarts": 1,  # of the gradients: at the best, the second best, ... of PI, NTK and YaRN
    "probability": 0.3,  # of changing a pair
    "start_counts": (0, 1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 64, 128, 256),  # LongRoPE, table 4
    "learning_rate": 0.03,  # of Adam on log lambda
    # Rows of the test beside those that are searched. Searched factors use LongRoPE's attention
    # factor: so do those that are called so, which shows what the factors alone do.
    "rows": {
        "RoPE": {"method": "rope"},
        "PI": {"method": "pi:factor={factor}"},
        "NTK": {"method": "ntk:factor={factor}"},
        "YaRN": {"method": "yarn:factor={factor}"},
        "ABF x50": {"method": "rope:base={abf}"},
    }
    | {
        f"{name}, LongRoPE's attention factor": {
            "method": f"longrope:long_factor={{{name}}},factor={{factor}}"
        }
        for name in _PUBLISHED
    },
    "row_defaults": {"method": "rope"},
    "abf_factor": 50,
    "hypotheses": _HYPOTHESES,
    # Of the model that is pretrained here.
    "model_seed": 0,
    "tokenizer": "bytes",  # or a path to a tokenizer.json
    "base_per_token": 10_000 / 4096,  # its base is this times the trained length
    "shape": {
        "d_model": 128,
        "n_layers": 4,
        "n_heads": 2,
        "n_kv_heads": 2,
        "head_dim": 64,
        "d_ff": 384,
    },
    "pretraining": {
        "steps": 1500,
        "batch": 8,
        "learning_rate": 3e-3,
        "warmup_steps": 75,
        "shortest": 48,  # least tokens of a passage that is packed into a window; 0: none is
    },
    # Shares of training passages that teach each task, and the loss weight of their answers.
    "taught": {"first_sentence": 0.9, "passkey": 0.9, "answer_weight": 10.0},
    "passkey": {"fact": "The key is {key}. ", "prompt": "The key is "},
}

# What a first run, of the preset cpu, had shown on one model; written before more were searched.
_FACTORS = {
    "claim": "free factors for text lose needles to YaRN; monotone ones gain them, as good on text",
    "gates": ("text at {x}: RoPE - YaRN > 0", "tokens right at 1x: RoPE - 0.5 > 0"),
    "checks": (
        "needle at {x}: gradient - YaRN > 0",
        "needle at {x}: gradient, monotone - YaRN < 0",
        "text at {x}: |gradient, monotone - gradient| <= 0.02",
    ),
}
_OVERNIGHT = {
    "models": 3,
    "restarts": 3,
    "searches": (*_COMMON["searches"], "gradient, needle, monotone"),
    "hypotheses": _HYPOTHESES | {"factors": _FACTORS},
    "machine": {"tokens_per_batch": 20_480},
}

PRESETS = {
    "tiny": {
        "trained_length": 64,
        "held_out": 4,
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
        },
        "seeds": 2,
        "shape": {
            "d_model": 16,
            "n_layers": 1,
            "n_heads": 1,
            "n_kv_heads": 1,
            "head_dim": 64,
            "d_ff": 48,
        },
        "pretraining": {
            "steps": 4,
            "batch": 8,
            "learning_rate": 1e-3,
            "warmup_steps": 1,
            "shortest": 0,
        },
        "taught": {"first_sentence": 0.9, "passkey": 0.9, "answer_weight": 4.0},
        "machine": {"tokens_per_batch": 1024},
    },
    "cpu": {"machine": {"tokens_per_batch": 20_480}},
    "overnight": _OVERNIGHT,
    "paper": _OVERNIGHT
    | {
        "evolution": {
            "population": 64,
            "mutants": 16,
            "crossovers": 16,
            "parents": 32,
            "generations": 40,
        }
    },
}


def get_config(preset: str = "cpu") -> ConfigDict:
    return chosen("longrope_search", _COMMON, PRESETS, preset)
