"""Presets of experiments/zero_shot_extension.py.

Lengths are given as factors: tokens over the checkpoint's trained length. In a method {factor} is
that of the window or sample (at least 1), {trained} the trained length in tokens and {kv_heads} the
checkpoint's number of key heads; options that a text leaves open (base, original_length, inner) are
the checkpoint's.
"""

from ml_collections import ConfigDict

from configs.common import chosen

# abf has its published base of 500,000, which is five times that of SmolLM2.
METHODS = (
    "rope",
    "abf",
    "pi:factor={factor}",
    "ntk:factor={factor}",
    "yarn:factor={factor}",
    "dynamic_ntk",
)
# Also meant for a model that was trained with RoPE. No factors have been searched for this model:
# longrope and dynamic_longrope get the same one at every pair.
OTHERS = (
    "dynamic_pi",
    "dynamic_yarn",
    "ntk_by_parts:factor={factor}",
    "ntk_by_parts_3way:factor={factor}",
    "llama3:factor={factor}",
    "longrope:long_factor={factor},factor={factor}",
    "longrope2:factor={factor}",
    "dynamic_longrope:long_factor={factor},factor={factor}",
    "giraffe_power:factor={factor}",
    "giraffe_truncated:factor={factor}",
    "resonance:inner=(yarn:factor={factor})",
    "log_n",
    "self_extend:window=1024,group=4",
    "rerope:window=4096",
    "leaky_rerope:window=1024,factor=4",
    "string",
    "dual_chunk",
)
# For models trained with them; here they show what happens to one that was not.
UNTRAINED = (
    "alibi",
    "nope",
    "fope:n_kv_heads={kv_heads}",
    "hope",
    "partial:fraction=0.5",
    "p_rope",
    "proportional:factor={factor}",
    "xpos",
    "xpos_abf",
)
_THREE = (METHODS[0], METHODS[2], METHODS[4])

_RETRIEVAL = {
    "methods": (),
    "factors": (),
    "documents": 0,  # the first so many are asked about
    "passkey": 0,  # samples of each document
    "first_sentence": 0,
    # Plain prompts, though SmolLM2 is tuned on a chat format: no template is applied.
    "fact": "The pass key is {key}. Remember it. {key} is the pass key. ",
    "passkey_prompt": "\n\nWhat is the pass key? The pass key is ",
    "first_sentence_prompt": "\n\nThe first sentence of the text above is: ",
    "end": "",  # closes an answer; "": the token that begins a document
}

_COMMON = {
    "model": "smollm2-135m",  # what longrope_jax.load takes, or "random" for a tiny random model
    "trained_length": 0,  # tokens; 0: as the checkpoint declares
    # Begins every window; "": the token that the checkpoint's own software puts before a text, and
    # where there is none <|endoftext|>.
    "bos": "",
    "dtype": "float32",
    "param_dtype": "float32",
    # CORPUS:DOCUMENT; each is one round of the study and one cluster of the intervals.
    "documents": ("plays:hamlet",),
    "sentence_tokens": (8, 48),  # windows and samples begin at sentences of that many tokens
    "reference": "rope",  # what the others are compared with; it is also what reads cropped text
    # Windows of `factor` times the trained length that `methods` read, in the first `documents`
    # documents (0: in all).
    "windows": {},
    "window_defaults": {"factor": 2.0, "methods": METHODS, "documents": 0},
    "blocks": 32,  # of positions within the trained length, whose mean loss is kept
    "edges": (),  # factors at which the tables begin another column, beside 1
    "retrieval": _RETRIEVAL,
    "seed": 0,  # of the samples
}


def _windows(factor: float, methods: tuple, documents: int = 0) -> dict:
    return {"factor": factor, "methods": methods, "documents": documents}


PRESETS = {
    # A random model: the numbers mean nothing, the code is the same.
    "tiny": {
        "model": "random",
        "trained_length": 128,
        "bos": "<bos>",
        "documents": ("plays:hamlet", "plays:king-lear"),
        "windows": {
            "core": _windows(2.0, METHODS),
            "shorter": _windows(1.5, ("pi:factor={factor}", "self_extend:window=16,group=4")),
        },
        "blocks": 4,
        "edges": (1.5,),
        "sentence_tokens": (4, 40),
        "retrieval": _RETRIEVAL
        | {
            "methods": ("rope", METHODS[2]),
            "factors": (1.0, 2.0),
            "documents": 2,
            "passkey": 2,
            "first_sentence": 1,
            "fact": "Key {key}. ",
            "passkey_prompt": " Key? ",
            "first_sentence_prompt": " Again: ",
        },
    },
    # At most 15 minutes on 2 idle cores; needs pip alone.
    "quick": {
        "windows": {"core": _windows(1.5, _THREE)},
        "edges": (1.25,),
        "retrieval": _RETRIEVAL
        | {"methods": _THREE, "factors": (0.5, 1.5), "documents": 1, "passkey": 1},
    },
    # At most ten hours on 2 idle cores; rounds of a document each, most telling cells first.
    "full": {
        "documents": (
            "plays:hamlet",
            "moby-dick:moby-dick",
            "austen:emma",
            "sotu:1981_jimmy_carter_d",
        ),
        # In the order of their names.
        "windows": {
            "core": _windows(4.0, METHODS),
            "others": _windows(2.0, METHODS + OTHERS),
            "untrained": _windows(2.0, UNTRAINED, documents=2),
        },
        "edges": (1.5, 2.0, 3.0),
        "retrieval": _RETRIEVAL
        | {
            "methods": METHODS,
            "factors": (0.5, 1.0, 2.0),
            "documents": 4,
            "passkey": 2,
            "first_sentence": 2,
        },
    },
}


def get_config(preset: str = "quick") -> ConfigDict:
    return chosen("zero_shot_extension", _COMMON, PRESETS, preset)
