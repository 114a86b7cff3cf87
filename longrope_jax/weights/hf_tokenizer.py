"""The tokenizer of a Hugging Face folder, its special tokens and its chat template.

Where files of one folder name different special tokens, the tokenizer knows best: config.json is
often copied from another model and never read for this by transformers' tokenizers.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from longrope_jax.data.tokenizers import (
    HuggingFaceTokenizer,
    SentencePieceTokenizer,
    SpecialTokens,
    Tokenizer,
)
from longrope_jax.errors import warn
from longrope_jax.weights import gguf_vocabulary
from longrope_jax.weights.files import read_json, read_text

JSON, MODEL = "tokenizer.json", "tokenizer.model"
CONFIG, SPECIAL_MAP, ADDED = (
    "tokenizer_config.json",
    "special_tokens_map.json",  # beside CONFIG before transformers 5
    "added_tokens.json",
)
GENERATION = "generation_config.json"
CHAT_TEMPLATE = "chat_template.jinja"  # before transformers 5 it was a key of CONFIG


def read(path: Path, notes: list[str]) -> Tokenizer | None:
    """Returns the tokenizer of a folder, or None where it has none that is known here.

    Raises:
        ValueError: the tokenizer is damaged, or the package that reads it is missing.
    """
    if (path / JSON).is_file():
        notes.append(f"tokenizer from {JSON}")
        return HuggingFaceTokenizer(str(path / JSON))
    if (path / MODEL).is_file():
        notes.append(f"tokenizer from {MODEL}")
        model = SentencePieceTokenizer(str(path / MODEL))
        added = _added(path, model.vocab_size)
        return _with_added(path, model, added, notes) if added else model
    notes.append("no tokenizer in the folder")
    return None


def _added(path: Path, size: int) -> dict[int, tuple[str, bool]]:
    """Returns (token, whether it is special) of each id that a folder adds to a .model of `size`.

    added_tokens.json has no word on which are special; what tokenizer_config.json says wins.

    Raises:
        ValueError: an entry is no token and id.
    """
    plain = _json(path / ADDED)
    listed = _json(path / CONFIG).get("added_tokens_decoder") or {}
    if not isinstance(listed, dict):
        raise ValueError(f"{path / CONFIG}: added_tokens_decoder must be an object of ids")
    found = {at: (token, True) for token, at in plain.items()}
    for at, entry in listed.items():
        entry = entry if isinstance(entry, dict) else {}
        number = int(at) if at.isdecimal() else at
        found[number] = entry.get("content"), entry.get("special", False) is True
    for at, (token, _) in found.items():
        if type(at) is not int or not 0 <= at < 2**31 or not isinstance(token, str) or not token:
            raise ValueError(f"{path}: an added token needs an id and a text, got {at}: {token!r}")
    return {at: entry for at, entry in sorted(found.items()) if at >= size}


def _with_added(path: Path, model: SentencePieceTokenizer, added: dict, notes) -> Tokenizer:
    """Returns the tokenizer.json that is equivalent to a .model with further tokens."""
    try:
        text = to_json(model, added)
    except ValueError as error:
        warn(f"{error}; its {len(added)} added tokens are left out, so their ids have no text")
        return model
    notes.append(f"{len(added)} tokens are added to {MODEL}: ids {min(added)} to {max(added)}")
    name = f"{model.path} (with its added tokens)"
    # A .model has no word on it, but LLaMA's code begins a text unless the config says otherwise.
    begins = _json(path / CONFIG).get("add_bos_token") is not False
    special = SpecialTokens(bos=_own(path, model, "bos"), adds_bos=begins)
    return HuggingFaceTokenizer(name, _with_beginning(HuggingFaceTokenizer(name, text), special))


def to_json(model: SentencePieceTokenizer, added: dict | None = None) -> str:
    """Returns the text of the tokenizer.json that is equivalent to a sentencepiece model.

    Args:
        model: the tokenizer.
        added: (token, whether it is special) by id, of tokens that the model lacks.

    Raises:
        ValueError: a tokenizer.json would give other ids.
    """
    size = model.vocab_size
    parts = json.loads(gguf_vocabulary.read(gguf_vocabulary.write(model, size), size))
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    parts["added_tokens"] += [
        {"id": at, "content": token, "special": special} | plain
        for at, (token, special) in (added or {}).items()
    ]
    return json.dumps(parts, ensure_ascii=False)


def special_tokens(
    path: Path, raw: dict, tokenizer: Tokenizer | None, size: int, notes: list[str]
) -> SpecialTokens:
    """Returns the ids that begin and end a text, and the chat template of a folder.

    The beginning is what the template of tokenizer.json puts first, or the bos_token of
    tokenizer_config.json, or that of the sentencepiece model, or bos_token_id of config.json. The
    ends are those at which transformers' generate stops, which generation_config.json decides and
    config.json where that is silent; the tokenizer's eos_token comes first among them.

    Args:
        path: the folder.
        raw: its config.json.
        tokenizer: its tokenizer, or None.
        size: the number of tokens V of the model.
        notes: sentences on what was chosen are appended.

    Raises:
        ValueError: an id is no whole number, or an entry is of the wrong kind.
    """
    said = {role: _ids(raw, f"{role}_token_id", path / "config.json", size) for role in ROLES}
    own = {role: _own(path, tokenizer, role) for role in ROLES}
    bos = own["bos"] if own["bos"] is not None else next(iter(said["bos"]), None)
    for role in ROLES:
        if said[role] and own[role] not in (None, *said[role]):
            notes.append(
                f"{role}_token_id of config.json is {said[role]}, the tokenizer's {role} token is "
                f"{own[role]}, which is taken"
            )
    stops = _stops(path, said["eos"], own["eos"], bos, size)
    return SpecialTokens(
        bos=bos,
        eos=stops[0] if stops else None,
        adds_bos=_adds_bos(path, tokenizer, bos, notes),
        more_eos=stops[1:],
        chat_template=_chat_template(path, notes),
    )


ROLES = ("bos", "eos")


def _own(path: Path, tokenizer: Tokenizer | None, role: str) -> int | None:
    """Returns the id that the tokenizer's own files give a role, or None."""
    if not isinstance(tokenizer, HuggingFaceTokenizer | SentencePieceTokenizer):
        return None
    if role == "bos" and tokenizer.first is not None:
        return tokenizer.first
    named = (tokenizer.find(name) for name in _named(path, f"{role}_token"))
    return next((at for at in named if at is not None), _model_ids(path).get(role))


def _model_ids(path: Path) -> dict[str, int]:
    """Returns the ids by role of a folder's sentencepiece model; none where it has no such file."""
    if not (path / MODEL).is_file():
        return {}
    try:
        return SentencePieceTokenizer(str(path / MODEL)).special_ids
    except ValueError:
        return {}  # tiktoken's format, or beside a tokenizer.json without the package


def _named(path: Path, key: str) -> Iterator[str]:
    """Yields the names that a folder's files give a special token, the strongest file first."""
    for file in (CONFIG, SPECIAL_MAP):
        value = _json(path / file).get(key)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            yield value


def _stops(
    path: Path, declared: list[int], own: int | None, bos: int | None, size: int
) -> tuple[int, ...]:
    """Returns the ids that end a text, the one to write after a text first."""
    file = path / GENERATION
    stops = _ids(_json(file), "eos_token_id", file, size)
    if not stops:
        # A config that belongs to another tokenizer may name the beginning as the end.
        stops = declared if own is None else [own, *(at for at in declared if at != bos)]
    first = [at for at in (own, *declared) if at is not None and at in stops][:1]
    return tuple(dict.fromkeys(first + stops))


def _ids(raw: dict, key: str, where: Path, vocab_size: int) -> list[int]:
    """Returns the token ids under `key`, which may hold none, one, or a list of them.

    Ids that the model has no row for, such as -1, can never be drawn: they are left out aloud.

    Raises:
        ValueError: the value is neither an id nor a list of ids.
    """
    value = raw.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if value == [] or not all(type(at) is int for at in ids):
        raise ValueError(f"{where}: {key} must be ids below {vocab_size}, got {value!r:.60}")
    kept = [at for at in ids if 0 <= at < vocab_size]
    if kept != ids:
        warn(f"{where}: {key} must be ids below {vocab_size}, got {value!r:.60}: left out")
    return kept


def _adds_bos(path: Path, tokenizer, bos: int | None, notes: list[str]) -> bool:
    """Says whether a prompt begins with `bos`: as tokenizer_config.json says, or the tokenizer.

    Raises:
        ValueError: add_bos_token is not a bool.
    """
    if tokenizer is None or bos is None:
        return False
    declared = _json(path / CONFIG).get("add_bos_token")
    if not isinstance(declared, bool | None):
        raise ValueError(
            f"{path / CONFIG}: add_bos_token must be true or false, got {declared!r:.40}"
        )
    # The file does not say it, but LLaMA's code puts the beginning before a sentencepiece text.
    itself = isinstance(tokenizer, SentencePieceTokenizer) or tokenizer.first is not None
    if isinstance(tokenizer, HuggingFaceTokenizer) and declared not in (None, itself):
        notes.append(
            f"add_bos_token={str(declared).lower()} is followed, as transformers 4 does for a "
            f"Llama; transformers 5 follows tokenizer.json, which {'begins' if itself else 'does'}"
            f"{' a text with it' if itself else ' not begin a text with it'}"
        )
    return itself if declared is None else declared


def _chat_template(path: Path, notes: list[str]) -> str | None:
    """Returns the Jinja text that writes a conversation; among several, the one named "default".

    Raises:
        ValueError: the template is not a text.
    """
    if (path / CHAT_TEMPLATE).is_file():
        return read_text(path / CHAT_TEMPLATE)
    declared = _json(path / CONFIG).get("chat_template")
    if isinstance(declared, list):
        named = [each for each in declared if isinstance(each, dict) and "template" in each]
        notes.append(f"the default one of {len(declared)} chat templates is kept, if there is one")
        declared = next((each["template"] for each in named if each.get("name") == "default"), None)
    if not isinstance(declared, str | None):
        raise ValueError(f"{path / CONFIG}: chat_template must be a text, got {declared!r:.40}")
    (declared or "").encode()  # a lone surrogate is refused here, not by an export after training
    return declared


def _json(file: Path) -> dict:
    return read_json(file) if file.is_file() else {}


# Writing


def check(tokenizer, special: SpecialTokens) -> None:
    """Checks that a folder can hold the tokenizer.

    Raises:
        ValueError: the tokenizer has no Hugging Face form, or begins a text with another token.
    """
    if not isinstance(tokenizer, SentencePieceTokenizer | HuggingFaceTokenizer | None):
        raise ValueError(
            f"tokenizer {type(tokenizer).__name__} has no Hugging Face form: pass tokenizer=None"
        )
    if isinstance(tokenizer, SentencePieceTokenizer):
        tokenizer.check_plain()
    elif tokenizer and special.adds_bos and tokenizer.first not in (None, special.bos):
        raise ValueError(
            f"{tokenizer.path} begins a text with {tokenizer.first}, special_tokens with "
            f"{special.bos}: take {tokenizer.first} as bos"
        )


def save(path: Path, tokenizer: Tokenizer, special: SpecialTokens) -> None:
    """Writes a tokenizer that `check` has accepted into a folder."""
    if isinstance(tokenizer, SentencePieceTokenizer):
        (path / MODEL).write_bytes(Path(tokenizer.path).read_bytes())
        # transformers' LlamaTokenizer, built from the .model, drops a blank before a blank, so the
        # folder gets a tokenizer.json of its own.
        tokenizer = HuggingFaceTokenizer(tokenizer.path, to_json(tokenizer))
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    (path / JSON).write_text(_with_beginning(tokenizer, special), encoding="utf-8")
    raw = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    if special.adds_bos is not None:
        raw["add_bos_token"] = special.adds_bos
    if special.chat_template is not None:
        (path / CHAT_TEMPLATE).write_text(special.chat_template, encoding="utf-8")
    named = {tokenizer.special(name): name for name in tokenizer.specials}
    raw |= {f"{role}_token": named[at] for role, at in special.ids().items() if at in named}
    (path / CONFIG).write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")


def _with_beginning(tokenizer: HuggingFaceTokenizer, declared: SpecialTokens) -> str:
    """Returns the text of a tokenizer.json that begins a text with `bos` where that is declared."""
    first, parts = declared.bos, json.loads(tokenizer.text())
    names = {tokenizer.special(name): name for name in tokenizer.specials}
    if not declared.adds_bos or first not in names or tokenizer.first is not None:
        return tokenizer.text()
    special = {"id": names[first], "ids": [first], "tokens": [names[first]]}
    begin, text, more = (
        {"SpecialToken": {"id": names[first], "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"Sequence": {"id": "B", "type_id": 1}},
    )
    template = {
        "type": "TemplateProcessing",
        "single": [begin, text],
        "pair": [begin, text, more],
        "special_tokens": {names[first]: special},
    }
    before = parts.get("post_processor")
    both = {"type": "Sequence", "processors": [before, template]}
    parts["post_processor"] = both if before else template
    return json.dumps(parts, ensure_ascii=False)
