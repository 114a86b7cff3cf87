"""Greedy decoding with a key-value cache."""

import functools

import jax
import jax.numpy as jnp

from longrope_jax import llama
from longrope_jax.rotary import Rotary


@functools.partial(jax.jit, static_argnums=(0, 4))
def greedy(
    config: llama.LlamaConfig, params, rotary: Rotary, prompts: jax.Array, new_tokens: int
) -> jax.Array:
    """The most likely continuation of each prompt, token by token.

    Args:
        config: of the model.
        params: of the model.
        rotary: made for at least T + new_tokens tokens; the frequencies stay the same throughout.
        prompts: int32 [B, T], all of one length.
        new_tokens: how many to generate.

    Returns:
        int32 [B, new_tokens].
    """
    B, T = prompts.shape
    apply = functools.partial(llama.Llama(config).apply, {"params": params}, rotary=rotary)

    def choose(hidden):
        return llama.unembed(config, params, hidden[:, -1]).argmax(-1).astype(jnp.int32)

    def step(carry, _):
        token, cache = carry
        hidden, cache = apply(token[:, None], cache=cache)
        return (choose(hidden), cache), token

    hidden, cache = apply(prompts, cache=llama.init_cache(config, B, T + new_tokens, rotary))
    _, tokens = jax.lax.scan(step, (choose(hidden), cache), length=new_tokens)
    return tokens.T
