"""Presets of experiments/reproduce.py: those of its three experiments together."""

from ml_collections import ConfigDict

from configs import attention_decay, base_frequency_ablation, helix


def get_config(preset: str = "cpu") -> ConfigDict:
    return ConfigDict(
        {
            "attention_decay": attention_decay.get_config("tiny" if preset == "tiny" else "paper"),
            "helix": helix.get_config(),
            "ablation": base_frequency_ablation.get_config(preset),
        }
    )
