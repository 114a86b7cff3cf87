"""The optimizer is AdamW with the learning rate schedule of the Llama papers."""

import math
from dataclasses import dataclass

import jax
import optax


@dataclass(frozen=True)
class OptimizerConfig:
    """An OptimizerConfig describes LLaMA's optimizer (2302.13971 section 2.3), with its defaults.

    Attributes:
        learning_rate: the peak learning rate.
        total_steps: the number of steps, at which the cosine ends.
        warmup_steps: steps of linear warm-up.
        initial_ratio: learning rate at the first step of the warm-up, divided by the peak; 0 begins
            one step up the line, at 1 / (warmup_steps + 1), since a step at rate 0 learns nothing.
        final_ratio: last learning rate divided by the peak; 1 keeps it constant after the warm-up.
        decay: 0 is the papers' cosine. Otherwise the rate is constant after the warm-up and falls
            linearly over this share of the steps, at the end, so that runs of different lengths
            share their beginning (warm-up, constant, decay; 2405.18392).
        b1, b2, eps: Adam's parameters; Llama 2 uses eps 1e-5.
        weight_decay: decoupled weight decay; it does not apply to the scales of norms and to
            biases.
        clip: the global norm to which gradients are clipped; None clips nothing.
        skip: how many steps in a row may have a gradient with NaN or infinity; their updates are
            left out and counted as `skipped` in the metrics. One more ends the run.

    Raises:
        ValueError: A number is out of range.
    """

    learning_rate: float
    total_steps: int
    warmup_steps: int = 2000
    initial_ratio: float = 0.0
    final_ratio: float = 0.1
    decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float | None = 1.0
    skip: int = 0

    def __post_init__(self):
        if not 0 <= self.warmup_steps < self.total_steps:
            raise ValueError(
                f"warmup_steps must be at least 0 and below total_steps={self.total_steps}, got "
                f"{self.warmup_steps}"
            )
        if not (0 <= self.initial_ratio <= 1 and 0 <= self.final_ratio <= 1):
            raise ValueError(
                f"initial_ratio and final_ratio must be from 0 to 1, got {self.initial_ratio} and "
                f"{self.final_ratio}"
            )
        if not 0 <= self.decay <= 1 - self.warmup_steps / self.total_steps:
            raise ValueError(
                f"decay must be a share from 0 to 1 of the steps, which leaves the "
                f"{self.warmup_steps} of {self.total_steps} that warm up, got {self.decay}"
            )
        for name in ("learning_rate", "eps", "clip"):
            value = getattr(self, name)
            if not (name == "clip" and value is None) and not 0 < value < math.inf:
                more = "; clip=None clips nothing" if name == "clip" else ""
                raise ValueError(f"{name} must be positive and finite, got {value}{more}")
        if not (0 <= self.b1 < 1 and 0 <= self.b2 < 1):
            raise ValueError(
                f"b1 and b2 must be at least 0 and below 1, got {self.b1} and {self.b2}"
            )
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be at least 0 and finite, got {self.weight_decay}")
        if self.skip < 0:
            raise ValueError(f"skip must be at least 0 steps, got {self.skip}")


def schedule(config: OptimizerConfig) -> optax.Schedule:
    """Returns the learning rate by step: linear warm-up, then down to `final_ratio` * peak.

    The way down is a cosine, or with `decay` a constant and a straight line.
    """
    peak = config.learning_rate
    first = peak * (config.initial_ratio or 1 / (config.warmup_steps + 1))
    if config.decay:
        falling = round(config.decay * config.total_steps)
        up = optax.linear_schedule(first, peak, config.warmup_steps)
        down = optax.linear_schedule(peak, peak * config.final_ratio, falling)
        turns = [config.warmup_steps, config.total_steps - falling]
        return optax.join_schedules([up, optax.constant_schedule(peak), down], turns)
    return optax.warmup_cosine_decay_schedule(
        init_value=first,
        peak_value=peak,
        warmup_steps=config.warmup_steps,
        decay_steps=config.total_steps,
        end_value=peak * config.final_ratio,
    )


def make(config: OptimizerConfig) -> optax.GradientTransformation:
    """Makes the optimizer for a parameter tree of the Llama."""
    made = optax.chain(
        optax.identity() if config.clip is None else optax.clip_by_global_norm(config.clip),
        optax.adamw(
            schedule(config),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=_decayed,
        ),
    )
    return optax.apply_if_finite(made, config.skip) if config.skip else made


_NOT_DECAYED = {"scale", "bq", "bk", "bv", "bo", "bg", "bu", "bd"}


def _decayed(params):
    def is_matrix(path, _):
        return all(getattr(key, "key", None) not in _NOT_DECAYED for key in path)

    return jax.tree_util.tree_map_with_path(is_matrix, params)
