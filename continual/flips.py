"""Which answers turned: right before and wrong now (negative flips), or wrong before and right now (positive). Pure.

Two models of the same accuracy may err on different studies; each negative flip is a reader's surprise.
Yan et al., Positive-Congruent Training: Towards Regression-Free Model Updates, CVPR 2021.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from monitor.intervals import Estimate, Floats, Form, sum_by_patient
from monitor.measures import Answers
from monitor.tasks import TASKS, Task


def right_answers(answers: Sequence[Answers], task: Task) -> Floats:
    """Mark answers that are right with 1, wrong with 0, unknown truth with NaN; shape (n, answers).

    ``answers`` are those of all findings. Where a model must choose one class, a study has one answer, right if that
    class is the true one; otherwise one a finding.
    """
    right = np.stack([np.where(np.isnan(one.labels), np.nan, one.said == one.labels) for one in answers], axis=1)
    return right.min(axis=1, keepdims=True) if TASKS[task].scores_sum_to_one else right


def measure_flips(
    before: Floats, after: Floats, patients: NDArray[np.intp], counts: Floats
) -> tuple[Estimate, Estimate]:
    """Measure the shares of answers that turned wrong and that turned right, under resampling of patients.

    ``before`` and ``after`` (n, answers) are as ``right_answers`` gives them; ``patients`` (n,) are columns of
    ``counts`` (b, patients).
    """
    known = ~np.isnan(before)
    turned = [(before == 1) & (after == 0), (before == 0) & (after == 1)]
    negative, positive = (share_of(np.where(known, marks, np.nan), patients, counts) for marks in turned)
    return negative, positive


def share_of(marks: Floats, patients: NDArray[np.intp], counts: Floats) -> Estimate:
    """Measure the share of answers (n, answers) that are marked 1, NaN left out, under resampling of patients."""
    known = ~np.isnan(marks)
    terms = np.stack([np.nansum(marks, axis=1), known.sum(axis=1)], axis=1).astype(np.float64)
    table = sum_by_patient(terms, patients, counts.shape[1])
    total, resampled = table.sum(axis=0), counts @ table
    some = known.any(axis=1)
    carrying = len(np.unique(patients[some]))
    with np.errstate(divide="ignore", invalid="ignore"):
        replicates = resampled[:, 0] / resampled[:, 1]
    return Estimate(
        value=float(total[0] / total[1]) if total[1] else None,
        form=Form.WILSON,
        studies=int(total[1]),
        patients=carrying,
        informative=float(carrying),
        replicates=replicates,
        reason="" if total[1] else "no labelled study",
    )
