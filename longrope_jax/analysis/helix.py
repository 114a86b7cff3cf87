"""The helix picture of Llama 2 Long (2309.16039) Figure 8 is computed here in float64.

A position t becomes the point (cos t, sin t, sin(a t)): the real and imaginary part of the fastest
rotated pair, and one part of a slower pair that turns at the share `a` of its speed. Position
Interpolation puts positions closer together on the same curve. ABF slows the slow pair, which moves
the turns of the curve closer together and leaves neighbouring positions as far apart as they were.
"""

import dataclasses

import numpy as np
from jaxtyping import Float64, Shaped

from longrope_jax.rotary import check_base, rope_inv_freq


@dataclasses.dataclass(frozen=True)
class Panel:
    """A panel of Figure 8 shows a curve, and positions on it as dots.

    Attributes:
        name: label of the panel, e.g. "8a".
        method: registered name of the rotary method that it illustrates.
        half_turns: the curve is drawn for t from -pi to pi times this number, in radians.
        samples: how many points of the curve are computed.
        speed: the speed `a` of the slow pair over that of the fast one.
        last_dot: dots are drawn for t from minus this number to this number, in radians.
        step: the difference of t between neighbouring dots, in radians.
    """

    name: str
    method: str
    half_turns: int
    samples: int
    speed: float
    last_dot: float
    step: float


# These numbers are recovered from the figure's vector paths; they fit the drawn curve to 1e-5.
PANELS = (
    Panel("8a", "rope", half_turns=5, samples=500, speed=0.07, last_dot=10, step=2),
    Panel("8b", "pi", half_turns=5, samples=500, speed=0.07, last_dot=10, step=1),
    Panel("8c", "abf", half_turns=7, samples=700, speed=0.035, last_dot=20, step=2),
)


def curve_times(panel: Panel) -> Float64[np.ndarray, " points"]:
    """Returns the values of t along the curve, [samples] in radians."""
    return np.linspace(-panel.half_turns * np.pi, panel.half_turns * np.pi, panel.samples)


def dot_times(panel: Panel) -> Float64[np.ndarray, " points"]:
    """Returns the values of t of the red dots, [dots] in radians."""
    return np.linspace(-panel.last_dot, panel.last_dot, 1 + round(2 * panel.last_dot / panel.step))


def points(times: Shaped[np.ndarray, " points"], speed: float) -> Float64[np.ndarray, "points 3"]:
    """Returns points (cos t, sin t, sin(speed * t)), [..., 3], of `times` [...] in radians."""
    t = np.asarray(times, np.float64)
    return np.stack([np.cos(t), np.sin(t), np.sin(speed * t)], axis=-1)


def curve(panel: Panel) -> Float64[np.ndarray, "points 3"]:
    """Returns the points of the panel's curve, [samples, 3]."""
    return points(curve_times(panel), panel.speed)


def dots(panel: Panel) -> Float64[np.ndarray, "points 3"]:
    """Returns the points of the panel's red dots, [dots, 3]."""
    return points(dot_times(panel), panel.speed)


@dataclasses.dataclass(frozen=True)
class Spacing:
    """A spacing says how far apart the dots of a panel are, in units of the helix's radius.

    Attributes:
        neighbours: the smallest distance between consecutive dots.
        turns: the smallest distance between dots at least half a turn of the fast pair apart.
        pitch: the mean rise of the curve per turn of the fast pair, over the range of the dots.
    """

    neighbours: float
    turns: float
    pitch: float


def spacing(panel: Panel) -> Spacing:
    """Measures on the panel's dots what the caption of Figure 8 claims."""
    t, p = dot_times(panel), dots(panel)
    distance = np.linalg.norm(p[:, None] - p, axis=-1)
    other_turn = np.abs(t[:, None] - t) > np.pi
    return Spacing(
        neighbours=float(np.linalg.norm(np.diff(p, axis=0), axis=-1).min()),
        turns=float(distance[other_turn].min()),
        pitch=float((p[-1, 2] - p[0, 2]) * 2 * np.pi / (t[-1] - t[0])),
    )


def pair_slowdown(base: float, new_base: float, *, head_dim: int) -> Float64[np.ndarray, " R"]:
    """Returns the share of its speed that each pair loses by a change of base, [H/2].

    Llama 2 Long says in appendix B that pair 1 of 64 loses only 6% from base 10,000 to 500,000.

    Raises:
        ValueError: `head_dim` is odd or not positive, or a base is not above 1.
    """
    check_base(base)
    check_base(new_base)
    return 1 - rope_inv_freq(new_base, head_dim) / rope_inv_freq(base, head_dim)
