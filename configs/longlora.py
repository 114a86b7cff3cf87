"""Presets of experiments/longlora.py, whose settings are continual_pretraining's."""

from ml_collections import ConfigDict

from configs.continual_pretraining import COMMON, PRESETS, stage
from longrope_jax.errors import unknown_name
from longrope_jax.training.lora import TRAINABLE

_COMMON = COMMON | {
    "subsets": TRAINABLE,  # rows of LongLoRA's Table 2
    "attentions": ("full", "sparse"),  # columns of its Table 1
    "seeds": 1,
}
# The paper takes 1,000 steps of 64 windows at a rate of 2e-5; 20 steps of one window get ten times
# that rate, the same for all rows as in the paper.
_STAGE = stage("pi:factor=8,base={base}", 2048, 1, 20, 2e-4, warmup_steps=2, checkpoint_every=10)

_PRESETS = {
    "tiny": PRESETS["tiny"]
    | {
        "group": 16,
        "subsets": ("full", "lora", "lora_plus"),
        "seeds": 2,
        "stages": {
            "stage1": stage(
                "pi:factor=8,base={base}", 64, 8, 4, 1e-2, warmup_steps=1, checkpoint_every=2
            )
        },
    },
    # SmolLM2-135M under PI by 8, as the paper's 4k to 32k; windows are short, since what PI breaks
    # shows at any length. Group: a quarter of the window, as in the paper.
    "smollm2": PRESETS["smollm2_cpu"]
    | {
        "held_out": 8,
        "group": 512,
        "evaluation": COMMON["evaluation"] | {"blocks": 16, "windows_per_document": 2},
        "stages": {"stage1": _STAGE},
    },
}


def get_config(preset: str = "smollm2") -> ConfigDict:
    if preset not in _PRESETS:
        raise ValueError(unknown_name("preset of longlora", preset, _PRESETS))
    return ConfigDict(_COMMON | _PRESETS[preset] | {"preset": preset})
