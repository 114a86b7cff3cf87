"""What studies share: cells, training, quantities and verdicts, reports.

A study is one file on top of it:

    def main(config, folder, command=""):
        machine = lab.Machine(**config.machine)
        plan = list(cells(config))
        lab.complete(folder, plan, {"train": train, "loss": loss}, machine)
        found = lab.scores(folder, plan, "loss")
        return lab.publish(folder, command, config, title=..., claims=..., sections=..., cells=plan)

    if __name__ == "__main__":
        lab.run(main, "my_study")
"""

from experiments.lab.cells import Cell, complete, missing, needed, path, read, record, run_folder
from experiments.lab.checkpoint import (
    Facts,
    beginning,
    check_bos,
    check_length,
    facts,
    filled,
    method,
)
from experiments.lab.cli import run
from experiments.lab.corpus import Text, check_held_out, document, on_disk, text, tokenizer
from experiments.lab.fail import naming
from experiments.lab.figures import colours, draw_band, panels, style, subplots
from experiments.lab.files import exported, save_csv, save_json, write
from experiments.lab.machine import Machine, batch_parts, start, writes
from experiments.lab.models import Models
from experiments.lab.page import Figure, Section, Table, table
from experiments.lab.page import Text as Paragraphs
from experiments.lab.progress import counting
from experiments.lab.quantities import (
    NOT_RUN,
    NOT_TESTABLE,
    VERDICT_HEADER,
    Check,
    Hypothesis,
    Scores,
    against,
    check,
    check_hypotheses,
    check_text,
    counted,
    difference,
    gap,
    holm,
    judged,
    mean_gap,
    scores,
    show,
    verdict_lines,
)
from experiments.lab.reports import Report, join, publish
from experiments.lab.scoring import losses, scored
from experiments.lab.training import (
    Recipe,
    blended,
    copied,
    fresh,
    keep_as,
    model,
    opened,
    read_method,
    speed,
    time_steps,
    train,
    trained,
    window_maker,
    windows,
)
from experiments.lab.training import check as check_recipe

__all__ = [
    "NOT_RUN",
    "NOT_TESTABLE",
    "VERDICT_HEADER",
    "Cell",
    "Check",
    "Facts",
    "Figure",
    "Hypothesis",
    "Machine",
    "Models",
    "Paragraphs",
    "Recipe",
    "Report",
    "Scores",
    "Section",
    "Table",
    "Text",
    "against",
    "batch_parts",
    "beginning",
    "blended",
    "check",
    "check_bos",
    "check_held_out",
    "check_hypotheses",
    "check_length",
    "check_recipe",
    "check_text",
    "colours",
    "complete",
    "copied",
    "counted",
    "counting",
    "difference",
    "document",
    "draw_band",
    "exported",
    "facts",
    "filled",
    "fresh",
    "gap",
    "holm",
    "join",
    "judged",
    "keep_as",
    "losses",
    "mean_gap",
    "method",
    "missing",
    "model",
    "naming",
    "needed",
    "on_disk",
    "opened",
    "panels",
    "path",
    "publish",
    "read",
    "read_method",
    "record",
    "run",
    "run_folder",
    "save_csv",
    "save_json",
    "scored",
    "scores",
    "show",
    "speed",
    "start",
    "style",
    "subplots",
    "table",
    "text",
    "time_steps",
    "tokenizer",
    "train",
    "trained",
    "verdict_lines",
    "window_maker",
    "windows",
    "write",
    "writes",
]
