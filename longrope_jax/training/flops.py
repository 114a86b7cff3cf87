"""Model FLOPs, and what share of the hardware they use (MFU)."""

import jax

from longrope_jax.llama import LlamaConfig

# Dense bf16 peak of one device, FLOP/s, from the vendors' data sheets; None elsewhere.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
}


def train_flops_per_token(config: LlamaConfig, length: int) -> float:
    """FLOPs of forward and backward per token: 6 per weight in a matmul, causal attention.

    Two FLOPs per multiply-add, backward twice the forward, no recomputation, lookups free, half of
    the [T, T] scores (MaxText's convention).
    """
    c = config
    layer = c.d_model * c.head_dim * (2 * c.n_heads + 2 * c.n_kv_heads) + 3 * c.d_model * c.d_ff
    attention = c.n_layers * 2 * c.n_heads * c.head_dim * length
    return 6.0 * (c.n_layers * layer + c.d_model * c.vocab_size) + 3.0 * attention


def mfu(flops_per_second: float) -> float | None:
    """Share of all devices' bf16 peak; None where the peak of the device is not known."""
    peak = PEAK_FLOPS.get(jax.devices()[0].device_kind)
    return None if peak is None else flops_per_second / (peak * jax.device_count())
