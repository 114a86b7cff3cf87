"""The whole study in one command, one report: Figures 4, 5, 8 and Table 5, and the theory around.

    python -m experiments.reproduce --workdir=DIR

`make reproduce` runs this: the study in miniature, Figures 4 and 8, then what the papers prove
about position encodings (granularity, smallest bases) and every method on one page. It takes less
than 15 minutes on 2 CPU cores and 4 GB of memory; a second run takes about a minute. Other sizes:
--config=configs/reproduce.py:laptop or :tpu_7b.
"""

from pathlib import Path

from ml_collections import ConfigDict

from experiments import (
    attention_decay,
    base_bound,
    base_frequency_ablation,
    granularity,
    helix,
    lab,
    method_atlas,
)

_TITLE = "The base-frequency study of Llama 2 Long, reproduced"
# In the order in which they run; the ablation, which takes longest, comes first in the report.
_STUDIES = {
    "attention_decay": attention_decay,
    "helix": helix,
    "granularity": granularity,
    "base_bound": base_bound,
    "method_atlas": method_atlas,
    "ablation": base_frequency_ablation,
}


def main(config: ConfigDict, folder: Path, command: str = "") -> Path:
    """Runs the studies in folders of their own and joins their reports.

    Returns:
        The path of the report, a single file.
    """
    lab.start(lab.Machine(**_settings(config, "ablation").machine))
    folder, reports = Path(folder), {}
    for name, study in _STUDIES.items():
        reports[name] = study.main(_settings(config, name), folder / name, command)
    ablation = reports.pop("ablation")
    return lab.join(folder, command, _TITLE, [ablation, *reports.values()])


def _settings(config: ConfigDict, name: str) -> ConfigDict:
    """The config of a study; where it says nothing of the machine, --config.machine counts."""
    settings = config[name].copy_and_resolve_references()
    with settings.unlocked():
        settings.machine = config.machine.to_dict() | dict(settings.get("machine", {}))
    return settings


if __name__ == "__main__":
    lab.run(main, "experiments.reproduce")
