"""Presets of experiments/compile_tpu.py."""

from ml_collections import ConfigDict

from configs.scaling import CELLS, LONG, OTHER_WAYS, cells_of, config_of
from longrope_jax.errors import unknown_name

_PRESETS = {
    "table": {"cells": (*cells_of(*CELLS), *LONG, *OTHER_WAYS)},
    "long": {"cells": LONG},
    # Seconds: every program of a small model on the smallest slice.
    "tiny": {
        "cells": (
            "train smollm2_135m 1024 v5e:2x2 fsdp=4",
            "prefill smollm2_135m 1024 v5e:2x2 data=4",
            "decode smollm2_135m 1024 v5e:2x2 data=4",
        ),
        "tokens": 4096,
    },
}


def get_config(preset: str = "table") -> ConfigDict:
    if preset not in _PRESETS:
        raise ValueError(unknown_name("preset of compile_tpu", preset, _PRESETS))
    return config_of(**_PRESETS[preset])
