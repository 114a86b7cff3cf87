"""Presets of experiments/longlora.py."""

from ml_collections import ConfigDict

from configs.common import CHECKPOINT, chosen, stage
from longrope_jax.training.lora import TRAINABLE

_MACHINE = {"log_every": 1, "checkpoint_every": 10}

# Rows: "SUBSET, full attention" and "SUBSET, S2-Attn"; unchanged and zero-shot are not trained.
# The gate: training repairs something of what the method breaks.
_GATES = ("loss: zero-shot - full, full attention > 0",)
_HYPOTHESES = {
    "H1": {
        "claim": "LoRA alone is worse than full fine-tuning",
        "gates": _GATES,
        "checks": ("loss: lora, full attention - full, full attention > 0",),
    },
    "H2": {
        "claim": "LoRA+ is better than LoRA alone",
        "gates": _GATES,
        "checks": ("loss: lora, full attention - lora_plus, full attention > 0",),
    },
    "H3": {
        "claim": "S2-Attn is worse than full attention in training",
        "gates": _GATES,
        "checks": ("loss: full, S2-Attn - full, full attention > 0",),
    },
    "H4": {
        "claim": "LongLoRA (LoRA+ with S2-Attn) is worse than full fine-tuning",
        "gates": _GATES,
        "checks": ("loss: lora_plus, S2-Attn - full, full attention > 0",),
    },
}

_COMMON = CHECKPOINT | {
    "subsets": TRAINABLE,  # rows of LongLoRA's Table 2
    "attentions": ("full", "sparse"),  # columns of its Table 1
    "rank": 8,
    "alpha": 16.0,
    "seeds": 1,  # of the order of the data and of fresh adapters
    "dtype": "float32",
    "hypotheses": _HYPOTHESES,
    "machine": _MACHINE,
}


def _stage(*args, group: int, **changes) -> dict:
    """The training of every row; S2-Attn's groups are of `group` tokens."""
    return stage(*args, **changes) | {"sparse_group": group}


_PRESETS = {
    "tiny": {
        "model": "random",
        "corpus": "plays",
        "held_out": 2,
        "bos": "<bos>",
        "trained_length": 32,
        "subsets": ("full", "lora", "lora_plus"),
        "seeds": 2,
        "evaluation": {"windows_per_document": 1, "blocks": 8},
        "stage": _stage("pi:factor=8", 64, 8, 4, 1e-2, group=16, warmup_steps=1),
        "machine": _MACHINE | {"checkpoint_every": 2},
    },
    # SmolLM2-135M under PI by 8, as the paper's 4k to 32k; windows are short, since what PI breaks
    # shows at any length. Groups: a quarter of the window, as in the paper, which takes 1,000 steps
    # of 64 windows at a rate of 2e-5; 20 steps of one window get ten times that rate, the same for
    # all rows as in the paper.
    "smollm2": {
        "model": "smollm2-135m",
        "corpus": "plays",
        "bos": "<|endoftext|>",
        "evaluation": {"windows_per_document": 2, "blocks": 16},
        "stage": _stage("pi:factor=8", 2048, 1, 20, 2e-4, group=512, warmup_steps=2),
        "machine": _MACHINE | {"data": 1, "fsdp": -1, "remat": "attention"},
    },
}


def get_config(preset: str = "smollm2") -> ConfigDict:
    return chosen("longlora", _COMMON, _PRESETS, preset)
