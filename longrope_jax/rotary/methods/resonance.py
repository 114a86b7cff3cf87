"""Resonance RoPE rounds wavelengths to whole tokens."""

import dataclasses

import numpy as np

from longrope_jax.rotary.frequencies import Frequencies
from longrope_jax.rotary.registry import Method, check_method, register


@register("resonance")
@dataclasses.dataclass(frozen=True)
class Resonance:
    """Resonance RoPE: theta_j = 2 pi / round(2 pi/theta_j) of another method's theta_j.

    theta_j is in radians per token and 2 pi/theta_j is the wavelength in tokens. A pair whose
    wavelength is below the trained length then shows no angle that it did not show in training.
    Halves are rounded to even numbers. The amplitude and all else are the inner method's.

    Source: Resonance RoPE, Wang et al. (2403.00071) and sheryc/resonance_rope, which rounds after
        YaRN's ramp.
    Cache: as for the inner method.
    Peers: only the authors' repo has it.

    Attributes:
        inner: the method whose wavelengths are rounded; required. Written
            inner=(yarn:factor=8,original_length=4096).
    """

    inner: Method

    def __post_init__(self):
        check_method("inner", self.inner)

    def frequencies(self, *, head_dim: int, seq_len: int) -> Frequencies:
        """Returns the inner method's frequencies with whole wavelengths; zero stays zero."""
        f = self.inner.frequencies(head_dim=head_dim, seq_len=seq_len)
        rounded = {n: _whole(getattr(f, n)) for n in ("inv_freq", "start_inv_freq")}
        return dataclasses.replace(f, **rounded)


def _whole(inv_freq: np.ndarray) -> np.ndarray:
    turning = inv_freq > 0
    wavelength = 2 * np.pi / np.where(turning, inv_freq, 1.0)
    return np.where(turning, 2 * np.pi / np.round(wavelength), 0.0)
