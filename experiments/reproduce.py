"""The whole study in one command: Figures 4 and 8, Table 5 and Figure 5 in miniature, one report.

    python -m experiments.reproduce --workdir=DIR

`make reproduce` runs this. It takes less than 15 minutes on 2 CPU cores and 4 GB of memory; a
second run takes seconds. Other sizes: --config=configs/reproduce.py:laptop or :tpu_7b.
"""

from pathlib import Path

from ml_collections import ConfigDict

from experiments import attention_decay, base_frequency_ablation, cli, helix, report


def main(config: ConfigDict, workdir: Path, command: str = "") -> Path:
    """Runs the three experiments in folders of their own and joins their reports.

    Returns:
        The path of the report, a single file.
    """
    folders = {name: workdir / name for name in ("attention_decay", "helix", "ablation")}
    curves = attention_decay.main(config.attention_decay, folders["attention_decay"], command)
    dots = helix.main(config.helix, folders["helix"], command)
    ablation = base_frequency_ablation.main(config.ablation, folders["ablation"], command)
    sections = [
        *ablation,
        *attention_decay.sections(curves, folders["attention_decay"]),
        *helix.sections(dots, folders["helix"]),
    ]
    path = workdir / "report.html"
    title = "The base-frequency study of Llama 2 Long, reproduced"
    report.write_html(path, title, command, sections, report.versions())
    print(f"report: {path}")
    return path


if __name__ == "__main__":
    cli.run(main, "reproduce")
