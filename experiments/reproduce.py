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
    cli,
    granularity,
    helix,
    method_atlas,
    report,
)

_QUICK = {
    "attention_decay": attention_decay,
    "helix": helix,
    "granularity": granularity,
    "base_bound": base_bound,
    "method_atlas": method_atlas,
}


def main(config: ConfigDict, workdir: Path, command: str = "") -> Path:
    """Runs the experiments in folders of their own and joins their reports.

    Returns:
        The path of the report, a single file.
    """
    workdir = Path(workdir)
    sections = []
    for name, experiment in _QUICK.items():
        folder = workdir / name
        result = experiment.main(config[name], folder, command)
        sections += experiment.sections(result, folder)
    study = base_frequency_ablation.main(config.ablation, workdir / "ablation", command)
    path = workdir / "report.html"
    title = "The base-frequency study of Llama 2 Long, reproduced"
    report.write_html(path, title, command, [*study, *sections], report.versions())
    print(f"report: {path}")
    return path


if __name__ == "__main__":
    cli.run(main, "reproduce")
