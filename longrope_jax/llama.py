"""The Llama in Flax linen takes its Rotary as an argument and does not know which method it is.

It has pre-norm RMSNorm, SwiGLU, grouped-query attention (LLaMA 2302.13971 section 2.2, Llama 2
2307.09288), and what related families change about them, see `LlamaConfig`. Dimension letters: B
batch, T query length, S key length, D model, N query heads, K key heads, H head, F feed-forward, V
vocabulary, L layers.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.core import Tracer
from jaxtyping import Float, Float32, Int
from numpy.typing import ArrayLike

from longrope_jax import linear
from longrope_jax import rotary as rotary_lib
from longrope_jax.architecture import (
    DTYPES,
    PRESETS,
    REMAT,
    LlamaConfig,
    preset,
    swiglu_width,
)
from longrope_jax.attention import attend, check_cache, to_cache
from longrope_jax.attention.shifted_sparse import shifted_sparse
from longrope_jax.cache import Cache, check_room, init_cache, key_copies
from longrope_jax.shapes import AnyArray
from longrope_jax.sharding import axis_size, constrain, heads_in_use, platform, repeated

__all__ = [
    "DTYPES",
    "PRESETS",
    "REMAT",
    "Cache",
    "Llama",
    "LlamaConfig",
    "init_boxed",
    "init_cache",
    "init_params",
    "logits",
    "output_table",
    "preset",
    "swiglu_width",
    "unembed",
    "unstack_layers",
]


# What differs by layer: windows int32 [L], and the index of a method int32 [L], or None.
LayerData = tuple[jax.Array | None, jax.Array | None]


class Llama(nn.Module):
    """The Llama maps tokens to normalised hidden states; `unembed` turns those into logits."""

    config: LlamaConfig

    @nn.compact
    def __call__(self, tokens, *, rotary, positions=None, segment_start=None, cache=None):
        """Returns hidden states [B, T, D] and the cache with these tokens appended, or None.

        Args:
            tokens: int32 [B, T].
            rotary: a Rotary from `rotary.make`; or stacked, one per row, where positions are
                [B, T].
            positions: int32 [B, T] or [T]; None counts from the cache's length, and from 0 again
                at each packed document. Methods with a score rule (remapped positions, ALiBi)
                take no others.
            segment_start: int32 [B, T], index of the first token of each token's document.
            cache: a cache from `init_cache` with room for T more tokens. Under jit lengths are
                unknown, so there the caller must ensure the room.

        Raises:
            ValueError: `rotary` is not a Rotary or was made for fewer tokens, positions or the
                cache do not fit its score rule, or the cache is full.
        """
        c = self.config
        if not isinstance(rotary, rotary_lib.Rotary):
            made = f"rotary.make({rotary!r:.60}, head_dim={c.head_dim}, seq_len=LENGTH)"
            raise ValueError(f"Llama takes the Rotary of a method, since lengths decide it: {made}")
        if positions is None and segment_start is None and cache is None:
            rotary_lib.check_length(rotary, tokens.shape[1])
        _check_rule(c, rotary.score_rule, positions, cache)
        rotary_lib.check_layers(rotary, c.n_layers)
        if cache is not None:
            check_cache()
            check_room(cache, tokens.shape[1])
        query_start = 0 if cache is None else cache.length
        if positions is None:
            positions = default_positions(tokens, segment_start, query_start)
        phases = rotary_lib.phases(rotary, positions)
        table = self.param("embed", _init("vocab", "embed", fan_in=c.d_model), *_shape(c, "VD"))
        x = linear.lookup(table, tokens, c.dtype, names=_residual(cache))
        if c.embed_scale != 1:
            x = x * jnp.asarray(c.embed_scale, x.dtype)
        kv = None if cache is None else (cache.k, cache.v)
        x, kv = self._layers((x, kv), phases, segment_start, query_start, rotary)
        if not c.tie_embeddings:
            self.param("unembed", _init("embed", "vocab", fan_in=c.d_model), *_shape(c, "DV"))
        x = RMSNorm(c, name="final_norm")(x)
        if cache is None or kv is None:
            return x, None
        return x, Cache(k=kv[0], v=kv[1], length=cache.length + tokens.shape[1])

    def _layers(self, carry, phases, segment_start, query_start, rotary):
        """Runs x through all layers and carries the cache, so that it is updated in place."""
        c, block, rule = self.config, _remat(Block, self.config), rotary.score_rule
        own = layer_windows(c), rotary_lib.method_of_layer(rotary, c.n_layers)
        if self.has_variable("params", _layer_name(0)):
            for i in range(c.n_layers):
                layer = None if carry[1] is None else i
                carry, _ = block(c, rule, name=_layer_name(i))(
                    carry, phases, segment_start, query_start, layer, _at(own, i)
                )
            return carry
        layers = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            # The stub knows one axis for all arguments alone.
            in_axes=(*[nn.broadcast] * 3, 0, 0),  # pyright: ignore
            length=c.n_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(c, rule, name="layers")
        layer = None if carry[1] is None else jnp.arange(c.n_layers)
        return layers(carry, phases, segment_start, query_start, layer, own)[0]


def _at(own: LayerData, i: int) -> LayerData:
    window, method = own
    return None if window is None else window[i], None if method is None else method[i]


@functools.partial(jax.jit, static_argnums=0)
def unstack_layers(config: LlamaConfig, params: dict) -> dict:
    """Copies the parameters into separate arrays for each layer.

    `Llama` also accepts these, and its program then repeats the block L times. From stacked arrays,
    a CPU copies each layer before it uses it, which triples the memory traffic of a decoded token.
    """
    rest = {name: value for name, value in params.items() if name != "layers"}
    layers = [jax.tree.map(lambda x, i=i: x[i], params["layers"]) for i in range(config.n_layers)]
    return rest | {_layer_name(i): layer for i, layer in enumerate(layers)}


def layer_windows(config: LlamaConfig) -> jax.Array | None:
    """Returns the window of each layer, int32 [L], or None where every layer sees all keys."""
    c = config
    if not any(c.windows):
        return None
    sizes = [c.windows[i % len(c.windows)] for i in range(c.n_layers)]
    return jnp.asarray([size or rotary_lib.MAX_POSITION for size in sizes], jnp.int32)


def _layer_name(i: int) -> str:
    return f"layers_{i}"


def _check_rule(c: LlamaConfig, rule, positions, cache) -> None:
    if c.sparse_group and (rule is not None or cache is not None):
        what = "a cache" if rule is None else "remapped positions or ALiBi"
        raise ValueError(
            f"S2-Attn (sparse_group={c.sparse_group}) is not for {what}: use sparse_group=0"
        )
    if rule is not None and positions is not None:
        raise ValueError(
            "methods with remapped positions or ALiBi count positions in each document themselves: "
            "leave positions=None"
        )
    width = key_copies(rule) * c.head_dim
    if cache is not None and cache.k.shape[-1] != width:
        raise ValueError(
            f"the cache has keys of width {cache.k.shape[-1]}, but this rotary needs {width}: pass "
            "the rotary to init_cache"
        )


def _remat(block, config):
    if config.remat == "none":
        return block
    policy = jax.checkpoint_policies.save_only_these_names(*REMAT[config.remat])
    return nn.remat(block, prevent_cse=False, policy=policy)


def default_positions(tokens, segment_start, query_start):
    """Returns positions that count from the cache's length and restart in each packed document."""
    positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    if not isinstance(query_start, int):
        positions = query_start[:, None] + positions[None]
    return positions if segment_start is None else jnp.atleast_2d(positions) - segment_start


class Block(nn.Module):
    """A Block computes x + attention(norm(x)), then x + mlp(norm(x)).

    Norms may act on what attention and MLP return instead, or as well, see `LlamaConfig.norms`.
    """

    config: LlamaConfig
    score_rule: rotary_lib.ScoreRule | None = None

    @nn.compact
    def __call__(self, carry, phases, segment_start, query_start, layer, own=(None, None)):
        """Applies one layer as nn.scan requires: it carries x and the cache, with no output.

        `own` is what differs by layer: the window, and which of the Rotary's methods.
        """
        (x, kv), names, (window, method) = carry, _residual(carry[1]), own
        phases = rotary_lib.phases_of(phases, method)
        attended, kv = Attention(self.config, self.score_rule, name="attention")(
            self._norm("attention_norm", x), phases, segment_start, query_start, kv, layer, window
        )
        x = constrain(x + self._norm("attention_norm", attended, after=True), *names)
        hidden = MLP(self.config, name="mlp")(self._norm("mlp_norm", x), names)
        return (constrain(x + self._norm("mlp_norm", hidden, after=True), *names), kv), None

    def _norm(self, name: str, x, after: bool = False):
        """Normalises x if the architecture does so at this place."""
        if self.config.norms not in ("both", "after" if after else "before"):
            return x
        return RMSNorm(self.config, name=f"{name}_after" if after else name)(x)


class Attention(nn.Module):
    """Grouped-query attention projects x, rotates queries and keys, and may append to a cache."""

    config: LlamaConfig
    score_rule: rotary_lib.ScoreRule | None = None

    @nn.compact
    def __call__(self, x, phases, segment_start, query_start, kv, layer, window):
        """Maps [B, T, D] to [B, T, D]; kv is the cache of all layers [L, B, S, K, H] or None."""
        c, names = self.config, _residual(kv)
        heads, kv_heads = ("embed", "heads", "head_dim"), ("embed", "kv_heads", "head_dim")
        out = ("heads", "head_dim", "embed")
        wq = self.param("wq", _init(*heads, fan_in=c.d_model), *_shape(c, "DNH"))
        wk = self.param("wk", _init(*kv_heads, fan_in=c.d_model), *_shape(c, "DKH"))
        wv = self.param("wv", _init(*kv_heads, fan_in=c.d_model), *_shape(c, "DKH"))
        out_init = _init(*out, fan_in=c.n_heads * c.head_dim)
        wo = self.param("wo", out_init, *_shape(c, "NHD"))
        wk, wv = (repeated(w, heads_in_use(c.n_kv_heads), axis=1) for w in (wk, wv))
        q, k, v = linear.column_parallel(
            x, (wq, heads), (wk, kv_heads), (wv, kv_heads), names=names
        )
        if c.attention_bias:
            q, k, v = (y + self._bias(n, y) for n, y in (("bq", q), ("bk", k), ("bv", v)))
        if c.qk_norm or c.qk_norm_joint:
            q, k = query_norm(c, "q", name="q_norm")(q), query_norm(c, "k", name="k_norm")(k)
        how = {"layout": c.rotary_layout, "by_product": platform() == "tpu"}
        q = rotary_lib.rotate(q, phases.query, **how)
        k = rotary_lib.rotate(k, phases.key, **how)
        q, k, v = (checkpoint_name(*x) for x in ((q, "query"), (k, "key"), (v, "value")))
        if kv is not None:
            k, v = kv = tuple(map(functools.partial(_append, layer, query_start), kv, (k, v)))
        attended = self._attend(q, k, v, segment_start, query_start, layer, window)
        attended = linear.row_parallel(attended, wo, out, names=names)
        if c.output_bias:
            bo = self.param("bo", _zeros("embed"), *_shape(c, "D"))
            attended = attended + _across(bo.astype(attended.dtype), attended)
        return checkpoint_name(attended, "attended"), kv

    def _bias(self, name: str, y):
        heads = ("N", "heads") if name == "bq" else ("K", "kv_heads")
        bias = self.param(name, _zeros(heads[1], "head_dim"), *_shape(self.config, f"{heads[0]}H"))
        return _across(repeated(bias, y.shape[-2], axis=0).astype(y.dtype), y)

    def _attend(self, q, k, v, segment_start, query_start, layer, window):
        c = self.config
        if c.sparse_group:
            return shifted_sparse(
                q, k, v, group=c.sparse_group, segment_start=segment_start, backend=c.attention
            )
        return attend(
            q,
            k,
            v,
            segment_start=segment_start,
            # Without a cache, pass a Python 0: under remat query_start is traced, and attend could
            # no longer tell that queries and keys are the same tokens.
            query_start=0 if layer is None else query_start,
            score_rule=self.score_rule,
            layer=layer,
            window=window,
            scale=c.score_scale or None,
            backend=c.attention,
            context_parallel=c.context_parallel,
        )


def _across(parameter, x):
    """Gives a parameter of the last axes the rank of x, for jax_numpy_rank_promotion="raise"."""
    return parameter.reshape((1,) * (x.ndim - parameter.ndim) + parameter.shape)


def _append(layer, start, cached, new):
    """Writes new [B, T, K, H] into layer `layer` of cached [L, B, S, K, H] from start [B] on."""
    B, T = (jnp.arange(n, dtype=jnp.int32) for n in new.shape[:2])
    rows, columns = B[:, None], start[:, None] + T[None]
    return cached.at[layer, rows, columns].set(
        to_cache(new, cached.dtype), mode="drop", unique_indices=True
    )


class MLP(nn.Module):
    """The MLP is a SwiGLU: (silu(x W_gate) * x W_up) W_down; GeGLU has gelu for silu."""

    config: LlamaConfig

    @nn.compact
    def __call__(self, x, names):
        """Maps [B, T, D] to [B, T, D], both with these logical axis names."""
        c, wide, back = self.config, ("embed", "mlp"), ("mlp", "embed")
        gate = self.param("gate", _init(*wide, fan_in=c.d_model), *_shape(c, "DF"))
        up = self.param("up", _init(*wide, fan_in=c.d_model), *_shape(c, "DF"))
        down = self.param("down", _init(*back, fan_in=c.d_ff), *_shape(c, "FD"))
        gated, straight = linear.column_parallel(x, (gate, wide), (up, wide), names=names)
        if c.mlp_bias:
            biases = (self.param(name, _zeros("mlp"), *_shape(c, "F")) for name in ("bg", "bu"))
            both = zip((gated, straight), biases, strict=True)
            gated, straight = (y + _across(b.astype(y.dtype), y) for y, b in both)
        act = nn.silu if c.activation == "silu" else nn.gelu  # whose default is the tanh form
        hidden = act(checkpoint_name(gated, "gate")) * checkpoint_name(straight, "up")
        hidden = linear.row_parallel(hidden, down, back, names=names)
        if c.mlp_bias:
            bd = self.param("bd", _zeros("embed"), *_shape(c, "D"))
            hidden = hidden + _across(bd.astype(x.dtype), hidden)
        return hidden


class RMSNorm(nn.Module):
    """RMSNorm computes x / rms(x) * scale in float32, over the last axes.

    Attributes:
        config: the architecture.
        letters: the letters of these axes, D, or those of `query_norm`.
        axes: their logical names.
    """

    config: LlamaConfig
    letters: str = "D"
    axes: tuple[str, ...] = ("embed",)

    @nn.compact
    def __call__(self, x):
        """Maps [..., D] or other axes to the same shape in the dtype of x."""
        c, over = self.config, tuple(range(-len(self.axes), 0))
        first = nn.initializers.zeros if c.norm_offset else nn.initializers.ones
        boxed = nn.with_logical_partitioning(first, self.axes)
        scale: Any = self.param("scale", boxed, *_shape(c, self.letters))
        if len(self.axes) == 2:  # over all heads, of which keys may have copies
            scale = repeated(scale, x.shape[-2], axis=0)
        scale = 1 + scale.astype(jnp.float32) if c.norm_offset else scale
        xf = x.astype(jnp.float32)
        rms = jax.lax.rsqrt(jnp.mean(xf * xf, axis=over, keepdims=True) + c.norm_eps)
        return (xf * rms * _across(scale, xf)).astype(x.dtype)


def query_norm(config: LlamaConfig, which: str, **options) -> RMSNorm:
    """Returns the norm of queries "q" or keys "k" [..., heads, H], per head or over all heads."""
    if config.qk_norm:
        return RMSNorm(config, "H", ("head_dim",), **options)
    letters, heads = ("NH", "heads") if which == "q" else ("KH", "kv_heads")
    return RMSNorm(config, letters, (heads, "head_dim"), **options)


def _residual(cache) -> linear.Names:
    """Returns the axis names of activations between blocks; a single token cannot be divided."""
    return linear.RESIDUAL if cache is None else linear.TOKENS


def _init(*names: str, fan_in: int) -> Callable[..., jax.Array]:
    # linen boxes the array and takes it out of the box again where it is used.
    boxed: Any = nn.with_logical_partitioning(nn.initializers.normal(fan_in**-0.5), names)
    return boxed


def _zeros(*names: str) -> Callable[..., jax.Array]:
    boxed: Any = nn.with_logical_partitioning(nn.initializers.zeros, names)
    return boxed


def _shape(c: LlamaConfig, letters: str):
    sizes = {"V": c.vocab_size, "D": c.d_model, "N": c.n_heads, "K": c.n_kv_heads}
    sizes |= {"H": c.head_dim, "F": c.d_ff}
    return tuple(sizes[letter] for letter in letters), jnp.dtype(c.param_dtype)


def init_boxed(config: LlamaConfig, key: jax.Array) -> Any:
    """Makes fresh parameters, each in a box that names its logical axes, see sharding.shardings."""
    config = dataclasses.replace(config, sparse_group=0)  # since no group divides so few tokens
    # The fewest tokens that the mesh divides, since no parameter depends on their number.
    B, T = axis_size("data", "fsdp"), 2 * axis_size("sequence", "tensor")
    rot = rotary_lib.make(rotary_lib.RoPE(), head_dim=config.head_dim, seq_len=T)
    return Llama(config).init(key, jnp.zeros((B, T), jnp.int32), rotary=rot)["params"]


def init_params(config: LlamaConfig, key: jax.Array) -> dict:
    """Makes fresh parameters as nested dicts, normal with standard deviation fan_in^-1/2."""
    return nn.meta.unbox(init_boxed(config, key))


def unembed(
    config: LlamaConfig, params: dict, hidden: Float[jax.Array, "*BT D"]
) -> Float32[jax.Array, "*BT V"]:
    """Logits float32 [..., T, V] of hidden states [..., T, D]; only where [T, V] is affordable."""
    table = output_table(config, params).astype(hidden.dtype)
    return jnp.einsum("...D,DV->...V", hidden, table, preferred_element_type=jnp.float32)


def output_table(config: LlamaConfig, params: dict) -> Float[jax.Array, "D V"]:
    """Returns the output table [D, V], which is the embedding transposed if the two are tied."""
    return params["embed"].T if config.tie_embeddings else params["unembed"]


def logits(
    config: LlamaConfig,
    params: dict,
    tokens: Int[AnyArray, "B T"],
    rotary: rotary_lib.RotaryLike,
) -> Float32[jax.Array, "B T V"]:
    """Logits of the next token at every position, float32 [B, T, V]: for small inputs.

    Args:
        config: the architecture.
        params: the parameters.
        tokens: int32 [B, T].
        rotary: a rotary method or its text, made for T tokens; or a Rotary from `rotary.make`.

    Raises:
        ValueError: As `rotary.as_rotary`, or a token id lies outside the vocabulary.
    """
    check_vocabulary(config, "the input", tokens)
    rot = rotary_lib.as_rotary(rotary, head_dim=config.head_dim, seq_len=tokens.shape[1])
    return _logits(config, params, tokens, rot)


def check_vocabulary(config: LlamaConfig, what: str, ids: ArrayLike) -> None:
    """Raises ValueError if an id lies outside the vocabulary: the model would answer NaN."""
    if isinstance(ids, Tracer) or not getattr(ids, "is_fully_addressable", True):
        return  # not known here
    ids = np.asarray(ids)
    if ids.size and not 0 <= ids.min() <= ids.max() < config.vocab_size:
        wrong = ids.min() if ids.min() < 0 else ids.max()
        raise ValueError(f"{what} has token {wrong}, the vocabulary is 0..{config.vocab_size - 1}")


@functools.partial(jax.jit, static_argnums=0)
def _logits(config, params, tokens, rotary):
    hidden, _ = Llama(config).apply({"params": params}, tokens, rotary=rotary)
    return unembed(config, params, hidden)
