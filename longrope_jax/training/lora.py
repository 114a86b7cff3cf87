"""LoRA (2106.09685) and LongLoRA's LoRA+ (2309.12307 section 3.3) adapt the Llama's parameters.

A target W becomes W + (alpha / rank) A B. The sum is formed inside the loss, so the model's code
does not know about LoRA. The trainable parameters form a tree of their own,

    {"adapters": {..., "wq": {"a", "b"}}, "unfrozen": {...}}

and the gradients, the optimizer state and the checkpoints have the same structure. All other
parameters are `frozen`, an argument of the training step that is neither differentiated nor
donated. The gradient of each full target W still exists during a step: adapters reduce the memory
of optimizer state and checkpoints, but not that of gradients.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from longrope_jax.errors import unknown_name

# How many axes after the layers' axis belong to A; the remaining axes belong to B.
_INPUT_AXES = {"wq": 1, "wk": 1, "wv": 1, "wo": 2, "gate": 1, "up": 1, "down": 1}
TARGETS = tuple(_INPUT_AXES)


@dataclasses.dataclass(frozen=True)
class LoRA:
    """A LoRA says which parameters train if not all do; the defaults are LongLoRA's adapters.

    Attributes:
        rank: the number r of columns of A.
        alpha: the product A B is scaled by alpha / rank.
        targets: the weights that get adapters, a subset of `TARGETS`.
        norms: whether the scale of every norm trains too.
        embed: whether the embedding table trains too. An output head that is tied to the table
            trains with it, as in every implementation where the two are one tensor.

    Raises:
        ValueError: A target is unknown, there is none, or rank or alpha is not positive.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("wq", "wk", "wv", "wo")
    norms: bool = False
    embed: bool = False

    def __post_init__(self):
        if not self.targets or isinstance(self.targets, str):
            raise ValueError(f"targets must be a tuple of some of {TARGETS}, got {self.targets!r}")
        for name in self.targets:
            if name not in _INPUT_AXES:
                raise ValueError(unknown_name("LoRA target", name, TARGETS))
        if not (self.rank >= 1 and self.alpha > 0):
            raise ValueError(f"rank and alpha must be positive, got {self.rank} and {self.alpha}")


# The rows of LongLoRA's Table 2. An untied output head never trains; "full" uses no LoRA.
_UNFROZEN = {
    "lora": {},
    "lora_norm": {"norms": True},
    "lora_embed": {"embed": True},
    "lora_plus": {"norms": True, "embed": True},
}
TRAINABLE = ("full", *_UNFROZEN)


def trainable(name: str, *, rank: int = 8, alpha: float = 16.0) -> LoRA | None:
    """Returns the LoRA named "lora", "lora_norm", "lora_embed" or "lora_plus", or None for "full".

    Raises:
        ValueError: The name is unknown; the message names the nearest one.
    """
    if name not in TRAINABLE:
        raise ValueError(unknown_name("trainable subset", name, TRAINABLE))
    return None if name == "full" else LoRA(rank, alpha, **_UNFROZEN[name])


def split(lora: LoRA, params: dict) -> tuple[dict, dict]:
    """Splits the model's parameters, boxed or not, into (unfrozen, frozen) trees."""
    flat = flatten_dict(params)
    unfrozen = {path for path in flat if _is_unfrozen(lora, path)}
    return (
        unflatten_dict({p: x for p, x in flat.items() if p in unfrozen}),
        unflatten_dict({p: x for p, x in flat.items() if p not in unfrozen}),
    )


def adapters(lora: LoRA, boxed: dict, key: jax.Array) -> dict:
    """Makes fresh adapters in boxes that name logical axes, for `boxed` of `llama.init_boxed`.

    B is 0, so that training starts from the given model. A is uniform within +-fan_in^-1/2, the
    initialisation of the library that LongLoRA's runs used (Kaiming uniform with a = sqrt 5; LoRA's
    paper says normal and gives no scale). Adapters are float32 whatever the weights' dtype.
    """
    flat: dict[tuple, Any] = flatten_dict(boxed)
    targets = sorted(path for path in flat if path[-1] in lora.targets)
    made = {}
    for path, one in zip(targets, jax.random.split(key, len(targets)), strict=True):
        made |= {(*path, n): x for n, x in _adapter(lora, path[-1], flat[path], one).items()}
    return unflatten_dict(made)


def merge(lora: LoRA, trained: dict, frozen: dict) -> dict:
    """Returns the model's full parameters, with the adapters added to their targets.

    For weights of lower precision the sum is float32, because rounding it to bfloat16 would lose
    small changes.
    """
    flat: dict[tuple, Any] = flatten_dict(frozen) | flatten_dict(trained["unfrozen"])
    adapters: dict[tuple, Any] = flatten_dict(trained["adapters"])
    for path in {path[:-1] for path in adapters}:
        a, b = adapters[*path, "a"], adapters[*path, "b"]
        flat[path] = flat[path] + lora.alpha / lora.rank * _product(a, b)
    return unflatten_dict(flat)


def count(tree: dict) -> int:
    """Counts the numbers in a tree of arrays or of their shapes."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def _is_unfrozen(lora: LoRA, path: tuple[str, ...]) -> bool:
    return (lora.norms and path[-1] == "scale") or (lora.embed and path == ("embed",))


def _adapter(lora: LoRA, name: str, box: nn.Partitioned, key: jax.Array) -> dict:
    """Makes boxed A [L, in..., r] and B [L, r, out...] for a stacked weight [L, in..., out...]."""
    at = 1 + _INPUT_AXES[name]
    shape, names = box.value.shape, box.names
    bound = math.prod(shape[1:at]) ** -0.5
    a = jax.random.uniform(key, (*shape[:at], lora.rank), jnp.float32, -bound, bound)
    b = jnp.zeros((shape[0], lora.rank, *shape[at:]), jnp.float32)
    return {
        "a": nn.LogicallyPartitioned(a, (*names[:at], "rank")),
        "b": nn.LogicallyPartitioned(b, (names[0], "rank", *names[at:])),
    }


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jax.vmap(lambda a, b: jnp.tensordot(a, b, axes=1))(a, b)
