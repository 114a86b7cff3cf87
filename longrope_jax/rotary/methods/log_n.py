"""Log-n scaling lets queries grow with the logarithm of their position."""

import dataclasses
import math

from longrope_jax.rotary.frequencies import Frequencies, check_original_length
from longrope_jax.rotary.registry import Method, check_method, register


@register("log_n")
@dataclasses.dataclass(frozen=True)
class LogN:
    """Log-n scaling: another method, its query at position n times max(1, ln(n+1)/ln(L)).

    The factor is dimensionless and L is the original_length. It keeps the entropy of attention
    about constant as more tokens are seen. Scores then depend on absolute positions. Around ABF
    this is entropy-aware ABF, log_n:inner=(abf),original_length=4096.

    Source: Su Jianlin (kexue.fm), whose ReRoPE uses it too; the code of Self-Extend; entropy-aware
        ABF follows `EABF.py` of the LongPPL repo.
    Cache: as for the inner method, since keys are not scaled.
    Peers: Qwen's dynamic NTK comes with a form of it; Llama 4 scales queries by another rule,
        1 + a ln(floor((n+1)/f) + 1), in its layers without rotation.

    Attributes:
        inner: the method that rotates queries and keys; required. Written inner=(abf).
        original_length: the trained length L in tokens; required.
    """

    inner: Method
    original_length: float

    def __post_init__(self):
        check_method("inner", self.inner)
        check_original_length(self.original_length)

    def frequencies(self, *, head_dim: int, seq_len: int) -> Frequencies:
        """Returns the inner method's frequencies with `logn_length` set.

        Raises:
            ValueError: the inner method has log-n scaling itself.
        """
        f = self.inner.frequencies(head_dim=head_dim, seq_len=seq_len)
        if math.isfinite(f.logn_length):
            raise ValueError(f"log_n around a method that has log-n scaling already: {self.inner}")
        return dataclasses.replace(f, logn_length=float(self.original_length))
