"""AdamW with the schedule of the Llama papers."""

from dataclasses import dataclass

import jax
import optax


@dataclass(frozen=True)
class OptimizerConfig:
    """LLaMA's optimizer (2302.13971 section 2.3); defaults are its values.

    Attributes:
        learning_rate: peak.
        total_steps: steps; the cosine ends here.
        warmup_steps: steps of linear warm-up.
        initial_ratio: learning rate at the first step of the warm-up over peak.
        final_ratio: last learning rate over peak; 1 keeps it constant after the warm-up.
        b1, b2, eps: of Adam; Llama 2 uses eps 1e-5.
        weight_decay: decoupled; norms' scales are left out.
        clip: global norm of the gradient.
    """

    learning_rate: float
    total_steps: int
    warmup_steps: int = 2000
    initial_ratio: float = 0.0
    final_ratio: float = 0.1
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0

    def __post_init__(self):
        if not 0 <= self.warmup_steps < self.total_steps:
            raise ValueError(
                f"warmup_steps must be below total_steps, got {self.warmup_steps} and "
                f"{self.total_steps}"
            )
        if not (0 <= self.initial_ratio <= 1 and 0 <= self.final_ratio <= 1):
            raise ValueError(
                f"initial_ratio and final_ratio must lie in 0..1, got {self.initial_ratio} and "
                f"{self.final_ratio}"
            )
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")


def schedule(config: OptimizerConfig) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then cosine to `final_ratio` of the peak."""
    return optax.warmup_cosine_decay_schedule(
        init_value=config.learning_rate * config.initial_ratio,
        peak_value=config.learning_rate,
        warmup_steps=config.warmup_steps,
        decay_steps=config.total_steps,
        end_value=config.learning_rate * config.final_ratio,
    )


def make(config: OptimizerConfig) -> optax.GradientTransformation:
    """The optimizer for a parameter tree of the Llama."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(
            schedule(config),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=_decayed,
        ),
    )


def _decayed(params):
    def is_matrix(path, _):
        return all(getattr(key, "key", None) != "scale" for key in path)

    return jax.tree_util.tree_map_with_path(is_matrix, params)
