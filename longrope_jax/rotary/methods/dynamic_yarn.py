"""Dynamic YaRN scales as YaRN does, by as much as the current length needs."""

import dataclasses

from longrope_jax.rotary.frequencies import Frequencies
from longrope_jax.rotary.methods.yarn import YaRN
from longrope_jax.rotary.registry import register


@register("dynamic_yarn")
@dataclasses.dataclass(frozen=True)
class DynamicYaRN:
    """Dynamic YaRN: YaRN with s = max(1, seq_len/L), its amplitude too.

    L is the original_length. Up to L tokens this is plain RoPE.

    Source: YaRN (2309.00071) section 3.3 and LlamaDynamicYaRNScaledRotaryEmbedding of its repo.
    Cache: no, all keys change with the length.
    Peers: only the yarn repo has it, and evaluates the scale at the longest length seen so far.

    Attributes:
        original_length: the trained length L in tokens; required.
        base, beta_fast, beta_slow, ramp, truncate, clamp, extrapolation_factor, attn_factor: the
            options of `YaRN`, with its defaults.
    """

    original_length: float
    base: float = 10_000.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    ramp: str = "dimension"
    truncate: bool = True
    clamp: str = "dimension"
    extrapolation_factor: float = 1.0
    attn_factor: float = 1.0

    def __post_init__(self):
        self._at(1.0)

    def frequencies(self, *, head_dim: int, seq_len: int) -> Frequencies:
        """Returns [H/2] frequencies in radians per token, and the amplitude, at `seq_len`."""
        yarn = self._at(max(1.0, seq_len / self.original_length))
        return yarn.frequencies(head_dim=head_dim, seq_len=seq_len)

    def _at(self, factor: float) -> YaRN:
        options = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return YaRN(factor=factor, **options)
