"""What config files share: the choice of a preset, fields of a checkpoint, and training stages."""

from collections.abc import Mapping

from ml_collections import ConfigDict

from longrope_jax.errors import unknown_name

# A checkpoint, and the text that a study trains and measures it on.
CHECKPOINT = {
    # What longrope_jax.load takes (a run of our own is WORKDIR/runs/NAME), or "random" for a tiny
    # random model.
    "model": "",
    "trained_length": 0,  # tokens; 0: as the checkpoint declares
    "corpus": "",  # your long documents: --config.corpus=DIR
    "held_out": 8,  # documents, or their names
    "bos": "",  # begins every document; "": the token that the checkpoint's own software puts first
    "sentence_tokens": (3, 256),  # windows begin at sentences of that many tokens
    "dtype": "bfloat16",
    "param_dtype": "float32",
}


def stage(method: str, length: int, batch: int, steps: int, rate: float, **changes) -> dict:
    """`steps` updates of `batch` windows of `length` tokens under `method`: fields of lab.Recipe.

    What a method leaves open (its base, its original length) is the checkpoint's.
    """
    defaults = {
        "warmup_steps": 20,
        "initial_ratio": 0.0,
        "final_ratio": 1.0,  # constant after the warm-up
        "weight_decay": 0.0,
        "eps": 1e-8,
        "sparse_group": 0,  # tokens per group of S2-Attn; 0: full attention
        "shortest": 0,  # 0: a document fills its window; else packed from so many tokens
    }
    required = {"method": method, "length": length, "batch": batch, "steps": steps}
    return required | {"learning_rate": rate} | defaults | changes


def phase(steps: int, batch: int, rate: float, warmup: int, **changes) -> dict:
    """One phase of training: a constant rate that falls linearly over the last fifth."""
    fields = {"steps": steps, "batch": batch, "learning_rate": rate, "warmup_steps": warmup}
    fields |= {"weight_decay": 0.1, "eps": 1e-8, "decay": 0.2, "final_ratio": 0.05}
    return fields | changes


# Studies that pretrain a small model at short windows and go on at long ones. Keys are learned
# soonest in code, whose names repeat, and with untied embeddings.
SMALL = {
    "corpus": "sympy",  # a name, a path, or a folder of `longrope tokenize`
    "tokenizer": "bpe:2048",  # "": that of the token cache
    "bos": "<s>",
    "sentence_tokens": (),  # any text; windows begin anywhere
    "short": 64,  # tokens of a window in pretraining
    "width": 128,
    "model": {"preset": "", "n_layers": 2, "n_heads": 4, "head_dim": 64, "tie_embeddings": False},
    "dtype": "float32",
    "param_dtype": "float32",
    "base_per_token": 10_000 / 4096,  # {base} is this times `short`
    "adjusted_factor": 50,  # {adjusted} over {base}
    "seeds": 3,
    "asked": {"share": 1.0, "every": 64, "fact": " {name} {key}.", "prompt": " {name} "},
    "machine": {"log_every": 50, "checkpoint_every": 800},
}


def chosen(study: str, common: Mapping, presets: Mapping[str, Mapping], preset: str) -> ConfigDict:
    """The config of a preset: its own fields in place of the common ones.

    Raises:
        ValueError: no such preset.
    """
    if preset not in presets:
        raise ValueError(unknown_name(f"preset of {study}", preset, presets))
    return ConfigDict({**common, **presets[preset]})
