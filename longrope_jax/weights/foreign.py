"""The readers of all formats return the same record before any tensor is read."""

from dataclasses import dataclass, field

from longrope_jax.data.tokenizers import SpecialTokens, Tokenizer
from longrope_jax.llama import LlamaConfig
from longrope_jax.rotary import Method, distinct
from longrope_jax.weights.files import TensorSource


@dataclass
class ForeignCheckpoint:
    """A ForeignCheckpoint is a checkpoint of other software whose tensors are not read yet.

    Attributes:
        form: "hf", "gguf" or "meta", the format that names the tensors.
        family: the model type or architecture that the checkpoint names, or None.
        config: the architecture.
        rotary: the rotary method.
        source: the tensors.
        tokenizer: the tokenizer, or None where there is none that this package knows.
        context_length: context in tokens that the checkpoint declares, or None.
        special_tokens: ids that begin and end a text, and the chat template.
        ignored: endings of the names of tensors that are not loaded.
        notes: sentences on what was recognised or assumed.
    """

    form: str
    config: LlamaConfig
    rotary: Method
    source: TensorSource
    tokenizer: Tokenizer | None
    context_length: int | None
    special_tokens: SpecialTokens = field(default_factory=SpecialTokens)
    family: str | None = None
    ignored: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)


def extended_length(spec: Method) -> int:
    """Returns the context in tokens that an export declares when its caller names none.

    It is the method's factor times its original length, which is 2048 if the method has none; of a
    method per layer it is the longest.
    """
    return max(
        int((getattr(one, "original_length", None) or 2048) * getattr(one, "factor", 1))
        for one in distinct(spec)
    )
