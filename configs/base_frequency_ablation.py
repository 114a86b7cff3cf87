"""Presets of experiments/base_frequency_ablation.py.

cpu is what `make reproduce` runs; laptop takes at most two hours on 2 cores; tpu_7b holds the
paper's own settings; tiny is for tests. Methods are written as `rotary.parse` reads them, with
{length} the pretraining length, {factor} the extension, {base} the base of pretraining, {abf} the
adjusted one and {swept} the base of pretraining times the row's `times`.
"""

from ml_collections import ConfigDict

from configs.common import chosen

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
    "taught": True,  # whether training windows teach retrieval, in pretraining and continuation
    "rate": 1.0,  # learning rate of the continuation, times the config's
    "times": 1.0,  # {swept} over {base}
    "drawn": True,  # whether the row stands in the figures too; all rows stand in the tables
}

# Claims and checks were written before any run. A check is a difference of two rows in a quantity
# of base_frequency_results.QUANTITIES, or of a row and a number or "chance". The gates were added
# after the laptop run had been read; a gate can only take a verdict back.
_SEES_LENGTH = ("gain from long context: RoPE ABF - 0 > 0",)
_RETRIEVES = (
    "answer tokens at its own length: RoPE - 0.5 > 0",
    "gain from the sentence: RoPE ABF - 0 > 0",
)
_FINDS_KEYS = ("passkey at its own length: RoPE - 0.9 > 0",)
_HYPOTHESES = {
    "H1": {
        "claim": "stock RoPE has the worst loss at long range",
        "gates": _SEES_LENGTH,
        "checks": (
            "loss at long range: RoPE - RoPE PI > 0",
            "loss at long range: RoPE - RoPE ABF > 0",
            "loss at long range: RoPE - xPos ABF > 0",
        ),
    },
    "H2": {
        "claim": "PI and ABF differ little in loss (0.003 nats in the paper)",
        "gates": _SEES_LENGTH,
        "checks": ("loss: |RoPE PI - RoPE ABF| <= 0.01",),
    },
    "H3": {
        "claim": "retrieval at the full length: RoPE at chance, ABF best",
        "gates": _RETRIEVES,
        "checks": (
            "ROUGE-L: |RoPE - chance| <= 5",
            "ROUGE-L: RoPE ABF - RoPE > 0",
            "ROUGE-L: RoPE ABF - RoPE PI > 0",
            "ROUGE-L: RoPE ABF - xPos ABF > 0",
        ),
    },
    "H4": {
        "claim": "passkey fails only for RoPE",
        "gates": _FINDS_KEYS,
        "checks": (
            "passkey: RoPE - 0.5 < 0",
            "passkey: RoPE PI - 0.9 > 0",
            "passkey: RoPE ABF - 0.9 > 0",
            "passkey: xPos ABF - 0.9 > 0",
        ),
    },
    "H5": {
        "claim": "without training ABF beats PI",
        "checks": ("loss untrained: RoPE PI - RoPE ABF > 0",),
    },
}

_COMMON = {
    # A name of data.corpora, or a path to your own text (another text needs another --workdir:
    # finished cells are recognised by the path).
    "corpus": "plays",
    # A path to a tokenizer.json; "": bytes, or the tokenizer of init_checkpoint.
    "tokenizer": "",
    "bos": "",  # token that begins a document; "": the tokenizer's own
    "sentence_tokens": (8, 20),  # of a sentence that can be asked for; documents begin at one
    # Documents for validation and retrieval, chosen by the hash of their names, or their names;
    # 0: a quarter of those that are long enough, at most 10.
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
        "passkey_fact": "The key is {key}. ",
        "passkey_prompt": "The key is ",
        # Shares of training passages that teach each task, and the loss weight of their answers.
        "taught_first_sentence": 0.9,
        "taught_passkey": 0.9,
        "answer_weight": 4.0,
    },
    "evaluation": {
        "windows_per_document": 6,
        "samples": 200,  # per length, teacher-forced
        "generated": 40,  # per length, greedy, for ROUGE-L; also of each side measurement
        "lengths": (0.125, 0.25, 0.5, 0.75, 1.0),  # of retrieval, times the continued length
        "scales": (0.5, 0.75, 1.0, 2.0),  # Giraffe's matrix, times the method's own scale
        # Shares of the continuation at which loss and retrieval are measured; their parameters are
        # kept while a row trains, so shares that are added later need the row trained again.
        "at": (0.33, 0.67),
    },
    "row_defaults": _ROW,
    "hypotheses": _HYPOTHESES,
    "machine": {},  # fields of lab.Machine: speed and memory, no results
}


def _rows(seeds: int, *, swept=(), learning_rates=(), untaught: bool = True) -> dict:
    """The paper's rows with `seeds` each; beside them other bases, learning rates, no teaching."""
    rows = {name: {"method": text, "seeds": seeds} for name, text in _METHODS.items()}
    side = {"drawn": False}
    for factor in swept:
        rows[f"base x{factor}"] = {"method": "rope:base={swept}", "times": float(factor)} | side
    for name in ("RoPE", "RoPE ABF") if learning_rates else ():
        for label, rate in learning_rates:
            rows[f"{name}, lr {label}"] = {"method": _METHODS[name], "rate": rate} | side
    if untaught:
        rows["RoPE ABF, not taught"] = {"method": _METHODS["RoPE ABF"], "taught": False} | side
    return {name: _ROW | row for name, row in rows.items()}


def _model(d_model: int, n_layers: int, n_heads: int) -> dict:
    """The shape of a model that is pretrained here; `preset` may name a published one instead."""
    shape = {"d_model": d_model, "n_layers": n_layers, "n_heads": n_heads, "n_kv_heads": n_heads}
    return {"preset": "", "head_dim": 64, "d_ff": 3 * d_model, "tie_embeddings": False} | shape


def _phase(steps: int, batch: int, rate: float, warmup: int, **changes) -> dict:
    """One phase of training: steps of `batch` windows of its length."""
    phase = {"steps": steps, "batch": batch, "learning_rate": rate, "warmup_steps": warmup}
    # Passages from `shortest` tokens on are packed into a window; 0: a passage fills its window.
    return phase | {"weight_decay": 0.1, "eps": 1e-8, "shortest": 0} | changes


_PRESETS = {
    "tiny": {
        "length": 64,
        "evaluation": {
            "windows_per_document": 2,
            "samples": 4,
            "generated": 2,
            "lengths": (0.25, 1.0),
            "scales": (0.5, 0.75, 1.0, 2.0),
            "at": (0.5,),
        },
        "model": _model(16, 1, 1),
        "rows": {
            name: _ROW | {"method": _METHODS[name], "seeds": 2} for name in list(_METHODS)[::2]
        },
        "pretraining": _phase(4, 8, 1e-3, 1),
        "continuation": _phase(4, 8, 1e-3, 1),
        "hypotheses": {
            "H1": {
                "claim": "stock RoPE is worse",
                "gates": _SEES_LENGTH,
                "checks": ("loss: RoPE - RoPE ABF > 0",),
            }
        },
    },
    "cpu": {
        "length": 64,
        "model": _model(128, 2, 4),
        "rows": _rows(2, swept=(5,)),
        "pretraining": _phase(800, 32, 3e-3, 40),
        "continuation": _phase(200, 4, 1.5e-3, 15),
        "evaluation": _COMMON["evaluation"] | {"windows_per_document": 4, "generated": 30},
    },
    "laptop": {
        "length": 256,
        "model": _model(128, 4, 2),
        "rows": _rows(3, swept=(5, 500), learning_rates=(("1/2", 0.5), ("x2", 2.0))),
        "pretraining": _phase(1500, 8, 3e-3, 75, shortest=48),
        "continuation": _phase(128, 2, 1.5e-3, 10),
        "retrieval": _COMMON["retrieval"] | {"answer_weight": 10.0},
        "evaluation": _COMMON["evaluation"]
        | {"windows_per_document": 3, "generated": 30, "lengths": (0.125, 0.375, 1.0)},
        "machine": {"checkpoint_every": 50},
    },
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
        "continuation": _phase(19_073, 128, 2e-5, 2000, eps=1e-5),  # 80 billion tokens
        "evaluation": _COMMON["evaluation"] | {"at": (0.25, 0.5)},
        "retrieval": {
            "first_sentence_prompt": "\nQ: What is the first sentence of the text above?, A: ",
            "first_sentence_end": "\n",
            "passkey_fact": "The pass key is {key}. Remember it. {key} is the pass key. ",
            "passkey_prompt": "\nWhat is the pass key? The pass key is ",
            "taught_first_sentence": 0.0,
            "taught_passkey": 0.0,
            "answer_weight": 1.0,
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


def get_config(preset: str = "cpu") -> ConfigDict:
    return chosen("base_frequency_ablation", _COMMON | {"preset": preset}, _PRESETS, preset)
