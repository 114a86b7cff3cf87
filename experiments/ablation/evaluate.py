"""Everything that is measured of one run, as arrays per sample and document."""

import dataclasses
import json
import os
from pathlib import Path

import jax
import numpy as np

from experiments import report
from experiments.ablation import plan
from experiments.ablation.study import Study
from experiments.progress import StudyProgress
from longrope_jax import rotary
from longrope_jax.data.tasks import encode
from longrope_jax.evaluation import retrieval
from longrope_jax.evaluation.by_position import context_bins, nll_by_position, position_blocks
from longrope_jax.evaluation.scoring import chance_rouge_l

BINS_PER_DOUBLING = 2


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluator:
    """Measures parameters under one method, counting its work in the progress."""

    study: Study
    method: rotary.Method
    progress: StudyProgress

    def by_position(self, params, scale: float = 1.0, length: int | None = None) -> np.ndarray:
        """Loss [n, T] on the validation windows; T is twice the continued length by default.

        A method whose frequencies depend on the length is measured at the full T.
        """
        tokens = self.study.validation[0]
        tokens = tokens if length is None else tokens[:, : length + 1]
        T = tokens.shape[1] - 1
        with jax.set_mesh(self.study.mesh):
            nll = nll_by_position(
                self.study.model,
                params,
                self.rotary(T, scale),
                tokens,
                batch_size=self.study.batch(T),
            )
        self.count(tokens.size)
        return nll

    def rotary(self, length: int, scale: float = 1.0) -> rotary.Rotary:
        """The method for this length at a scale relative to its own."""
        f = self.method.frequencies(head_dim=self.study.model.head_dim, seq_len=length)
        return rotary.from_frequencies(rotary.rescale(f, scale), seq_len=length)

    def teacher_forced(self, params, task: str, length: int):
        """(all tokens right [samples], share of tokens right [samples])."""
        return self._teacher_forced(params, self.study.samples(task, length), length)

    def side(self, params, length: int, scale: float = 1.0, control: str = "none") -> np.ndarray:
        """Share of answer tokens right [generated], of FIRST-SENTENCE-RETRIEVAL."""
        samples = self.study.samples("first sentence", length, control)
        samples = samples.first(self.study.config.evaluation.generated)
        return self._teacher_forced(params, samples, length, scale)[1]

    def _teacher_forced(self, params, samples, length: int, scale: float = 1.0):
        with jax.set_mesh(self.study.mesh):
            exact, share = retrieval.teacher_forced(
                self.study.model,
                params,
                self.rotary(length, scale),
                samples,
                batch=self.study.batch(length),
            )
        self.count(samples.tokens.size)
        return exact, share

    def rouge(self, params, length: int, control: str = "none") -> np.ndarray:
        """ROUGE-L [generated] of greedy answers to FIRST-SENTENCE-RETRIEVAL."""
        samples = self.study.samples("first sentence", length, control)
        samples = samples.first(self.study.config.evaluation.generated)
        end = encode(self.study.tokenizer, self.study.first_sentence.end)
        with jax.set_mesh(self.study.mesh):
            found = retrieval.answers(
                self.study.model,
                params,
                self.rotary(length),
                samples,
                end=end,
                batch=self.study.batch(length),
            )
        self.count(samples.tokens.size)
        return retrieval.rouge_l_of_answers(found, samples, self.study.tokenizer.decode)

    def count(self, tokens: int) -> None:
        """Counts scored tokens as work done."""
        cost = plan.costs(self.study.config, self.study.model).evaluation
        self.progress.advance(cost * tokens, tokens)


def curve_hooks(study: Study, run: plan.Run, progress: StudyProgress) -> dict:
    """Measurements during the continuation, by step; each is a file, redone if it was cut off."""
    steps = study.config.continuation.steps
    evaluator = Evaluator(study, run.method, progress)
    full = plan.continued_length(study.config)

    def measure(state) -> None:
        nll = evaluator.by_position(state.params, length=full)
        share = evaluator.side(state.params, full)
        if study.writes:
            arrays = {"loss": nll.mean(1), "answer_tokens": share}
            save_arrays(_curve_path(study, run, int(state.step)), arrays)

    at = study.config.continuation.evaluate_at
    return {max(1, round(share * steps)): measure for share in at}


def _curve_path(study: Study, run: plan.Run, step: int) -> Path:
    return study.workdir / "runs" / run.slug / f"curve-{step}.npz"


def measure_pretrained(study: Study, params, progress: StudyProgress) -> dict:
    """What the pretrained model can do at its own length: the ceiling of every row."""
    evaluator = Evaluator(study, plan.pretraining_method(study.config), progress)
    length = study.config.length
    tested = {t: evaluator.teacher_forced(params, t, length) for t in ("first sentence", "passkey")}
    arrays = {"documents": study.samples("passkey", length).documents}
    for task, (exact, share) in tested.items():
        name = task.replace(" ", "_")
        arrays |= {f"{name}/exact": exact, f"{name}/answer_tokens": share}
    return arrays


def measure_untrained(study: Study, run: plan.Run, params, progress: StudyProgress) -> dict:
    """Before the continuation: loss by position, retrieval at the full length."""
    evaluator = Evaluator(study, run.method, progress)
    progress.describe(f"{run.row}, seed {run.seed}: untrained")
    full = plan.continued_length(study.config)
    share = evaluator.side(params, full)
    return _positions("untrained", evaluator.by_position(params)) | {
        "untrained/answer_tokens": share
    }


def measure(study: Study, run: plan.Run, params, progress: StudyProgress) -> dict:
    """After the continuation: all quantities of the tables and figures."""
    evaluator = Evaluator(study, run.method, progress)
    progress.describe(f"{run.row}, seed {run.seed}: evaluation")
    nll = evaluator.by_position(params)
    arrays = _positions("trained", nll) | {"documents": study.validation[1]}
    arrays |= _retrieval(study, evaluator, params)
    arrays |= _matrix(study, evaluator, params, nll)
    for step in curve_hooks(study, run, progress) if study.writes else ():
        with np.load(_curve_path(study, run, step)) as saved:
            arrays |= {f"curve/{step}/{name}": saved[name] for name in saved.files}
    return arrays


def _positions(stage: str, nll: np.ndarray) -> dict:
    T = nll.shape[1]
    points = int(np.log2(T) * BINS_PER_DOUBLING)
    edges = np.unique(np.geomspace(1, T // 2 + 1, points).astype(int))
    bins = context_bins(nll, edges)
    return {
        f"{stage}/blocks": position_blocks(nll, T // plan.BLOCKS),
        f"{stage}/bins": bins.nll,
        f"{stage}/bin_lengths": bins.lengths,
    }


def _retrieval(study: Study, evaluator: Evaluator, params) -> dict:
    lengths = plan.retrieval_lengths(study.config)
    tested = {
        task: [evaluator.teacher_forced(params, task, n) for n in lengths]
        for task in ("first sentence", "passkey")
    }
    full = study.samples("first sentence", lengths[-1])
    generated = study.config.evaluation.generated
    arrays = {
        "retrieval/lengths": np.asarray(lengths),
        "retrieval/documents": full.documents,
        "retrieval/rouge": np.stack([evaluator.rouge(params, n) for n in lengths]),
        "chance/rouge": _chance(study, full.first(generated)),
    }
    for task, results in tested.items():
        name = task.replace(" ", "_")
        arrays[f"{name}/exact"] = np.stack([exact for exact, _ in results])
        arrays[f"{name}/answer_tokens"] = np.stack([share for _, share in results])
    for control in ("removed", "other"):
        arrays[f"control/{control}/rouge"] = evaluator.rouge(params, lengths[-1], control)
        arrays[f"control/{control}/answer_tokens"] = evaluator.side(
            params, lengths[-1], control=control
        )
    return arrays


def _chance(study: Study, samples) -> np.ndarray:
    references = [study.tokenizer.decode(r) for r in samples.references()]
    return chance_rouge_l(references, samples.documents)


def _matrix(study: Study, evaluator: Evaluator, params, nll: np.ndarray) -> dict:
    full = plan.continued_length(study.config)
    losses, shares = [], []
    for scale in study.config.evaluation.scales:
        own = scale == 1
        at = nll[:, :full] if own else evaluator.by_position(params, scale, full)
        losses.append(at.mean(1))
        shares.append(evaluator.side(params, full, scale))
    return {"matrix/loss": np.stack(losses), "matrix/answer_tokens": np.stack(shares)}


def save_arrays(path: Path, arrays: dict) -> None:
    """Writes float32 arrays and the versions that made them to an npz, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp.npz")
    small = {k: v.astype(np.float32) if v.dtype.kind == "f" else v for k, v in arrays.items()}
    small["versions"] = np.asarray(json.dumps(report.versions()))
    np.savez_compressed(temporary, **{k: np.asarray(v) for k, v in small.items()})
    os.replace(temporary, path)
