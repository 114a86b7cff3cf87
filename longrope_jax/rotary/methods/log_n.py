"""Log-n scaling: queries grow with the logarithm of their position."""

import dataclasses
import math

from longrope_jax.rotary.frequencies import Frequencies, check_original_length
from longrope_jax.rotary.registry import Method, check_method, register


@register("log_n")
@dataclasses.dataclass(frozen=True)
class LogN:
    """Log-n scaling: another method, its query at position n times max(1, ln(n+1)/ln(L)).

    Dimensionless; L = original_length. Keeps the entropy of attention about constant as more tokens
    are seen. Scores then depend on absolute positions. Around ABF it is entropy-aware ABF:
    log_n:inner=(abf),original_length=4096.

    Source: Su Jianlin (kexue.fm), whose ReRoPE uses it too; the code of Self-Extend; entropy-aware
        ABF as `EABF.py` of the LongPPL repo has it.
    Cache: as the inner method, since keys are not scaled.
    Peers: Qwen-style dynamic NTK comes with a form of it; Llama 4 scales queries by another rule,
        1 + a ln(floor((n+1)/f) + 1), in its layers without rotation.

    Attributes:
        inner: the method that rotates; no default. In text: inner=(abf).
        original_length: L, tokens; no default.
    """

    inner: Method
    original_length: float

    def __post_init__(self):
        check_method("inner", self.inner)
        check_original_length(self.original_length)

    def frequencies(self, *, head_dim: int, seq_len: int) -> Frequencies:
        """The inner method's, with `logn_length` set.

        Raises:
            ValueError: the inner method scales by log n itself.
        """
        f = self.inner.frequencies(head_dim=head_dim, seq_len=seq_len)
        if math.isfinite(f.logn_length):
            raise ValueError(f"log_n around a method that has log-n scaling already: {self.inner}")
        return dataclasses.replace(f, logn_length=float(self.original_length))
