"""Every row of the tables on the test documents: loss of text, loss and accuracy of needles."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import report
from experiments.progress import StudyProgress
from experiments.search import plan
from experiments.search.execute import Sequences, Workbench
from longrope_jax import rotary
from longrope_jax.evaluation.perplexity import score_tokens
from longrope_jax.search import evolution
from longrope_jax.search.evolution import History
from longrope_jax.search.individuals import Individual, Target, published

BASELINES = ("PI", "NTK", "YaRN")
CUT = "RoPE, context cut to L"


def history(path: Path) -> History:
    """What a search measured, evolution or gradient, in order."""
    with np.load(path) as file:
        if "fitness" in file:
            return evolution.load(path)
        individuals = tuple(Individual(tuple(f.tolist())) for f in file["factors"])
        return History(individuals, tuple(file["losses"].tolist()))


def methods(bench: Workbench, target: Target) -> dict[str, list[rotary.Rotary]]:
    """Rows of one target length: label to a rotary for each seed."""
    made = methods_without_search(bench, target)
    for label, individuals in winners(bench.config, bench.workdir, target.factor).items():
        made[label] = [target.rotary(individual) for individual in individuals]
    return made


def methods_without_search(bench: Workbench, target: Target) -> dict[str, list[rotary.Rotary]]:
    """Plain and published methods, with their own and with LongRoPE's attention factor."""
    config = bench.config
    abf = target.base * config.study.abf_factor
    specs = {
        "RoPE": rotary.RoPE(target.base),
        "PI": rotary.PositionInterpolation(target.factor, base=target.base),
        "NTK": rotary.NTKAware(target.factor, base=target.base),
        "YaRN": rotary.YaRN(target.factor, target.length, base=target.base),
        f"ABF x{config.study.abf_factor:g}": rotary.RoPE(abf),
    }
    made = {k: [_made(spec, target)] for k, spec in specs.items()}
    for name, individual in published(target).items():
        made[f"{name}, LongRoPE's attention factor"] = [target.rotary(individual)]
    return made


def _made(spec: rotary.Method, target: Target) -> rotary.Rotary:
    return rotary.make(spec, head_dim=target.head_dim, seq_len=target.seq_len)


def winners(config: ConfigDict, workdir: Path, factor: float) -> dict[str, list[Individual]]:
    """The best individual of every search, by its fitness: label to one for each seed."""
    found: dict[str, list[Individual]] = {}
    for search in plan.searches(config):
        if search.factor == factor:
            best = history(workdir / "searches" / f"{search.slug}.npz").best
            found.setdefault(search.method, []).append(best)
    plain = [dataclasses.replace(best, start_count=0) for best in found["LongRoPE"]]
    return found | {"LongRoPE, no start tokens": plain}


def measure(bench: Workbench, params, progress: StudyProgress) -> dict[str, np.ndarray]:
    """All rows at all targets, as arrays [seeds, samples] named `x2/text/PI` and so on.

    `x1` is the model at its own length, `right` the share of right tokens of an answer.
    """
    scorer = Scorer(bench, params, progress)
    base = plan.target(bench.config, 2, bench.study.model.head_dim).base
    length = bench.config.study.length
    own = rotary.make(rotary.RoPE(base), head_dim=bench.study.model.head_dim, seq_len=length)
    arrays = scorer.rows("x1", length, {"RoPE": [own]})
    for factor in bench.config.factors:
        progress.describe(f"test at {factor:g}x")
        target = bench.target(factor)
        made = methods(bench, target)
        arrays |= scorer.rows(f"x{factor:g}", target.seq_len, made)
        arrays[f"x{factor:g}/text/{CUT}"] = scorer.cut(target.seq_len, made["RoPE"][0])
    arrays["versions"] = np.asarray(json.dumps(report.versions()))
    return arrays


@dataclasses.dataclass(frozen=True, eq=False)
class Scorer:
    """Scores test sequences, counting its work in the progress."""

    bench: Workbench
    params: dict
    progress: StudyProgress

    def rows(self, prefix: str, length: int, made: dict[str, list[rotary.Rotary]]) -> dict:
        """Text, needles and right answers of every row at one length, [seeds, samples] each."""
        arrays = {}
        for kind in ("text", "needle"):
            sequences = self.bench.sequences(kind, length, test=True)
            arrays[f"{prefix}/{kind}/documents"] = sequences.documents
            for label, rotaries in made.items():
                scores = [self.score(rot, sequences) for rot in rotaries]
                nll, right = (np.stack(values) for values in zip(*scores, strict=True))
                arrays[f"{prefix}/{kind}/{label}"] = nll
                if kind == "needle":
                    arrays[f"{prefix}/right/{label}"] = right
        return arrays

    def score(self, rot: rotary.Rotary, sequences: Sequences) -> tuple[np.ndarray, np.ndarray]:
        """Weighted mean loss and share of right tokens of every sequence, float32 [n] each."""
        n, T = sequences.weights.shape
        batch = self.bench.study.batch(T)
        nll, right = [], []
        for start in range(0, n, batch):
            rows = np.minimum(np.arange(start, start + batch), n - 1)
            tokens, weights = sequences.tokens[rows], sequences.weights[rows]
            with jax.set_mesh(self.bench.study.mesh):
                found = score_tokens(self.bench.study.model, self.params, rot, tokens)
            for into, values in ((nll, found.nll), (right, found.correct)):
                into.append((np.asarray(values) * weights).sum(1) / weights.sum(1))
            self.progress.advance(batch * T * self.bench.flops(T), batch * T)
        return tuple(np.concatenate(values)[:n].astype(np.float32) for values in (nll, right))

    def cut(self, length: int, rot: rotary.Rotary) -> np.ndarray:
        """Loss [1, n] of the test windows read in pieces of L tokens: no extension at all."""
        sequences = self.bench.sequences("text", length, test=True)
        means, sizes = [], []
        for start in range(0, length, self.bench.config.study.length):
            part = slice(start, start + self.bench.config.study.length)
            tokens = sequences.tokens[:, part.start : part.stop + 1]
            piece = Sequences(tokens, sequences.weights[:, part], sequences.documents)
            means.append(self.score(rot, piece)[0])
            sizes.append(piece.weights.shape[1])
        return np.average(means, axis=0, weights=sizes)[None]


def tokens_scored(bench: Workbench, factor: float) -> int:
    """Tokens that `measure` scores at one target."""
    rows = len(methods_without_search(bench, bench.target(factor))) + 4 + 3 * _seeds(bench)
    T = bench.target(factor).seq_len
    return rows * T * sum(len(bench.sequences(k, T, test=True).tokens) for k in ("text", "needle"))


def _seeds(bench: Workbench) -> int:
    return bench.config.evolution.seeds
