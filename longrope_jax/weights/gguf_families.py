"""The architectures of llama.cpp that are this package's network, and what they hold.

Source: src/llama-model.cpp and src/models of llama.cpp. Its own name for Mistral is llama.
"""

from typing import Any

from longrope_jax.llama import LlamaConfig
from longrope_jax.rotary import ByLayer, LongRoPE, Method, NoPE
from longrope_jax.weights import fused
from longrope_jax.weights.export_families import has
from longrope_jax.weights.files import TensorSource, whole

# How queries and keys lie in the file.
LAYOUTS = {
    "llama": "interleaved",
    "qwen2": "half",
    "qwen3": "half",
    "phi3": "half",
    "smollm3": "interleaved",
}
FUSED = "phi3"
_NOPE_EVERY = 4  # llama.cpp's SmolLM3 knows no other number of layers
_QKV, _FFN = "attn_qkv.weight", "ffn_up.weight"


def plain_metadata(metadata: dict[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    """Returns the architecture of a file, and its metadata with the keys of a Llama.

    Raises:
        ValueError: the architecture is another network.
    """
    arch = metadata.get("general.architecture")
    if not isinstance(arch, str) or arch not in LAYOUTS:
        raise ValueError(
            f"{where}: architecture {str(arch)[:60]!r} is not supported, only {', '.join(LAYOUTS)}"
        )
    return arch, renamed(metadata, arch, "llama")


def renamed(metadata: dict[str, Any], before: str, after: str) -> dict[str, Any]:
    """Returns metadata whose keys begin with another architecture."""
    old = f"{before}."
    return {
        f"{after}.{key.removeprefix(old)}" if key.startswith(old) else key: value
        for key, value in metadata.items()
    }


def parts(metadata: dict[str, Any], source: TensorSource, where: str) -> dict[str, Any]:
    """Returns the fields of LlamaConfig that the tensors and the metadata of a file show."""
    first = {name.removeprefix("blk.0.") for name in source.shapes if name.startswith("blk.0.")}
    window = metadata.get("llama.attention.sliding_window") or 0
    longest = whole(metadata, "llama.context_length", where)
    return {
        "attention_bias": "attn_q.bias" in first,
        "output_bias": "attn_output.bias" in first,
        "mlp_bias": "ffn_gate.bias" in first,
        "qk_norm": "attn_q_norm.weight" in first,
        "windows": (int(window),) if 0 < window < longest else (),
    }


def by_layer(arch: str, spec: Method, layers: int) -> Method:
    """Returns the method of all layers: llama.cpp's SmolLM3 does not rotate every fourth."""
    if arch != "smollm3" or layers < _NOPE_EVERY:
        return spec
    return ByLayer((0,) * (_NOPE_EVERY - 1) + (1,), (spec, NoPE()))


def one_method(arch: str, spec: Method) -> Method:
    """Returns the method of the layers that rotate."""
    return spec.methods[0] if arch == "smollm3" and isinstance(spec, ByLayer) else spec


def architecture(config: LlamaConfig, spec: Method, family: str | None) -> str:
    """Returns the architecture to write: `family`, if it has the model's parts, else one that has.

    Raises:
        ValueError: llama.cpp has no architecture with these parts together.
    """
    fitting = [arch for arch in LAYOUTS if _fits(arch, config, spec)]
    if not fitting:
        raise ValueError(
            "GGUF is written here for llama.cpp's llama, qwen2, qwen3, phi3 and smollm3, none of "
            "which has these biases, norms, windows and methods by layer together: save as "
            "Hugging Face"
        )
    return family if family in fitting else fitting[0]


def _fits(arch: str, c: LlamaConfig, spec: Method) -> bool:
    if any(c.windows):
        return False
    if arch == "smollm3":
        own = by_layer(arch, one_method(arch, spec), c.n_layers)
        return has(c) and own == spec
    if isinstance(spec, ByLayer):
        return False
    if arch == "phi3":
        return has(c)
    # Its two lists of factors depend on the length.
    if isinstance(spec, LongRoPE) and spec.short_factor != spec.long_factor:
        return False
    if arch == "qwen2":
        return has(c, attention_bias=True)
    if arch == "qwen3":
        return has(c, qk_norm=True)
    return has(c, "attention_bias", "output_bias", "mlp_bias")


def split(source: TensorSource, config: LlamaConfig) -> fused.SplitSource:
    """Returns the tensors of a phi3 file under the names of a Llama."""
    return fused.split(source, config, _QKV, _FFN, "attn_{}.weight", "ffn_{}.weight")


def joined(tensors: dict[str, list]) -> dict[str, list]:
    """Returns the tensors of a Llama under the names of a phi3 file."""
    return fused.joined(tensors, _QKV, _FFN, "attn_{}.weight", "ffn_{}.weight")
