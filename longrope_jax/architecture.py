"""A LlamaConfig describes an architecture; the published ones have names.

Dimension letters: D model, L layers, N query heads, K key heads, H head, F feed-forward, V
vocabulary.
"""

import dataclasses
import math

from longrope_jax import rotary as rotary_lib
from longrope_jax.attention import BACKENDS, CONTEXTS
from longrope_jax.errors import unknown_name

# Activations saved for the backward pass; everything else in a layer is recomputed. "linear" is
# LLaMA's policy (2302.13971 section 2.4): no projection and no attention matmul is computed twice.
_ATTENTION = ("attention_out", "attention_lse")
_LINEAR = ("query", "key", "value", "attended", "gate", "up")
REMAT = {"none": None, "full": (), "attention": _ATTENTION, "linear": _ATTENTION + _LINEAR}
DTYPES = ("float32", "bfloat16", "float16", "float64")
NORMS = ("before", "after", "both")
ACTIVATIONS = ("silu", "gelu_tanh")
_SIZES = ("vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "head_dim", "d_ff")


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """A LlamaConfig describes the architecture; it is hashable and static under jit.

    Raises:
        ValueError: A size is out of range, n_heads is not a multiple of n_kv_heads, head_dim is
            odd, or a layout, back end, context parallelism, remat policy or dtype is unknown.
    """

    vocab_size: int  # V, tokens
    d_model: int  # D
    n_layers: int  # L
    n_heads: int  # N, query heads
    n_kv_heads: int  # K, key and value heads
    head_dim: int  # H
    d_ff: int  # F, see `swiglu_width`
    norm_eps: float = 1e-5
    tie_embeddings: bool = False
    attention_bias: bool = False  # of queries, keys and values (Qwen2)
    output_bias: bool = False  # of what attention adds to the residual
    mlp_bias: bool = False
    qk_norm: bool = False  # RMSNorm of every head's queries and keys before rotation (Qwen3)
    qk_norm_joint: bool = False  # one RMSNorm over the features of all heads instead (OLMo 2)
    # Where RMSNorm acts: "before" attention and MLP, "after" them (OLMo 2), or "both" (Gemma 3).
    norms: str = "before"
    norm_offset: bool = False  # norms multiply by 1 + scale instead of scale (Gemma)
    activation: str = "silu"  # of the MLP's gate, or "gelu_tanh" (Gemma)
    embed_scale: float = 1.0  # what embeddings are multiplied by; sqrt(D) in Gemma
    score_scale: float = 0.0  # what scores are multiplied by; 0 is H^-1/2
    # Keys that a token of layer i sees, itself included: windows[i % len(windows)], 0 for all.
    windows: tuple[int, ...] = ()
    rotary_layout: str = "half"  # how the weights pair features, see rotary.rotate
    attention: str = "auto"  # the back end, see attention.attend
    sparse_group: int = 0  # tokens per group of LongLoRA's S2-Attn in training; 0: full attention
    context_parallel: str = "all_gather"  # or "ring"; see attention.attend
    remat: str = "none"  # what each layer saves for the backward pass, see REMAT
    dtype: str = "float32"  # of activations and matrix products
    param_dtype: str = "float32"

    def __post_init__(self):
        for what in _SIZES:
            if getattr(self, what) < 1:
                raise ValueError(f"{what} must be positive, got {getattr(self, what)}")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"n_heads must be a multiple of n_kv_heads, got {self.n_heads} and "
                f"{self.n_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even, got {self.head_dim}")
        if self.sparse_group < 0:
            raise ValueError(f"sparse_group must be at least 0 tokens, got {self.sparse_group}")
        object.__setattr__(self, "windows", tuple(self.windows))
        if not all(type(window) is int and window >= 0 for window in self.windows):
            raise ValueError(f"windows must be whole numbers of keys or 0, got {self.windows}")
        if self.sparse_group and any(self.windows):
            raise ValueError("S2-Attn (sparse_group) is not for a model with windows: set it to 0")
        if self.qk_norm and self.qk_norm_joint:
            raise ValueError("qk_norm and qk_norm_joint are two norms of the same: choose one")
        for what, least in (("embed_scale", 0.0), ("score_scale", -1.0)):
            if not least < getattr(self, what) < math.inf:
                raise ValueError(f"{what} must be positive and finite, got {getattr(self, what)}")
        named = {"rotary_layout": rotary_lib.LAYOUTS, "attention": BACKENDS, "remat": REMAT}
        named |= {"norms": NORMS, "activation": ACTIVATIONS}
        named |= {"context_parallel": CONTEXTS, "dtype": DTYPES, "param_dtype": DTYPES}
        for what, known in named.items():
            if getattr(self, what) not in known:
                raise ValueError(unknown_name(what, getattr(self, what), known))


def swiglu_width(d_model: int, *, multiple_of: int = 256, multiplier: float = 1.0) -> int:
    """Returns F by Llama's rule: int(8D/3), times `multiplier`, rounded up to `multiple_of`."""
    width = int(multiplier * int(8 * d_model / 3))
    return multiple_of * -(-width // multiple_of)


def _llama(d_model, n_layers, n_heads, n_kv_heads=None, d_ff=None, vocab=32_000, **kwargs):
    return LlamaConfig(
        vocab_size=vocab,
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads or n_heads,
        head_dim=d_model // n_heads,
        d_ff=d_ff or swiglu_width(d_model),
        **kwargs,
    )


# LLaMA table 2, Llama 2 table 1 and its released params.json, SmolLM2's config.json.
_LLAMA2 = {
    "llama2_7b": _llama(4096, 32, 32),
    "llama2_13b": _llama(5120, 40, 40),
    "llama2_34b": _llama(8192, 48, 64, 8, swiglu_width(8192, multiplier=1.0)),
    "llama2_70b": _llama(8192, 80, 64, 8, swiglu_width(8192, multiple_of=4096, multiplier=1.3)),
}
PRESETS: dict[str, LlamaConfig] = {
    "llama_7b": _llama(4096, 32, 32, norm_eps=1e-6),
    "llama_13b": _llama(5120, 40, 40, norm_eps=1e-6),
    "llama_33b": _llama(6656, 60, 52, norm_eps=1e-6),
    "llama_65b": _llama(8192, 80, 64, norm_eps=1e-6),
    **_LLAMA2,
    # Llama 2 Long changes no shape: its base frequency is the rotary argument.
    **{name.replace("llama2", "llama2_long"): config for name, config in _LLAMA2.items()},
    "smollm2_135m": _llama(576, 30, 9, 3, 1536, vocab=49_152, tie_embeddings=True),
}


def preset(name: str, **changes) -> LlamaConfig:
    """Returns a published architecture by name, with fields replaced by `changes`.

    Raises:
        ValueError: The name or a field is unknown; the message names the nearest one.
    """
    if name not in PRESETS:
        raise ValueError(unknown_name("model preset", name, PRESETS))
    known = {f.name for f in dataclasses.fields(LlamaConfig)}
    for field in changes:
        if field not in known:
            raise ValueError(unknown_name("LlamaConfig field", field, known))
    return dataclasses.replace(PRESETS[name], **changes)
