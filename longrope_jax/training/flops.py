"""Model FLOPs are counted here, and compared with the peak of the hardware (MFU)."""

import jax

from longrope_jax.llama import LlamaConfig

# Dense bf16 peak of one device in FLOP/s, by `device_kind`, from the vendors' data sheets.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


def train_flops_per_token(config: LlamaConfig, length: int) -> float:
    """Returns the FLOPs of one forward and backward pass per token, with causal attention.

    The count is 6 per weight in a matrix product (2 per multiply-add, and the backward pass costs
    twice the forward pass), plus half of the [T, T] scores, as in MaxText. Recomputation and
    lookups count nothing.
    """
    c = config
    layer = c.d_model * c.head_dim * (2 * c.n_heads + 2 * c.n_kv_heads) + 3 * c.d_model * c.d_ff
    attention = c.n_layers * 2 * c.n_heads * c.head_dim * length
    return 6.0 * (c.n_layers * layer + c.d_model * c.vocab_size) + 3.0 * attention


def mfu(flops_per_second: float) -> float | None:
    """Returns the share of the bf16 peak of all devices, or None for a device not in PEAK_FLOPS."""
    peak = PEAK_FLOPS.get(jax.devices()[0].device_kind)
    return None if peak is None else flops_per_second / (peak * jax.device_count())
