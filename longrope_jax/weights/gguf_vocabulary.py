"""A GGUF file's vocabulary as a tokenizer.json, and back.

Models: "gpt2" (byte-level BPE; `tokenizer.ggml.pre` names how text is cut before it) and "llama"
(sentencepiece's BPE with bytes for what it lacks). llama.cpp's src/llama-vocab.cpp defines both.
"""

import json
from typing import Any

import numpy as np

from longrope_jax.data.tokenizers import HuggingFaceTokenizer, SentencePieceTokenizer, SpecialTokens

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
ENDS = ("eos", "eot", "eom")  # of a text, a turn, a message: llama.cpp stops at each
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
# How each `pre` cuts text, as tokenizer.json says it.
PRE = {
    "gpt-2": _BYTES,
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTES],
    },
    "llama-bpe": {
        "type": "Sequence",
        "pretokenizers": [
            {
                "type": "Split",
                "pattern": {"Regex": _LLAMA3},
                "behavior": "Isolated",
                "invert": False,
            },
            _BYTES | {"use_regex": False},
        ],
    },
}


class UnknownTokenizer(ValueError):
    """A vocabulary of a kind that this package has no definition of."""


def read(metadata: dict[str, Any], vocab_size: int) -> str:
    """The tokenizer.json of a file's metadata.

    Raises:
        UnknownTokenizer: none in the file, or a kind that is not known here.
        ValueError: damaged.
    """
    model, pre = metadata.get(_KEY + "model"), metadata.get(_KEY + "pre", "default")
    if model not in ("gpt2", "llama"):
        raise UnknownTokenizer(f"tokenizer.ggml.model {str(model)[:40]!r} is not gpt2 or llama")
    if model == "gpt2" and (not isinstance(pre, str) or pre not in PRE):
        raise UnknownTokenizer(f"tokenizer.ggml.pre {str(pre)[:40]!r} is none of {sorted(PRE)}")
    tokens = _strings(metadata, "tokens")
    if len(tokens) != vocab_size or len(set(tokens)) != len(tokens):
        raise ValueError(f"{len(tokens)} tokens, some twice or not the {vocab_size} expected")
    types = np.asarray(metadata.get(_KEY + "token_type", [NORMAL] * len(tokens)))
    if types.shape != (len(tokens),) or types.dtype.kind not in "iu":
        raise ValueError("tokenizer.ggml.token_type is damaged: expected one number per token")
    vocab = {token: at for at, token in enumerate(tokens)}
    if model == "gpt2":
        return json.dumps(_byte_level(metadata, vocab, types.tolist(), pre))
    return json.dumps(_sentencepiece(metadata, vocab, types.tolist()))


def adds_bos(metadata: dict[str, Any], where: str) -> bool:
    """Whether llama.cpp begins a prompt with the beginning token: as said, else by the kind."""
    found = metadata.get(_KEY + "add_bos_token")
    if found is None:
        return metadata.get(_KEY + "model") == "llama" or metadata.get(_KEY + "pre") == "llama-bpe"
    if not isinstance(found, bool):
        raise ValueError(f"{where}: {_KEY}add_bos_token must be true or false, got {found!r:.40}")
    return found


def chat_template(metadata: dict[str, Any], where: str) -> str | None:
    """The Jinja text that writes a conversation. Raises ValueError: damaged."""
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
    """A tokenizer.json; tokens that text is not cut into are its added tokens."""
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
    # Written as pairs: a token of the newer models may hold a blank.
    pairs = [list(merge.split(" ", 1)) for merge in merges]
    return _file(
        vocab,
        types,
        pre_tokenizer=PRE[pre],
        decoder=_BYTES | {"add_prefix_space": True},
        model=_bpe(vocab, pairs, ignore_merges=pre == "llama-bpe"),
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
    """Every way to make a token out of two others, the token with the highest score first."""
    merges = []
    for token, at in vocab.items():
        # A token of this length is damage, and would take its square in time.
        if types[at] != NORMAL or not 1 < len(token) <= 256:
            continue
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocab and right in vocab:
                merges.append((-scores[at], at, vocab[left], left, right))
    return [[left, right] for *_, left, right in sorted(merges)]


# Writing


def write(tokenizer, vocab_size: int) -> dict[str, Any]:
    """Metadata of a tokenizer; None gives a file without one, which llama.cpp accepts.

    Raises ValueError: a tokenizer that GGUF has no kind for.
    """
    if tokenizer is None:
        return {_KEY + "model": "none"}
    if isinstance(tokenizer, SentencePieceTokenizer):
        return _write_sentencepiece(tokenizer, vocab_size)
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        raise ValueError(f"{type(tokenizer).__name__} has no GGUF form: pass tokenizer=None")
    parts = json.loads(tokenizer.text())
    kind = _kind(parts)
    if kind is None:
        raise ValueError(
            f"{tokenizer.path} cuts text in a way that GGUF has no name for here "
            f"(known: {', '.join(PRE)}, sentencepiece's): pass tokenizer=None"
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
    """What llama.cpp is told of how text is cut; None where it would cut in another way."""
    model, cut, before = parts["model"], parts.get("pre_tokenizer"), parts.get("normalizer")
    if model["type"] != "BPE":
        return None
    if not model.get("byte_fallback"):
        pre = next((name for name, known in PRE.items() if known == cut), None)
        whole = bool(model.get("ignore_merges")) == (pre == "llama-bpe")
        return {"model": "gpt2", "pre": pre} if pre and before is None and whole else None
    prefix = _prefix(before, cut)
    return None if prefix is None else {"model": "llama", "add_space_prefix": prefix}


def _prefix(normalizer: dict | None, cut: dict | None) -> bool | None:
    """Whether sentencepiece's kind puts a blank before a text; None where it is another kind."""
    steps = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    if cut is None and steps in ([_PREPEND, _BLANKS], [_BLANKS]):
        return _PREPEND in steps
    # transformers 5 writes this, which puts none before a text that has one; llama.cpp, as
    # sentencepiece itself, does.
    scheme = (cut or {}).get("prepend_scheme")
    if not steps and cut == _METASPACE | {"prepend_scheme": scheme}:
        return scheme != "never"
    return None


def _check_merges(tokenizer, model: dict, merges: list[list[str]], types: list[int]) -> None:
    """llama.cpp makes a token out of any two that give it, in a list of merges or not."""
    known = set(map(tuple, merges))
    for pair in merges_of(model["vocab"], np.zeros(len(types)), types):
        if tuple(pair) not in known:
            raise ValueError(
                f"{tokenizer.path} never merges {pair[0]!r} and {pair[1]!r}, as llama.cpp would: "
                "pass tokenizer=None"
            )


def write_special_tokens(special: SpecialTokens) -> dict[str, Any]:
    """Metadata of the tokens that begin and end a text, of a prompt's beginning, and the template.

    Raises ValueError: more ends than GGUF has names for.
    """
    if len(special.stops) > len(ENDS):
        raise ValueError(f"GGUF has {len(ENDS)} tokens that end a text, not {special.stops}")
    ids = special.ids() | dict(zip(ENDS, special.stops, strict=False))
    chat = {} if special.chat_template is None else {CHAT_TEMPLATE: special.chat_template}
    begins = {} if special.adds_bos is None else {_KEY + "add_bos_token": special.adds_bos}
    return {f"{_KEY}{role}_token_id": at for role, at in ids.items()} | begins | chat


def _listed(parts: dict, vocab_size: int) -> tuple[list[str], list[int]]:
    """Tokens by id and their types; ids without a token get a name of their own."""
    by_id = {at: (token, NORMAL) for token, at in parts["model"]["vocab"].items()}
    if parts["model"].get("byte_fallback"):
        for at, (token, _) in by_id.items():
            if len(token) == 6 and token.startswith("<0x"):
                by_id[at] = token, BYTE
        unknown = parts["model"].get("unk_token")
        by_id |= {at: (t, UNKNOWN) for at, (t, _) in by_id.items() if t == unknown}
    for added in parts["added_tokens"]:
        by_id[added["id"]] = added["content"], CONTROL if added["special"] else USER
    if max(by_id) >= vocab_size:
        raise ValueError(f"the tokenizer has id {max(by_id)}, the model {vocab_size} tokens")
    listed = [by_id.get(at, (f"[PAD{at}]", UNUSED)) for at in range(vocab_size)]
    return [token for token, _ in listed], [kind for _, kind in listed]


def _scores(merges: list[list[str]], tokens: list[str]) -> list[float]:
    """Scores that order tokens as the merges do."""
    first = {}
    for rank, merge in enumerate(merges):
        first.setdefault("".join(merge), float(-rank))
    return [first.get(token, -1e9) for token in tokens]


def _write_sentencepiece(tokenizer, vocab_size: int) -> dict[str, Any]:
    tokenizer.check_plain()
    pieces, own = tokenizer.pieces(), tokenizer.special_ids
    if len(pieces) > vocab_size:
        raise ValueError(f"the tokenizer has {len(pieces)} ids, the model {vocab_size} tokens")
    pieces += [(f"[PAD{at}]", 0.0, UNUSED) for at in range(len(pieces), vocab_size)]
    tokens, scores, types = (list(column) for column in zip(*pieces, strict=True))
    kind = {"model": "llama", "tokens": tokens, "scores": scores, "token_type": types}
    kind |= {"add_bos_token": "bos" in own, "add_space_prefix": tokenizer.adds_prefix}
    kind |= {f"{role}_token_id": at for role, at in own.items()}
    return {_KEY + key: value for key, value in kind.items()}
