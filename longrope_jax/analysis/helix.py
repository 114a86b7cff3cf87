"""The helix picture of Llama 2 Long (2309.16039) Figure 8, in float64.

A position t becomes the point (cos t, sin t, sin(a t)): real and imaginary part of the fastest
rotated pair, and one part of a slower one whose speed is `a` of it. Position Interpolation puts
positions closer together on the same curve; ABF slows the slow pair, which moves the turns of the
curve closer together and leaves neighbouring positions as far apart as they were.
"""

import dataclasses

import numpy as np
from jaxtyping import Float64, Shaped

from longrope_jax.rotary import check_base, rope_inv_freq


@dataclasses.dataclass(frozen=True)
class Panel:
    """One panel of Figure 8.

    Attributes:
        name: label of the panel, e.g. "8a".
        method: registered name of the rotary method that it illustrates.
        half_turns: the curve is drawn for t from -pi to pi times this, radians.
        samples: points on the curve.
        speed: a, speed of the slow pair over that of the fast one.
        last_dot: positions are drawn for t from minus this to this, radians.
        step: between neighbouring positions, radians.
    """

    name: str
    method: str
    half_turns: int
    samples: int
    speed: float
    last_dot: float
    step: float


# Recovered from the vector paths of the figure; fit within 1e-5 of the drawn curve.
PANELS = (
    Panel("8a", "rope", half_turns=5, samples=500, speed=0.07, last_dot=10, step=2),
    Panel("8b", "pi", half_turns=5, samples=500, speed=0.07, last_dot=10, step=1),
    Panel("8c", "abf", half_turns=7, samples=700, speed=0.035, last_dot=20, step=2),
)


def curve_times(panel: Panel) -> Float64[np.ndarray, " points"]:
    """[samples] values of t along the curve, radians."""
    return np.linspace(-panel.half_turns * np.pi, panel.half_turns * np.pi, panel.samples)


def dot_times(panel: Panel) -> Float64[np.ndarray, " points"]:
    """[dots] values of t of the red dots, radians."""
    return np.linspace(-panel.last_dot, panel.last_dot, 1 + round(2 * panel.last_dot / panel.step))


def points(times: Shaped[np.ndarray, " points"], speed: float) -> Float64[np.ndarray, "points 3"]:
    """[..., 3] points (cos t, sin t, sin(speed * t)) of `times` [...] in radians."""
    t = np.asarray(times, np.float64)
    return np.stack([np.cos(t), np.sin(t), np.sin(speed * t)], axis=-1)


def curve(panel: Panel) -> Float64[np.ndarray, "points 3"]:
    """[samples, 3] points of the panel's curve."""
    return points(curve_times(panel), panel.speed)


def dots(panel: Panel) -> Float64[np.ndarray, "points 3"]:
    """[dots, 3] points of the panel's red dots."""
    return points(dot_times(panel), panel.speed)


@dataclasses.dataclass(frozen=True)
class Spacing:
    """How far apart the dots of a panel are, in units of the helix's radius.

    Attributes:
        neighbours: smallest distance between consecutive dots.
        turns: smallest distance between dots at least half a turn of the fast pair apart.
        pitch: mean rise of the curve per turn of the fast pair, over the range of the dots.
    """

    neighbours: float
    turns: float
    pitch: float


def spacing(panel: Panel) -> Spacing:
    """What the caption of Figure 8 claims, measured on the panel's dots."""
    t, p = dot_times(panel), dots(panel)
    distance = np.linalg.norm(p[:, None] - p, axis=-1)
    other_turn = np.abs(t[:, None] - t) > np.pi
    return Spacing(
        neighbours=float(np.linalg.norm(np.diff(p, axis=0), axis=-1).min()),
        turns=float(distance[other_turn].min()),
        pitch=float((p[-1, 2] - p[0, 2]) * 2 * np.pi / (t[-1] - t[0])),
    )


def pair_slowdown(base: float, new_base: float, *, head_dim: int) -> Float64[np.ndarray, " R"]:
    """[H/2] how much slower each pair turns after a change of base, as a share of its speed.

    Llama 2 Long, appendix B: pair 1 of 64 loses only 6% from base 10,000 to 500,000.

    Raises:
        ValueError: odd or non-positive `head_dim`, a base that is not above 1.
    """
    check_base(base)
    check_base(new_base)
    return 1 - rope_inv_freq(new_base, head_dim) / rope_inv_freq(base, head_dim)
