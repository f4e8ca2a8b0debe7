"""What a comparison yields: verdicts, drift results, evaluations, gaps and harm."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from monitor.cohorts import Window


class Verdict(StrEnum):
    """The answer of a comparison; NOT_ENOUGH_DATA is an answer of its own, never a False."""

    DRIFT = "DRIFT"
    NO_DRIFT = "NO_DRIFT"
    NOT_ENOUGH_DATA = "NOT_ENOUGH_DATA"


class NotEnoughData(ValueError):
    """The data cannot carry a verdict; the message says why, with the n."""


class DriftKind(StrEnum):
    """What kind of thing changed."""

    APPEARANCE = "appearance"
    ACQUISITION = "acquisition"
    CASE_MIX = "case-mix"
    BEHAVIOUR = "behaviour"
    CONCEPT = "concept"


class Source(StrEnum):
    """Where a performance figure comes from."""

    REALISED = "realised"
    ESTIMATED = "estimated"


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftResult:
    """One measured comparison of a reference with a window.

    ``effect`` is the effect size named by ``effect_name`` (0 means no change). ``p_value`` and
    ``statistic`` are None exactly when the verdict is NOT_ENOUGH_DATA. ``threshold`` is the
    p-value at or under which DRIFT is said, after correction over the whole window, and ``least_effect`` the effect
    that DRIFT needs as well, so that a huge n does not make a trifle an alarm. Counts are None only where they were
    taken away to protect a small cell.
    """

    window: Window
    detector: str
    kind: DriftKind
    feature: str
    verdict: Verdict
    statistic: float | None
    effect: float | None
    effect_name: str
    p_value: float | None
    threshold: float
    n_reference: int | None
    n_current: int | None
    patients_reference: int | None
    patients_current: int | None
    reason: str
    least_effect: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One figure with its interval; ``value`` is None with a ``reason`` where it is undefined.

    ``n`` is None only where it was taken away to protect a small cell.
    """

    name: str
    finding: str
    value: float | None
    low: float | None
    high: float | None
    level: float
    n: int | None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Performance of one model version on one cohort."""

    model_version: str
    cohort: str
    source: Source
    n: int
    patients: int
    n_labelled: int
    metrics: tuple[Metric, ...]

    def metric(self, name: str, finding: str | None = None) -> Metric:
        """Look up one metric by name (and finding, when there are several)."""
        for metric in self.metrics:
            if metric.name == name and finding in (None, metric.finding):
                return metric
        raise KeyError(f"no metric {name!r} of {finding!r} in the evaluation on {self.cohort}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SubgroupGap:
    """A subgroup's metric minus the same metric of everyone else, with its interval.

    ``reference_gap`` is the same gap in the reference; ``change`` is gap minus reference_gap with
    its own interval: fairness drift. None with a ``reason`` where a side is too small. ``parts`` are the
    attributes and values of an intersection (empty: ``attribute`` and ``value`` themselves). DRIFT is said
    where ``p_value`` of the change is at or under ``threshold``, after correction over all subgroups.
    ``n`` and ``patients`` are None only where they were ``suppressed`` to protect a small cell.
    """

    window: Window
    attribute: str
    value: str
    metric: str
    finding: str
    n: int | None
    patients: int | None
    inside: float | None
    outside: float | None
    gap: float | None
    low: float | None
    high: float | None
    reference_gap: float | None
    change: float | None
    change_low: float | None
    change_high: float | None
    level: float
    verdict: Verdict
    reason: str
    parts: tuple[tuple[str, str], ...] = ()
    p_value: float | None = None
    threshold: float | None = None
    suppressed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Harm:
    """Loss of performance against the reference: reference minus current, so that > 0 is worse.

    ``low`` and ``high`` bound this loss in the population at ``level``. ``sure`` says that there is a loss beyond
    chance over all losses measured in the window from the same source, and is the stricter for it. ``current_low``
    and ``current_high`` bound ``current``; of an estimate they say where the labels of the same studies will put it,
    and so are wider: a few labels scatter more than what they stand for. ``current_error`` is the standard error
    behind them, by sampling alone. ``past_error`` is the standard deviation of the estimator's earlier errors, which
    both intervals of an estimate contain; ``assumptions`` names what it rests on and that does not seem to hold.
    ``n`` is None only where it was taken away to protect a small cell.
    """

    window: Window
    metric: str
    finding: str
    source: Source
    reference: float | None
    current: float | None
    loss: float | None
    low: float | None
    high: float | None
    level: float
    sure: bool
    n: int | None
    reason: str
    past_error: float = 0.0
    assumptions: tuple[str, ...] = ()
    current_low: float | None = None
    current_high: float | None = None
    current_error: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """How much one attribute value carries of a drift: its share now minus its share before.

    ``shift`` is the mean score of a domain classifier inside the value, in reference standard deviations.
    ``carried`` is its part of the difference between both sides' mean scores; the parts of an attribute sum to 1.
    ``p_share`` tests the change of its share, ``p_within`` whether studies with this value look other than they
    did; ``beyond_chance`` is said of either, after correction over all values.
    ``n_current`` and the shares are None only where they were ``suppressed`` to protect a small cell.
    """

    window: Window
    attribute: str
    value: str
    n_current: int | None
    share_reference: float | None
    share_current: float | None
    shift: float | None
    carried: float | None = None
    p_share: float | None = None
    p_within: float | None = None
    beyond_chance: bool = False
    patients_reference: int | None = None
    patients_current: int | None = None
    suppressed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PrevalenceShift:
    """How frequent a finding is now, by what the model says of it; see ``monitor.label_shift``.

    ``reference`` and ``estimate`` are shares of studies, ``low`` and ``high`` bound the estimate at ``level``; None
    with a ``reason`` where it cannot be told. ``fits`` is a p-value of the assumption that every class looks as it
    did: small says that no mixture of the classes gives the scores seen.
    """

    window: Window
    finding: str
    reference: float | None
    estimate: float | None
    low: float | None
    high: float | None
    level: float
    n: int
    patients: int
    reason: str
    fits: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleStudy:
    """A study that shows a drift well, and the reference studies nearest to it by embedding, nearest first.

    ``score`` says how far it looks from the reference, in reference standard deviations of a classifier's scores.
    """

    study_uid: str
    score: float
    neighbours: tuple[str, ...]
    distances: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowReport:
    """Everything one visit measured in one window; ``verdict`` is the headline and ``reason`` says why.

    ``n_labelled`` counts the studies whose every label is known and may be measured by, ``n_labels`` the known labels
    of all findings, whether the figures rest on them or not.
    """

    model: str
    window: Window
    verdict: Verdict
    reason: str
    n: int
    patients: int
    n_labelled: int
    results: tuple[DriftResult, ...]
    evaluations: tuple[Evaluation, ...]
    gaps: tuple[SubgroupGap, ...]
    harms: tuple[Harm, ...]
    contributions: tuple[Contribution, ...]
    examples: tuple[ExampleStudy, ...] = ()
    prevalences: tuple[PrevalenceShift, ...] = ()
    n_labels: int = 0
