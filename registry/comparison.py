"""Champion against challenger on one held-out cohort: paired, with the patient as the unit.

Both models answer the same studies, and both are measured on the same resamples of patients, so that
what they share cancels. The bootstrap gives the standard error of the paired difference on a scale
that knows the bounds (logit for areas and rates, log for errors), with Student's t at the patients
of the rarer class. Percentiles of the resampled differences are not used: near an AUROC of 1 their
2.5 % one-sided test errs in 5 to 11 % of the cases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata, t

from monitor.cohorts import check_thresholds
from monitor.intervals import Difference, Estimate, Floats, draw_patients
from monitor.measures import MEASURES, Answers, estimate, say_yes
from monitor.paired import average_estimates, bound_change
from monitor.tasks import Task
from registry.decisions import GatePolicy

KINDS = ("old", "new")
DECIDING = ("auroc", "average_precision", "sensitivity", "specificity", "accuracy")
"""Metrics that may decide: larger is better."""

AT_THRESHOLD = ("sensitivity", "specificity", "accuracy", "balanced_accuracy", "selection_rate")
"""Metrics of the answer, yes or no."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeldOutScores:
    """What champion and challenger say about one locked cohort.

    ``kind`` is "old" or "new" for the change in question. ``labels``, ``champion`` and ``challenger``
    have shape (n, findings): 0 or 1, and scores in [0, 1]; ``patients`` (n,); each subgroup column (n,)
    holds the attribute's value; ``digest`` is that of the lock. ``findings`` names the columns. The thresholds are
    those of either model, one a finding; empty: 0.5. ``same_network`` says that the challenger is the champion with
    other outputs: where both then order (or answer) every study alike, they do so by construction and not by luck.

    Raises:
        ValueError: a wrong shape, an unknown label or a score outside [0, 1].
    """

    name: str
    kind: str
    digest: str
    labels: Floats
    champion: Floats
    challenger: Floats
    patients: NDArray[np.str_]
    subgroups: Mapping[str, NDArray[np.str_]] = field(default_factory=dict)
    findings: tuple[str, ...] = ()
    task: Task = Task.BINARY
    champion_thresholds: tuple[float, ...] = ()
    challenger_thresholds: tuple[float, ...] = ()
    same_network: bool = False

    def __post_init__(self) -> None:
        for thresholds in (self.champion_thresholds, self.challenger_thresholds):
            check_thresholds(self.task, thresholds, self.labels.shape[1] if self.labels.ndim == 2 else 0)
        if self.kind not in KINDS:
            raise ValueError(f"a held-out cohort is one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.labels.ndim != 2 or self.labels.shape[1] < 1:
            raise ValueError(f"labels must have shape (n, findings), got {self.labels.shape}")
        for name in ("champion", "challenger"):
            scores = getattr(self, name)
            if scores.shape != self.labels.shape:
                raise ValueError(f"{name} scores must have the shape of the labels {self.labels.shape}: {scores.shape}")
            if not np.all((scores >= 0) & (scores <= 1)):
                raise ValueError(f"{name} scores must be finite and in [0, 1]")
        for name, column in {"patients": self.patients, **self.subgroups}.items():
            if column.shape != (len(self.labels),):
                raise ValueError(f"{name} must have shape ({len(self.labels)},), got {column.shape}")
        if not np.isin(self.labels, (0, 1)).all():
            raise ValueError("labels must all be 0 or 1; leave unlabelled studies out before the cohort is locked")
        if self.findings and len(self.findings) != self.labels.shape[1]:
            raise ValueError(f"{self.labels.shape[1]} findings need as many names, got {self.findings}")

    @property
    def columns(self) -> tuple[str, ...]:
        """Name the findings; unnamed ones by their number."""
        return self.findings or tuple(f"finding {column + 1}" for column in range(self.labels.shape[1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One metric of both models on one cohort; ``difference`` is challenger minus champion.

    ``low`` and ``high`` bound the difference at a two-sided level. Figures are None with a ``reason``
    where there are too few patients. ``patients`` counts everyone, ``patients_with`` and
    ``patients_without`` those with and without the finding (of several findings: of the scarcest).
    """

    cohort: str
    metric: str
    finding: str
    champion: float | None
    challenger: float | None
    difference: float | None
    low: float | None
    high: float | None
    patients: int
    patients_with: int
    patients_without: int
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """Both models' estimates of one figure over the same resamples; ``alike``: they say the same of every study."""

    champion: Estimate
    challenger: Estimate
    alike: bool = False

    @property
    def difference(self) -> float:
        """Challenger minus champion, both defined."""
        if self.alike:
            return 0.0
        return float((self.challenger.value or 0.0) - (self.champion.value or 0.0))

    def interval(self, level: float) -> tuple[float, float]:
        """Bound the difference at a two-sided level (``monitor.paired.bound_change``).

        A treatment that changes no answer differs by exactly 0. Where a figure sits at 0 or 1 a bootstrap sees no
        spread, and the bounds are recovered from both sides' Wilson intervals instead (MOVER; Zou 2007).
        """
        a, b = self.champion.value, self.challenger.value
        if self.alike and a is not None:
            return 0.0, 0.0
        if a is None or b is None or not (0 < a < 1 and 0 < b < 1):
            low, high = Difference(first=self.challenger, second=self.champion).interval(level)
        else:
            low, high = bound_change(self.champion, self.challenger, level)
        return (-np.inf if low is None else low), (np.inf if high is None else high)


def compare(held_out: HeldOutScores, metric: str, *, policy: GatePolicy, finding: str | None = None) -> Comparison:
    """Compare both models by one metric of ``MEASURES``, for one finding or averaged over all.

    The resamples depend on the policy's seed and the cohort's digest alone, so that every comparison
    on a cohort, today or in an audit, sees the same ones.
    """
    columns = tuple(range(len(held_out.columns))) if finding is None else (held_out.columns.index(finding),)
    everyone = np.ones(len(held_out.labels), dtype=np.bool_)
    patients, with_it, without_it = count_patients(held_out, everyone, columns)
    comparison = Comparison(
        cohort=held_out.name,
        metric=metric,
        finding=finding or ", ".join(held_out.columns),
        champion=None,
        challenger=None,
        difference=None,
        low=None,
        high=None,
        patients=patients,
        patients_with=with_it,
        patients_without=without_it,
        reason=explain_shortage(held_out, everyone, policy, columns),
    )
    if comparison.reason:
        return comparison
    paired = measure_both(held_out, metric, everyone, draw_counts(held_out, policy), columns=columns)
    low, high = paired.interval(policy.level)
    if not (np.isfinite(low) and np.isfinite(high)):
        return replace(comparison, reason=f"{with_it} patients with and {without_it} without it give no interval")
    return replace(
        comparison,
        champion=paired.champion.value,
        challenger=paired.challenger.value,
        difference=paired.difference,
        low=low,
        high=high,
    )


def draw_counts(held_out: HeldOutScores, policy: GatePolicy) -> Floats:
    """Draw how often each patient of the cohort stands in each resample; shape (resamples, patients)."""
    generator = np.random.default_rng([policy.seed, *held_out.digest.encode()])
    return draw_patients(np.zeros(len(np.unique(held_out.patients)), dtype=np.intp), policy.resamples, generator)


def measure_both(
    held_out: HeldOutScores,
    metric: str,
    rows: NDArray[np.bool_],
    counts: Floats,
    *,
    columns: Sequence[int] | None = None,
) -> Paired:
    """Measure both models on the marked studies over the same resamples, averaged over the findings."""
    columns = range(held_out.labels.shape[1]) if columns is None else columns
    both = [
        _answers(held_out, scores, thresholds, rows, columns)
        for scores, thresholds in (
            (held_out.champion, held_out.champion_thresholds),
            (held_out.challenger, held_out.challenger_thresholds),
        )
    ]
    sides = [average_estimates([estimate(answers, [metric], counts)[metric] for answers in one]) for one in both]
    alike = held_out.same_network and all(
        _says_the_same(first, second, metric) for first, second in zip(both[0], both[1], strict=True)
    )
    return Paired(champion=sides[0], challenger=sides[1], alike=alike)


def _says_the_same(first: Answers, second: Answers, metric: str) -> bool:
    """Tell whether two models cannot differ in a measure: they rank alike, answer alike, or score alike."""
    if MEASURES[metric].rank:
        return bool(np.array_equal(rankdata(first.scores), rankdata(second.scores)))
    if metric in AT_THRESHOLD:
        return bool(np.array_equal(first.said, second.said))
    return bool(np.array_equal(first.scores, second.scores))


def count_patients(
    held_out: HeldOutScores, rows: NDArray[np.bool_], columns: Sequence[int] | None = None
) -> tuple[int, int, int]:
    """Count the patients of the marked studies: all, with and without the finding (of several: the fewest)."""
    everyone = np.unique(held_out.patients[rows])
    columns = range(held_out.labels.shape[1]) if columns is None else columns
    positive = [len(np.unique(held_out.patients[rows & (held_out.labels[:, column] == 1)])) for column in columns]
    return len(everyone), min(positive), min(len(everyone) - count for count in positive)


def explain_shortage(
    held_out: HeldOutScores, rows: NDArray[np.bool_], policy: GatePolicy, columns: Sequence[int] | None = None
) -> str:
    """Say what is missing before the marked studies can be judged, with the n; empty if nothing is."""
    patients, with_it, without_it = count_patients(held_out, rows, columns)
    if patients >= policy.minimum_patients and min(with_it, without_it) >= policy.minimum_each_class:
        return ""
    return (
        f"{patients} patients, {with_it} with and {without_it} without the finding; needed are "
        f"{policy.minimum_patients}, and {policy.minimum_each_class} with and without"
    )


def _answers(
    held_out: HeldOutScores,
    scores: Floats,
    thresholds: tuple[float, ...],
    rows: NDArray[np.bool_],
    columns: Sequence[int],
) -> tuple[Answers, ...]:
    patients = np.unique(held_out.patients, return_inverse=True)[1]
    said = say_yes(scores, held_out.task, thresholds)
    return tuple(
        Answers(
            finding=held_out.columns[column],
            scores=scores[rows, column],
            said=said[rows, column].astype(np.float64),
            labels=held_out.labels[rows, column],
            patients=patients[rows],
        )
        for column in columns
    )


def _quantile(figure: Estimate, level: float) -> float:
    return float(t.ppf(0.5 + level / 2, max(figure.patients - 1, 1)))


def check_metric(metric: str) -> None:
    """Refuse a metric that cannot decide."""
    if metric not in DECIDING or metric not in MEASURES:
        raise ValueError(f"the gate decides by one of {', '.join(DECIDING)}, got {metric!r}")
