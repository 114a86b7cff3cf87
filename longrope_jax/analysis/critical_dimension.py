"""Critical dimension and the bases it leads to: Liu et al., Scaling Laws of RoPE (2310.05209).

Pairs whose period is longer than the trained length never complete a turn in training; the rest are
the critical dimension. Formulas follow the authors' summary in OpenLMLab/scaling-rope.
"""

import math

from longrope_jax.rotary import check_base


def critical_dimension(length: float, *, head_dim: int, base: float = 10_000.0) -> int:
    """Features of a head whose pairs see a full period within `length` tokens.

    2 ceil((H/2) log_base(length / 2 pi)), at most H. Source: 2310.05209, d_extra.

    Raises:
        ValueError: length not above 2 pi tokens, base not above 1, odd head dimension.
    """
    _check(length, "length")
    check_base(base)
    if head_dim < 2 or head_dim % 2:
        raise ValueError(f"head_dim must be even and positive, got {head_dim}")
    pairs = math.ceil(head_dim / 2 * math.log(length / (2 * math.pi), base))
    return min(head_dim, 2 * pairs)


def critical_base(trained: float, tuned: float, *, base: float = 10_000.0) -> float:
    """beta_0 = base^(log_{T/2pi}(T'/2pi)): the base whose critical pair has period T' = `tuned`.

    Args:
        trained: T, tokens of pretraining with `base`.
        tuned: T', tokens of fine-tuning, at least T.

    Raises:
        ValueError: a length not above 2 pi, `tuned` below `trained`, base not above 1.
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
    """Tokens up to which a model tuned with `base` works: T_extra = 2 pi base^(d_extra/H).

    d_extra is pretraining's critical dimension. At or below `critical_base` the limit is `tuned`
    itself. Source: 2310.05209, the extended scaling law.

    Raises:
        ValueError: as `critical_base` and `critical_dimension`.
    """
    check_base(base)
    if base <= critical_base(trained, tuned, base=pretrained_base):
        return float(tuned)
    share = critical_dimension(trained, head_dim=head_dim, base=pretrained_base) / head_dim
    return 2 * math.pi * base**share


def _check(length: float, name: str) -> None:
    if not (math.isfinite(length) and length > 2 * math.pi):
        raise ValueError(f"{name} must be above 2 pi tokens, one period of pair 0, got {length}")
