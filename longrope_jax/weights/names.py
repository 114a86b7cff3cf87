"""A table gives the name and the axes of each parameter in each format.

Checkpoints hold matrices as [out, in], that is [rows, columns]; `axes` says which letters form
each: "NH,D" is a matrix of N*H rows and D columns.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from longrope_jax.llama import LlamaConfig


@dataclass(frozen=True)
class Leaf:
    """A Leaf is one array of the parameter tree and its tensor, or one tensor per layer {l}.

    Attributes:
        path: keys in the parameter tree.
        letters: axes of the array in the tree, without L.
        axes: axes of the tensor in a file.
        hf, gguf, meta: name of the tensor in each format.
        merge: axis of the file's matrix that Meta's model parallelism cuts: "rows", "columns",
            "either", or "" for none.
        when: field of LlamaConfig without which a model lacks the array, or "field=value|value";
            "" for all models.
        rotated: whether the order of its features, the last axis, depends on the rotary layout.
    """

    path: tuple[str, ...]
    letters: str
    axes: str
    hf: str
    gguf: str
    meta: str
    merge: str = ""
    when: str = ""
    rotated: bool = False

    @property
    def stacked(self) -> bool:
        """Whether the tree holds one array [L, ...] for all layers."""
        return self.path[0] == "layers"

    def name(self, form: str, layer: int) -> str:
        """Returns the tensor's name in the format "hf", "gguf" or "meta"."""
        return getattr(self, form).replace("{l}", str(layer))


def _layer(
    path: str, letters: str, axes: str, hf: str, gguf: str, meta: str, merge: str = "", **options
) -> Leaf:
    what = options.pop("what", "weight")
    names = (
        f"model.layers.{{l}}.{hf}.{what}",
        f"blk.{{l}}.{gguf}.{what}",
        f"layers.{{l}}.{meta}.{what}",
    )
    return Leaf(("layers", *path.split("/")), letters, axes, *names, merge, **options)


def _bias(path: str, letters: str, axes: str, hf: str, gguf: str, meta: str, when: str) -> Leaf:
    rotated = path.endswith(("bq", "bk"))
    return _layer(path, letters, axes, hf, gguf, meta, what="bias", when=when, rotated=rotated)


_AFTER = "after|both"


def _norm(path: str, hf: str, gguf: str, meta: str, places: str) -> Leaf:
    return _layer(f"{path}/scale", "D", "D", hf, gguf, meta or gguf, when=f"norms={places}")


def _joint(which: str, letters: str) -> Leaf:
    """The norm of queries or keys over the features of all heads."""
    names = f"self_attn.{which}_norm", f"attn_{which}_norm", f"attention.{which}_norm"
    path, when = f"attention/{which}_norm/scale", "qk_norm_joint"
    return _layer(path, letters, letters, *names, when=when, rotated=True)


EMBED = Leaf(
    ("embed",),
    "VD",
    "V,D",
    "model.embed_tokens.weight",
    "token_embd.weight",
    "tok_embeddings.weight",
    "either",  # cut along D in LLaMA and Llama 2, along V in Llama 3
)
UNEMBED = Leaf(
    ("unembed",), "DV", "V,D", "lm_head.weight", "output.weight", "output.weight", "rows"
)
LEAVES = (
    EMBED,
    _norm("attention_norm", "input_layernorm", "attn_norm", "attention_norm", "before|both"),
    _layer(
        "attention/wq",
        "DNH",
        "NH,D",
        "self_attn.q_proj",
        "attn_q",
        "attention.wq",
        "rows",
        rotated=True,
    ),
    _layer(
        "attention/wk",
        "DKH",
        "KH,D",
        "self_attn.k_proj",
        "attn_k",
        "attention.wk",
        "rows",
        rotated=True,
    ),
    _layer("attention/wv", "DKH", "KH,D", "self_attn.v_proj", "attn_v", "attention.wv", "rows"),
    _layer(
        "attention/wo", "NHD", "D,NH", "self_attn.o_proj", "attn_output", "attention.wo", "columns"
    ),
    _bias(
        "attention/bq", "NH", "NH", "self_attn.q_proj", "attn_q", "attention.wq", "attention_bias"
    ),
    _bias(
        "attention/bk", "KH", "KH", "self_attn.k_proj", "attn_k", "attention.wk", "attention_bias"
    ),
    _bias(
        "attention/bv", "KH", "KH", "self_attn.v_proj", "attn_v", "attention.wv", "attention_bias"
    ),
    _bias(
        "attention/bo", "D", "D", "self_attn.o_proj", "attn_output", "attention.wo", "output_bias"
    ),
    _layer(
        "attention/q_norm/scale",
        "H",
        "H",
        "self_attn.q_norm",
        "attn_q_norm",
        "attention.q_norm",
        when="qk_norm",
        rotated=True,
    ),
    _layer(
        "attention/k_norm/scale",
        "H",
        "H",
        "self_attn.k_norm",
        "attn_k_norm",
        "attention.k_norm",
        when="qk_norm",
        rotated=True,
    ),
    _joint("q", "NH"),
    _joint("k", "KH"),
    # In Hugging Face a name means the place after attention; a Llama has no other norm there.
    _norm("attention_norm_after", "post_attention_layernorm", "post_attention_norm", "", _AFTER),
    _norm("mlp_norm", "post_attention_layernorm", "ffn_norm", "ffn_norm", "before"),
    _norm("mlp_norm", "pre_feedforward_layernorm", "ffn_norm", "", "both"),
    _norm("mlp_norm_after", "post_feedforward_layernorm", "post_ffw_norm", "", _AFTER),
    _layer("mlp/gate", "DF", "F,D", "mlp.gate_proj", "ffn_gate", "feed_forward.w1", "rows"),
    _layer("mlp/up", "DF", "F,D", "mlp.up_proj", "ffn_up", "feed_forward.w3", "rows"),
    _layer("mlp/down", "FD", "D,F", "mlp.down_proj", "ffn_down", "feed_forward.w2", "columns"),
    _bias("mlp/bg", "F", "F", "mlp.gate_proj", "ffn_gate", "feed_forward.w1", "mlp_bias"),
    _bias("mlp/bu", "F", "F", "mlp.up_proj", "ffn_up", "feed_forward.w3", "mlp_bias"),
    _bias("mlp/bd", "D", "D", "mlp.down_proj", "ffn_down", "feed_forward.w2", "mlp_bias"),
    Leaf(
        ("final_norm", "scale"),
        "D",
        "D",
        "model.norm.weight",
        "output_norm.weight",
        "norm.weight",
    ),
    UNEMBED,
)


def leaves(config: LlamaConfig) -> tuple[Leaf, ...]:
    """Returns the arrays of a model; with tied embeddings there is no separate output head."""
    known = LEAVES[:-1] if config.tie_embeddings else LEAVES
    return tuple(leaf for leaf in known if _has(config, leaf.when))


def _has(config: LlamaConfig, when: str) -> bool:
    field, _, values = when.partition("=")
    if not field:
        return True
    found = getattr(config, field)
    return found in values.split("|") if values else bool(found)


def sizes(config: LlamaConfig) -> dict[str, int]:
    """Returns the size of each letter."""
    c = config
    named = {"V": c.vocab_size, "D": c.d_model, "N": c.n_heads, "K": c.n_kv_heads}
    return named | {"H": c.head_dim, "F": c.d_ff}


def split_shape(config: LlamaConfig, leaf: Leaf) -> tuple[int, ...]:
    """Returns the shape of the file's tensor with an axis of its own for every letter."""
    return tuple(sizes(config)[letter] for letter in leaf.axes.replace(",", ""))


def file_shape(config: LlamaConfig, leaf: Leaf) -> tuple[int, ...]:
    """Returns the shape of the tensor in a file."""
    known, shape = sizes(config), []
    for group in leaf.axes.split(","):
        shape.append(1)
        for letter in group:
            shape[-1] *= known[letter]
    return tuple(shape)


def joined_shape(config: LlamaConfig, parts: list[tuple[Leaf, int]]) -> tuple[int, ...]:
    """Returns the shape of a file's tensor that is joined of several, along its rows."""
    shapes = [file_shape(config, leaf) for leaf, _ in parts]
    return sum(shape[0] for shape in shapes), *shapes[0][1:]


def tensors(config: LlamaConfig, form: str) -> Iterator[tuple[str, Leaf, int]]:
    """Yields (name, leaf, layer) for every tensor of a checkpoint in the order of layers."""
    wanted = leaves(config)
    yield wanted[0].name(form, 0), wanted[0], 0
    for layer in range(config.n_layers):
        for leaf in wanted:
            if leaf.stacked:
                yield leaf.name(form, layer), leaf, layer
    for leaf in wanted[1:]:
        if not leaf.stacked:
            yield leaf.name(form, 0), leaf, 0
