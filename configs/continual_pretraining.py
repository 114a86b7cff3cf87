"""Presets of experiments/continual_pretraining.py: published recipes, a CPU one, and tiny.

Numbers are from the sources named beside them; "not reported" marks what a source leaves out and
which value stands in for it. In a method {base} is the checkpoint's base and {trained} its trained
length. Stages run in the order of their names.
"""

from ml_collections import ConfigDict

from longrope_jax.errors import unknown_name

# Llama 2's batch: 4M tokens, read as 2^22 (2309.16039 section 2.1; Table 10 fits to 4 digits).
_BATCH_TOKENS = 2**22

COMMON = {
    # What longrope_jax.load takes, a folder of our own checkpoints (then `shape`,
    # `base_method` and `tokenizer` are needed), or "random" for a tiny random model.
    "model": "",
    "shape": {
        "preset": "",
        **dict.fromkeys(("d_model", "n_layers", "n_heads", "n_kv_heads", "head_dim", "d_ff"), 0),
        "norm_eps": 1e-5,
        "tie_embeddings": False,
        "rotary_layout": "half",
    },
    "base_method": "",  # "": what the checkpoint says
    "tokenizer": "",  # "": the checkpoint's
    "trained_length": 4096,  # of the checkpoint, tokens
    "corpus": "",  # your long documents: --config.corpus=DIR
    "held_out": 8,  # documents, or their names
    "bos": "",  # begins every document; "": the token that the checkpoint's own software puts first
    "sentence_tokens": (3, 256),  # windows begin at sentences of that many tokens
    "trainable": "full",
    "rank": 8,
    "alpha": 16.0,
    "dtype": "bfloat16",
    "param_dtype": "float32",
    "remat": "full",
    "seed": 0,
    "evaluation": {
        "length": 0,  # 0: the longest stage's
        "windows_per_document": 1,
        "blocks": 64,  # of positions
        "unchanged": True,  # also measure the checkpoint under its own method
    },
    "export": "hf",  # "hf", "gguf" or "" for none
    "mesh": {"data": 1, "fsdp": -1, "sequence": 1, "tensor": 1},
    "multihost": False,
}


def stage(method: str, length: int, batch: int, steps: int, rate: float, **changes) -> dict:
    """`steps` updates of `batch` windows of `length` tokens under `method`."""
    defaults = {
        "accumulation": 1,
        "warmup_steps": 20,
        "initial_ratio": 0.0,
        "final_ratio": 1.0,  # constant after the warm-up
        "weight_decay": 0.0,
        "eps": 1e-8,
        "measured_with": "",  # method of the loss at the target length; "": the stage's
        "sparse_group": 0,  # tokens per group of S2-Attn; 0: full attention
        "shortest_passage": 0,  # 0: a document fills its window; else packed from so many tokens
        "log_every": 1,
        "checkpoint_every": 100,
    }
    required = {"method": method, "length": length, "batch": batch, "steps": steps}
    return required | {"learning_rate": rate} | defaults | changes


def _llama2_long(length: int, rate: float, accumulation: int) -> dict:
    """2309.16039 section 2.1: 400B tokens in 100,000 steps, tokens per batch kept, base 500,000.

    Not reported: Adam's betas, weight decay, clipping, last learning rate and packing; Llama 2's
    stand in (weight decay 0.1, cosine to a tenth, eps 1e-5: 2302.13971 section 2.3, third-party
    notes on 2307.09288). The data mix is not reported either: bring your own.
    """
    long = stage(
        "abf:base=500_000",
        length,
        _BATCH_TOKENS // length,
        100_000,
        rate,
        warmup_steps=2000,
        final_ratio=0.1,
        weight_decay=0.1,
        eps=1e-5,
        accumulation=accumulation,
        checkpoint_every=500,
        log_every=10,
    )
    return {"stages": {"stage1": long}}


# 2306.15595: AdamW (0.9, 0.95), weight decay 0, warm-up of 20 steps from a tenth of the peak. What
# follows the warm-up is not reported: constant here; nor is clipping, which is 1 in every preset.
_PI = {"initial_ratio": 0.1}

_TINY = stage("pi:factor=2,base={base}", 64, 8, 6, 1e-2, warmup_steps=1, checkpoint_every=2)

PRESETS = {
    "tiny": {
        "model": "random",
        "corpus": "plays",
        "held_out": 2,
        "bos": "<bos>",
        "trained_length": 32,
        "dtype": "float32",
        "remat": "none",
        "export": "",  # bytes are a tokenizer that no other software reads
        "evaluation": COMMON["evaluation"] | {"blocks": 8},
        "stages": {"stage1": _TINY},
    },
    # At most two hours on 2 idle cores: 6 documents, 3 x 6 scored windows, STEPS of one window.
    "smollm2_cpu": {
        "model": "smollm2-135m",
        "corpus": "plays",
        "held_out": 6,
        "bos": "<|endoftext|>",
        "trained_length": 8192,
        "dtype": "float32",
        "remat": "attention",
        "evaluation": COMMON["evaluation"] | {"blocks": 48},
        "stages": {
            "stage1": stage(
                "abf:base=500_000",
                12_288,
                1,
                14,
                1e-4,
                warmup_steps=2,
                final_ratio=0.1,
                eps=1e-5,
                checkpoint_every=1,
            )
        },
    },
    "llama2_long_7b": _llama2_long(32_768, 2e-5, 4),
    "llama2_long_13b": _llama2_long(32_768, 2e-5, 4),
    "llama2_long_34b": _llama2_long(16_384, 1e-5, 8),
    "llama2_long_70b": _llama2_long(16_384, 1e-5, 8),
    # 2306.15595: LLaMA 7B from 2,048 to 8,192, 1,000 steps of 64, rate 2e-5 (1e-5 for 33B, 65B).
    "pi_1000": {
        "trained_length": 2048,
        "stages": {"stage1": stage("pi:factor=4,base={base}", 8192, 64, 1000, 2e-5, **_PI)},
    },
    # 2309.00071 section 4, appendix B.4: Llama 2 by 16 in 400 steps of 64, then by 32 in 200 more,
    # both on windows of 64k. The second stage's warm-up is not reported: 20 again.
    "yarn_400_200": {
        "evaluation": COMMON["evaluation"] | {"length": 65_536},
        "stages": {
            f"stage{i}": stage(
                f"yarn:factor={factor},base={{base}},original_length={{trained}}",
                65_536,
                64,
                steps,
                2e-5,
                accumulation=8,
            )
            for i, (factor, steps) in enumerate(((16, 400), (32, 200)), 1)
        },
    },
    # 2309.12307 and its released code: Llama 2 7B to 32k by PI, 1,000 steps of 64, constant after
    # 20 steps of warm-up, S2-Attn in groups of a quarter, adapters of rank 8 and alpha 16 on the
    # attention, embeddings and norms. 70B: rate 1e-5.
    "longlora_1000": {
        "trainable": "lora_plus",
        "stages": {
            "stage1": stage(
                "pi:factor=8,base={base}", 32_768, 64, 1000, 2e-5, sparse_group=8192, accumulation=8
            )
        },
    },
    # abacusai/Long-Context@c2a90d1, linear scale 4: LLaMA 13B at 4,096 tokens, batch 32, rate 2e-5,
    # documents of at least 20,480 characters (bring such); measured at 16k with scale 8, as its
    # README does. Steps, warm-up and decay are not reported: 1,000, 20 and 0.
    "giraffe_4k_16k": {
        "trained_length": 2048,
        "evaluation": COMMON["evaluation"] | {"length": 16_384},
        "stages": {
            "stage1": stage(
                "pi:factor=4,base={base}",
                4096,
                32,
                1000,
                2e-5,
                measured_with="pi:factor=8,base={base}",
            )
        },
    },
    # Together's Llama-2-7B-32K: PI by 8, which YaRN's tables compare with. Its training is not
    # reported in the papers this project reads: steps, batch and rate are Position Interpolation's.
    "together_7b_32k": {
        "stages": {
            "stage1": stage(
                "pi:factor=8,base={base}", 32_768, 64, 1000, 2e-5, accumulation=8, **_PI
            )
        },
    },
}


def get_config(preset: str = "smollm2_cpu") -> ConfigDict:
    if preset not in PRESETS:
        raise ValueError(unknown_name("preset of continual_pretraining", preset, PRESETS))
    return ConfigDict(COMMON | PRESETS[preset] | {"preset": preset})
