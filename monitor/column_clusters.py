"""Studies of one patient belong together: how counts by bin vary over patients, in sums of whole numbers.

The order of the studies by patient is found once a window and shared by all columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitor.text_hashing import ROWS_AT_ONCE, hash_text

Floats = NDArray[np.float64]
Codes = NDArray[np.intp]
SmallCodes = NDArray[np.int16]

MOST_PAIRED = 16
"""Studies of a patient up to which they are counted pair by pair."""
CELLS_AT_ONCE = 4_000_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Clusters:
    """Which of n studies are of the same patient.

    Attributes:
        patients: how many patients there are.
        order: rows in order of their patients, shape (n,); None where they are so already.
        owners: patient 0 … patients - 1 of each row in that order, shape (n,).
        pairs: by lag 1, 2, …: places in that order at which a patient's study has another so many places on.
        crowded: places of the studies of patients with more than MOST_PAIRED of them.
    """

    patients: int
    order: Codes | None
    owners: Codes
    pairs: tuple[Codes, ...]
    crowded: Codes

    def count_patients(self, known: NDArray[np.bool_] | None) -> tuple[int, float]:
        """Count the patients who have a study among the known ones, and add up the fourth powers of how many each has.

        Args:
            known: a mask, shape (n,); None: all are known.
        """
        if known is None and self.patients == len(self.owners):
            return self.patients, float(self.patients)
        sizes = np.bincount(self.owners if known is None else self.owners[self._ordered(known)])
        return int(np.count_nonzero(sizes)), float((sizes.astype(np.float64) ** 4).sum())

    def count_together(self, codes: SmallCodes, merged: Codes, counts: Floats) -> Floats:
        """Sum, over patients, the products of their counts in every two groups of bins; (K, K), whole numbers.

        Args:
            codes: bin of each study, shape (n,).
            merged: group 0 … K - 1 of each bin.
            counts: studies in each group, shape (K,).
        """
        together, groups = np.diag(counts), len(counts)
        if self.patients == len(codes):
            return together
        ordered = merged.take(self._ordered(codes))
        at_once = max(ROWS_AT_ONCE, groups * groups)
        cells = np.zeros(groups * groups, dtype=np.intp)
        for lag, places in enumerate(self.pairs, start=1):
            for start in range(0, len(places), at_once):
                some = places[start : start + at_once]
                pair = ordered.take(some)
                pair *= groups
                pair += ordered[lag:].take(some)
                cells += np.bincount(pair, minlength=groups * groups)
        found = cells.reshape(groups, groups)
        return together + found + found.T + self._count_crowded(ordered, groups)

    def _ordered(self, column: NDArray[Any]) -> NDArray[Any]:
        return column if self.order is None else column[self.order]

    def _count_crowded(self, ordered: Codes, bins: int) -> Floats:
        """Sum the products for patients of many studies, of whom there are few; less what each study gives alone."""
        together = np.zeros((bins, bins))
        if not len(self.crowded):
            return together
        codes, owners = ordered[self.crowded], self.owners[self.crowded]
        numbers = np.cumsum(np.diff(owners, prepend=owners[0]) > 0)
        at_once = max(1, CELLS_AT_ONCE // bins)
        for first in range(0, int(numbers[-1]) + 1, at_once):
            ends = np.searchsorted(numbers, [first, first + at_once])
            mine = slice(int(ends[0]), int(ends[1]))
            cells = (numbers[mine] - first) * bins + codes[mine]
            patients = int(numbers[mine][-1]) - first + 1
            table = np.bincount(cells, minlength=patients * bins).reshape(patients, bins).astype(np.float64)
            together += table.T @ table
        return together - np.diag(np.bincount(codes, minlength=bins).astype(np.float64))


def cluster_by_patient(patients: NDArray[Any]) -> Clusters:
    """Find which studies belong together; ``patients`` (n,) are keys, texts or whole numbers."""
    n = len(patients)
    keys = patients if patients.dtype.kind in "iu" else hash_text(patients)
    order = None
    if not bool((keys[1:] >= keys[:-1]).all()):
        order = np.argsort(keys)
        keys = keys[order]
    starts = np.ones(n, dtype=np.bool_)
    np.not_equal(keys[1:], keys[:-1], out=starts[1:])
    first = np.flatnonzero(starts)
    nobody = np.zeros(0, dtype=np.intp)
    if len(first) == n:
        return Clusters(patients=n, order=None, owners=np.arange(n), pairs=(), crowded=nobody)
    owners = np.cumsum(starts) - 1
    sizes = np.diff(np.append(first, n))
    few = sizes <= MOST_PAIRED
    pairs = []
    for lag in range(1, int(sizes[few].max(initial=1))):
        of = np.flatnonzero(few & (sizes > lag))
        # the first sizes - lag places of each such patient
        lengths = sizes[of] - lag
        begins = np.repeat(first[of] - np.cumsum(lengths) + lengths, lengths)
        pairs.append(begins + np.arange(len(begins)))
    return Clusters(
        patients=len(first),
        order=order,
        owners=owners,
        pairs=tuple(pairs),
        crowded=np.flatnonzero(~few[owners]) if not few.all() else nobody,
    )


def count_even(together: Floats, fourth: float) -> float:
    """Give how many patients with as many studies each would tell the variance over patients as well.

    The squares of the patients' sums are added up to a variance; where few of them make most of it, it is known
    as badly as from few (Satterthwaite 1946, for sums in proportion to a patient's studies).

    Args:
        together: sums of products from `Clusters.count_together`, shape (K, K).
        fourth: fourth powers of the patients' studies, added up.
    """
    return float(together.sum() ** 2 / max(fourth, 1.0))


def covariance_of_shares(counts: Floats, together: Floats, patients: int) -> Floats:
    """Give the covariance (K, K) of the shares of K bins, with patients as clusters.

    Linearised: a share is a ratio of two sums over patients, their studies in the bin and all of them (Kish 1965).

    Args:
        counts: studies in each bin, shape (K,).
        together: sums of products from `Clusters.count_together`, shape (K, K).
        patients: who has any of these studies.
    """
    n = counts.sum()
    if not n:
        return np.zeros_like(together)
    shares = counts / n
    crossed = np.outer(together.sum(axis=0), shares)
    spread = together - crossed - crossed.T + together.sum() * np.outer(shares, shares)
    covariance: Floats = spread / n**2 * (patients / max(patients - 1, 1))
    return covariance
