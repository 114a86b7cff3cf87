"""Presets of experiments/reproduce.py: cpu is `make reproduce`, overnight the study in full."""

from ml_collections import ConfigDict

from configs import (
    attention_decay,
    base_bound,
    base_frequency_ablation,
    granularity,
    helix,
    method_atlas,
)

_OVERNIGHT = ("small_prose", "small_code", "large_prose", "large_code")


def get_config(preset: str = "cpu") -> ConfigDict:
    """The theory and one ablation, or for "overnight" its four ablations alone.

    Raises:
        ValueError: no such preset.
    """
    paper, cpu = ("tiny", "tiny") if preset == "tiny" else ("paper", "cpu")
    theory = {
        "attention_decay": attention_decay.get_config(paper),
        "helix": helix.get_config(),
        "granularity": granularity.get_config(paper),
        "base_bound": base_bound.get_config(cpu),
        "method_atlas": method_atlas.get_config(paper),
    }
    live = _OVERNIGHT if preset == "overnight" else (preset,)
    shown = () if preset == "tiny" else _OVERNIGHT
    return ConfigDict(
        ({} if preset == "overnight" else theory)
        | {
            "ablations": {name: base_frequency_ablation.get_config(name) for name in live},
            # Ablations whose scores lie in SCORES/NAME/cells are shown beside the live one.
            "committed": {name: base_frequency_ablation.get_config(name) for name in shown},
            "scores": "docs/results/base_frequency_ablation",
            "machine": {},  # fields of lab.Machine, for all studies that say nothing else
        }
    )
