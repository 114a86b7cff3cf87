"""Presets of experiments/reproduce.py: those of its experiments together."""

from ml_collections import ConfigDict

from configs import (
    attention_decay,
    base_bound,
    base_frequency_ablation,
    granularity,
    helix,
    method_atlas,
)


def get_config(preset: str = "cpu") -> ConfigDict:
    paper, cpu = ("tiny", "tiny") if preset == "tiny" else ("paper", "cpu")
    return ConfigDict(
        {
            "attention_decay": attention_decay.get_config(paper),
            "helix": helix.get_config(),
            "granularity": granularity.get_config(paper),
            "base_bound": base_bound.get_config(cpu),
            "method_atlas": method_atlas.get_config(paper),
            "ablation": base_frequency_ablation.get_config(preset),
            "machine": {},  # fields of lab.Machine, for all studies that say nothing else
        }
    )
