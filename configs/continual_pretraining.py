"""Presets of experiments/continual_pretraining.py: published recipes, a CPU one, and tiny.

Numbers are from the sources named beside them; "not reported" marks what a source leaves out and
which value stands in for it. Stages run in the order of their names.
"""

from ml_collections import ConfigDict

from configs.common import CHECKPOINT, chosen, stage

# Llama 2's batch: 4M tokens, read as 2^22 (2309.16039 section 2.1; Table 10 fits to 4 digits).
_BATCH_TOKENS = 2**22

_EVALUATION = {
    "length": 0,  # 0: the longest stage's
    "windows_per_document": 1,
    "blocks": 64,  # of positions
    "unchanged": True,  # also measure the checkpoint under its own method
    "cropped": True,  # ... which reads the last tokens alone, as many as it was trained on
}

_MACHINE = {"data": 1, "fsdp": -1, "remat": "full", "log_every": 1}

# Rows: unchanged, cropped, zero-shot, and "after STAGE", of which {last} is the last.
_HYPOTHESES = {
    "H1": {
        "claim": "training lowers the loss at the target length",
        "checks": ("loss: zero-shot - {last} > 0",),
    },
    # Getting used to the training text lowers the loss at every position.
    "H2": {
        "claim": "training lowers it more beyond the trained length than within it",
        "gates": ("beyond: unchanged - cropped > 0",),  # there is something to repair
        "checks": ("beyond minus within: zero-shot - {last} > 0",),
    },
    "H3": {
        "claim": "beyond it the trained model gains from context that cropping takes away",
        "gates": ("beyond: unchanged - cropped > 0",),
        "checks": ("beyond minus within: cropped - {last} > 0",),
    },
}

COMMON = CHECKPOINT | {
    "trainable": "full",
    "rank": 8,
    "alpha": 16.0,
    "seeds": 1,  # of the order of the data and of fresh adapters
    "evaluation": _EVALUATION,
    "hypotheses": _HYPOTHESES,
    "export": "hf",  # of the first seed: "hf", "gguf" or "" for none
    "machine": _MACHINE,
}


def _stage(*args, measured_with: str = "", **changes) -> dict:
    """A stage, with the method of the loss at the target length; "": the stage's."""
    return stage(*args, **changes) | {"measured_with": measured_with}


def _llama2_long(length: int, rate: float, accumulation: int) -> dict:
    """2309.16039 section 2.1: 400B tokens in 100,000 steps, tokens per batch kept, base 500,000.

    Not reported: Adam's betas, weight decay, clipping, last learning rate and packing; Llama 2's
    stand in (weight decay 0.1, cosine to a tenth, eps 1e-5: 2302.13971 section 2.3, third-party
    notes on 2307.09288). The data mix is not reported either: bring your own.
    """
    long = _stage(
        "abf:base=500_000",
        length,
        _BATCH_TOKENS // length,
        100_000,
        rate,
        warmup_steps=2000,
        final_ratio=0.1,
        weight_decay=0.1,
        eps=1e-5,
    )
    machine = {"accumulation": accumulation, "checkpoint_every": 500, "log_every": 10}
    return {"trained_length": 4096, "stages": {"stage1": long}, "machine": _MACHINE | machine}


# 2306.15595: AdamW (0.9, 0.95), weight decay 0, warm-up of 20 steps from a tenth of the peak. What
# follows the warm-up is not reported: constant here; nor is clipping, which is 1 in every preset.
_PI = {"initial_ratio": 0.1}
_LONG_WINDOWS = _MACHINE | {"accumulation": 8}

PRESETS = {
    "tiny": {
        "model": "random",
        "corpus": "plays",
        "held_out": 2,
        "bos": "<bos>",
        "trained_length": 32,
        "dtype": "float32",
        "export": "",  # bytes are a tokenizer that no other software reads
        "evaluation": _EVALUATION | {"blocks": 8},
        "stages": {"stage1": _stage("pi:factor=2", 64, 8, 6, 1e-2, warmup_steps=1)},
        "machine": _MACHINE | {"remat": "none", "checkpoint_every": 2},
    },
    # At most two hours on 2 idle cores: 6 documents, 3 x 6 scored windows, STEPS of one window.
    "smollm2_cpu": {
        "model": "smollm2-135m",
        "corpus": "plays",
        "held_out": 6,
        "bos": "<|endoftext|>",
        "dtype": "float32",
        "evaluation": _EVALUATION | {"blocks": 48},
        "stages": {
            "stage1": _stage(
                "abf:base=500_000",
                12_288,
                1,
                14,
                1e-4,
                warmup_steps=2,
                final_ratio=0.1,
                eps=1e-5,
            )
        },
        "machine": _MACHINE | {"remat": "attention", "checkpoint_every": 1},
    },
    "llama2_long_7b": _llama2_long(32_768, 2e-5, 4),
    "llama2_long_13b": _llama2_long(32_768, 2e-5, 4),
    "llama2_long_34b": _llama2_long(16_384, 1e-5, 8),
    "llama2_long_70b": _llama2_long(16_384, 1e-5, 8),
    # 2306.15595: LLaMA 7B from 2,048 to 8,192, 1,000 steps of 64, rate 2e-5 (1e-5 for 33B, 65B).
    "pi_1000": {
        "trained_length": 2048,
        "stages": {"stage1": _stage("pi:factor=4", 8192, 64, 1000, 2e-5, **_PI)},
    },
    # 2309.00071 section 4, appendix B.4: Llama 2 by 16 in 400 steps of 64, then by 32 in 200 more,
    # both on windows of 64k. The second stage's warm-up is not reported: 20 again.
    "yarn_400_200": {
        "trained_length": 4096,
        "evaluation": _EVALUATION | {"length": 65_536},
        "stages": {
            f"stage{i}": _stage(f"yarn:factor={factor}", 65_536, 64, steps, 2e-5)
            for i, (factor, steps) in enumerate(((16, 400), (32, 200)), 1)
        },
        "machine": _LONG_WINDOWS,
    },
    # 2309.12307 and its released code: Llama 2 7B to 32k by PI, 1,000 steps of 64, constant after
    # 20 steps of warm-up, S2-Attn in groups of a quarter, adapters of rank 8 and alpha 16 on the
    # attention, embeddings and norms. 70B: rate 1e-5.
    "longlora_1000": {
        "trained_length": 4096,
        "trainable": "lora_plus",
        "stages": {"stage1": _stage("pi:factor=8", 32_768, 64, 1000, 2e-5, sparse_group=8192)},
        "machine": _LONG_WINDOWS,
    },
    # abacusai/Long-Context@c2a90d1, linear scale 4: LLaMA 13B at 4,096 tokens, batch 32, rate 2e-5,
    # documents of at least 20,480 characters (bring such); measured at 16k with scale 8, as its
    # README does. Steps, warm-up and decay are not reported: 1,000, 20 and 0.
    "giraffe_4k_16k": {
        "trained_length": 2048,
        "evaluation": _EVALUATION | {"length": 16_384},
        "stages": {
            "stage1": _stage("pi:factor=4", 4096, 32, 1000, 2e-5, measured_with="pi:factor=8")
        },
    },
    # Giraffe v2 (abacusai/Long-Context): Llama 2 13B to 32k with linear scale 8. Its window, batch,
    # rate and steps are not reported: the window is the target's, the others are those of v1.
    "giraffe_v2_32k": {
        "trained_length": 4096,
        "stages": {"stage1": _stage("pi:factor=8", 32_768, 32, 1000, 2e-5)},
        "machine": _LONG_WINDOWS | {"accumulation": 4},
    },
    # Together's Llama-2-7B-32K: PI by 8, which YaRN's tables compare with. Its training is not
    # reported in the papers this project reads: steps, batch and rate are Position Interpolation's.
    "together_7b_32k": {
        "trained_length": 4096,
        "stages": {"stage1": _stage("pi:factor=8", 32_768, 64, 1000, 2e-5, **_PI)},
        "machine": _LONG_WINDOWS,
    },
}


def get_config(preset: str = "smollm2_cpu") -> ConfigDict:
    return chosen("continual_pretraining", COMMON, PRESETS, preset)
