"""The compiled step runs forward, backward and update, with gradient accumulation."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Float

from longrope_jax import llama, sharding
from longrope_jax.rotary import Rotary
from longrope_jax.training import lora as lora_lib
from longrope_jax.training import optimizer as optimizer_lib
from longrope_jax.training.lora import LoRA
from longrope_jax.training.loss import token_scores


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["step", "params", "opt_state"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class TrainState:
    """A TrainState is what a checkpoint saves besides the data iterator's state.

    With LoRA `params` is the trainable tree alone. There is no random key, since steps draw no
    random numbers.
    """

    step: jax.Array
    params: Any
    opt_state: Any


def trained_config(config: llama.LlamaConfig) -> llama.LlamaConfig:
    """Returns the config whose parameters train: in float32, or float64 where they are given so.

    bfloat16 has 8 bits: an update below 1/500 of a number is lost in it, which is most updates of a
    fine-tuning. So parameters, moments and accumulated gradients are float32 whatever `param_dtype`
    is; `dtype`, that of the products, stays.

    Raises:
        ValueError: `dtype` is float16, whose gradients overflow without a scaled loss.
    """
    if config.dtype == "float16":
        raise ValueError("dtype=float16 overflows in training: train with dtype=bfloat16")
    return dataclasses.replace(config, param_dtype=str(_master(config.param_dtype)))


def _master(dtype) -> jnp.dtype:
    return jnp.promote_types(dtype, jnp.float32)


@functools.lru_cache
def abstract_state(
    config: llama.LlamaConfig,
    optimizer: optimizer_lib.OptimizerConfig,
    mesh: Mesh,
    lora: LoRA | None = None,
) -> TrainState:
    """Returns ShapeDtypeStructs of the state with their shardings on `mesh`.

    Raises:
        ValueError: A shape does not divide over the mesh, or `dtype` is float16.
    """
    config = trained_config(config)
    return _abstract(mesh, lambda: _init(config, optimizer, jax.random.key(0), lora))


@functools.lru_cache
def abstract_params(config: llama.LlamaConfig, mesh: Mesh) -> dict:
    """Returns ShapeDtypeStructs of the model's parameters with their shardings on `mesh`."""
    return _abstract(mesh, lambda: llama.init_boxed(config, jax.random.key(0)))


def _abstract(mesh: Mesh, make) -> Any:
    boxed = jax.eval_shape(make)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        nn.meta.unbox(boxed),
        sharding.shardings(mesh, boxed),
    )


def init_state(
    config: llama.LlamaConfig,
    optimizer: optimizer_lib.OptimizerConfig,
    mesh: Mesh,
    *,
    seed: int = 0,
    params: Any = None,
    lora: LoRA | None = None,
) -> TrainState:
    """Makes a state at step 0, created sharded on the mesh, fresh or from given parameters.

    Everything in it is float32, see `trained_config`. Without LoRA the buffers of float32 `params`
    become the state's own, so the first step deletes them: give a copy of what is needed further.
    With LoRA the adapters are fresh, and the other trainable parameters are copied from `params`.

    Raises:
        ValueError: LoRA is used without parameters, a shape does not divide over the mesh, or
            `dtype` is float16.
    """
    config = trained_config(config)
    if lora and params is None:
        raise ValueError("lora adapts given parameters, but params is None: give params")
    shardings = _shardings(config, optimizer, mesh, lora)
    with jax.set_mesh(mesh):
        if params is None:
            return _fresh(config, optimizer, mesh)(jax.random.key(seed))
        if lora:
            params = _adapted(config, lora, params, seed, shardings.params)
        params = _cast(jax.device_put(params, shardings.params))
        opt_state = _moments(config, optimizer, mesh, lora)(params)
        return TrainState(jax.device_put(jnp.int32(0), shardings.step), params, opt_state)


def _shardings(config, optimizer, mesh, lora=None) -> TrainState:
    return jax.tree.map(lambda x: x.sharding, abstract_state(config, optimizer, mesh, lora))


# A study makes many states of one shape: each of these functions is compiled once.


@functools.lru_cache
def _fresh(config, optimizer, mesh) -> Callable[[jax.Array], TrainState]:
    shardings = _shardings(config, optimizer, mesh)
    return jax.jit(
        lambda key: nn.meta.unbox(_init(config, optimizer, key)), out_shardings=shardings
    )


@functools.lru_cache
def _moments(config, optimizer, mesh, lora) -> Callable[[Any], Any]:
    shardings = _shardings(config, optimizer, mesh, lora).opt_state
    return jax.jit(optimizer_lib.make(optimizer).init, out_shardings=shardings)


def _adapted(config, lora, params, seed, shardings) -> dict:
    """Makes the trainable tree, of copies, because the train state's buffers are donated."""
    boxed = jax.eval_shape(lambda: llama.init_boxed(config, jax.random.key(0)))

    def make(unfrozen):
        adapters = nn.meta.unbox(lora_lib.adapters(lora, boxed, jax.random.key(seed)))
        return {"adapters": adapters, "unfrozen": _cast(jax.tree.map(jnp.copy, unfrozen))}

    return jax.jit(make, out_shardings=shardings)(lora_lib.split(lora, params)[0])


def _cast(params: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(_master(x.dtype)), params)


def _init(config, optimizer, key, lora=None) -> TrainState:
    params: Any = llama.init_boxed(config, key)
    if lora:
        adapters = lora_lib.adapters(lora, params, key)
        params = {"adapters": adapters, "unfrozen": lora_lib.split(lora, params)[0]}
    return TrainState(jnp.int32(0), params, optimizer_lib.make(optimizer).init(params))


@functools.lru_cache
def make_train_step(
    config: llama.LlamaConfig,
    optimizer: optimizer_lib.OptimizerConfig,
    mesh: Mesh,
    lora: LoRA | None = None,
):
    """Returns the jitted step (state, rotary, batch) -> (state, metrics); it donates the state.

    With `count=n` it takes batches with a leading axis [K, ...] and does the first n <= K steps in
    one dispatch; the metrics then have a leading axis [K], of which n are filled.

    With LoRA the step takes `frozen`, from `lora.split`, as a fourth argument; bind it by
    functools.partial for `loop.fit`.

    `settings` of the function are the values by which `loop.fit` knows a run again. There is one
    function per configuration, so a sweep over rotaries compiles once. The batch is a
    dict of tokens int32 [A, B, T+1], weights float32 [A, B, T] and segment_start int32 [A, B, T],
    with A microbatches whose gradients are accumulated before one update. Optional positions
    [A, B, T], int32 or float32, replace those that count up in each document (`rotary.positions`).
    Parameters, moments and sums of gradients are float32, see `trained_config`.
    Metrics are scalars: loss (weighted mean in nats), grad_norm, learning_rate, whether the step is
    `bad`, since loss or gradient is not finite and the update was not skipped, and, where bad steps
    may be skipped, how many were `skipped` so far.
    """
    config = trained_config(config)
    transform = optimizer_lib.make(optimizer)
    learning_rate = optimizer_lib.schedule(optimizer)
    shardings = _shardings(config, optimizer, mesh, lora)

    def step(state: TrainState, rotary: Rotary, batch, frozen):
        def whole(params):
            return lora_lib.merge(lora, params, frozen) if lora else params

        loss, grads = _accumulated(config, state.params, rotary, batch, whole)
        grads = jax.lax.with_sharding_constraint(grads, shardings.params)
        with jax.numpy_dtype_promotion("standard"):  # optax multiplies floats by counts
            updates, opt_state = transform.update(grads, state.opt_state, state.params)
            rate = learning_rate(state.step)
        params = optax.apply_updates(state.params, updates)
        norm = optax.tree.norm(grads)
        metrics = {"loss": loss, "grad_norm": norm, "learning_rate": rate}
        metrics["bad"] = ~(jnp.isfinite(loss) & jnp.isfinite(norm))
        if optimizer.skip:
            skipped: Any = opt_state  # optax.ApplyIfFiniteState
            metrics["bad"] &= skipped.last_finite | (skipped.notfinite_count > optimizer.skip)
            metrics["skipped"] = skipped.total_notfinite
            metrics["learning_rate"] = learning_rate(state.step - state.opt_state.total_notfinite)
        return TrainState(state.step + 1, params, opt_state), metrics

    jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=(shardings, None))
    def several(state: TrainState, rotary: Rotary, batches, count, frozen):
        def batch(i):
            return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, 0, False), batches)

        def one(i, carry):
            state, metrics = step(carry[0], rotary, batch(i), frozen)
            return state, jax.tree.map(lambda every, x: every.at[i].set(x), carry[1], metrics)

        K = batches["weights"].shape[0]
        like = jax.eval_shape(lambda: step(state, rotary, batch(0), frozen)[1])
        empty = jax.tree.map(lambda x: jnp.zeros((K, *x.shape), x.dtype), like)
        return jax.lax.fori_loop(0, count, one, (state, empty))

    def on_mesh(state, rotary, batch, frozen=None, count: int | None = None):
        with jax.set_mesh(mesh):
            if count is None:
                return jitted(state, rotary, batch, frozen)
            return several(state, rotary, batch, np.int32(count), frozen)

    on_mesh.jitted = jitted
    on_mesh.settings = dataclasses.asdict(optimizer) | {
        "lora": lora and str(lora),
        "dtype": config.dtype,
        "sparse_group": config.sparse_group,
    }
    return on_mesh


def _accumulated(config, params, rotary, batch, whole):
    """Returns the weighted mean loss over all microbatches, and its gradient.

    `whole` maps the trainable tree to the full model parameters (the identity without LoRA).
    """
    total = batch["weights"].sum()
    total = jnp.where(total > 0, total, 1.0)  # a batch without any weight has loss 0

    def loss(params, micro):
        return weighted_nll(config, whole(params), rotary, micro) / total

    def add(carry, micro):
        return jax.tree.map(jnp.add, carry, jax.value_and_grad(loss)(params, micro)), None

    if batch["weights"].shape[0] == 1:
        return jax.value_and_grad(loss)(params, jax.tree.map(lambda x: x[0], batch))
    zeros = jnp.float32(0), jax.tree.map(jnp.zeros_like, params)
    return jax.lax.scan(add, zeros, batch)[0]


def weighted_nll(config, params, rotary, batch) -> Float[jax.Array, ""]:
    """Returns the sum over [B, T] of weight times negative log-likelihood, in nats."""
    tokens = batch["tokens"]
    hidden, _ = llama.Llama(config).apply(
        {"params": params},
        tokens[:, :-1],
        rotary=rotary,
        positions=batch.get("positions"),
        segment_start=batch["segment_start"],
    )
    return (token_scores(config, params, hidden, tokens[:, 1:]).nll * batch["weights"]).sum()
