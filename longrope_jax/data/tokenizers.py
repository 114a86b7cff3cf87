"""Text becomes token ids and back, by bytes, a `tokenizer.json` or a sentencepiece `.model`.

    tokenizer = tokenizers.load("bytes")
    ids = tokenizer.encode("In the beginning")      # int32 [T]
    tokenizer.decode(ids)                           # the same text

All kinds have `vocab_size`, `specials`, `encode`, `decode` and `special`. They are frozen values
that pickle, so that data workers can hold them. Text never turns into a special token: a document
that quotes "<eos>" does not end there.
"""

import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from longrope_jax.errors import unknown_name
from longrope_jax.folders import fetched

BYTES = 256


@dataclass(frozen=True)
class SpecialTokens:
    """SpecialTokens are the ids that begin and end a text, as a checkpoint declares them.

    No `encode` adds them.

    Attributes:
        bos: id that begins a text, or None.
        eos: id that ends a text, or None.
        adds_bos: whether the checkpoint's own software begins a prompt with `bos`; None if that is
            unknown.
        more_eos: further ids that end a text (Llama 3 Instruct has three in all).
        chat_template: Jinja text that writes a conversation; `data.chat` runs it in a sandbox.
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
        """All ids that end a text, `eos` first."""
        return (() if self.eos is None else (self.eos,)) + self.more_eos

    def ids(self) -> dict[str, int]:
        """Returns the declared ids by their roles "bos" and "eos"."""
        both = {"bos": self.bos, "eos": self.eos}
        return {role: at for role, at in both.items() if at is not None}


@dataclass(frozen=True)
class ByteTokenizer:
    """A ByteTokenizer has the bytes of UTF-8 as ids 0 to 255, and then `specials` in order.

    Attributes:
        specials: names of the special tokens.

    Raises:
        ValueError: a name is used twice, empty or not a string.
    """

    specials: tuple[str, ...] = ("<bos>", "<eos>", "<retrieve>", "<answer_end>")

    def __post_init__(self):
        if isinstance(self.specials, str):
            raise ValueError(f"specials={self.specials!r}: expected a sequence of names")
        object.__setattr__(self, "specials", tuple(self.specials))
        if not all(isinstance(name, str) and name for name in self.specials):
            raise ValueError(f"specials={self.specials}: expected names that are not empty")
        if len(set(self.specials)) < len(self.specials):
            raise ValueError(f"specials={self.specials}: a name is used twice")

    @property
    def vocab_size(self) -> int:
        """Number of ids: one more than the largest."""
        return BYTES + len(self.specials)

    def encode(self, text: str) -> np.ndarray:
        """Returns the UTF-8 bytes of `text`, int32 [T].

        Raises:
            ValueError: the text has a lone surrogate.
        """
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            where = f"character {error.start} is a lone surrogate"
            raise ValueError(f"{where}, which UTF-8 cannot hold: clean the text") from error
        return np.frombuffer(data, np.uint8).astype(np.int32)

    def spans(self, text: str) -> np.ndarray:
        """Returns [start, end) of each token of `encode(text)` in characters, int [T, 2]."""
        widths = [len(character.encode()) for character in text]
        first = np.repeat(np.arange(len(text)), widths)
        return np.stack([first, first + 1], axis=1)

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids` [T], without specials and with U+FFFD for invalid UTF-8.

        Raises:
            ValueError: an id lies outside 0 to vocab_size - 1.
        """
        ids = _in_range(ids, self.vocab_size)
        return ids[ids < BYTES].astype(np.uint8).tobytes().decode(errors="replace")

    def special(self, name: str) -> int:
        """Returns the id of a special token.

        Raises:
            ValueError: the name is unknown; the message has the nearest one.
        """
        return BYTES + self.specials.index(_known(name, self.specials))


@dataclass(frozen=True)
class HuggingFaceTokenizer:
    """A HuggingFaceTokenizer is the tokenizer of a `tokenizer.json`, read by package `tokenizers`.

    `encode` ignores the file's truncation, padding and tokens added by a post-processor.
    `decode(encode(x)) == x` holds only as far as the file's normalizer and decoder allow.

    Attributes:
        path: the file; a name for messages where `json` is given.
        json: the text of a tokenizer.json that is not a file of its own, such as the vocabulary of
            a GGUF file.

    Raises:
        ValueError: there is no such file, it is not a tokenizer, or the package is missing.
    """

    path: str
    json: str = field(default="", repr=False)

    def __post_init__(self):
        object.__setattr__(self, "path", str(Path(self.path).expanduser()))
        _opened(self.path, self.json)

    def text(self) -> str:
        """Returns the text of the tokenizer.json."""
        return self.json or Path(self.path).read_text(encoding="utf-8")

    @property
    def vocab_size(self) -> int:
        """Rows that an embedding needs: one more than the largest id, added tokens included."""
        return _vocab_size(self.path, self.json)

    @property
    def specials(self) -> tuple[str, ...]:
        """Names of the special tokens, in the order of their ids."""
        added = sorted(_opened(self.path, self.json).get_added_tokens_decoder().items())
        return tuple(token.content for _, token in added if token.special)

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of `text`, int32 [T], without a beginning or end token.

        Raises:
            ValueError: the text has a lone surrogate, or a pattern of the file does not come to an
                end on it.
        """
        return np.asarray(self._encoded(text).ids, np.int32)

    def _encoded(self, text: str) -> Any:
        try:
            return _opened(self.path, self.json).encode(text, add_special_tokens=False)
        except (UnicodeEncodeError, TypeError) as error:
            raise ValueError(f"{self.path} cannot encode the text: {error}") from error
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # of the package, which exports no name
                raise
            raise ValueError(f"{self.path} cannot encode the text: {error}") from error

    def spans(self, text: str) -> np.ndarray:
        """Returns [start, end) of each token of `encode(text)` in characters, int [T, 2]."""
        return np.asarray(self._encoded(text).offsets, int).reshape(-1, 2)

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids` [T], without special tokens.

        Raises:
            ValueError: an id lies outside the vocabulary.
        """
        ids = _in_range(ids, self.vocab_size)
        return _opened(self.path, self.json).decode(ids.tolist(), skip_special_tokens=True)

    def special(self, name: str) -> int:
        """Returns the id of a special token.

        Raises:
            ValueError: the name is unknown; the message has the nearest one.
        """
        found: Any = _opened(self.path, self.json).token_to_id(_known(name, self.specials))
        return found

    def find(self, name: str) -> int | None:
        """Returns the id of a token by its exact text, special or not, or None."""
        return _opened(self.path, self.json).token_to_id(name)

    @property
    def first(self) -> int | None:
        """The id that the file's post-processor puts before a text, or None where it puts none."""
        own = self.encode("a").tolist()
        ids = _opened(self.path, self.json).encode("a", add_special_tokens=True).ids
        return ids[0] if len(ids) > len(own) and ids[: len(own)] != own else None


@dataclass(frozen=True)
class SentencePieceTokenizer:
    """A SentencePieceTokenizer is a `.model` (LLaMA, Llama 2), read by package `sentencepiece`.

    `decode(encode(x)) == x` holds only as far as the file's normalizer allows; LLaMA's allows all
    text.

    Attributes:
        path: the file.

    Raises:
        ValueError: there is no such file, it is not a model, or the package is missing.
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
        """Returns the ids of `text`, int32 [T], without a beginning or end token.

        Raises:
            ValueError: the text has a lone surrogate.
        """
        _utf8(text)
        return np.asarray(_pieces(self.path, text)["ids"], np.int32)

    def spans(self, text: str) -> np.ndarray:
        """Returns [start, end) of each token of `encode(text)` in characters, int [T, 2].

        Raises:
            ValueError: the text has a lone surrogate.
        """
        _utf8(text)
        return np.asarray(_pieces(self.path, text)["offsets"], int).reshape(-1, 2)

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids` [T], without special tokens.

        Raises:
            ValueError: an id lies outside the vocabulary.
        """
        ids = _in_range(ids, self.vocab_size)
        return _processor(self.path).decode(ids.tolist())

    def special(self, name: str) -> int:
        """Returns the id of a special token.

        Raises:
            ValueError: the name is unknown; the message has the nearest one.
        """
        return _processor(self.path).piece_to_id(_known(name, self.specials))

    @property
    def special_ids(self) -> dict[str, int]:
        """The ids that the model has by their roles "bos" and "eos"."""
        model = _processor(self.path)
        both = {"bos": model.bos_id(), "eos": model.eos_id()}
        return {role: at for role, at in both.items() if at >= 0}

    def find(self, name: str) -> int | None:
        """Returns the id of a piece by its exact text, control or not, or None."""
        model = _processor(self.path)
        at = model.piece_to_id(name)
        return at if model.id_to_piece(at) == name else None

    @property
    def first(self) -> None:
        """None: the file does not say what comes before a text."""
        return None

    @property
    def adds_prefix(self) -> bool:
        """Whether the model encodes text as if a blank came before it, as LLaMA's does."""
        return _processor(self.path).encode("a", out_type=str)[0].startswith("▁")

    def _proto(self):
        """Returns the file as a protobuf message; the package has read the file before."""
        from sentencepiece import sentencepiece_model_pb2

        message = sentencepiece_model_pb2.ModelProto  # pyright: ignore[reportAttributeAccessIssue]
        return message.FromString(Path(self.path).read_bytes())

    def check_plain(self) -> None:
        """Checks that software for LLaMA's kind of model, BPE of the unchanged text, agrees.

        Raises:
            ValueError: such software would give other ids than this tokenizer.
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
                f"{self.path} has {', '.join(odd)}: other software would split text in another "
                "way, pass tokenizer=None"
            )

    def pieces(self) -> list[tuple[str, float, int]]:
        """Returns (piece, score, kind) by id.

        Kinds are 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused and 6 byte, as in
        sentencepiece's protobuf and in GGUF.
        """
        return [(piece.piece, piece.score, piece.type) for piece in self._proto().pieces]


Tokenizer = ByteTokenizer | HuggingFaceTokenizer | SentencePieceTokenizer


def load(spec: str | Path) -> Tokenizer:
    """Loads a tokenizer.

    Args:
        spec: "bytes", or the path or URL of a tokenizer.json, of a folder with one, or of a .model.

    Raises:
        ValueError: there is no such file, or it is not a tokenizer.
    """
    if spec == "bytes":
        return ByteTokenizer()
    path = fetched(spec)
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(
            f"unknown tokenizer {str(spec)!r}: expected 'bytes' or the path of a tokenizer.json or "
            ".model"
        )
    if path.suffix == ".model":
        return SentencePieceTokenizer(str(path))
    return HuggingFaceTokenizer(str(path))


def encode_many(tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    """Returns the ids of each text, as `encode` gives them, at the least cost.

    Raises:
        ValueError: a text has a lone surrogate.
    """
    if isinstance(tokenizer, HuggingFaceTokenizer):
        opened = _opened(tokenizer.path, tokenizer.json)
        try:
            found = opened.encode_batch_fast(list(texts), add_special_tokens=False)
        except (UnicodeEncodeError, TypeError) as error:
            raise ValueError(f"{tokenizer.path} cannot encode a text: {error}") from error
        return [np.asarray(one.ids, np.int32) for one in found]
    if isinstance(tokenizer, SentencePieceTokenizer):
        for text in texts:
            _utf8(text)
        ids = _processor(tokenizer.path).encode(list(texts), out_type=int, num_threads=1)
        return [np.asarray(one, np.int32) for one in ids]
    return [tokenizer.encode(text) for text in texts]


def encode_marked(tokenizer: Tokenizer, text: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns ids and spans of a text in which the names of special tokens stand for these.

    Chat templates write such text. Ids are int32 [T] and spans int [T, 2], [start, end) of each
    token in characters; for a tokenizer.json both are those of package `tokenizers`.

    Raises:
        ValueError: as `encode`.
    """
    if isinstance(tokenizer, HuggingFaceTokenizer):
        found = _opened(tokenizer.path, tokenizer.json, True).encode(text, add_special_tokens=False)
        return np.asarray(found.ids, np.int32), np.asarray(found.offsets, int).reshape(-1, 2)
    names = sorted(tokenizer.specials, key=len, reverse=True)
    parts = re.split(f"({'|'.join(map(re.escape, names))})", text) if names else [text]
    ids, spans, done = [np.zeros(0, np.int32)], [np.zeros((0, 2), int)], 0
    for at, part in enumerate(parts):
        if at % 2:
            ids.append(np.asarray([tokenizer.special(part)], np.int32))
            spans.append(np.asarray([[done, done + len(part)]]))
        elif part:
            ids.append(tokenizer.encode(part))
            spans.append(tokenizer.spans(part) + done)
        done += len(part)
    return np.concatenate(ids), np.concatenate(spans)


# The cache is outside the dataclass, so that a tokenizer is a hashable value and pickles as a path.
@functools.lru_cache(maxsize=8)
def _opened(path: str, json: str, marked: bool = False):
    try:
        import tokenizers
    except ImportError as error:
        extra = "pip install 'longrope_jax[tokenizers]'"
        raise ValueError(f"{path} needs the package tokenizers: {extra}") from error
    try:
        tokenizer = tokenizers.Tokenizer.from_str(json or Path(path).read_text(encoding="utf-8"))
    except BaseException as error:  # a panic of the Rust package is not an Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is not a readable tokenizer.json: {reason}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = not marked
    return tokenizer


@functools.lru_cache(maxsize=8)
def _vocab_size(path: str, json: str) -> int:
    return max(_opened(path, json).get_vocab(with_added_tokens=True).values(), default=-1) + 1


@functools.lru_cache(maxsize=1)
def _pieces(path: str, text: str) -> dict[str, list]:
    """Ids and offsets of a text in one pass: whoever asks for the one asks for the other next."""
    found = _processor(path).encode(text, return_type="offset_mapping")
    return {name: found[name] for name in ("ids", "offsets")}


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
        raise ValueError(f"{where}, which UTF-8 cannot hold: clean the text") from error


def _in_range(ids: Iterable[int], vocab_size: int) -> np.ndarray:
    ids = np.asarray(ids if hasattr(ids, "__array__") else list(ids))
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise ValueError(f"token ids must be integers [T], got {ids.dtype}{list(ids.shape)}")
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        found = f"{ids.min()} to {ids.max()}"
        raise ValueError(f"token ids must lie in 0..{vocab_size - 1}, got {found}")
    return ids


def _known(name: str, specials: Sequence[str]) -> str:
    if name in specials:
        return name
    if not specials:
        raise ValueError(f"unknown special token {name!r}: the tokenizer has no special tokens")
    raise ValueError(unknown_name("special token", str(name), specials))
