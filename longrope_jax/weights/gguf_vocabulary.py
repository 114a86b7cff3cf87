"""The vocabulary of a GGUF file becomes a tokenizer.json, and back.

Two models are known: "gpt2" is byte-level BPE, where `tokenizer.ggml.pre` names how text is split
before merging; "llama" is sentencepiece's BPE, with bytes for characters outside the vocabulary.
llama.cpp's src/llama-vocab.cpp defines both.
"""

import json
from typing import Any

import numpy as np

from longrope_jax.data.tokenizers import HuggingFaceTokenizer, SentencePieceTokenizer, SpecialTokens
from longrope_jax.errors import warn

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
ENDS = ("eos", "eot", "eom")  # llama.cpp stops at the end of a text, of a turn and of a message
_KEY = "tokenizer.ggml."
CHAT_TEMPLATE = "tokenizer.chat_template"
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PREPEND = {"type": "Prepend", "prepend": "▁"}
_BLANKS = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
_METASPACE = {"type": "Metaspace", "replacement": "▁", "split": False}
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _cut(regex: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, _BYTES | {"use_regex": False}]}


# How each `pre` splits text, in the terms of tokenizer.json.
PRE = {
    "gpt-2": _BYTES,
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTES],
    },
    "llama-bpe": _cut(_LLAMA3),
    "llama3": _cut(_LLAMA3),
    "llama-v3": _cut(_LLAMA3),
    "qwen2": _cut(_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")),
    "tekken": _cut(_TEKKEN),
}
# With these, llama.cpp takes a word that is a token whole, and begins a text with a token.
_WHOLE = _BEGINS = ("llama-bpe", "llama3", "llama-v3", "tekken")


class UnknownTokenizer(ValueError):
    """The vocabulary is of a kind that this package has no definition of."""


def read(metadata: dict[str, Any], vocab_size: int) -> str:
    """Returns the tokenizer.json that is equivalent to the vocabulary in a file's metadata.

    Raises:
        UnknownTokenizer: the file has no vocabulary, or one of an unknown kind.
        ValueError: the vocabulary is damaged.
    """
    model, pre = metadata.get(_KEY + "model"), metadata.get(_KEY + "pre", "default")
    if model not in ("gpt2", "llama"):
        raise UnknownTokenizer(f"tokenizer.ggml.model {str(model)[:40]!r} is not gpt2 or llama")
    if model == "gpt2" and (not isinstance(pre, str) or pre not in PRE):
        raise UnknownTokenizer(f"tokenizer.ggml.pre {str(pre)[:40]!r} is not one of {sorted(PRE)}")
    if model == "llama" and metadata.get(_KEY + "scores") is None:
        raise UnknownTokenizer("tokenizer.ggml.scores, the order of merges, is not in the file")
    tokens = _strings(metadata, "tokens")
    # Some converters fill the vocabulary up with empty tokens, which no text contains.
    unused = {at for at, token in enumerate(tokens) if not token} if tokens.count("") > 1 else set()
    tokens = [f"[PAD{at}]" if at in unused else token for at, token in enumerate(tokens)]
    if len(tokens) != vocab_size or len(set(tokens)) != len(tokens):
        raise ValueError(
            f"tokenizer.ggml.tokens must hold {vocab_size} different tokens, got "
            f"{len(set(tokens))} different of {len(tokens)}"
        )
    types = np.asarray(metadata.get(_KEY + "token_type", [NORMAL] * len(tokens)))
    if types.shape != (len(tokens),) or types.dtype.kind not in "iu":
        raise ValueError("tokenizer.ggml.token_type is damaged: expected one number per token")
    vocab = {token: at for at, token in enumerate(tokens)}
    if model == "gpt2":
        return json.dumps(_byte_level(metadata, vocab, types.tolist(), pre))
    return json.dumps(_sentencepiece(metadata, vocab, types.tolist()))


def adds_bos(metadata: dict[str, Any], where: str) -> bool:
    """Says whether llama.cpp begins a prompt with the beginning token.

    The metadata decide, or where they are silent the kind of vocabulary.

    Raises:
        ValueError: add_bos_token is not a bool.
    """
    found = metadata.get(_KEY + "add_bos_token")
    if found is None:
        return metadata.get(_KEY + "model") == "llama" or metadata.get(_KEY + "pre") in _BEGINS
    if not isinstance(found, bool):
        raise ValueError(f"{where}: {_KEY}add_bos_token must be true or false, got {found!r:.40}")
    return found


def chat_template(metadata: dict[str, Any], where: str) -> str | None:
    """Returns the Jinja text that writes a conversation, or None if there is none.

    Raises:
        ValueError: the entry is not a text.
    """
    found = metadata.get(CHAT_TEMPLATE)
    if not isinstance(found, str | None):
        raise ValueError(f"{where}: {CHAT_TEMPLATE} must be a text, got {found!r:.40}")
    return found


def _strings(metadata: dict, key: str) -> list[str]:
    found = metadata.get(_KEY + key)
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise ValueError(f"{_KEY}{key} is missing or damaged: expected a list of strings")
    return found


def _file(vocab, types, **parts) -> dict:
    """Returns a tokenizer.json whose added tokens are the control and user-defined tokens."""
    added = [
        {
            "id": at,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind == CONTROL,
        }
        for (token, at), kind in zip(vocab.items(), types, strict=True)
        if kind in (CONTROL, USER)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "post_processor": None,
    } | parts


def _bpe(vocab, merges, **options) -> dict:
    defaults = {"dropout": None, "unk_token": None, "continuing_subword_prefix": None}
    defaults |= {"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False}
    model = {"type": "BPE"} | defaults | {"ignore_merges": False} | options
    return model | {"vocab": vocab, "merges": merges}


def _byte_level(metadata, vocab, types, pre) -> dict:
    merges = _strings(metadata, "merges")
    for merge in merges:
        left, _, right = merge.partition(" ")
        if not (left in vocab and right in vocab and left + right in vocab):
            raise ValueError(f"tokenizer.ggml.merges has {merge[:60]!r}, whose tokens are missing")
    # Tokens of the newer models may hold a blank, so each merge is a pair and not one string.
    pairs = [list(merge.split(" ", 1)) for merge in merges]
    return _file(
        vocab,
        types,
        pre_tokenizer=PRE[pre],
        decoder=_BYTES | {"add_prefix_space": True},
        model=_bpe(vocab, pairs, ignore_merges=pre in _WHOLE),
    )


def _sentencepiece(metadata, vocab, types) -> dict:
    scores = np.asarray(metadata.get(_KEY + "scores", []))
    if scores.shape != (len(vocab),) or scores.dtype.kind != "f" or not np.isfinite(scores).all():
        raise ValueError("tokenizer.ggml.scores is damaged: expected one number per token")
    prefix = metadata.get(_KEY + "add_space_prefix", True)
    unknown = [token for (token, _), kind in zip(vocab.items(), types, strict=True) if kind == 2]
    begin = [_PREPEND] if prefix else []
    ends = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    return _file(
        vocab,
        types,
        normalizer={"type": "Sequence", "normalizers": [*begin, _BLANKS]},
        pre_tokenizer=None,
        decoder={
            "type": "Sequence",
            "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *ends],
        },
        model=_bpe(
            vocab,
            merges_of(vocab, scores, types),
            unk_token=unknown[0] if unknown else None,
            fuse_unk=True,
            byte_fallback=True,
        ),
    )


def merges_of(vocab: dict[str, int], scores, types) -> list[list[str]]:
    """Returns every way to join two tokens into a third, the token with the highest score first."""
    merges = []
    for token, at in vocab.items():
        # Longer tokens are a sign of damage, and would take time that grows with their square.
        if types[at] != NORMAL or not 1 < len(token) <= 256:
            continue
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocab and right in vocab:
                merges.append((-scores[at], at, vocab[left], left, right))
    return [[left, right] for *_, left, right in sorted(merges)]


# Writing


def write(tokenizer, vocab_size: int) -> dict[str, Any]:
    """Returns the metadata of a tokenizer; for None, of a file without one, as llama.cpp accepts.

    Raises:
        ValueError: GGUF has no kind of vocabulary for the tokenizer, or it has more ids than
            `vocab_size`.
    """
    if tokenizer is None:
        return {_KEY + "model": "none"}
    if isinstance(tokenizer, SentencePieceTokenizer):
        return _write_sentencepiece(tokenizer, vocab_size)
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        raise ValueError(
            f"tokenizer {type(tokenizer).__name__} has no GGUF form: pass tokenizer=None"
        )
    parts = json.loads(tokenizer.text())
    kind = _kind(parts)
    if kind is None:
        raise ValueError(
            f"{tokenizer.path} splits text in a way that this package cannot write into GGUF "
            f"(known: {', '.join(PRE)}, sentencepiece): pass tokenizer=None"
        )
    model, (tokens, types) = parts["model"], _listed(parts, vocab_size)
    merges = [m.split(" ", 1) if isinstance(m, str) else m for m in model["merges"]]
    if kind["model"] == "gpt2":
        kind |= {"merges": [" ".join(m) for m in merges], "add_bos_token": False}
    else:
        _check_merges(tokenizer, model, merges, types)
        kind |= {"scores": _scores(merges, tokens), "add_bos_token": True}
    kind |= {"tokens": tokens, "token_type": types}
    return {_KEY + key: value for key, value in kind.items()}


def _kind(parts: dict) -> dict[str, Any] | None:
    """Returns the metadata that make llama.cpp split text in the same way, or None if none do."""
    model, cut, before = parts["model"], parts.get("pre_tokenizer"), parts.get("normalizer")
    if model["type"] != "BPE":
        return None
    if not model.get("byte_fallback"):
        same = (name for name, known in PRE.items() if _same_ids(known) == _same_ids(cut))
        pre = next(same, None)
        if before == {"type": "NFC"}:  # Qwen's
            warn("llama.cpp does not compose characters (NFC) as this tokenizer does")
            before = None
        whole = bool(model.get("ignore_merges")) == (pre in _WHOLE)
        return {"model": "gpt2", "pre": pre} if pre and before is None and whole else None
    prefix = _prefix(before, cut)
    return None if prefix is None else {"model": "llama", "add_space_prefix": prefix}


def _same_ids(cut: Any) -> Any:
    """Returns a pre-tokenizer without what changes offsets alone."""
    if isinstance(cut, dict):
        return {key: _same_ids(value) for key, value in cut.items() if key != "trim_offsets"}
    return [_same_ids(one) for one in cut] if isinstance(cut, list) else cut


def _prefix(normalizer: dict | None, cut: dict | None) -> bool | None:
    """Says whether a tokenizer like sentencepiece puts a blank before a text; None for others."""
    steps = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    if cut is None and steps in ([_PREPEND, _BLANKS], [_BLANKS]):
        return _PREPEND in steps
    # transformers 5 writes a Metaspace, which puts no blank before a text that begins with one,
    # while llama.cpp and sentencepiece do.
    scheme = (cut or {}).get("prepend_scheme")
    if not steps and cut == _METASPACE | {"prepend_scheme": scheme}:
        return scheme != "never"
    return None


def _check_merges(tokenizer, model: dict, merges: list[list[str]], types: list[int]) -> None:
    """Checks that all joins are merges, because llama.cpp joins any two tokens that form a third.

    Raises:
        ValueError: llama.cpp would join two tokens that the tokenizer never merges.
    """
    known = set(map(tuple, merges))
    for pair in merges_of(model["vocab"], np.zeros(len(types)), types):
        if tuple(pair) not in known:
            raise ValueError(
                f"{tokenizer.path} never merges {pair[0]!r} and {pair[1]!r}, but llama.cpp would: "
                "pass tokenizer=None"
            )


def write_special_tokens(special: SpecialTokens) -> dict[str, Any]:
    """Returns the metadata of the special tokens, of how a prompt begins, and the chat template.

    Raises:
        ValueError: there are more tokens that end a text than GGUF has names for.
    """
    if len(special.stops) > len(ENDS):
        raise ValueError(
            f"GGUF can hold {len(ENDS)} tokens that end a text, got {special.stops}: leave some of "
            "special_tokens.more_eos out"
        )
    ids = special.ids() | dict(zip(ENDS, special.stops, strict=False))
    chat = {} if special.chat_template is None else {CHAT_TEMPLATE: special.chat_template}
    begins = {} if special.adds_bos is None else {_KEY + "add_bos_token": special.adds_bos}
    return {f"{_KEY}{role}_token_id": at for role, at in ids.items()} | begins | chat


def _listed(parts: dict, vocab_size: int) -> tuple[list[str], list[int]]:
    """Returns tokens by id and their types; an id without a token gets the name [PADid]."""
    by_id = {at: (token, NORMAL) for token, at in parts["model"]["vocab"].items()}
    if parts["model"].get("byte_fallback"):
        for at, (token, _) in by_id.items():
            if len(token) == 6 and token.startswith("<0x"):
                by_id[at] = token, BYTE
        unknown = parts["model"].get("unk_token")
        by_id |= {at: (t, UNKNOWN) for at, (t, _) in by_id.items() if t == unknown}
    for added in parts["added_tokens"]:
        if added["id"] >= vocab_size:  # it can be neither read nor drawn, so nothing is lost
            name = f"added token {added['content']!r} ({added['id']})"
            warn(f"{name} has no row in the model: left out")
            continue
        by_id[added["id"]] = added["content"], CONTROL if added["special"] else USER
    if max(by_id) >= vocab_size:
        raise ValueError(
            f"the tokenizer has id {max(by_id)}, but the model has only {vocab_size} tokens: pass "
            "tokenizer=None or the tokenizer of this model"
        )
    listed = [by_id.get(at, (f"[PAD{at}]", UNUSED)) for at in range(vocab_size)]
    return [token for token, _ in listed], [kind for _, kind in listed]


def _scores(merges: list[list[str]], tokens: list[str]) -> list[float]:
    """Returns scores that order the tokens as the merges do."""
    first = {}
    for rank, merge in enumerate(merges):
        first.setdefault("".join(merge), float(-rank))
    return [first.get(token, -1e9) for token in tokens]


def _write_sentencepiece(tokenizer, vocab_size: int) -> dict[str, Any]:
    tokenizer.check_plain()
    pieces, own = tokenizer.pieces(), tokenizer.special_ids
    if len(pieces) > vocab_size:
        raise ValueError(
            f"the tokenizer has {len(pieces)} ids, but the model has only {vocab_size} tokens: "
            "pass tokenizer=None or the tokenizer of this model"
        )
    pieces += [(f"[PAD{at}]", 0.0, UNUSED) for at in range(len(pieces), vocab_size)]
    tokens, scores, types = (list(column) for column in zip(*pieces, strict=True))
    kind = {"model": "llama", "tokens": tokens, "scores": scores, "token_type": types}
    kind |= {"add_bos_token": "bos" in own, "add_space_prefix": tokenizer.adds_prefix}
    kind |= {f"{role}_token_id": at for role, at in own.items()}
    return {_KEY + key: value for key, value in kind.items()}
