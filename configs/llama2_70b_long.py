"""Llama 2 Long 70B on TPU slices, for experiments/compile_tpu.py."""

from ml_collections import ConfigDict

from configs.scaling import cells_of, config_of


def get_config() -> ConfigDict:
    return config_of(cells_of("llama2_long_70b"))
