"""Text to token ids and back: bytes, a Hugging Face `tokenizer.json`, a sentencepiece `.model`.

    tokenizer = tokenizers.load("bytes")
    ids = tokenizer.encode("In the beginning")      # int32 [T]
    tokenizer.decode(ids)                           # the same text

All kinds have `vocab_size`, `specials`, `encode`, `decode` and `special`, and are frozen values
that pickle, so data workers can be given them. Text never turns into a special token: a document
that quotes "<eos>" doesn't end there.
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from longrope_jax.errors import unknown_name

BYTES = 256


@dataclass(frozen=True)
class SpecialTokens:
    """The ids that begin and end a text, as a checkpoint declares them; no `encode` adds them.

    Attributes:
        bos: id that begins a text, or None.
        eos: id that ends a text, or None.
        adds_bos: whether the checkpoint's own software begins a prompt with `bos`; None where
            nothing says so.
        more_eos: further ids that end a text (Llama 3 Instruct has three in all).
        chat_template: Jinja text that writes a conversation, kept for exports and never run.
    """

    bos: int | None = None
    eos: int | None = None
    adds_bos: bool | None = None
    more_eos: tuple[int, ...] = ()
    chat_template: str | None = field(default=None, repr=False)

    def __post_init__(self):
        object.__setattr__(self, "more_eos", tuple(self.more_eos))

    @property
    def stops(self) -> tuple[int, ...]:
        """Every id that ends a text, `eos` first."""
        return (() if self.eos is None else (self.eos,)) + self.more_eos

    def ids(self) -> dict[str, int]:
        """The ids that are declared, by their roles "bos" and "eos"."""
        both = {"bos": self.bos, "eos": self.eos}
        return {role: at for role, at in both.items() if at is not None}


@dataclass(frozen=True)
class ByteTokenizer:
    """Ids 0 to 255 are the bytes of UTF-8; `specials` follow in their order.

    Raises ValueError: a special that is used twice or isn't a string with something in it.
    """

    specials: tuple[str, ...] = ("<bos>", "<eos>", "<retrieve>", "<answer_end>")

    def __post_init__(self):
        if isinstance(self.specials, str):
            raise ValueError(f"specials={self.specials!r}: expected a sequence of names")
        object.__setattr__(self, "specials", tuple(self.specials))
        if not all(isinstance(name, str) and name for name in self.specials):
            raise ValueError(f"specials={self.specials}: expected names that aren't empty")
        if len(set(self.specials)) < len(self.specials):
            raise ValueError(f"specials={self.specials}: a name is used twice")

    @property
    def vocab_size(self) -> int:
        """Number of ids: one more than the largest."""
        return BYTES + len(self.specials)

    def encode(self, text: str) -> np.ndarray:
        """UTF-8 bytes of `text`, int32 [T]. Raises ValueError for a lone surrogate."""
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            where = f"character {error.start} is a lone surrogate"
            raise ValueError(f"{where}, which UTF-8 can't hold: clean the text") from error
        return np.frombuffer(data, np.uint8).astype(np.int32)

    def spans(self, text: str) -> np.ndarray:
        """First character and first character after each token of `encode(text)`, int [T, 2]."""
        widths = [len(character.encode()) for character in text]
        first = np.repeat(np.arange(len(text)), widths)
        return np.stack([first, first + 1], axis=1)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids` [T]: specials skipped, invalid UTF-8 as U+FFFD. Raises ValueError for ids
        outside 0 to vocab_size - 1.
        """
        ids = _in_range(ids, self.vocab_size)
        return ids[ids < BYTES].astype(np.uint8).tobytes().decode(errors="replace")

    def special(self, name: str) -> int:
        """Id of a special token. Raises ValueError for an unknown one, with the nearest name."""
        return BYTES + self.specials.index(_known(name, self.specials))


@dataclass(frozen=True)
class HuggingFaceTokenizer:
    """The tokenizer in a `tokenizer.json`, read by the package `tokenizers` and nothing else.

    Truncation, padding and added tokens that the file asks for are left out: `encode` gives the
    text's own ids. `decode(encode(x)) == x` only as far as the file's normalizer and decoder go.

    `json`: the file's text where it lies in no file of its own (a GGUF's vocabulary); `path` is
    then only a name for messages.

    Raises ValueError: no such file, one that isn't a tokenizer, or the package missing.
    """

    path: str
    json: str = field(default="", repr=False)

    def __post_init__(self):
        object.__setattr__(self, "path", str(Path(self.path).expanduser()))
        _opened(self.path, self.json)

    def text(self) -> str:
        """The text of its tokenizer.json."""
        return self.json or Path(self.path).read_text(encoding="utf-8")

    @property
    def vocab_size(self) -> int:
        """Rows an embedding needs: one more than the largest id, added tokens included."""
        return _vocab_size(self.path, self.json)

    @property
    def specials(self) -> tuple[str, ...]:
        """Names of the special tokens, in the order of their ids."""
        added = sorted(_opened(self.path, self.json).get_added_tokens_decoder().items())
        return tuple(token.content for _, token in added if token.special)

    def encode(self, text: str) -> np.ndarray:
        """Ids of `text`, int32 [T], with no beginning or end token. Raises ValueError for a lone
        surrogate.
        """
        try:
            ids = _opened(self.path, self.json).encode(text, add_special_tokens=False).ids
        except (UnicodeEncodeError, TypeError) as error:
            raise ValueError(f"text that {self.path} can't encode: {error}") from error
        return np.asarray(ids, np.int32)

    def spans(self, text: str) -> np.ndarray:
        """First character and first character after each token of `encode(text)`, int [T, 2]."""
        offsets = _opened(self.path, self.json).encode(text, add_special_tokens=False).offsets
        return np.asarray(offsets, int).reshape(-1, 2)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids` [T], specials skipped. Raises ValueError for ids outside the vocabulary."""
        ids = _in_range(ids, self.vocab_size)
        return _opened(self.path, self.json).decode(ids.tolist(), skip_special_tokens=True)

    def special(self, name: str) -> int:
        """Id of a special token. Raises ValueError for an unknown one, with the nearest name."""
        found: Any = _opened(self.path, self.json).token_to_id(_known(name, self.specials))
        return found

    def begins_with(self, first: int) -> bool:
        """Whether the file's post-processor puts the token `first` before a text."""
        own = self.encode("a").tolist()
        ids = _opened(self.path, self.json).encode("a", add_special_tokens=True).ids
        return ids[:1] == [first] and ids != own


@dataclass(frozen=True)
class SentencePieceTokenizer:
    """A sentencepiece `.model` (LLaMA, Llama 2), read by the package `sentencepiece` itself.

    `decode(encode(x)) == x` only as far as the file's normalizer goes (LLaMA's: all text).

    Raises ValueError: no such file, one that isn't a model, or the package missing.
    """

    path: str

    def __post_init__(self):
        object.__setattr__(self, "path", str(Path(self.path).expanduser()))
        _processor(self.path)

    @property
    def vocab_size(self) -> int:
        """Number of ids: one more than the largest."""
        return _processor(self.path).get_piece_size()

    @property
    def specials(self) -> tuple[str, ...]:
        """Names of the control tokens, in the order of their ids."""
        model = _processor(self.path)
        control = (i for i in range(self.vocab_size) if model.is_control(i))
        return tuple(model.id_to_piece(i) for i in control)

    def encode(self, text: str) -> np.ndarray:
        """Ids of `text`, int32 [T], with no beginning or end token. Raises ValueError for a lone
        surrogate.
        """
        _utf8(text)
        return np.asarray(_processor(self.path).encode(text, out_type=int), np.int32)

    def spans(self, text: str) -> np.ndarray:
        """First character and first character after each token of `encode(text)`, int [T, 2]."""
        _utf8(text)
        offsets = _processor(self.path).encode(text, return_type="offset_mapping")["offsets"]
        return np.asarray(offsets, int).reshape(-1, 2)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids` [T], specials skipped. Raises ValueError for ids outside the vocabulary."""
        ids = _in_range(ids, self.vocab_size)
        return _processor(self.path).decode(ids.tolist())

    def special(self, name: str) -> int:
        """Id of a special token. Raises ValueError for an unknown one, with the nearest name."""
        return _processor(self.path).piece_to_id(_known(name, self.specials))

    @property
    def special_ids(self) -> dict[str, int]:
        """Ids of "bos" and "eos" that the model has."""
        model = _processor(self.path)
        both = {"bos": model.bos_id(), "eos": model.eos_id()}
        return {role: at for role, at in both.items() if at >= 0}

    def begins_with(self, first: int) -> bool:
        """True: LLaMA's code puts the beginning token before a text, the file does not say."""
        return True

    @property
    def adds_prefix(self) -> bool:
        """Whether text is encoded as if a blank stood before it (LLaMA: yes)."""
        return _processor(self.path).encode("a", out_type=str)[0].startswith("▁")

    def _proto(self):
        """The file as its format's message; the package has read it without complaint."""
        from sentencepiece import sentencepiece_model_pb2

        message = sentencepiece_model_pb2.ModelProto  # pyright: ignore[reportAttributeAccessIssue]
        return message.FromString(Path(self.path).read_bytes())

    def check_plain(self) -> None:
        """Raises ValueError where other software, which reads LLaMA's kind (BPE of the text as it
        is), gives other ids.
        """
        model = self._proto()
        trainer, normalizer = model.trainer_spec, model.normalizer_spec
        declared = {
            "a model_type other than bpe": trainer.model_type != trainer.BPE,
            "treat_whitespace_as_suffix": trainer.treat_whitespace_as_suffix,
            "a normalizer other than identity": normalizer.precompiled_charsmap,
            "remove_extra_whitespaces": normalizer.remove_extra_whitespaces,
            "user-defined pieces": any(piece.type == piece.USER_DEFINED for piece in model.pieces),
        }
        if odd := [what for what, is_so in declared.items() if is_so]:
            raise ValueError(
                f"{self.path} has {', '.join(odd)}: other software would cut text in another way, "
                "pass tokenizer=None"
            )

    def pieces(self) -> list[tuple[str, float, int]]:
        """(piece, score, kind) by id; kinds are 1 normal, 2 unknown, 3 control, 4 user-defined,
        5 unused, 6 byte, as in sentencepiece's protobuf and in GGUF.
        """
        return [(piece.piece, piece.score, piece.type) for piece in self._proto().pieces]


Tokenizer = ByteTokenizer | HuggingFaceTokenizer | SentencePieceTokenizer


def load(spec: str | Path) -> Tokenizer:
    """`"bytes"`, or the path of a `tokenizer.json`, a folder that holds one, or a `.model`.

    Raises ValueError where there is no such file, or it isn't a tokenizer.
    """
    if spec == "bytes":
        return ByteTokenizer()
    path = Path(spec).expanduser()
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"unknown tokenizer {str(spec)!r}: expected 'bytes' or a tokenizer.json")
    if path.suffix == ".model":
        return SentencePieceTokenizer(str(path))
    return HuggingFaceTokenizer(str(path))


# Kept outside the dataclass, which so stays a hashable value that pickles as its path.
@functools.lru_cache(maxsize=8)
def _opened(path: str, json: str):
    try:
        import tokenizers
    except ImportError as error:
        extra = "pip install 'longrope_jax[tokenizers]'"
        raise ValueError(f"{path} needs the package tokenizers: {extra}") from error
    try:
        tokenizer = tokenizers.Tokenizer.from_str(json or Path(path).read_text(encoding="utf-8"))
    except BaseException as error:  # bare Exception, or a panic, which is not even that
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is not a readable tokenizer.json: {reason}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


@functools.lru_cache(maxsize=8)
def _vocab_size(path: str, json: str) -> int:
    return max(_opened(path, json).get_vocab(with_added_tokens=True).values(), default=-1) + 1


@functools.lru_cache(maxsize=8)
def _processor(path: str):
    try:
        import sentencepiece
    except ImportError as error:
        extra = "pip install 'longrope_jax[sentencepiece]'"
        raise ValueError(f"{path} needs the package sentencepiece: {extra}") from error
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=Path(path).read_bytes())
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is not a readable sentencepiece model: {reason}") from error


def _utf8(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        where = f"character {error.start} is a lone surrogate"
        raise ValueError(f"{where}, which UTF-8 can't hold: clean the text") from error


def _in_range(ids: Iterable[int], vocab_size: int) -> np.ndarray:
    ids = np.asarray(ids if hasattr(ids, "__array__") else list(ids))
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise ValueError(f"token ids are {ids.dtype}{list(ids.shape)}: expected integers [T]")
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        found = f"{ids.min()} to {ids.max()}"
        raise ValueError(f"token ids {found}: expected 0 to {vocab_size - 1}")
    return ids


def _known(name: str, specials: Sequence[str]) -> str:
    if name in specials:
        return name
    if not specials:
        raise ValueError(f"unknown special token {name!r}: it has none")
    raise ValueError(unknown_name("special token", str(name), specials))
