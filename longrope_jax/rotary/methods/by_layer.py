"""A method per layer: layers of one model rotate by different methods, or do not rotate."""

import dataclasses
from typing import NoReturn

from longrope_jax.rotary.registry import Method, check_method, name_of, register


@register("by_layer")
@dataclasses.dataclass(frozen=True)
class ByLayer:
    """A method per layer: layer i has methods[pattern[i mod P]], P the pattern's length.

    Whether a layer looks at a window or at everything is the model's, `LlamaConfig.windows`.
    The arrays of all methods lie side by side, so the methods are of one structure (no remapped
    positions beside plain ones, no rotary part beside a whole head); `NoPE` fits all plain ones.

    Source: Gemma 3 (2503.19786): base 1e6 in every sixth layer, 1e4 elsewhere; OLMo 3: YaRN in
        every fourth layer alone; SmolLM3, Llama 4 and Command A (2504.00698): no rotation in every
        fourth layer (2501.18795).
    Cache: as for the methods of the layers.
    Peers: Hugging Face nests `rope_parameters` by layer type, and has `no_rope_layers`; for OLMo 3
        in a flat config transformers 5 gives windowed layers the family's base, transformers 4 that
        of the config, as here.

    Attributes:
        pattern: for each layer the index of its method; repeated over deeper models, required.
        methods: the different methods, required. Written methods=((rope),(nope)).
    """

    pattern: tuple[int, ...]
    methods: tuple[Method, ...]

    def __post_init__(self):
        for name in ("pattern", "methods"):
            value = getattr(self, name)
            if not isinstance(value, tuple | list) or not value:
                raise ValueError(
                    f"{name} of by_layer must be a tuple of at least one, got {value!r}"
                )
            object.__setattr__(self, name, tuple(value))
        for method in self.methods:
            check_method("methods", method)
            if isinstance(method, ByLayer):
                raise ValueError(
                    "methods of by_layer are methods of one layer, got another by_layer"
                )
        count = len(self.methods)
        if not all(type(at) is int and 0 <= at < count for at in self.pattern):
            raise ValueError(
                f"pattern must hold indices 0..{count - 1} of methods, got {self.pattern}"
            )
        if left := sorted({*range(count)} - {*self.pattern}):
            raise ValueError(
                f"no layer of pattern={self.pattern} has methods[{left[0]}]: remove it"
            )

    def frequencies(self, *, head_dim: int, seq_len: int) -> NoReturn:
        """Raises ValueError: one set of frequencies per method is what `methods` give."""
        found = ", ".join(name_of(method) for method in self.methods)
        raise ValueError(
            f"the method differs by layer ({found}), so there is no one set of frequencies: take "
            "one of its methods"
        )


def distinct(spec: Method) -> tuple[Method, ...]:
    """Returns the methods of a ByLayer, or the method itself."""
    return spec.methods if isinstance(spec, ByLayer) else (spec,)
