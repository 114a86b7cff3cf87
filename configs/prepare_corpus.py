"""Presets of experiments/prepare_corpus.py."""

from ml_collections import ConfigDict

from configs.common import chosen

_COMMON = {
    "clean": "austen+moby-dick",  # the n-gram model's idea of clean text
    "language": "en",
    "citations": 8,  # other pages that link to a page for it to count as cited
    "overlap": 0.9,  # of books that are both kept (2302.13971)
    "held_out": 12,  # pages whose runs of 13 words are cut out of the others
    "every": 1,  # takes every n-th document of each source
}

_PRESETS = {
    "packages": {},
    "tiny": {"clean": "moby-dick", "citations": 2, "every": 3, "held_out": 2},
}


def get_config(preset: str = "packages") -> ConfigDict:
    return chosen("prepare_corpus", _COMMON, _PRESETS, preset)
