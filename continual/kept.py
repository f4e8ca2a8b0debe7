"""What an adaptation kept and what it lost: the figures, as they are stored with the run. Pure; no torch here.

Everything is measured on reference patients, from whom nothing is learned and who never meet the gate. Small cells
are taken out before a value of this file is made, so that it may be shown, printed and stored as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

from monitor.reliability import ReliabilityBin

DECAY = 0.5
"""How fast older stages lose weight in the retention, the default of the authors' own programme."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A figure with its interval over patients; None with a ``reason`` where it does not exist."""

    value: float | None
    low: float | None
    high: float | None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskMatrix:
    """One metric on every stage (columns) after every learning step (rows), averaged over the findings.

    ``values[i][j]`` is the figure on stage j after learning stage i, ``low`` and ``high`` its interval. None where it
    is undefined or was never measured, as for a champion whose early history nobody recorded.
    """

    metric: str
    values: tuple[tuple[float | None, ...], ...]
    low: tuple[tuple[float | None, ...], ...]
    high: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSummary:
    """A task-by-task matrix in four figures: see ``continual.forgetting`` for what each means."""

    metric: str
    average: Figure
    forgetting: Figure
    backward_transfer: Figure
    forward_transfer: Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One metric of champion and challenger on one stage; ``difference`` is challenger minus champion.

    ``finding`` is empty for the average over all of them; ``attribute`` and ``value`` name a subgroup and are empty
    for everyone. ``studies`` and ``patients`` count the labelled ones, None where their number may not be told;
    ``suppressed`` says so.
    """

    stage: str
    metric: str
    finding: str
    attribute: str
    value: str
    champion: float | None
    challenger: float | None
    difference: float | None
    low: float | None
    high: float | None
    studies: int | None
    patients: int | None
    suppressed: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flips:
    """The share of answers that turned wrong (``negative``) and right (``positive``) on one stage or subgroup of it.

    A multi-class study has one answer, a multi-label study one a finding. ``positive`` minus ``negative`` is the
    change of the accuracy. Yan et al., Positive-Congruent Training, CVPR 2021.
    """

    stage: str
    attribute: str
    value: str
    negative: Figure
    positive: Figure
    studies: int | None
    patients: int | None
    suppressed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """How often scores came true on one stage, before (champion) and after (challenger)."""

    stage: str
    before: tuple[ReliabilityBin, ...]
    after: tuple[ReliabilityBin, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningTriple:
    """Learning, potential and retention of one modification, as areas under the ROC curve.

    With S(M, D) the AUROC of model M on stage D, M' the model before and D' the stage before: ``learning`` is
    S(M, D) - S(M', D), what the modification gained on the new data; ``potential`` is S(M', D') - S(M', D), what
    the change of the data had cost, and so what there was to gain; ``retention`` is the average of S(M, ·) over all
    earlier stages, a stage t steps back weighing exp(-decay · t). ``retained_before`` is the same average
    for M', and ``retention_change`` how far ``retention`` lies above it.

    Burgon, Sahiner, Petrick, Pennello and Samala, Learning, Potential, and Retention: An Approach for Evaluating
    Adaptive AI-Enabled Medical Devices, arXiv:2604.04878, 2026; the weights add up to 1 as in the authors'
    VIGILANT, which calls its decay of 0.5 provisional.
    """

    learning: Figure
    potential: Figure
    retention: Figure
    retained_before: Figure
    retention_change: Figure
    decay: float = DECAY


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptAndLost:
    """Champion against challenger on the reference patients of every stage, the oldest first, the new one last.

    ``level`` is that of all intervals. ``changes`` and ``flips`` give everyone first, then each subgroup.
    """

    stages: tuple[str, ...]
    level: float
    matrices: tuple[TaskMatrix, ...]
    summaries: tuple[StreamSummary, ...]
    changes: tuple[Change, ...]
    flips: tuple[Flips, ...]
    reliability: tuple[Reliability, ...]
    triple: LearningTriple

    def matrix(self, metric: str) -> TaskMatrix | None:
        """Give the matrix of a metric, None if it was not measured."""
        return next((matrix for matrix in self.matrices if matrix.metric == metric), None)

    def change(self, stage: str, metric: str) -> Change | None:
        """Give the change of a metric on a stage, for everyone and over all findings."""
        named = (stage, metric, "", "", "")
        found = (c for c in self.changes if (c.stage, c.metric, c.finding, c.attribute, c.value) == named)
        return next(found, None)
