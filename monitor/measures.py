"""What can be measured about one finding: yes/no answers, the measures by name, their values under resampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from monitor.calibration import (
    BINS,
    bin_by_mass,
    bin_by_width,
    brier_terms,
    calibrate_in_the_large,
    debiased_calibration_error,
    recalibrate,
    split_brier,
    spread_over_bins,
)
from monitor.cohorts import Cohort
from monitor.delong import delong_error, hanley_mcneil
from monitor.intervals import Estimate, Floats, Form, replicate, sum_by_patient
from monitor.tasks import TASKS, Task

THRESHOLD = 0.5
"""The score from which on a model says yes, where its version sets no other."""

RankStatistic = tuple[NDArray[np.intp], Callable[[Floats], Floats]]
"""An order of the studies, and a statistic (b,) of their weights (b, n) in that order."""


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

    ``scores`` (n,); ``said`` (n,) 1 where the model says yes; ``labels`` (n,) 1, 0 or NaN; ``patients``
    (n,) column of each study's patient in the bootstrap's counts.
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

    def marks(self, basis: Basis) -> NDArray[np.bool_]:
        """Mark the studies that a figure of this basis rests on (both classes: all labelled ones)."""
        if basis is Basis.EVERYONE:
            return np.ones(len(self.labels), dtype=np.bool_)
        if basis in (Basis.POSITIVE, Basis.NEGATIVE):
            return np.asarray(self.labels == (1 if basis is Basis.POSITIVE else 0))
        return ~np.isnan(self.labels)

    def carrying(self, basis: Basis) -> Answers:
        """Keep the studies that a figure of this basis rests on."""
        marked = self.marks(basis)
        return self if marked.all() else self.select(marked)

    def count_studies(self, basis: Basis) -> int:
        """Count the studies that a figure of this basis rests on."""
        return int(np.count_nonzero(self.marks(basis)))

    def count_patients(self, basis: Basis = Basis.EVERYONE) -> int:
        """Count the distinct patients that a figure of this basis rests on."""
        return int(np.count_nonzero(np.bincount(self.patients[self.marks(basis)])))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sums:
    """A figure that depends on weighted sums over studies: ``terms`` (n, k), ``combine`` from (b, k) to (b,).

    ``parts`` (b, k) to (b, parts) are given where the figure is their norm of that ``order``; a ``value``
    where the figure itself is not the combination of the unweighted sums.
    """

    terms: Floats
    combine: Callable[[Floats], Floats]
    parts: Callable[[Floats], Floats] | None = None
    order: int = 1
    value: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One figure: how its interval is formed, and how it is computed from answers.

    By ``sums``, so that a resample of patients costs one row of a matrix product; or, for a rank statistic,
    by ``rank`` from answers and weights (b, n).
    """

    form: Form
    basis: Basis
    sums: Callable[[Answers], Sums] | None = None
    rank: Callable[[Answers], RankStatistic] | None = None


def answers_of(cohort: Cohort, patients: NDArray[np.intp] | None = None) -> tuple[Answers, ...]:
    """Turn a cohort into yes/no answers, one a finding.

    Yes is a probability of at least the finding's threshold, 0.5 without one; see ``say_yes``.
    """
    said = say_yes(cohort.scores, cohort.task, cohort.thresholds)
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


def say_yes(scores: Floats, task: Task, thresholds: tuple[float, ...] = ()) -> NDArray[np.bool_]:
    """Tell where a model says yes; scores (n, findings), result (n, findings).

    Where scores sum to one it is the most probable class (the first of equals), because a model that must choose one
    chooses that one; elsewhere a score of at least the finding's threshold, 0.5 without one.
    """
    if TASKS[task].scores_sum_to_one:
        return np.asarray(np.arange(scores.shape[1]) == scores.argmax(axis=1)[:, None])
    return np.asarray(scores >= np.asarray(thresholds or THRESHOLD))


def fast_auroc(scores: Floats, labels: Floats, weights: Floats | None = None) -> Floats:
    """Measure the AUROC under many weightings at once; shape (b,), NaN where a class has no weight.

    ``scores`` (n,); ``labels`` (n,) of 0 and 1; ``weights`` (b, n), ones if left out. Mann-Whitney's
    statistic, ties counted half.
    """
    order, statistic = rank_auroc(scores, labels)
    return statistic(np.ones((1, len(scores))) if weights is None else weights[:, order])


def rank_auroc(scores: Floats, labels: Floats) -> RankStatistic:
    """Sort once for the AUROC: an order of the studies, and the statistic of weights (b, n) in that order."""
    negative, positive = np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)
    negative = negative[np.argsort(scores[negative])]
    ranked = scores[negative]
    lower, upto = (np.searchsorted(ranked, scores[positive], side=side) for side in ("left", "right"))
    tied, m = bool((lower != upto).any()), len(negative)

    def statistic(weights: Floats) -> Floats:
        below = np.zeros((len(weights), m + 1))
        np.cumsum(weights[:, :m], axis=1, out=below[:, 1:])
        beaten = (below[:, lower] + below[:, upto]) / 2 if tied else below[:, lower]
        yes = weights[:, m:]
        return _divide(np.einsum("bn,bn->b", yes, beaten), yes.sum(axis=1) * below[:, -1])

    return np.concatenate([negative, positive]), statistic


def rank_average_precision(scores: Floats, labels: Floats) -> RankStatistic:
    """Sort once for the average precision: an order of the studies, and the statistic of weights in that order."""
    order = np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=np.inf) < 0)
    truth = labels[order]

    def statistic(weights: Floats) -> Floats:
        if not len(starts):
            return np.full(len(weights), np.nan)
        gained = np.add.reduceat(weights * truth, starts, axis=1)
        called = np.cumsum(np.add.reduceat(weights, starts, axis=1), axis=1)
        precision = _divide(np.cumsum(gained, axis=1), called)
        return _divide(np.einsum("bn,bn->b", gained, np.nan_to_num(precision)), gained.sum(axis=1))

    return order, statistic


def rate_parts(answers: Answers, name: str) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
    """Give what a study adds to numerator and denominator of a rate, with the finding and then without it.

    Each (n,), or (1,) where it is the same for all studies.
    """
    said, scores, one, nothing = answers.said, answers.scores, np.ones(1), np.zeros(1)
    if name == "sensitivity":
        return (said, one), (nothing, nothing)
    if name == "specificity":
        return (nothing, nothing), (1 - said, one)
    if name == "selection_rate":
        return (said, one), (said, one)
    if name == "brier":
        return ((1 - scores) ** 2, one), (scores**2, one)
    return (said, one), (1 - said, one)


def _rate(name: str) -> Callable[[Answers], Sums]:
    def sums(answers: Answers) -> Sums:
        with_it, without = rate_parts(answers, name)
        has = np.nan_to_num(answers.labels)  # a rate that needs no label has the same parts with and without
        terms = [has * yes + (1 - has) * no for yes, no in zip(with_it, without, strict=True)]
        return Sums(terms=np.stack(terms, axis=1), combine=lambda totals: _divide(totals[:, 0], totals[:, 1]))

    return sums


def _balanced(answers: Answers) -> Sums:
    has, said = answers.labels, answers.said
    terms = np.stack([has * said, has, (1 - has) * (1 - said), 1 - has], axis=1)
    return Sums(
        terms=terms,
        combine=lambda t: np.asarray((_divide(t[:, 0], t[:, 1]) + _divide(t[:, 2], t[:, 3])) / 2),
    )


def _ece(answers: Answers) -> Sums:
    off = spread_over_bins(answers.scores - answers.labels, bin_by_width(answers.scores))

    def parts(totals: Floats) -> Floats:
        return _divide(totals[:, :-1], np.broadcast_to(totals[:, -1:], totals[:, :-1].shape))

    return Sums(
        terms=np.concatenate([off, np.ones((len(off), 1))], axis=1),
        combine=lambda totals: np.asarray(np.abs(parts(totals)).sum(axis=1)),
        parts=parts,
    )


def _ece_debiased(answers: Answers) -> Sums:
    scores, labels, bins = answers.scores, answers.labels, bin_by_mass(answers.scores)
    columns = [spread_over_bins(values, bins) for values in (scores - labels, np.ones_like(scores))]

    def parts(totals: Floats) -> Floats:
        off, n = totals[:, :BINS], totals[:, BINS:]
        return np.nan_to_num(_divide(off, np.sqrt(n * n.sum(axis=1, keepdims=True))))

    return Sums(
        terms=np.concatenate(columns, axis=1),
        combine=lambda totals: np.asarray(np.sqrt((parts(totals) ** 2).sum(axis=1))),
        parts=parts,
        order=2,
        value=debiased_calibration_error(scores, labels, answers.patients) if len(scores) else float("nan"),
    )


def _brier_part(part: int) -> Callable[[Answers], Sums]:
    return lambda answers: Sums(
        terms=brier_terms(answers.scores, answers.labels), combine=lambda totals: split_brier(totals)[part]
    )


def _slope(answers: Answers) -> Sums:
    fit = recalibrate(answers.scores, answers.labels)
    return (
        _linear(float("nan"), np.zeros(len(answers.scores)))
        if fit is None
        else _linear(fit.slope, fit.influences[:, 1])
    )


def _intercept(answers: Answers) -> Sums:
    if not len(answers.scores):
        return _linear(float("nan"), answers.scores)
    return _linear(*calibrate_in_the_large(answers.scores, answers.labels))


def _linear(value: float, influences: Floats) -> Sums:
    """Resample a fitted figure by the first-order effect of each study, which is what the sandwich variance does."""
    return Sums(terms=influences[:, None], combine=lambda totals: value + totals[:, 0], value=value)


MEASURES: dict[str, Measure] = {
    "auroc": Measure(form=Form.LOGIT, basis=Basis.BOTH, rank=lambda a: rank_auroc(a.scores, a.labels)),
    "sensitivity": Measure(form=Form.WILSON, basis=Basis.POSITIVE, sums=_rate("sensitivity")),
    "specificity": Measure(form=Form.WILSON, basis=Basis.NEGATIVE, sums=_rate("specificity")),
    "accuracy": Measure(form=Form.WILSON, basis=Basis.LABELLED, sums=_rate("accuracy")),
    "average_precision": Measure(
        form=Form.LOGIT, basis=Basis.BOTH, rank=lambda a: rank_average_precision(a.scores, a.labels)
    ),
    "brier": Measure(form=Form.LOG, basis=Basis.LABELLED, sums=_rate("brier")),
    "brier_reliability": Measure(form=Form.LOG, basis=Basis.LABELLED, sums=_brier_part(0)),
    "brier_resolution": Measure(form=Form.NORMAL, basis=Basis.LABELLED, sums=_brier_part(1)),
    "brier_uncertainty": Measure(form=Form.NORMAL, basis=Basis.LABELLED, sums=_brier_part(2)),
    "ece": Measure(form=Form.DISTANCE, basis=Basis.LABELLED, sums=_ece),
    "ece_debiased": Measure(form=Form.DISTANCE, basis=Basis.LABELLED, sums=_ece_debiased),
    "calibration_slope": Measure(form=Form.NORMAL, basis=Basis.BOTH, sums=_slope),
    "calibration_intercept": Measure(form=Form.NORMAL, basis=Basis.BOTH, sums=_intercept),
    "selection_rate": Measure(form=Form.WILSON, basis=Basis.EVERYONE, sums=_rate("selection_rate")),
    "balanced_accuracy": Measure(form=Form.LOGIT, basis=Basis.BOTH, sums=_balanced),
}
"""What can be said about one finding, by name; all but ``selection_rate`` need labels.

``ece`` is the common figure, ``ece_debiased`` the one without what chance adds. ``calibration_intercept`` is that
in the large, with the slope held at 1.
"""


def estimate(answers: Answers, names: Sequence[str], counts: Floats) -> dict[str, Estimate]:
    """Compute the named measures of one finding and their values under each resample of patients (b, patients)."""
    found: dict[str, Estimate] = {}
    for everyone in (True, False):
        wanted = [name for name in names if (MEASURES[name].basis is Basis.EVERYONE) is everyone]
        part = answers if everyone else answers.carrying(Basis.LABELLED)
        found |= _estimate_sums(part, [name for name in wanted if MEASURES[name].sums], counts)
        found |= {name: _estimate_rank(part, name, counts) for name in wanted if MEASURES[name].rank}
    return {name: found[name] for name in names}


def describe(answers: Answers, name: str, value: float) -> Estimate:
    """Set a figure beside what it rests on, or say why it does not exist; without any resampling yet."""
    measure = MEASURES[name]
    reason = explain_missing(answers, measure.basis)
    if not reason and np.isnan(value):
        reason = f"the score separates the studies with and without {answers.finding}"
    patients, informative = _independent(answers, name)
    return Estimate(
        value=None if reason else value,
        form=measure.form,
        studies=answers.count_studies(measure.basis),
        patients=patients,
        informative=informative,
        reason=reason,
    )


def explain_missing(answers: Answers, basis: Basis) -> str:
    """Say why a figure of this basis does not exist for these answers; empty if it does."""
    if not answers.count_studies(basis if basis is Basis.EVERYONE else Basis.LABELLED):
        return "no study" if basis is Basis.EVERYONE else "no labelled study"
    positive, negative = (answers.count_studies(side) for side in (Basis.POSITIVE, Basis.NEGATIVE))
    if basis in (Basis.POSITIVE, Basis.BOTH) and not positive:
        return f"single class: no labelled study has {answers.finding}"
    if basis in (Basis.NEGATIVE, Basis.BOTH) and not negative:
        return f"single class: every labelled study has {answers.finding}"
    return ""


def _estimate_sums(answers: Answers, names: Sequence[str], counts: Floats) -> dict[str, Estimate]:
    """Estimate all measures that are sums from one table a patient, so that counts are read once."""
    sums = [made for name in names if (made := MEASURES[name].sums)]
    prepared = [make(answers) for make in sums]
    if not prepared:
        return {}
    table = sum_by_patient(np.concatenate([one.terms for one in prepared], axis=1), answers.patients, counts.shape[1])
    present = np.unique(answers.patients)
    resampled = counts[:, present] @ table[present] if 4 * len(present) < len(table) else counts @ table
    totals = np.concatenate([table.sum(axis=0, keepdims=True), resampled])
    ends = np.cumsum([one.terms.shape[1] for one in prepared])
    return {
        name: _combine(answers, name, one, own)
        for name, one, own in zip(names, prepared, np.split(totals, ends[:-1], axis=1), strict=True)
    }


def _combine(answers: Answers, name: str, sums: Sums, totals: Floats) -> Estimate:
    """Make an estimate from totals (1 + b, k), the first row without resampling."""
    values = sums.combine(totals)
    distances = None
    if sums.parts is not None and len(answers.scores):
        parts = sums.parts(totals)
        distances = np.linalg.norm(parts[1:] - parts[0], ord=sums.order, axis=1)
    figure = describe(answers, name, float(values[0]) if sums.value is None else sums.value)
    return replace(figure, replicates=values[1:], distances=distances)


def _estimate_rank(answers: Answers, name: str, counts: Floats) -> Estimate:
    rank = MEASURES[name].rank
    assert rank is not None
    order, statistic = rank(answers)
    value = statistic(np.ones((1, len(order))))[0]
    return replace(
        describe(answers, name, float(value)),
        replicates=replicate(statistic, counts, answers.patients[order]),
        standard_error=delong_error(answers.scores, answers.labels, answers.patients) if name == "auroc" else None,
    )


def _independent(answers: Answers, name: str) -> tuple[int, float]:
    """Count the patients that limit a figure, and the yes/no answers it is worth at 0 or 1.

    For an area that is Hanley and McNeil's variance at the bound, with patients as units.
    """
    basis = MEASURES[name].basis
    if basis is not Basis.BOTH:
        patients = answers.count_patients(basis)
        return patients, float(patients)
    yes, no = (answers.count_patients(side) for side in (Basis.POSITIVE, Basis.NEGATIVE))
    fewest = min(yes, no)
    return fewest, hanley_mcneil(yes, no) if name == "auroc" else float(yes)


def _divide(over: Floats, under: Floats) -> Floats:
    return np.divide(over, under, out=np.full_like(over, np.nan), where=under > 0)
