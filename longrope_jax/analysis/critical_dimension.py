"""The critical dimension says how far a base reaches: Scaling Laws of RoPE (2310.05209).

Pairs whose period is longer than the trained length never complete a turn in training; the features
of the other pairs are the critical dimension. Formulas follow the authors' summary in
OpenLMLab/scaling-rope.
"""

import math

from longrope_jax.rotary import check_base


def critical_dimension(length: float, *, head_dim: int, base: float = 10_000.0) -> int:
    """Returns how many features of a head belong to pairs with a full period within `length`.

    It is 2 ceil((H/2) log_base(length / 2 pi)), at most H.
    Source: 2310.05209, d_extra.

    Raises:
        ValueError: the length is not above 2 pi tokens, the base is not above 1, or the head
            dimension is odd.
    """
    _check(length, "length")
    check_base(base)
    if head_dim < 2 or head_dim % 2:
        raise ValueError(f"head_dim must be even and positive, got {head_dim}")
    pairs = math.ceil(head_dim / 2 * math.log(length / (2 * math.pi), base))
    return min(head_dim, 2 * pairs)


def critical_base(trained: float, tuned: float, *, base: float = 10_000.0) -> float:
    """Returns the base whose critical pair has the period `tuned`: base^(log_{T/2pi}(T'/2pi)).

    Source: 2310.05209, beta_0.

    Args:
        trained: the length T of pretraining with `base`, in tokens.
        tuned: the length T' of fine-tuning in tokens, at least T.
        base: the base of pretraining.

    Raises:
        ValueError: a length is not above 2 pi, `tuned` is below `trained`, or the base is not above
            1.
    """
    _check(trained, "trained")
    check_base(base)
    if not tuned >= trained:
        raise ValueError(f"tuned must be at least the trained {trained} tokens, got {tuned}")
    turns = math.log(tuned / (2 * math.pi)) / math.log(trained / (2 * math.pi))
    return base**turns


def extrapolation_limit(
    base: float, trained: float, tuned: float, *, head_dim: int, pretrained_base: float = 10_000.0
) -> float:
    """Returns how many tokens a model tuned with `base` reaches: T_extra = 2 pi base^(d_extra/H).

    d_extra is the critical dimension of pretraining. At or below `critical_base` the model reaches
    `tuned` tokens.
    Source: 2310.05209, the extended scaling law.

    Args:
        base: the base of fine-tuning.
        trained: the length of pretraining in tokens.
        tuned: the length of fine-tuning in tokens, at least `trained`.
        head_dim: H, even.
        pretrained_base: the base of pretraining.

    Raises:
        ValueError: an argument is out of range.
    """
    check_base(base)
    if base <= critical_base(trained, tuned, base=pretrained_base):
        return float(tuned)
    share = critical_dimension(trained, head_dim=head_dim, base=pretrained_base) / head_dim
    return 2 * math.pi * base**share


def _check(length: float, name: str) -> None:
    if not (math.isfinite(length) and length > 2 * math.pi):
        raise ValueError(f"{name} must be above 2 pi tokens, one period of pair 0, got {length}")
