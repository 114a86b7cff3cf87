"""What a reader of any format finds before tensors are read."""

from dataclasses import dataclass, field

from longrope_jax.data.tokenizers import SpecialTokens, Tokenizer
from longrope_jax.llama import LlamaConfig
from longrope_jax.rotary import Method
from longrope_jax.weights.files import TensorSource


@dataclass
class ForeignCheckpoint:
    """Config, rotary method, tokenizer and the tensors' source of one checkpoint."""

    form: str  # "hf", "gguf" or "meta": whose names the tensors have
    config: LlamaConfig
    rotary: Method
    source: TensorSource
    tokenizer: Tokenizer | None
    context_length: int | None  # tokens, as the checkpoint declares it
    special_tokens: SpecialTokens = field(default_factory=SpecialTokens)
    ignored: tuple[str, ...] = ()  # endings of tensor names that are left out
    notes: list[str] = field(default_factory=list)  # what was recognised, in words


def extended_length(spec: Method) -> int:
    """Tokens that a method reaches, to declare where nobody says; of 2048 where it doesn't."""
    original = getattr(spec, "original_length", None) or 2048
    return int(original * getattr(spec, "factor", 1))
