"""What can be measured about one finding: yes/no answers, the measures by name, their values under resampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from monitor.cohorts import Cohort
from monitor.intervals import Estimate, Floats, Form, replicate
from monitor.tasks import TASKS

THRESHOLD = 0.5
BINS = 10


class Basis(StrEnum):
    """Which studies carry a figure."""

    EVERYONE = "everyone"
    LABELLED = "labelled"
    POSITIVE = "positive"
    NEGATIVE = "negative"
    BOTH = "both"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answers:
    """What was said about one finding, and what was true.

    ``scores`` (n,); ``said`` (n,) 1 where the model says yes; ``labels`` (n,) 1, 0 or NaN, or (b, n)
    probabilities that differ among resamples; ``patients`` (n,) column of each study's patient in
    the bootstrap's counts.
    """

    finding: str
    scores: Floats
    said: Floats
    labels: Floats
    patients: NDArray[np.intp]

    def select(self, rows: NDArray[np.bool_]) -> Answers:
        """Keep the marked studies."""
        return replace(
            self,
            scores=self.scores[rows],
            said=self.said[rows],
            labels=self.labels[rows],
            patients=self.patients[rows],
        )

    def carrying(self, basis: Basis) -> Answers:
        """Keep the studies that a figure of this basis rests on (both classes: all labelled ones)."""
        if basis is Basis.EVERYONE:
            return self
        if basis in (Basis.POSITIVE, Basis.NEGATIVE):
            return self.select(self.labels == (1 if basis is Basis.POSITIVE else 0))
        return self.select(~np.isnan(self.labels))

    def count_patients(self) -> int:
        """Count distinct patients."""
        return len(np.unique(self.patients))


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One figure: how it is computed from answers and weights (b, n), and how its interval is formed.

    ``parts`` (b, parts) are given where the figure is the sum of their absolute values.
    """

    compute: Callable[[Answers, Floats], Floats]
    form: Form
    basis: Basis
    parts: Callable[[Answers, Floats], Floats] | None = None


def answers_of(cohort: Cohort, patients: NDArray[np.intp] | None = None) -> tuple[Answers, ...]:
    """Turn a cohort into yes/no answers, one a finding.

    Yes is a probability of at least 0.5; where scores sum to one it is the most probable class
    (the first of equals), because a model that must choose one chooses that one.
    """
    if TASKS[cohort.task].scores_sum_to_one:
        said = np.arange(cohort.scores.shape[1]) == cohort.scores.argmax(axis=1)[:, None]
    else:
        said = cohort.scores >= THRESHOLD
    labels, index = cohort.binary_labels(), cohort.patient_index if patients is None else patients
    return tuple(
        Answers(
            finding=finding,
            scores=cohort.scores[:, column],
            said=said[:, column].astype(np.float64),
            labels=labels[:, column],
            patients=index,
        )
        for column, finding in enumerate(cohort.findings)
    )


def fast_auroc(scores: Floats, labels: Floats, weights: Floats | None = None) -> Floats:
    """Measure the AUROC under many weightings at once; shape (b,), NaN where a class has no weight.

    ``scores`` (n,); ``labels`` (n,) or (b, n), 0 or 1, or probabilities of 1; ``weights`` (b, n), ones
    if left out. Mann-Whitney's statistic, ties counted half; a study is never compared with itself,
    so that probabilities give the expected area.
    """
    weights = np.ones((1, len(scores))) if weights is None else weights
    if not len(scores):
        return np.full(len(weights), np.nan)
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf) > 0)
    heavy, truth = weights[:, order], labels[..., order]
    yes = heavy * truth
    no = heavy - yes
    alone = np.einsum("bn,bn->b", yes, no)
    yes, no = np.add.reduceat(yes, starts, axis=1), np.add.reduceat(no, starts, axis=1)
    wins = np.einsum("bn,bn->b", yes, np.cumsum(no, axis=1) - no / 2)
    return _divide(wins - alone / 2, yes.sum(axis=1) * no.sum(axis=1) - alone)


def fast_average_precision(scores: Floats, labels: Floats, weights: Floats | None = None) -> Floats:
    """Measure average precision under many weightings at once; shape (b,), NaN without weight on a positive.

    Arguments as for ``fast_auroc``. The step-wise sum over distinct scores, without interpolation, as scikit-learn's.
    """
    weights = np.ones((1, len(scores))) if weights is None else weights
    if not len(scores):
        return np.full(len(weights), np.nan)
    order = np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=np.inf) < 0)
    heavy = weights[:, order]
    gained = np.add.reduceat(heavy * labels[..., order], starts, axis=1)
    called = np.cumsum(np.add.reduceat(heavy, starts, axis=1), axis=1)
    precision = _divide(np.cumsum(gained, axis=1), called)
    return _divide(np.einsum("bn,bn->b", gained, np.nan_to_num(precision)), gained.sum(axis=1))


def calibration_error(scores: Floats, labels: Floats, weights: Floats | None = None) -> Floats:
    """Measure the expected calibration error over ten bins of equal width; shape (b,).

    Arguments as for ``fast_auroc``. Bins are [0, 0.1), …, [0.9, 1] (Guo et al. 2017): the weighted mean
    distance between what was said and what was true in each.
    """
    weights = np.ones((1, len(scores))) if weights is None else weights
    return np.asarray(np.abs(calibration_offsets(scores, labels, weights)).sum(axis=1))


def calibration_offsets(scores: Floats, labels: Floats, weights: Floats) -> Floats:
    """Measure by how much each bin says too much, as a share of all studies; shape (b, bins)."""
    bins = np.minimum((scores * BINS).astype(np.intp), BINS - 1)
    member = (bins[:, None] == np.arange(BINS)).astype(np.float64)
    off = np.stack([_total(weights, (scores - labels) * column) for column in member.T], axis=1)
    return _divide(off, np.broadcast_to(weights.sum(axis=1, keepdims=True), off.shape))


MEASURES: dict[str, Measure] = {
    "auroc": Measure(
        compute=lambda a, w: fast_auroc(a.scores, a.labels, w),
        form=Form.LOGIT,
        basis=Basis.BOTH,
    ),
    "sensitivity": Measure(
        compute=lambda a, w: _divide(_total(w, a.labels * a.said), _total(w, a.labels)),
        form=Form.WILSON,
        basis=Basis.POSITIVE,
    ),
    "specificity": Measure(
        compute=lambda a, w: _divide(_total(w, (1 - a.labels) * (1 - a.said)), _total(w, 1 - a.labels)),
        form=Form.WILSON,
        basis=Basis.NEGATIVE,
    ),
    "accuracy": Measure(
        compute=lambda a, w: _divide(_total(w, a.labels * a.said + (1 - a.labels) * (1 - a.said)), w.sum(axis=1)),
        form=Form.WILSON,
        basis=Basis.LABELLED,
    ),
    "average_precision": Measure(
        compute=lambda a, w: fast_average_precision(a.scores, a.labels, w),
        form=Form.LOGIT,
        basis=Basis.BOTH,
    ),
    "brier": Measure(
        compute=lambda a, w: _divide(
            _total(w, a.labels * (1 - a.scores) ** 2 + (1 - a.labels) * a.scores**2), w.sum(axis=1)
        ),
        form=Form.LOG,
        basis=Basis.LABELLED,
    ),
    "ece": Measure(
        compute=lambda a, w: calibration_error(a.scores, a.labels, w),
        form=Form.DISTANCE,
        basis=Basis.LABELLED,
        parts=lambda a, w: calibration_offsets(a.scores, a.labels, w),
    ),
    "selection_rate": Measure(
        compute=lambda a, w: _divide(_total(w, a.said), w.sum(axis=1)),
        form=Form.WILSON,
        basis=Basis.EVERYONE,
    ),
}
"""What can be said about one finding, by name; all but ``selection_rate`` need labels."""


def estimate(answers: Answers, names: Sequence[str], counts: Floats) -> dict[str, Estimate]:
    """Compute the named measures of one finding and their values under each resample of patients (b, patients)."""
    found: dict[str, Estimate] = {}
    for everyone in (True, False):
        wanted = [name for name in names if (MEASURES[name].basis is Basis.EVERYONE) is everyone]
        part = answers if everyone else answers.carrying(Basis.LABELLED)
        if not wanted:
            continue
        replicates = replicate(compute_all(part, wanted), counts, part.patients)
        values = compute_all(part, wanted)(np.ones((1, len(part.scores))))[0]
        for column, name in enumerate(wanted):
            figure = _estimate(name, part, float(values[column]), replicates[:, column])
            found[name] = replace(figure, distances=_distances(MEASURES[name], part, counts))
    return {name: found[name] for name in names}


def compute_all(answers: Answers, names: Sequence[str]) -> Callable[[Floats], Floats]:
    """Give the function of weights (b, n) that computes the named measures; its result is (b, names)."""
    return lambda weights: np.stack([MEASURES[name].compute(answers, weights) for name in names], axis=1)


def explain_missing(answers: Answers, basis: Basis) -> str:
    """Say why a figure of this basis does not exist for these answers; empty if it does."""
    studies = answers.carrying(Basis.LABELLED) if basis is not Basis.EVERYONE else answers
    if not len(studies.scores):
        return "no study" if basis is Basis.EVERYONE else "no labelled study"
    positive, negative = (len(studies.carrying(side).scores) for side in (Basis.POSITIVE, Basis.NEGATIVE))
    if basis in (Basis.POSITIVE, Basis.BOTH) and not positive:
        return f"single class: no labelled study has {answers.finding}"
    if basis in (Basis.NEGATIVE, Basis.BOTH) and not negative:
        return f"single class: every labelled study has {answers.finding}"
    return ""


def _estimate(name: str, answers: Answers, value: float, replicates: Floats) -> Estimate:
    measure = MEASURES[name]
    reason = explain_missing(answers, measure.basis)
    carrying = answers.carrying(measure.basis)
    patients, informative = _independent(answers, name)
    return Estimate(
        value=None if reason else value,
        replicates=replicates,
        form=measure.form,
        studies=len(carrying.scores),
        patients=patients,
        informative=informative,
        reason=reason,
    )


def _independent(answers: Answers, name: str) -> tuple[int, float]:
    """Count the patients that limit a figure, and the yes/no answers it is worth at 0 or 1.

    For an area that is Hanley and McNeil's variance (1982) at the bound, with patients as units.
    """
    basis = MEASURES[name].basis
    if basis is not Basis.BOTH:
        patients = answers.carrying(basis).count_patients()
        return patients, float(patients)
    yes, no = (answers.carrying(side).count_patients() for side in (Basis.POSITIVE, Basis.NEGATIVE))
    fewest = min(yes, no)
    return fewest, yes * no / (1 + (yes + no - 2) / 4) if name == "auroc" and fewest else float(yes)


def _distances(measure: Measure, answers: Answers, counts: Floats) -> Floats | None:
    if measure.parts is None or not len(answers.scores):
        return None
    parts = measure.parts
    measured = parts(answers, np.ones((1, len(answers.scores))))
    resampled = replicate(lambda weights: parts(answers, weights), counts, answers.patients)
    return np.asarray(np.abs(resampled - measured).sum(axis=1))


def _total(weights: Floats, values: Floats) -> Floats:
    return weights @ values if values.ndim == 1 else np.einsum("bn,bn->b", weights, values)


def _divide(over: Floats, under: Floats) -> Floats:
    return np.divide(over, under, out=np.full_like(over, np.nan), where=under > 0)
