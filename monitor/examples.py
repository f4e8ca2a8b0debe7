"""The studies that show a drift best, beside the reference studies they are nearest to."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from monitor.cohorts import Cohort
from monitor.domain_classifier import score_studies
from monitor.results import ExampleStudy

LEAST_PATIENTS = 10
NEIGHBOURS = 3
COPY = 0.05
"""A study nearer to a chosen one than this part of the usual distance shows nothing new."""


def show_examples(
    reference: Cohort, current: Cohort, *, most: int, generator: np.random.Generator
) -> tuple[ExampleStudy, ...]:
    """Choose the studies of a window that look least like the reference, the plainest first.

    The score is that of a linear classifier learned on other patients (``monitor.domain_classifier``), in standard
    deviations of the reference. At most one study a patient, none that is nearly a copy of one chosen before, each
    with its nearest reference studies of other patients by embedding. Empty without embeddings on both sides or
    with fewer than ten patients on either.
    """
    before, now = reference.embeddings, current.embeddings
    if before is None or now is None or min(reference.patients, current.patients) < LEAST_PATIENTS:
        return ()
    strangers = np.flatnonzero(~np.isin(reference.patient_key, current.patient_key))
    before = before[strangers]
    keys = np.concatenate([reference.patient_key[strangers], current.patient_key])
    values = np.concatenate([before, now]).astype(np.float64)
    owners = np.unique(keys, return_inverse=True)[1]
    is_current = np.arange(len(keys)) >= len(before)
    if len(np.unique(owners[~is_current])) < LEAST_PATIENTS:
        return ()
    scores = score_studies(values, owners, is_current, generator=generator)[is_current]
    chosen = _choose(now, scores, current.patient_key, most)
    distances = cdist(now[chosen], before)
    return tuple(
        ExampleStudy(
            study_uid=str(current.study_uid[row]),
            score=float(scores[row]),
            neighbours=tuple(str(reference.study_uid[strangers[place]]) for place in nearest),
            distances=tuple(float(d) for d in distances[rank, nearest]),
        )
        for rank, row in enumerate(chosen)
        for nearest in [_nearest(distances[rank], reference.patient_key[strangers])]
    )


def _choose(
    values: NDArray[np.float32], scores: NDArray[np.float64], patients: NDArray[np.str_], most: int
) -> list[int]:
    order = np.argsort(-scores, kind="stable")
    usual = float(np.median(cdist(values[order[:50]], values[order[:50]]))) if len(values) > 1 else 0.0
    chosen: list[int] = []
    for row in order:
        if len(chosen) == most:
            break
        if patients[row] in patients[chosen]:
            continue
        if chosen and cdist(values[[row]], values[chosen]).min() <= COPY * usual:
            continue
        chosen.append(int(row))
    return chosen


def _nearest(distances: NDArray[np.float64], patients: NDArray[np.str_]) -> list[int]:
    """Give the nearest rows, one a patient."""
    found: list[int] = []
    for row in np.argsort(distances, kind="stable"):
        if patients[row] not in patients[found]:
            found.append(int(row))
        if len(found) == NEIGHBOURS:
            break
    return found
