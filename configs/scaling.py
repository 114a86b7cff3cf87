"""Cells of experiments/compile_tpu.py by model: what is compiled for which slice, and how divided.

A cell reads "program model length topology axis=n ...", see experiments/tpu/cells.py. The mesh of
each slice is the one that fits best of those tried; slices too small are kept as cells, so that
the table shows the compiler's refusal.
"""

from ml_collections import ConfigDict

TOKENS = 2**22  # of a training step over all chips, the paper's (2309.16039 section 2.1)

CELLS = {
    "llama2_long_7b": (
        "train 32768 v5p:4x4x4 fsdp=64",
        "prefill 32768 v5p:4x4x4 data=8 tensor=8",
        "decode 32768 v5p:4x4x4 data=8 tensor=8",
        "train 32768 v5p:2x2x1 fsdp=4",
        "train 32768 v5e:4x4 fsdp=4 tensor=4",
        "train 32768 v5e:2x4 tensor=8",
        "prefill 32768 v5e:4x4 data=2 tensor=8",
        "decode 32768 v5e:4x4 data=2 tensor=8",
    ),
    "llama2_long_13b": (
        "train 32768 v5p:2x2x1 fsdp=4",
        "train 32768 v5e:4x8 fsdp=4 tensor=8",
        "train 32768 v5e:4x4 fsdp=2 tensor=8",
        "prefill 32768 v5p:2x2x1 tensor=4",
        "decode 32768 v5p:2x2x1 tensor=4",
        "prefill 32768 v5e:4x8 data=4 tensor=8",
        "decode 32768 v5e:4x8 data=4 tensor=8",
    ),
    "llama2_long_34b": (
        "train 16384 v5p:2x2x2 tensor=8",
        "train 16384 v5p:2x2x2 fsdp=2 tensor=4",
        "train 16384 v5p:2x2x2 fsdp=8",
        "train 16384 v5p:2x2x1 tensor=4",
        "train 16384 v5e:8x8 fsdp=8 tensor=8",
        "train 16384 v5e:4x8 fsdp=4 tensor=8",
        "prefill 16384 v5p:2x2x2 tensor=8",
        "decode 16384 v5p:2x2x2 tensor=8",
        "prefill 16384 v5e:8x8 data=8 tensor=8",
        "decode 16384 v5e:8x8 data=8 tensor=8",
    ),
    "llama2_long_70b": (
        "train 16384 v5p:2x2x4 sequence=2 tensor=8",
        "train 16384 v5p:2x2x4 fsdp=2 tensor=8",
        "train 16384 v5p:2x2x4 fsdp=16",
        "train 16384 v5p:2x2x2 tensor=8",
        "train 16384 v5e:8x16 fsdp=16 tensor=8",
        "train 16384 v5e:8x8 fsdp=8 tensor=8",
        "prefill 16384 v5p:2x2x4 data=2 tensor=8",
        "decode 16384 v5p:2x2x4 data=2 tensor=8",
        "prefill 16384 v5e:8x16 data=8 fsdp=2 tensor=8",
        "decode 16384 v5e:8x16 data=8 fsdp=2 tensor=8",
    ),
}

# Lengths for ring attention; and other ways to divide and to recompute.
LONG = (
    "train llama2_long_7b 131072 v5p:4x4x4 fsdp=8 sequence=8 context=ring",
    "train llama2_long_7b 1048576 v5p:4x4x4 sequence=64 context=ring",
)
OTHER_WAYS = (
    "train llama2_long_7b 32768 v5p:4x4x4 fsdp=64 remat=attention",
    "train llama2_long_7b 32768 v5p:4x4x4 fsdp=16 tensor=4 remat=attention",
    "train llama2_long_7b 32768 v5p:4x4x4 fsdp=16 tensor=4 remat=linear",
    "train llama2_long_7b 32768 v5e:4x4 fsdp=4 sequence=4",
    "train llama2_long_13b 32768 v5e:4x8 fsdp=4 sequence=8",
)


def cells_of(*models: str) -> tuple[str, ...]:
    """The cells of these models."""
    found = ((model, cell.partition(" ")) for model in models for cell in CELLS[model])
    return tuple(f"{program} {model} {rest}" for model, (program, _, rest) in found)


def config_of(cells: tuple[str, ...], **changes) -> ConfigDict:
    """What experiments/compile_tpu.py takes."""
    return ConfigDict(
        {
            "cells": cells,
            "topology": "",  # only the cells of this slice; all where empty
            "tokens": TOKENS,
            "steps": 100_000,  # of a whole training, for energy (2309.16039 section 2.1)
            # Per chip, for energy. No power of these chips is published: LLaMA's of an A100.
            "watts": 400.0,
            "page": "",  # also write the tables as Markdown to this file
        }
        | changes
    )
