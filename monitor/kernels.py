"""Permutation MMD on embeddings with patients as the unit: the Gram matrix a strip at a time, never whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitor.permutations import SINGLE_ROUNDING, p_value, refuse_lone_patients, relabel_patients, sides_by_patient

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]

BANDWIDTHS = (0.5, 1.0, 2.0)
ROWS_FOR_MEDIAN = 1000
ROWS_AT_ONCE = 512
RELABELLINGS_AT_ONCE = 1024
SAME_PLACE = 1e-12  # of the mean squared distance: two rows nearer than this are one


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Kernel:
    """A mean of Gaussian kernels, exp(-rate · squared distance), less its ``level``.

    The level cancels out of the unbiased MMD²; without it, single precision has only what varies to carry.
    """

    rates: tuple[float, ...]
    level: float

    def between(self, rows: Singles, others: Singles) -> Singles:
        """Give the kernel of each row with each other row, shape (rows, others)."""
        nearness = rows @ others.T
        nearness *= 2
        nearness -= np.einsum("nw,nw->n", rows, rows)[:, None]
        nearness -= np.einsum("nw,nw->n", others, others)
        np.minimum(nearness, 0, out=nearness)
        total: Singles = np.exp(nearness * np.float32(self.rates[0]))
        for rate in self.rates[1:]:
            total += np.exp(nearness * np.float32(rate))
        total /= len(self.rates)
        total -= np.float32(self.level)
        return total


def permutation_mmd(
    values: NDArray[Any],
    patients: NDArray[np.intp],
    is_current: NDArray[np.bool_],
    *,
    permutations: int,
    generator: np.random.Generator,
    bandwidths: Sequence[float] | None = None,
) -> tuple[float, float, float]:
    """Test whether two samples of embeddings (n, width) differ, with patients permuted as wholes.

    The unbiased squared maximum mean discrepancy (Gretton 2012, U-statistic; pairs of studies of one patient
    left out) for a mean of Gaussian kernels. The Gram matrix is made, summed by patient and multiplied with
    all relabellings a strip at a time, its upper half alone: memory grows with n, not with n².

    Args:
        values: both samples, shape (n, width), finite, in any one unit.
        patients: patient number 0 … P-1 of each row; a patient stands on one side only.
        is_current: side of each row, shape (n,).
        permutations: how many relabellings of patients.
        generator: source of randomness.
        bandwidths: standard deviations of the Gaussian kernels, in the unit of the values; the roots of
            0.5, 1 and 2 times the median squared distance if left out.

    Returns: MMD², the effect size, and the p-value (b + 1) / (m + 1). The effect is the square root of MMD²
        relative to the kernel's own spread; it does not grow with n and is 0 without a difference.

    Raises:
        ValueError: fewer than two patients on a side, or values that are not finite.
    """
    sizes, current = sides_by_patient(patients, is_current)
    refuse_lone_patients(current)
    order = np.lexsort((values[:, 0], patients))  # the order of a patient's rows must not decide which are sampled
    rows, unit = standardise_rows(values[order])
    kernel = _choose_kernel(rows, None if bandwidths is None else np.square(np.asarray(bandwidths) / unit))
    sides = relabel_patients(current, permutations, generator)
    means = _mean_pairs(sides, sizes, *_add_pairs(kernel, rows, sizes, sides))
    statistics = means[0] + means[1] - 2 * means[2]
    spread = 1 - kernel.level - (means[0, 0] + means[1, 0]) / 2
    effect = np.sqrt(max(statistics[0], 0.0) / spread) if spread > SINGLE_ROUNDING else 0.0
    p = p_value(statistics, rounding=SINGLE_ROUNDING * float(statistics.std()))
    return float(statistics[0]), float(effect), p


def standardise_rows(values: NDArray[Any]) -> tuple[Singles, float]:
    """Move the mean of (n, width) to 0 and the mean squared length to 1, so that single precision serves any unit.

    Returns: the rows, and the length that has become 1.

    Raises:
        ValueError: values that are not finite.
    """
    if not np.isfinite(values).all():
        raise ValueError("values must be finite; quarantine the others at ingest")
    moved = values - values[0].astype(np.float64)  # first, so that what never varies is exactly 0
    moved -= moved.mean(axis=0)
    unit = float(np.sqrt(np.einsum("nw,nw->", moved, moved) / len(moved))) or 1.0
    moved /= unit
    return moved.astype(np.float32), unit


def _choose_kernel(rows: Singles, variances: Floats | None) -> _Kernel:
    """Put the level where most pairs are: at the median squared distance, of some evenly spaced rows."""
    some = rows[np.linspace(0, len(rows) - 1, min(len(rows), ROWS_FOR_MEDIAN)).astype(np.intp)].astype(np.float64)
    lengths = np.einsum("nw,nw->n", some, some)
    squared = lengths[:, None] + lengths - 2 * some @ some.T
    apart = squared[squared > SAME_PLACE]
    median = float(np.median(apart)) if len(apart) else 0.0
    if variances is None:
        variances = np.array(BANDWIDTHS) * (median or 1.0)
    rates = 1 / (2 * variances)
    return _Kernel(rates=tuple(rates.tolist()), level=float(np.exp(-rates * median).mean()))


def _add_pairs(
    kernel: _Kernel, rows: Singles, sizes: NDArray[np.intp], sides: NDArray[np.bool_]
) -> tuple[Floats, Floats]:
    """Sum the kernel over pairs of studies of different patients.

    Returns: the sum over both of a pair current, (relabellings,), and over all pairs of a patient, (P,).
    """
    within, by_patient = np.zeros(len(sides)), np.zeros(len(sizes))
    for first, strip in _strips(kernel, rows, sizes):
        last = first + len(strip)
        strip[:, : len(strip)] *= 0.5  # the strip's own square has every pair twice, the rest once
        by_patient[first:last] += strip.sum(axis=1, dtype=np.float64)
        by_patient[first:] += strip.sum(axis=0, dtype=np.float64)
        for start in range(0, len(sides), RELABELLINGS_AT_ONCE):
            some = sides[start : start + RELABELLINGS_AT_ONCE]
            reached = some[:, first:last].astype(np.float32) @ strip
            within[start : start + len(some)] += 2 * np.einsum("mp,mp->m", reached, some[:, first:], dtype=np.float64)
    return within, by_patient


def _strips(kernel: _Kernel, rows: Singles, sizes: NDArray[np.intp]) -> Iterator[tuple[int, Singles]]:
    """Give the upper half of the Gram matrix by patient: the first patient of a strip, (strip, P - first)."""
    ends = np.cumsum(sizes)
    starts, first = ends - sizes, 0
    while first < len(sizes):
        last = max(first + 1, int(np.searchsorted(ends, starts[first] + ROWS_AT_ONCE, side="right")))
        strip = kernel.between(rows[starts[first] : ends[last - 1]], rows[starts[first] :])
        if len(rows) > len(sizes):
            strip = np.add.reduceat(strip, starts[first:last] - starts[first], axis=0)
            strip = np.add.reduceat(strip, starts[first:] - starts[first], axis=1)
        np.fill_diagonal(strip, 0)
        yield first, strip
        first = last


def _mean_pairs(sides: NDArray[np.bool_], sizes: NDArray[np.intp], within: Floats, by_patient: Floats) -> Floats:
    """Give the mean kernel over pairs of both current, both not, and one of each; shape (3, relabellings)."""
    columns = np.stack([sizes, sizes**2, by_patient], axis=1)
    chunks = (sides[start : start + RELABELLINGS_AT_ONCE] for start in range(0, len(sides), RELABELLINGS_AT_ONCE))
    studies, squares, touched = np.concatenate([some @ columns for some in chunks]).T
    others, rest = sizes.sum() - studies, by_patient.sum() - 2 * touched + within
    return np.stack(
        [
            within / (studies**2 - squares),
            rest / (others**2 - ((sizes**2).sum() - squares)),
            (touched - within) / (studies * others),
        ]
    )
