"""The area under the ROC curve as an average over studies: its variance and covariances in closed form.

An AUROC compares every study that has the finding with every one that has not. What one study adds to it
is its *placement* among those of the other class, found for all studies by sorting once (Sun and Xu
2014). The spread of the placements is the variance of DeLong, DeLong and Clarke-Pearson (1988); summed by
patient it is Obuchowski's (1997), which stays right when a patient has several studies.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from monitor.intervals import Difference, Estimate, Floats, Form


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Placements:
    """An expected area and what each study adds to it.

    ``chances`` (n,) of having the finding, 0 or 1 where it is known. ``below`` (n,) is the weight of all
    other studies without the finding that score lower, ``above`` (n,) that of others with it that score
    higher, ties counted half. ``pairs`` is the weight of all pairs of different studies.
    """

    chances: Floats
    below: Floats
    above: Floats
    pairs: float

    @property
    def area(self) -> float:
        """The AUROC, expected where chances lie between 0 and 1; NaN without a pair of both classes."""
        return float(self.chances @ self.below / self.pairs) if self.pairs > 0 else float("nan")

    @property
    def slopes(self) -> Floats:
        """By how much the area rises with the chance of each study; shape (n,)."""
        without, with_it = self._others()
        return np.asarray((self.below - self.above - self.area * (without - with_it)) / self.pairs)

    @property
    def influences(self) -> tuple[Floats, Floats]:
        """By how much the area rises with the weight of each study, as one with and as one without the finding.

        Two columns (n,), whose sum over all studies is 0: for known labels the placement minus the area,
        over the number of the class.
        """
        without, with_it = self._others()
        return (
            np.asarray(self.chances * (self.below - self.area * without) / self.pairs),
            np.asarray((1 - self.chances) * (self.above - self.area * with_it) / self.pairs),
        )

    def _others(self) -> tuple[Floats, Floats]:
        """Weigh all other studies without the finding, and all others with it; each (n,)."""
        total = self.chances.sum()
        return len(self.chances) - total - (1 - self.chances), total - self.chances


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Areas:
    """AUROCs of several scores on the same studies; ``values`` (k,), ``covariance`` (k, k).

    ``patients_with`` and ``patients_without`` the finding; a patient may count in both.
    """

    values: Floats
    covariance: Floats
    studies: int
    patients_with: int
    patients_without: int

    def estimate(self, column: int) -> Estimate:
        """Give one area with DeLong's standard error; its interval is normal on the logit scale (Pepe 2003)."""
        yes, no = self.patients_with, self.patients_without
        return Estimate(
            value=float(self.values[column]),
            form=Form.LOGIT,
            studies=self.studies,
            patients=min(yes, no),
            informative=hanley_mcneil(yes, no),
            standard_error=float(np.sqrt(max(self.covariance[column, column], 0.0))),
        )

    def difference(self, first: int, second: int) -> Difference:
        """Give one area minus another, with their correlation."""
        a, b = self.estimate(first), self.estimate(second)
        scale = (a.spread or 0.0) * (b.spread or 0.0)
        correlation = float(np.clip(self.covariance[first, second] / scale, -1, 1)) if scale > 0 else 0.0
        return Difference(first=a, second=b, correlation=correlation)


def place_studies(scores: Floats, chances: Floats) -> Placements:
    """Place every study among all others by its score; ``scores`` (n,), ``chances`` (n,) in [0, 1] of the finding."""
    order = np.argsort(scores)
    ranked, chance = scores[order], chances[order]
    new = np.diff(ranked, prepend=-np.inf) > 0
    starts, group = np.flatnonzero(new), np.cumsum(new) - 1
    with_it, without = (np.add.reduceat(side, starts) for side in (chance, 1 - chance))
    upto_with, upto_without = np.cumsum(with_it), np.cumsum(without)
    below, above = np.empty_like(chance), np.empty_like(chance)
    below[order] = (upto_without - without / 2)[group] - (1 - chance) / 2
    above[order] = (upto_with[-1] - upto_with + with_it / 2)[group] - chance / 2
    pairs = float(upto_with[-1] * upto_without[-1] - chance @ (1 - chance))
    return Placements(chances=chances, below=below, above=above, pairs=pairs)


def measure_areas(scores: Floats, labels: Floats, patients: NDArray[np.intp] | None = None) -> Areas:
    """Measure the AUROCs of several scores on the same studies, with their covariance over patients.

    ``scores`` (n, k); ``labels`` (n,) of 0 and 1; ``patients`` (n,) numbers of the patients, each study
    its own if left out. Obuchowski (1997); with one study a patient exactly DeLong et al. (1988).

    Raises:
        ValueError: wrong shapes, labels that are not 0 or 1, scores that are not numbers, or fewer than two
            patients with or without the finding.
    """
    patients = np.arange(len(labels)) if patients is None else patients
    _check(scores, labels, patients)
    number = np.unique(patients, return_inverse=True)[1]
    placed = [place_studies(column, labels) for column in scores.T]
    with_it, without = (
        np.stack([np.bincount(number, weights=one.influences[side]) for one in placed], axis=1) for side in (0, 1)
    )
    yes, no = (len(np.unique(number[labels == value])) for value in (1, 0))
    if min(yes, no) < 2:
        raise ValueError(f"two patients with and two without the finding are needed, got {yes} and {no}")
    shared, everyone = with_it.T @ without, number.max() + 1
    covariance = with_it.T @ with_it * _unbias(yes) + without.T @ without * _unbias(no)
    covariance += (shared + shared.T) * _unbias(everyone)
    return Areas(
        values=np.array([one.area for one in placed]),
        covariance=covariance,
        studies=len(labels),
        patients_with=yes,
        patients_without=no,
    )


def hanley_mcneil(with_it: int, without: int) -> float:
    """Count the yes/no answers that an area of 1 is worth: Hanley and McNeil's variance (1982) at the bound."""
    return with_it * without / (1 + (with_it + without - 2) / 4) if with_it and without else 0.0


def _unbias(count: int) -> float:
    return count / (count - 1)


def _check(scores: Floats, labels: Floats, patients: NDArray[np.intp]) -> None:
    if scores.ndim != 2 or labels.shape != (len(scores),) or patients.shape != labels.shape:
        shapes = f"{scores.shape}, {labels.shape} and {patients.shape}"
        raise ValueError(f"scores are (n, k), labels and patients (n,), got {shapes}")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("labels are 0 or 1; leave the others out")
    if not np.isfinite(scores).all():
        raise ValueError("scores must be numbers; quarantine the others at ingest")
