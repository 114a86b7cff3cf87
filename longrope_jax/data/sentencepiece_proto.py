"""What a sentencepiece `.model` says of itself, where its package doesn't tell.

Source: src/sentencepiece_model.proto of google/sentencepiece.
"""

from collections.abc import Iterator

_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_BPE, _USER_DEFINED = 2, 4


def beyond_llama(data: bytes) -> list[str]:
    """What other software's reader for LLaMA's kind (BPE of the text as it is) would leave out.

    `data` is a whole model that the package has read.
    """
    model: dict[int, list] = {_PIECES: [], _TRAINER: [b""], _NORMALIZER: [b""]}
    for number, value in _fields(data):
        model.setdefault(number, []).append(value)
    trainer, normalizer = (dict(_fields(model[number][-1])) for number in (_TRAINER, _NORMALIZER))
    kinds = [dict(_fields(piece)).get(3, 1) for piece in model[_PIECES]]
    said = {
        "a model_type other than bpe": trainer.get(3, 1) != _BPE,
        "treat_whitespace_as_suffix": trainer.get(24, 0),
        "a normalizer other than identity": normalizer.get(2, b""),
        "remove_extra_whitespaces": normalizer.get(4, 1),
        "user-defined pieces": _USER_DEFINED in kinds,
    }
    return [what for what, is_so in said.items() if is_so]


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of each field of a protobuf message; floats as their bytes."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        if tag & 7 == 0:
            value, at = _varint(message, at)
        else:
            size, at = _varint(message, at) if tag & 7 == 2 else ({1: 8, 5: 4}[tag & 7], at)
            value, at = message[at : at + size], at + size
        yield tag >> 3, value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at
