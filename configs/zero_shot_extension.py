"""Presets of experiments/zero_shot_extension.py.

In a method {trained} is the checkpoint's trained length, {factor} the cell's length over it (at
least 1), {kv_heads} its number of key heads; options named base that a text leaves open get the
checkpoint's base.
"""

from ml_collections import ConfigDict

from configs.continual_pretraining import COMMON
from longrope_jax.errors import unknown_name

_SCALED = "factor={factor},original_length={trained}"

# The first is what the others are compared with. abf has its published base of 500,000, here five
# times the checkpoint's.
METHODS = (
    "rope",
    "abf",
    "pi:factor={factor}",
    "ntk:factor={factor}",
    f"yarn:{_SCALED}",
    "dynamic_ntk:original_length={trained}",
)
# Also meant for a model that was trained with RoPE. No factors have been searched for this model:
# longrope and dynamic_longrope get the same one at every pair.
OTHERS = (
    "dynamic_pi:original_length={trained}",
    "dynamic_yarn:original_length={trained}",
    f"ntk_by_parts:{_SCALED}",
    f"ntk_by_parts_3way:{_SCALED}",
    f"llama3:{_SCALED}",
    f"longrope:long_factor={{factor}},{_SCALED}",
    f"longrope2:{_SCALED}",
    f"dynamic_longrope:long_factor={{factor}},{_SCALED}",
    "giraffe_power:factor={factor}",
    f"giraffe_truncated:{_SCALED}",
    f"resonance:inner=(yarn:{_SCALED})",
    "log_n:inner=(rope),original_length={trained}",
    "self_extend:window=1024,group=4,inner=(rope)",
    "rerope:window=4096,inner=(rope)",
    "leaky_rerope:window=1024,factor=4,inner=(rope)",
    "string:original_length={trained},inner=(rope)",
    "dual_chunk:original_length={trained},inner=(rope)",
)
# For models trained with them; here they show what happens to one that was not.
FOR_TRAINING = (
    "alibi",
    "nope",
    "fope:original_length={trained},n_kv_heads={kv_heads}",
    "hope:original_length={trained}",
    "partial:inner=(rope),fraction=0.5",
    "p_rope",
    "proportional:factor={factor}",
    "xpos",
    "xpos_abf",
)

_THREE = (METHODS[0], METHODS[2], METHODS[4])

_COMMON = {
    **{name: COMMON[name] for name in ("shape", "base_method", "tokenizer", "remat")},
    "model": "smollm2-135m",
    "trained_length": 8192,
    "bos": "<|endoftext|>",  # begins every window; "" as in continual_pretraining.py
    "dtype": "float32",
    "param_dtype": "float32",
    # CORPUS:DOCUMENT; each is one round of the study and one cluster of the intervals.
    "documents": ("plays:hamlet",),
    "sentence_tokens": (8, 48),  # windows and samples begin at sentences of that many tokens
    # Windows of `length` tokens for the first `documents` documents.
    "loss": {},
    "block": 256,  # positions whose mean loss is kept; divides all edges
    "edges": (0, 8192, 12_288, 16_384, 24_576, 32_768),  # of the columns of the tables
    "retrieval": {
        "methods": (),
        "lengths": (),
        "documents": 0,
        "passkey": 0,  # samples of each document
        "first sentence": 0,
        # Plain prompts, though the model is tuned on a chat format: no template is applied.
        "fact": "The pass key is {key}. Remember it. {key} is the pass key. ",
        "passkey_prompt": "\n\nWhat is the pass key? The pass key is ",
        "first_sentence_prompt": "\n\nThe first sentence of the text above is: ",
        "end": "<|endoftext|>",
    },
    "seed": 0,
    "measure": True,  # False: the report of the cells there are, and nothing more
}


def _loss(length: int, methods: tuple, documents: int) -> dict:
    return {"length": length, "methods": methods, "documents": documents}


PRESETS = {
    # A random model: the numbers mean nothing, the code is the same.
    "tiny": {
        "model": "random",
        "trained_length": 128,
        "bos": "<bos>",
        "documents": ("plays:hamlet", "plays:king-lear"),
        "loss": {
            "1": _loss(256, METHODS, 2),
            "2": _loss(192, ("rope", METHODS[2], "self_extend:window=16,group=4,inner=(rope)"), 2),
        },
        "block": 32,
        "edges": (0, 128, 192, 256),
        "sentence_tokens": (4, 40),
        "retrieval": _COMMON["retrieval"]
        | {
            "methods": ("rope", METHODS[2]),
            "lengths": (128, 256),
            "documents": 2,
            "passkey": 2,
            "first sentence": 1,
            "fact": "Key {key}. ",
            "passkey_prompt": " Key? ",
            "first_sentence_prompt": " Again: ",
            "end": "<bos>",
        },
    },
    # At most ten minutes on 2 idle cores; needs pip alone.
    "quick": {
        "loss": {"1": _loss(12_288, _THREE, 1)},
        "edges": (0, 8192, 10_240, 12_288),
        "retrieval": _COMMON["retrieval"]
        | {
            "methods": _THREE,
            "lengths": (4096, 12_288),
            "documents": 1,
            "passkey": 1,
        },
    },
    # At most eight hours on 2 idle cores; rounds of a document each, most telling cells first.
    "full": {
        "documents": (
            "plays:hamlet",
            "moby-dick:moby-dick",
            "austen:emma",
            "sotu:1981_jimmy_carter_d",
        ),
        "loss": {
            "1": _loss(32_768, METHODS, 4),
            "2": _loss(16_384, METHODS + OTHERS, 4),
            "3": _loss(16_384, FOR_TRAINING, 2),
        },
        "retrieval": _COMMON["retrieval"]
        | {
            "methods": METHODS,
            "lengths": (4096, 8192, 16_384),
            "documents": 4,
            "passkey": 2,
            "first sentence": 2,
        },
    },
}


def get_config(preset: str = "quick") -> ConfigDict:
    if preset not in PRESETS:
        raise ValueError(unknown_name("preset of zero_shot_extension", preset, PRESETS))
    return ConfigDict(_COMMON | PRESETS[preset] | {"preset": preset})
