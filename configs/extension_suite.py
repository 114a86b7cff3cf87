"""Presets of experiments/extension_suite.py.

Lengths are given as factors: tokens over the checkpoint's trained length. In a method {factor} is
that of the window, or of `target` for tasks and suites; {trained} is the trained length in tokens,
{kv_heads} the checkpoint's number of key heads. Options that a text leaves open (base,
original_length, inner) are the checkpoint's.
"""

from ml_collections import ConfigDict

from configs.common import chosen

# abf has its published base of 500,000, which is five times that of SmolLM2.
_CORE = ("rope", "abf", "pi:factor={factor}", "ntk:factor={factor}", "yarn:factor={factor}")
METHODS = (
    *_CORE,
    "longrope2:factor={factor}",
    "self_extend:window=1024,group=4",
    "dual_chunk",
)
# At one fixed length dynamic_pi, dynamic_ntk and dynamic_yarn are pi, ntk and yarn, and longrope,
# dynamic_longrope and proportional without searched factors are pi: they have no rows. Nor has
# string, which is meant for the trained length.
_OTHERS = (
    "ntk_by_parts:factor={factor}",
    "ntk_by_parts_3way:factor={factor}",
    "llama3:factor={factor}",
    "giraffe_power:factor={factor}",
    "giraffe_truncated:factor={factor}",
    "resonance:inner=(yarn:factor={factor})",
    "log_n",
    "rerope:window=4096",
    "leaky_rerope:window=1024,factor=4",
    # For models trained with them; here they show what happens to one that was not.
    "alibi",
    "nope",
    "fope:n_kv_heads={kv_heads}",
    "hope",
    "partial:fraction=0.5",
    "p_rope",
    "xpos",
    "xpos_abf",
)
_SOME = ("rope", "pi:factor={factor}", "yarn:factor={factor}")


def _windows(factor: float, methods: tuple, documents: int = 0) -> dict:
    """Windows of a factor that some methods read in the first documents, or in all (0)."""
    return {"factor": factor, "methods": methods, "documents": documents}


def _tasks(factors: tuple[float, ...]) -> tuple:
    """Tasks in any text at all factors, questions about articles at the first two."""
    made = tuple((name, factors) for name in ("lines", "kv", "first_sentence", "passkey"))
    return (*made, ("ffqa", factors[:2]), ("altqa", factors[:2]))


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
    "articles": "squad",  # with questions, or a .jsonl file
    "reference": "rope",  # what the others are compared with; it is also what reads cropped text
    "methods": METHODS,  # of tasks and suites
    "target": 2.0,  # factor that methods of tasks and suites stand for
    "windows": {},
    "window_defaults": _windows(2.0, METHODS),
    "blocks": 32,  # of positions within the trained length, whose mean loss is kept
    "edges": (),  # factors at which the tables of losses begin another column, beside 1
    "tasks": (),  # (task of `longrope evaluate --tasks`, its factors) of each
    "samples": 50,  # of each task and factor
    "part": 10,  # samples of a cell; each part is a round
    # Answered by greedy text, which the task's own rule scores: the first samples of all.
    "answered": {"tasks": (), "samples": 5},
    "able": 0.5,  # score of the reference at the shortest length from which a task says anything
    "suites": (),  # (name or .jsonl file, how many first items) of each (`longrope suite`)
    "seed": 0,  # of the samples
}
_SUITES = (("piqa", 1838), ("hellaswag", 1000), ("arc_easy", 570), ("lambada", 1000))
_LENGTHS = (0.5, 1.0, 1.5, 2.0)

PRESETS = {
    # A random model: the numbers mean nothing, the code is the same.
    "tiny": {
        "model": "random",
        "trained_length": 128,
        "bos": "<bos>",
        "documents": ("plays:hamlet", "plays:king-lear"),
        "sentence_tokens": (4, 40),
        "methods": (*_SOME, "self_extend:window=16,group=4"),
        "windows": {
            "core": _windows(2.0, _CORE),
            "shorter": _windows(1.5, ("pi:factor={factor}", "self_extend:window=16,group=4"), 1),
        },
        "blocks": 4,
        "edges": (1.5,),
        "target": 6.0,
        "tasks": (("first_sentence", (2.0, 4.0)), ("passkey", (1.0, 6.0))),
        "samples": 4,
        "part": 2,
        "answered": {"tasks": (("passkey", (1.0,)),), "samples": 1},
    },
    # 5 minutes on 2 idle cores.
    "quick": {
        "methods": _SOME,
        "windows": {"core": _windows(1.5, _SOME)},
        "edges": (1.25,),
        "target": 1.5,
        "tasks": (("passkey", (0.0625, 0.125)),),
        "samples": 4,
        "part": 4,
        "suites": (("piqa", 50),),
    },
    # Rounds of a document, or of ten samples of each task and length.
    "full": {
        "documents": (
            "plays:hamlet",
            "moby-dick:moby-dick",
            "austen:emma",
            "sotu:1981_jimmy_carter_d",
        ),
        "windows": {
            "core": _windows(4.0, _CORE, 2),
            "methods": _windows(2.0, METHODS),
            "others": _windows(2.0, _OTHERS, 1),
        },
        "edges": (1.5, 2.0, 3.0),
        "tasks": _tasks(_LENGTHS),
        "answered": {
            "tasks": (("lines", (0.5, 2.0)), ("passkey", (0.5, 2.0))),
            "samples": 5,
        },
        "suites": _SUITES,
    },
    # A 7B of yours with 4,096 tokens: --config.model=DIR and documents of 140,000 tokens or more.
    "tpu": {
        "model": "",
        "dtype": "bfloat16",
        "param_dtype": "bfloat16",
        "documents": ("moby-dick:moby-dick", "austen:emma", "austen:mansfield-park"),
        "target": 32.0,
        "windows": {"methods": _windows(32.0, METHODS)},
        "edges": (2.0, 4.0, 8.0, 16.0),
        "tasks": _tasks((1.0, 4.0, 16.0, 32.0)),
        "suites": _SUITES,
        "machine": {"fsdp": -1, "data": 1, "sequence": 1, "tokens_per_batch": 131_072},
    },
}


def get_config(preset: str = "quick") -> ConfigDict:
    return chosen("extension_suite", _COMMON, PRESETS, preset)
