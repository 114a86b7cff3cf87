"""The whole study in one command, one report: Figures 4, 5, 8 and Table 5, and the theory around.

    python -m experiments.reproduce --workdir=DIR

`make reproduce` runs this: Figures 4 and 8, what the papers prove about position encodings
(granularity, smallest bases), every method on one page, and the study in miniature within a budget
of minutes; beside it stand the committed scores of the overnight study, redrawn. The overnight
study itself, resumable at any moment: --config=configs/reproduce.py:overnight.
"""

from pathlib import Path

from ml_collections import ConfigDict

from experiments import (
    attention_decay,
    base_bound,
    base_frequency_ablation,
    base_frequency_report,
    base_frequency_summary,
    granularity,
    helix,
    lab,
    method_atlas,
)

_TITLE = "The base-frequency study of Llama 2 Long, reproduced"
_THEORY = {
    "attention_decay": attention_decay,
    "helix": helix,
    "granularity": granularity,
    "base_bound": base_bound,
    "method_atlas": method_atlas,
}


def main(config: ConfigDict, folder: Path, command: str = "") -> Path:
    """Runs the studies in folders of their own and joins their reports, the ablations first.

    Returns:
        The path of the report, a single file.
    """
    lab.start(lab.Machine(**config.machine))
    theory = []
    for name, study in _THEORY.items():
        if name in config:
            theory.append(study.main(_settings(config[name], config), folder / name, command))
    found, reports = {}, []
    for name, settings in config.ablations.items():
        one = base_frequency_ablation.found(_settings(settings, config), folder / name)
        reports.append(base_frequency_report.publish(one, command))
        found[name] = one
    kept = base_frequency_summary.committed(config.committed, Path(config.scores))
    found |= {name: one for name, one in kept.items() if name not in found}
    summary = base_frequency_summary.publish(found, folder, command, config)
    return lab.join(folder, command, _TITLE, [summary, *reports, *theory])


def _settings(settings: ConfigDict, config: ConfigDict) -> ConfigDict:
    """The config of a study; where it says nothing of the machine, --config.machine counts."""
    settings = settings.copy_and_resolve_references()
    with settings.unlocked():
        settings.machine = config.machine.to_dict() | dict(settings.get("machine", {}))
    return settings


if __name__ == "__main__":
    lab.run(main, "experiments.reproduce")
