"""Tiny checkpoints in every format, for the tests of `weights`."""

import functools
import json
from pathlib import Path

import jax
import numpy as np

from longrope_jax import llama, rotary, weights

CONFIG = llama.LlamaConfig(
    vocab_size=40, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=48
)
TOKENS = np.random.default_rng(7).integers(0, 40, (1, 12)).astype(np.int32)


def numbers(config, seed=0):
    """Parameters drawn by numpy, as numpy arrays."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(functools.partial(llama.init_params, config), jax.random.key(0))

    def one(path, x):
        if path[-1].key == "scale":
            return rng.uniform(0.5, 1.5, x.shape).astype(np.float32)
        return (rng.normal(size=x.shape) * config.d_model**-0.5).astype(np.float32)

    return jax.tree_util.tree_map_with_path(one, shapes)


@functools.partial(jax.jit, static_argnums=0)
def jitted(config, params, tokens, rot):
    return llama.logits(config, params, tokens, rot)


def logits(config, params, spec, tokens=TOKENS):
    """[T, V] of one sequence."""
    rot = rotary.make(spec, head_dim=config.head_dim, seq_len=tokens.shape[1])
    return np.asarray(jitted(config, params, tokens, rot))[0]


def assert_same(one, other):
    """Both trees bit by bit."""
    jax.tree.map(np.testing.assert_array_equal, one, other)


def tokenizer_json():
    """A byte-level tokenizer.json whose ids are CONFIG's: 40 letters, blanks and merges."""
    letters = [*"abcdefghijklmnopqrstuvwxyz", "Ġ", *"0123456789"]
    vocab = {token: at for at, token in enumerate(["<eos>", *letters, "Ġt", "Ġth"])}
    assert len(vocab) == 40
    added = {"id": 0, "content": "<eos>", "special": True, "normalized": False}
    added |= {"single_word": False, "lstrip": False, "rstrip": False}
    cut = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "vocab": vocab, "merges": [["Ġ", "t"], ["Ġt", "h"]]}
    parts = {"version": "1.0", "added_tokens": [added], "pre_tokenizer": cut, "decoder": cut}
    return json.dumps(parts | {"model": model})


def write(folder: Path, form: str, config=CONFIG, spec=None, **options):
    """A checkpoint of seed 0 in `form`; its path and parameters."""
    params = numbers(config)
    path = folder / ("model.gguf" if form == "gguf" else "model")
    weights.save(path, config, params, spec or rotary.RoPE(), format=form, **options)
    return path, params


def write_meta(folder: Path, config, params, parts=1, embed="columns", **raw):
    """Meta's folder, in `parts` shards; params are in the interleaved layout."""
    import torch

    from longrope_jax.weights import names, stream

    folder.mkdir(exist_ok=True)
    shards = [{} for _ in range(parts)]
    for name, leaf, layer in names.tensors(config, "meta"):
        whole = stream.fetch(config, params, leaf, layer, np.dtype("float32"), "interleaved")
        cut = {"": None, "rows": 0, "columns": 1, "either": ("rows", "columns").index(embed)}
        axis = cut[leaf.merge]
        pieces = [whole] * parts if axis is None else np.split(whole, parts, axis=axis)
        for shard, piece in zip(shards, pieces, strict=True):
            shard[name] = torch.from_numpy(np.ascontiguousarray(piece).copy())
    for at, shard in enumerate(shards):
        shard["rope.freqs"] = torch.zeros(config.head_dim // 2)
        torch.save(shard, folder / f"consolidated.{at:02}.pth")
    raw = {
        "dim": config.d_model,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "n_kv_heads": config.n_kv_heads,
        "norm_eps": config.norm_eps,
        "multiple_of": 16,
        "vocab_size": -1,
    } | raw
    (folder / "params.json").write_text(json.dumps(raw))
    return folder
