"""The reliability diagram: how often the finding is there among studies with about the same score."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from monitor.calibration import bin_by_mass
from monitor.cohorts import Cohort
from monitor.intervals import Floats, draw_patients
from monitor.measures import Answers, Basis, answers_of, estimate
from monitor.policies import DriftPolicy

Rows = NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReliabilityBin:
    """Studies of one finding with about the same score: what was said and what was true.

    ``said`` is their mean score and ``seen`` the share that has the finding, with its interval over patients.
    """

    finding: str
    said: float
    seen: float
    low: float | None
    high: float | None
    studies: int
    patients: int


def bin_reliability(cohort: Cohort, *, policy: DriftPolicy, generator: Generator) -> tuple[ReliabilityBin, ...]:
    """Cut the labelled studies of each finding into at most ten bins of about equal numbers, in order of the score.

    Neighbours are joined until every bin holds ``policy.smallest_cell`` patients, so that no small cell is shown and
    none follows from the others. Empty for a finding of which fewer patients are labelled. Equal-mass bins are those
    of the debiased calibration error (Kumar, Liang and Ma 2019); intervals are Wilson's over patients.
    """
    counts = draw_patients(np.zeros(cohort.patients, dtype=np.intp), policy.resamples, generator)
    return tuple(
        _describe(answers, rows, counts, policy.level)
        for answers in (one.carrying(Basis.LABELLED) for one in answers_of(cohort))
        for rows in _join_small(answers, policy.smallest_cell)
    )


def _join_small(answers: Answers, smallest: int) -> Iterator[Rows]:
    """Give the rows of each bin, small ones joined with the next, the last with the one before."""
    bins = bin_by_mass(answers.scores)
    joined: list[Rows] = []
    rest = np.empty(0, dtype=np.intp)
    for place in np.unique(bins):
        rest = np.concatenate([rest, np.flatnonzero(bins == place)])
        if _count(answers, rest) >= smallest:
            joined.append(rest)
            rest = rest[:0]
    if joined and len(rest):
        joined[-1] = np.concatenate([joined[-1], rest])
    yield from joined


def _count(answers: Answers, rows: Rows) -> int:
    return len(np.unique(answers.patients[rows]))


def _describe(answers: Answers, rows: Rows, counts: Floats, level: float) -> ReliabilityBin:
    mask = np.isin(np.arange(len(answers.scores)), rows)
    mine = answers.select(mask)
    has_it = Answers(
        finding=mine.finding, scores=mine.scores, said=mine.labels, labels=mine.labels, patients=mine.patients
    )
    share = estimate(has_it, ("selection_rate",), counts)["selection_rate"]
    low, high = share.interval(level)
    return ReliabilityBin(
        finding=answers.finding,
        said=float(mine.scores.mean()),
        seen=float(mine.labels.mean()),
        low=low,
        high=high,
        studies=len(rows),
        patients=share.patients,
    )
