"""Refit a linear head: a convex fit that stays close to the head it starts from. Pure: no torch here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_expit, log_softmax

from continual.calibrating import Lesson
from continual.outputs import Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Head:
    """A linear head: ``weight`` (score columns, width), ``bias`` (score columns,)."""

    weight: Floats
    bias: Floats

    @property
    def size(self) -> int:
        """Count its numbers."""
        return self.weight.size + self.bias.size

    def logits(self, features: Floats) -> Floats:
        """Give logits (n, score columns) of features (n, width)."""
        return np.asarray(features @ self.weight.T + self.bias)


def refit_head(head: Head, lessons: tuple[Lesson, ...], *, hold: float) -> Head:
    """Fit a head on several lessons at once, old ones beside the new, close to the one it starts from.

    A logistic (or softmax) regression whose penalty is ``hold``/2 times the squared distance from the old head, on
    features of unit variance. It is convex, so that there is one answer. Every lesson weighs alike, and inside
    one every patient, whatever the numbers: what was learned before is rehearsed, not drowned. The weights sum to the
    patients of the last lesson.
    """
    features = np.concatenate([lesson.features for lesson in lessons])
    answers = np.concatenate([lesson.answers for lesson in lessons])
    weights = np.concatenate([_weigh_patients(lesson.patients) for lesson in lessons])
    weights *= len(np.unique(lessons[-1].patients)) / weights.sum()
    center, scale = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-6)
    known, truth = ~np.isnan(answers), np.nan_to_num(answers)
    inside = (features - center) / scale
    before = np.concatenate([head.weight * scale, (head.bias + head.weight @ center)[:, None]], axis=1)

    def loss(flat: Floats) -> tuple[float, Floats]:
        line = flat.reshape(before.shape)
        logits = inside @ line[:, :-1].T + line[:, -1]
        if lessons[0].one_of:
            value = -(weights[:, None] * truth * log_softmax(logits, axis=1)).sum()
            off = weights[:, None] * (np.exp(log_softmax(logits, axis=1)) - truth)
        else:
            terms = truth * log_expit(logits) + (1 - truth) * log_expit(-logits)
            value = -(weights[:, None] * known * terms).sum()
            off = weights[:, None] * known * (expit(logits) - truth)
        moved = line - before
        slope = np.concatenate([off.T @ inside, off.sum(axis=0)[:, None]], axis=1) + hold * moved
        return float(value + hold / 2 * (moved**2).sum()), slope.ravel()

    found = minimize(loss, before.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 500, "gtol": 1e-6})
    line = found.x.reshape(before.shape)
    weight = line[:, :-1] / scale
    return Head(weight=weight, bias=line[:, -1] - weight @ center)


def new_head(columns: int, width: int) -> Head:
    """Give a head that says 0 of everything."""
    return Head(weight=np.zeros((columns, width)), bias=np.zeros(columns))


def _weigh_patients(patients: NDArray[np.str_]) -> Floats:
    """Weigh studies so that each patient weighs the same and all sum to 1; shape (n,)."""
    _, index, counts = np.unique(patients, return_inverse=True, return_counts=True)
    weights = 1.0 / counts[index]
    return np.asarray(weights / weights.sum())
