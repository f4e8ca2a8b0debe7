"""The area under the ROC curve as an average over studies: its variance in closed form.

An AUROC compares every study that has the finding with every one that has not. What one study adds to it
is its *placement* among those of the other class, found for all studies by sorting once (Sun and Xu
2014). The spread of the placements is the variance of DeLong, DeLong and Clarke-Pearson (1988); summed by
patient it is Obuchowski's (1997), which stays right when a patient has several studies.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from monitor.intervals import Floats


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
class Ranks:
    """The order (n,) of studies by score, and where in it each distinct score starts; None where all are distinct."""

    order: NDArray[np.intp]
    starts: NDArray[np.intp] | None


def rank_studies(scores: Floats) -> Ranks:
    """Sort scores (n,) once."""
    order = np.argsort(scores)
    ranked = scores[order]
    new = np.empty(len(scores), dtype=np.bool_)
    new[:1] = True
    np.not_equal(ranked[1:], ranked[:-1], out=new[1:])
    return Ranks(order=order, starts=None if new.all() else np.flatnonzero(new))


def place_studies(ranks: Ranks, chances: Floats) -> Placements:
    """Place every study among all others by its score; ``chances`` (n,) in [0, 1] of the finding."""
    chance = chances[ranks.order]
    upto_with, places = np.cumsum(chance), np.arange(1.0, len(chance) + 1)
    upto_without, total = places - upto_with, upto_with[-1]
    lower, higher = upto_without - (1 - chance), total - upto_with
    if ranks.starts is not None:
        size = np.diff(ranks.starts, append=len(chance))
        with_it = np.add.reduceat(chance, ranks.starts)
        ended = ranks.starts + size - 1
        lower = np.repeat(upto_without[ended] - (size - with_it) / 2, size) - (1 - chance) / 2
        higher = np.repeat(total - upto_with[ended] + with_it / 2, size) - chance / 2
    below, above = np.empty_like(chance), np.empty_like(chance)
    below[ranks.order], above[ranks.order] = lower, higher
    pairs = float(total * (len(chance) - total) - chances @ (1 - chances))
    return Placements(chances=chances, below=below, above=above, pairs=pairs)


def delong_error(scores: Floats, labels: Floats, patients: NDArray[np.intp]) -> float | None:
    """Give the standard error of an AUROC over patients; None with fewer than two of them on either side.

    ``scores``, ``labels`` of 0 and 1, and ``patients``, their numbers, are (n,). Obuchowski (1997), the placements of
    both classes summed by patient; with one study a patient exactly DeLong et al. (1988).
    """
    yes, no = (int(np.count_nonzero(np.bincount(patients[labels == value]))) for value in (1, 0))
    if min(yes, no) < 2:
        return None
    with_it, without = (
        np.bincount(patients, weights=side) for side in place_studies(rank_studies(scores), labels).influences
    )
    everyone = int(np.count_nonzero(np.bincount(patients)))
    variance = with_it @ with_it * _unbias(yes) + without @ without * _unbias(no)
    return float(np.sqrt(max(variance + 2 * (with_it @ without) * _unbias(everyone), 0.0)))


def hanley_mcneil(with_it: int, without: int) -> float:
    """Count the yes/no answers that an area of 1 is worth: Hanley and McNeil's variance (1982) at the bound."""
    return with_it * without / (1 + (with_it + without - 2) / 4) if with_it and without else 0.0


def _unbias(count: int) -> float:
    return count / (count - 1)
