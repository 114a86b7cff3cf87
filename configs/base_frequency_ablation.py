"""Presets of experiments/base_frequency_ablation.py.

cpu is what `make reproduce` runs; laptop takes at most two hours on 2 cores; tpu_7b holds the
paper's own settings; tiny is for tests. Methods are written as `rotary.parse` reads them, with
{length} the pretraining length, {factor} the extension, {base} the base of pretraining, {abf} the
adjusted one and {swept} the base of pretraining times the row's `times`.
"""

from ml_collections import ConfigDict

from longrope_jax.errors import unknown_name

# The rows of Llama 2 Long's Table 5; any registered method can be another row.
_METHODS = {
    "RoPE": "rope:base={base}",
    "RoPE PI": "pi:factor={factor},base={base}",
    "RoPE ABF": "rope:base={abf}",
    "xPos ABF": "xpos:base={abf},gamma=0.8,scale_base={length}",
}

# Written before any run. Each check is a difference of two rows in a quantity of compare.QUANTITIES
# and holds, is reversed or indistinguishable by its bootstrap interval.
_HYPOTHESES = {
    "H1": {
        "claim": "stock RoPE has the worst loss at long range",
        "checks": (
            "loss at long range: RoPE - RoPE PI > 0",
            "loss at long range: RoPE - RoPE ABF > 0",
            "loss at long range: RoPE - xPos ABF > 0",
        ),
    },
    "H2": {
        "claim": "PI and ABF differ little in loss (0.003 nats in the paper)",
        "checks": ("loss: |RoPE PI - RoPE ABF| <= 0.01",),
    },
    "H3": {
        "claim": "retrieval at the full length: RoPE at chance, ABF best",
        "checks": (
            "ROUGE-L: |RoPE - chance| <= 5",
            "ROUGE-L: RoPE ABF - RoPE > 0",
            "ROUGE-L: RoPE ABF - RoPE PI > 0",
            "ROUGE-L: RoPE ABF - xPos ABF > 0",
        ),
    },
    "H4": {
        "claim": "passkey fails only for RoPE",
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
    # finished runs are recognised by the path).
    "corpus": "plays",
    "tokenizer": "bytes",  # or a path to a tokenizer.json
    "bos": "<bos>",
    "held_out": 10,  # documents for validation and retrieval, chosen by the hash of their names
    "factor": 8,  # continued length over pretraining length
    "base_per_token": 10_000 / 4096,  # pretraining base = this times the pretraining length
    "abf_factor": 50,  # adjusted base over pretraining base
    # Instead of pretraining: a run's folder of checkpoints, or what longrope_jax.load takes.
    "init_checkpoint": "",
    "retrieval": {
        "first_sentence_prompt": "<retrieve>",
        "first_sentence_end": "<answer_end>",
        "sentence_tokens": (8, 20),
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
        "tokens_per_batch": 8192,
    },
    "mesh": {"data": -1, "fsdp": 1, "sequence": 1, "tensor": 1},
    "multihost": False,
    "hypotheses": _HYPOTHESES,
}


def _rows(seeds: int, *, swept=(), learning_rates=(), untaught: bool = True) -> dict:
    """Rows of the table: method, seeds, taught or not, learning rate relative to the others'."""
    rows = {name: {"method": text, "seeds": seeds} for name, text in _METHODS.items()}
    for factor in swept:
        rows[f"base x{factor}"] = {"method": "rope:base={swept}", "seeds": 1, "times": factor}
    for name in ("RoPE", "RoPE ABF") if learning_rates else ():
        for label, rate in learning_rates:
            rows[f"{name}, lr {label}"] = {"method": _METHODS[name], "seeds": 1, "rate": rate}
    if untaught:
        rows["RoPE ABF, not taught"] = {"method": _METHODS["RoPE ABF"], "seeds": 1, "taught": False}
    default = {"taught": True, "rate": 1.0, "times": 1}
    return {name: default | row for name, row in rows.items()}


def _model(d_model: int, n_layers: int, n_heads: int) -> dict:
    shape = {"d_model": d_model, "n_layers": n_layers, "n_heads": n_heads, "n_kv_heads": n_heads}
    return {"preset": "", "head_dim": 64, "d_ff": 3 * d_model, "tie_embeddings": False} | shape


def _phase(steps: int, batch: int, rate: float, warmup: int, **changes) -> dict:
    """One phase of training: steps of `batch` windows of its length."""
    phase = {"steps": steps, "batch": batch, "learning_rate": rate, "warmup_steps": warmup}
    defaults = {"accumulation": 1, "weight_decay": 0.1, "log_every": 10, "checkpoint_every": 100}
    # Passages shorter than the window are packed into it; 0: a passage fills its window.
    return phase | defaults | {"shortest_passage": 0} | changes


_PRESETS = {
    "tiny": {
        "length": 64,
        "held_out": 2,
        "evaluation": {
            **_COMMON["evaluation"],
            "windows_per_document": 2,
            "samples": 4,
            "generated": 2,
            "lengths": (0.25, 1.0),
        },
        "model": _model(16, 1, 1),
        "rows": {
            name: {"method": _METHODS[name], "seeds": 2, "taught": True, "rate": 1.0, "times": 1}
            for name in ("RoPE", "RoPE ABF")
        },
        "pretraining": _phase(4, 8, 1e-3, 1),
        "continuation": _phase(4, 8, 1e-3, 1, evaluate_at=(0.5,)),
        "hypotheses": {
            "H1": {"claim": "stock RoPE is worse", "checks": ("loss: RoPE - RoPE ABF > 0",)}
        },
    },
    "cpu": {
        "length": 64,
        "model": _model(128, 2, 4),
        "rows": _rows(2, swept=(5,)),
        "pretraining": _phase(800, 32, 3e-3, 40),
        "continuation": _phase(200, 4, 1.5e-3, 15, checkpoint_every=50, evaluate_at=(0.33, 0.67)),
        "evaluation": {**_COMMON["evaluation"], "windows_per_document": 4, "generated": 30},
    },
    "laptop": {
        "length": 256,
        "model": _model(128, 4, 2),
        "rows": _rows(3, swept=(5, 500), learning_rates=(("1/2", 0.5), ("x2", 2.0))),
        "pretraining": _phase(1500, 8, 3e-3, 75, shortest_passage=48),
        "continuation": _phase(128, 2, 1.5e-3, 10, checkpoint_every=16, evaluate_at=(0.33, 0.67)),
        "retrieval": {**_COMMON["retrieval"], "answer_weight": 10.0},
        "evaluation": {
            **_COMMON["evaluation"],
            "windows_per_document": 3,
            "generated": 30,
            "lengths": (0.125, 0.375, 1.0),
        },
    },
    # Llama 2 Long sections 2.1 and 4.1: 7B from Llama 2 at 4k to 32k, 80B tokens at 4M per step.
    "tpu_7b": {
        "length": 4096,
        "corpus": "",  # your long documents: --config.corpus=DIR
        "tokenizer": "",  # "": the checkpoint's, or --config.tokenizer=tokenizer.json
        "bos": "<s>",
        "init_checkpoint": "",  # Llama 2 7B in any format: --config.init_checkpoint=PATH
        "model": {
            "preset": "llama2_7b",
            "dtype": "bfloat16",
            "remat": "full",
        },
        "rows": _rows(1, untaught=False),
        "pretraining": _phase(0, 0, 3e-4, 0),
        "continuation": _phase(
            19_073,  # 80 billion tokens
            128,
            2e-5,
            2000,
            accumulation=4,
            checkpoint_every=500,
            evaluate_at=(0.25, 0.5),
            eps=1e-5,
        ),
        "retrieval": {
            **_COMMON["retrieval"],
            "first_sentence_prompt": "\nQ: What is the first sentence of the text above?, A: ",
            "first_sentence_end": "\n",
            "sentence_tokens": (8, 64),
            "passkey_fact": "The pass key is {key}. Remember it. {key} is the pass key. ",
            "passkey_prompt": "\nWhat is the pass key? The pass key is ",
            "taught_first_sentence": 0.0,
            "taught_passkey": 0.0,
            "answer_weight": 1.0,
        },
        "mesh": {"data": 1, "fsdp": -1, "sequence": 1, "tensor": 1},
    },
}


def get_config(preset: str = "cpu") -> ConfigDict:
    if preset not in _PRESETS:
        raise ValueError(unknown_name("preset of base_frequency_ablation", preset, _PRESETS))
    return ConfigDict(_COMMON | _PRESETS[preset] | {"preset": preset})
