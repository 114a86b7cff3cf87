"""Presets of experiments/base_frequency_ablation.py.

cpu is what `make reproduce` runs, within a budget of minutes. small_prose, small_code, large_prose
and large_code are the overnight study: two sizes and two texts. colab is for one small accelerator.
tpu_7b holds the paper's own settings, tpu_7b_1b the same cut to a billion tokens a row. tiny is for
tests. Methods are written as `rotary.parse` reads them, with
{length} the pretraining length, {factor} the extension, {base} the base of pretraining, {abf} the
adjusted one and {swept} the base of pretraining times the row's `times`.
"""

import itertools
from fractions import Fraction

from ml_collections import ConfigDict

from configs.common import chosen

_PROSE = "plays+sotu+austen+moby-dick"
_CODE = "sympy"  # source code, whose names repeat

# The rows of Llama 2 Long's Table 5; any registered method can be another row.
_METHODS = {
    "RoPE": "rope:base={base}",
    "RoPE PI": "pi:factor={factor},base={base}",
    "RoPE ABF": "rope:base={abf}",
    "xPos ABF": "xpos:base={abf},gamma=0.8,scale_base={length}",
}

# Fields of a row: --config.rows.NAME.method=... makes a row of your own with these.
_ROW = {
    "method": "",
    "seeds": 1,  # runs; rows share the pretrained model of their seed
    "first_seed": 0,  # the seeds are this one and those after it
    "taught": True,  # whether training windows teach retrieval, in pretraining and continuation
    "rate": 1.0,  # learning rate of the continuation, times the config's
    "times": 1.0,  # {swept} over {base}
    "drawn": True,  # whether the row stands in the figures too; all rows stand in the tables
    "branched": False,  # whether shorter continuations are trained too, see `branches`
}

# Hypotheses, gates and the analysis (base_frequency_results.py) were written and committed before
# the runs of these presets; pilots chose text, sizes and steps. A check is a difference of two
# rows in a quantity of base_frequency_results.QUANTITIES, or of a row and a number or "chance".
# A gate can only take a verdict back.
_SEES_LENGTH = ("gain from long context: RoPE ABF - 0.02 > 0",)
_MASTERED = "{} at its own length: RoPE - 0.9 > 0"
_FINDS_KEYS = (
    _MASTERED.format("passkey"),
    "passkey, key removed: RoPE ABF - 0.05 < 0",
)
_RETRIEVES = (
    _MASTERED.format("answer tokens"),
    "first sentence, sentence removed: RoPE ABF - 0.05 < 0",
)


def _best(area: str) -> tuple[str, ...]:
    """Checks that ABF has the largest area, plain RoPE the smallest."""
    return (
        f"{area}: RoPE ABF - RoPE > 0",
        f"{area}: RoPE ABF - RoPE PI > 0",
        f"{area}: RoPE ABF - xPos ABF > 0",
    )


_HYPOTHESES = {
    "H1": {
        "claim": "plain RoPE gains less from long context than ABF",
        "gates": _SEES_LENGTH,
        "checks": ("gain from long context: RoPE - RoPE ABF < 0",),
    },
    "H2": {
        "claim": "PI loses at long range less than half of what RoPE loses (paper: 0.08 to 0.17)",
        "gates": (*_SEES_LENGTH, "gain from long context: RoPE - RoPE ABF < 0"),
        "checks": ("excess at long range, less half of RoPE's: RoPE PI - 0 < 0",),
    },
    "H3": {
        "claim": "ABF finds keys best, over all lengths",
        "gates": _FINDS_KEYS,
        "checks": _best("passkey area"),
    },
    "H4": {
        "claim": "ABF retrieves the first sentence best, over all lengths",
        "gates": _RETRIEVES,
        "checks": _best("first sentence area"),
    },
    "H5": {
        "claim": "pass key fails only for RoPE",
        "gates": _FINDS_KEYS,
        "checks": (
            "passkey, less half of its own ceiling: RoPE - 0 < 0",
            "passkey, less 0.9 of its own ceiling: RoPE PI - 0 > 0",
            "passkey, less 0.9 of its own ceiling: RoPE ABF - 0 > 0",
            "passkey, less 0.9 of its own ceiling: xPos ABF - 0 > 0",
        ),
    },
    "H6": {
        "claim": "without training ABF beats PI in loss",
        "checks": ("loss untrained: RoPE PI - RoPE ABF > 0",),
    },
    "H7": {
        "claim": "continued ABF has a lower loss than cropping at long range",
        "gates": _SEES_LENGTH,
        "checks": ("loss at long range: RoPE, cropped - RoPE ABF > 0",),
    },
    "H8": {
        "claim": "continued ABF finds more keys than cropping",
        "gates": _FINDS_KEYS,
        "checks": ("passkey area: RoPE ABF - RoPE, cropped > 0",),
    },
}
# What the budget of `cpu` can decide. Its first run, which had all but H4 and H8, gained 0.019 nats
# from long context, below the gate of the hypotheses on loss: they are left to the overnight study.
_DECIDED = ("H3", "H5", "H6", "H8")

_COMMON = {
    # A name of data.corpora, or a path to your own text (another text needs another --workdir:
    # finished cells are recognised by the path).
    "corpus": _PROSE,
    # "bytes", "bpe:PIECES" (trained on the corpus) or a path to a tokenizer; "": that of
    # init_checkpoint, else bpe:2048.
    "tokenizer": "",
    "bos": "",  # token that begins a document; "": the tokenizer's own
    "sentence_tokens": (8, 20),  # of a sentence that can be asked for; documents begin at one
    # Documents for validation and retrieval, chosen by the hash of their names, or their names;
    # 0: a quarter of those that are long enough, at most 40.
    "held_out": 0,
    "factor": 8,  # continued length over pretraining length
    "base_per_token": 10_000 / 4096,  # pretraining base = this times the pretraining length
    "abf_factor": 50,  # adjusted base over pretraining base
    # What longrope_jax.load takes, e.g. WORKDIR/runs/NAME. Nothing is pretrained then, and the
    # checkpoint's shape counts instead of `model`.
    "init_checkpoint": "",
    "dtype": "float32",  # of activations
    "param_dtype": "float32",
    "retrieval": {
        "first_sentence_prompt": "<retrieve>",
        "first_sentence_end": "<answer_end>",
        "passkey_fact": " {name} {key}.",
        "passkey_prompt": " {name} ",
        # Shares of the taught questions that ask each task, the loss weight of their answers, and
        # tokens of text for each question, the same in pretraining and continuation.
        "taught_first_sentence": 0.35,
        "taught_passkey": 0.65,
        "answer_weight": 1.0,
        "every": 76,
    },
    # A pretraining whose answers on training documents have a smaller share of right tokens, in
    # either task, is continued once, for `more` of its steps; share 0 never is.
    "criterion": {"share": 0.95, "more": 0.5},
    # Shares of the continuation's steps after which branched rows are annealed as well.
    "branches": (1 / 64, 1 / 16, 1 / 4),
    "minutes": 0,  # of training and measuring; rows and seeds that do not fit are left out; 0: all
    "evaluation": {
        "windows_per_document": 4,
        "samples": 400,  # per length, teacher-forced
        "generated": 100,  # per length, greedy, for ROUGE-L; also of each side measurement
        "lengths": (
            0.25,
            0.5,
            0.75,
            1.25,
        ),  # of retrieval beside the two trained, times the continued
        "scales": (0.5, 0.75, 1.0, 2.0),  # Giraffe's matrix, times the method's own scale
    },
    "row_defaults": _ROW,
    "hypotheses": _HYPOTHESES,
    "machine": {},  # fields of lab.Machine: speed and memory, no results
}


def _rows(
    seeds: int, *, swept: tuple = (), rates: tuple = (), untaught: bool = True
) -> dict[str, dict]:
    """The paper's rows with `seeds` each; beside them other bases, learning rates, no teaching.

    Rates are swept on a seed of their own, for all rows alike.
    """
    rows = {name: {"method": text, "seeds": seeds} for name, text in _METHODS.items()}
    rows = {name: row | {"branched": seeds > 1} for name, row in rows.items()}
    side = {"drawn": False}
    for factor in swept:
        rows[f"base x{factor}"] = {"method": "rope:base={swept}", "times": float(factor)} | side
    for name, rate in itertools.product(_METHODS if rates else (), rates):
        row = {"method": _METHODS[name], "rate": rate, "first_seed": 99}
        rows[f"{name}, rate x{Fraction(rate)}"] = row | side
    if untaught:
        rows["RoPE ABF, not taught"] = {"method": _METHODS["RoPE ABF"], "taught": False} | side
    return {name: _ROW | row for name, row in rows.items()}


def _model(d_model: int, n_layers: int, n_heads: int) -> dict:
    """The shape of a model that is pretrained here; `preset` may name a published one instead.

    Embeddings are tied, with which a small model learns to copy from few tokens.
    """
    shape = {"d_model": d_model, "n_layers": n_layers, "n_heads": n_heads, "n_kv_heads": n_heads}
    return {"preset": "", "head_dim": 64, "d_ff": 3 * d_model, "tie_embeddings": True} | shape


def _phase(steps: int, batch: int, rate: float, warmup: int, **changes) -> dict:
    """One phase of training: steps of `batch` windows of its length."""
    phase = {"steps": steps, "batch": batch, "learning_rate": rate, "warmup_steps": warmup}
    # Passages from `shortest` tokens on are packed into a window; 0: a passage fills its window.
    phase |= {"weight_decay": 0.1, "eps": 1e-8, "shortest": 0}
    # The rate is constant, then falls linearly over the last fifth.
    return phase | {"decay": 0.2, "final_ratio": 0.05} | changes


_SMALL = {
    "length": 64,
    "model": _model(128, 2, 4),
    "rows": _rows(3, swept=(5, 500), rates=(0.5, 1.0, 2.0)),
    "pretraining": _phase(4800, 32, 3e-3, 50),
    "continuation": _phase(2400, 4, 1.5e-3, 20),
    "machine": {"log_every": 50, "checkpoint_every": 800},
}
# Twice the parameters. Other shapes were tried before (4 layers, 128 tokens): they learn to copy
# from the context far later than at the same number of tokens.
_LARGE = _SMALL | {
    "model": _model(192, 2, 6),
    "rows": _rows(3, untaught=False),
    "continuation": _phase(1600, 4, 1.5e-3, 20),
}
# Of each part of the overnight study two seeds are made side by side.
_OVERNIGHT = {"machine": _SMALL["machine"] | {"processes": 2}}
_TINY_HYPOTHESES = {
    "H1": {
        "claim": "stock RoPE is worse",
        "gates": ("gain from long context: RoPE ABF - 0.02 > 0",),
        "checks": ("loss: RoPE - RoPE ABF > 0",),
    }
}

_PRESETS = {
    "tiny": {
        "length": 64,
        "corpus": "plays",
        "tokenizer": "bytes",
        "evaluation": {
            "windows_per_document": 2,
            "samples": 4,
            "generated": 2,
            "lengths": (),
            "scales": (0.5, 0.75, 1.0, 2.0),
        },
        "model": _model(16, 1, 1),
        "rows": {
            name: _ROW | {"method": _METHODS[name], "seeds": 2, "branched": True}
            for name in list(_METHODS)[::2]
        },
        "branches": (0.5,),
        "criterion": {"share": 0.95, "more": 1.0},
        "pretraining": _phase(4, 8, 1e-3, 1),
        "continuation": _phase(4, 8, 1e-3, 1),
        "hypotheses": _TINY_HYPOTHESES,
    },
    # Keys alone are taught, in code, whose names repeat: copying sentences takes a model of this
    # size three times as many tokens, and untied embeddings learn to copy digits soonest. The
    # first sentence is left to the overnight study.
    "cpu": _SMALL
    | {
        "corpus": _CODE,
        "model": _model(128, 2, 4) | {"tie_embeddings": False},
        "rows": {k: v | {"branched": False} for k, v in _rows(3, untaught=False).items()},
        "retrieval": _COMMON["retrieval"]
        | {"taught_first_sentence": 0.0, "taught_passkey": 1.0, "every": 64},
        "hypotheses": {name: _HYPOTHESES[name] for name in _DECIDED},
        "pretraining": _phase(1600, 32, 3e-3, 50),
        "continuation": _phase(600, 4, 1.5e-3, 20),
        "minutes": 10,
        "criterion": {"share": 0.95, "more": 0.25},
        "evaluation": _COMMON["evaluation"]
        | {"windows_per_document": 2, "samples": 200, "generated": 40},
    },
    "small_prose": _SMALL | _OVERNIGHT,
    "small_code": _SMALL | _OVERNIGHT | {"corpus": _CODE, "rows": _rows(3)},
    "large_prose": _LARGE | _OVERNIGHT,
    "large_code": _LARGE | _OVERNIGHT | {"corpus": _CODE},
    "colab": _LARGE | {"rows": _rows(2, untaught=False), "minutes": 10},
    # Llama 2 Long sections 2.1 and 4.1: 7B from Llama 2 at 4k to 32k, 80B tokens at 4M per step.
    "tpu_7b": {
        "length": 4096,
        "corpus": "",  # your long documents: --config.corpus=DIR
        "init_checkpoint": "",  # Llama 2 7B in any format: --config.init_checkpoint=PATH
        "sentence_tokens": (8, 64),
        "model": {"preset": "llama2_7b"},
        "dtype": "bfloat16",
        "rows": _rows(1, untaught=False),
        "pretraining": _phase(0, 1, 3e-4, 0),
        "continuation": _phase(
            19_073, 128, 2e-5, 2000, eps=1e-5, decay=0.0, final_ratio=0.1
        ),  # 80 billion tokens
        "branches": (0.25, 0.5),
        "criterion": {"share": 0.0, "more": 0.0},
        "retrieval": {
            "first_sentence_prompt": "\nQ: What is the first sentence of the text above?, A: ",
            "first_sentence_end": "\n",
            "passkey_fact": "The pass key is {key}. Remember it. {key} is the pass key. ",
            "passkey_prompt": "\nWhat is the pass key? The pass key is ",
            "taught_first_sentence": 0.0,
            "taught_passkey": 0.0,
            "answer_weight": 1.0,
            "every": 0,
        },
        "machine": {
            "data": 1,
            "fsdp": -1,
            "remat": "full",
            "accumulation": 4,
            "checkpoint_every": 500,
        },
    },
}


# 250 steps of 4M tokens: PI's own Table 3 recovers in 200 steps.
_PRESETS["tpu_7b_1b"] = _PRESETS["tpu_7b"] | {
    "continuation": _phase(250, 128, 2e-5, 20, eps=1e-5),
    "branches": (0.25, 0.5),
}


PRESETS = tuple(_PRESETS)


def get_config(preset: str = "cpu") -> ConfigDict:
    return chosen("base_frequency_ablation", _COMMON | {"preset": preset}, _PRESETS, preset)
