"""One column reduced to bins: learned once from a reference, then any window is counted in one pass.

Numbers are cut at quantiles of the reference, so that every distribution function is known at some hundred places,
whatever n was; few distinct values are kept exactly. A window's values find their bin through a table of
equal cells (as in an interpolation search), about twenty times faster than a binary search over the cuts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitor.cohorts import MISSING

Floats = NDArray[np.float64]
Codes = NDArray[np.intp]
Hashes = NDArray[np.uint64]

FINE_BINS = 512
COARSE_BINS = 40
MOST_CATEGORIES = 500
CELLS = 1 << 14
SLOTS = 16
"""Bits of a hash that find a category."""
ROWS_AT_ONCE = 1 << 15
"""A block of rows whose passes stay in the cache."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NumberSketch:
    """The distribution of a numeric column.

    Bin i holds the values in (edges[i - 1], edges[i]]; the first and the last lie outside the reference's range.

    Attributes:
        edges: where the distribution functions are compared, ascending, shape (E,); empty if every value is missing.
        counts: studies of the reference in each bin, shape (E + 1,).
        centres: mean of the reference's values in each bin (middle of a bin without any), shape (E + 1,).
        coarse: coarse bin of each bin, ascending, shape (E + 1,).
        spread: standard deviation of the reference's studies, shape (1,).
    """

    edges: Floats
    counts: Floats
    centres: Floats
    coarse: Codes
    spread: Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CategorySketch:
    """The shares of a column of categories.

    Attributes:
        levels: the categories, sorted, shape (L,); empty if there are more than MOST_CATEGORIES, or none.
        counts: studies of the reference in each, shape (L,).
        distinct: how many different categories there were, shape (1,).
    """

    levels: NDArray[np.str_]
    counts: Floats
    distinct: Codes


Sketch = NumberSketch | CategorySketch


def sketch_numbers(values: NDArray[Any]) -> NumberSketch:
    """Sketch a numeric column (n,); NaN is missing.

    The Kolmogorov–Smirnov distance of any window at the sketch's edges is exact for up to 512 distinct values;
    beyond, it falls short by at most the largest share a bin has of the reference without an edge's own value:
    under 2 / 512, and 1 / 512 + 1 / n where values do not repeat.

    Raises:
        ValueError: infinite values.
    """
    known = np.sort(_known_numbers(values))
    if not len(known):
        none = np.zeros(0)
        return NumberSketch(
            edges=none, counts=np.zeros(1), centres=np.zeros(1), coarse=np.zeros(1, dtype=np.intp), spread=np.ones(1)
        )
    edges = _cut_values(known)
    ends = np.searchsorted(known, edges, side="right")
    counts = np.diff(ends, prepend=0, append=len(known)).astype(np.float64)
    middles = np.concatenate([edges[:1], edges[:-1] / 2 + edges[1:] / 2, edges[-1:]])
    filled = np.flatnonzero(counts)
    middles[filled] = np.add.reduceat(known, np.concatenate([[0], ends])[filled]) / counts[filled]
    return NumberSketch(
        edges=edges,
        counts=counts,
        centres=middles,
        coarse=merge_bins(counts, COARSE_BINS, keep_heavy=True),
        spread=np.array([known.std() or 1.0]),
    )


def sketch_categories(values: NDArray[np.str_]) -> CategorySketch:
    """Sketch a column of categories (n,); MISSING and the empty text are missing."""
    hashes = hash_text(values)
    known = ~_is_missing(hashes)
    _, first, counts = np.unique(hashes[known], return_index=True, return_counts=True)
    levels = values[known][first]
    distinct = np.array([len(levels)])
    if len(levels) > MOST_CATEGORIES:
        levels, counts = levels[:0], counts[:0]
    order = np.argsort(levels)
    return CategorySketch(levels=levels[order], counts=counts[order].astype(np.float64), distinct=distinct)


def merge_bins(counts: Floats, parts: int, *, keep_heavy: bool) -> Codes:
    """Give each of the bins (K,) its place among about ``parts`` merged ones, cut at quantiles of the counts.

    With ``keep_heavy`` a bin that holds a part or more stays alone, and so do the first and the last.
    """
    wanted = counts.sum() * np.arange(1, parts) / parts
    last = np.searchsorted(np.cumsum(counts), wanted - 1e-9)
    starts = np.zeros(len(counts) + 1, dtype=np.bool_)
    starts[last + 1] = True
    if keep_heavy:
        heavy = np.flatnonzero(counts >= counts.sum() / parts)
        starts[np.concatenate([heavy, heavy + 1, [1, len(counts) - 1]])] = True
    starts[0] = False
    return np.cumsum(starts[:-1])


def find_bins(sketch: NumberSketch, values: NDArray[Any]) -> Codes:
    """Give the bin of each value (n,), -1 where it is missing.

    Raises:
        ValueError: infinite values.
    """
    codes = np.empty(len(values), dtype=np.intp)
    table = _CellTable(sketch.edges)
    for start in range(0, len(values), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        block = values[rows].astype(np.float64, copy=False)
        if np.isfinite(block).all():
            codes[rows] = table.find(block)
        else:
            missing = np.isnan(block)
            codes[rows][~missing] = table.find(_known_numbers(block))
            codes[rows][missing] = -1
    return codes


def find_levels(sketch: CategorySketch, values: NDArray[np.str_]) -> tuple[Codes, NDArray[np.str_]]:
    """Give the number of each category (n,), -1 where it is missing, and the categories the reference has not, sorted.

    Those are numbered on from the reference's L, in their order.
    """
    known = hash_text(np.concatenate([sketch.levels, [MISSING, ""]]))
    names = np.concatenate([np.arange(len(sketch.levels)), [-1, -1]])
    slots = np.zeros(1 << SLOTS, dtype=np.intp)
    slots[known >> np.uint64(64 - SLOTS)] = np.arange(len(known))
    codes = np.empty(len(values), dtype=np.intp)
    strange: list[tuple[Codes, Hashes]] = []
    for start in range(0, len(values), ROWS_AT_ONCE):
        hashes = hash_text(values[start : start + ROWS_AT_ONCE])
        places = slots[hashes >> np.uint64(64 - SLOTS)]
        codes[start : start + ROWS_AT_ONCE] = names[places]
        if len(other := np.flatnonzero(known[places] != hashes)):
            strange.append((other + start, hashes[other]))
    if not strange:
        return codes, sketch.levels[:0]
    return _name_strangers(values, codes, strange, (known, names))


def hash_text(values: NDArray[np.str_]) -> Hashes:
    """Hash texts (n,) to 64 bits, the same whatever the width of the array's type."""
    wide = np.ascontiguousarray(values)
    letters = (
        wide.view(np.uint32).reshape(len(wide), -1) if wide.dtype.itemsize else np.zeros((len(wide), 0), np.uint32)
    )
    factors = mix_bits(np.arange(1, letters.shape[1] + 1, dtype=np.uint64)) | np.uint64(1)
    hashes = np.empty(len(wide), dtype=np.uint64)
    for start in range(0, len(wide), ROWS_AT_ONCE):
        block = letters[start : start + ROWS_AT_ONCE]
        sums = np.zeros(len(block), dtype=np.uint64)
        for place, factor in enumerate(factors):
            sums += block[:, place] * factor
        hashes[start : start + ROWS_AT_ONCE] = mix_bits(sums)
    return hashes


def mix_bits(numbers: Hashes) -> Hashes:
    """Scramble 64-bit numbers one to one (SplitMix, Steele et al. 2014)."""
    mixed = numbers + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return mixed


class _CellTable:
    """For each of many equal cells of the edges' range, the first edge in it: nearly every value is one step away."""

    def __init__(self, edges: Floats) -> None:
        self.edges = edges
        few = max(1, len(edges) // 500)
        inner = edges[few:-few] if len(edges) > 2 * few + 1 else edges
        width = float(inner[-1] - inner[0]) if len(inner) else 0.0
        self.low = float(inner[0]) if len(inner) else 0.0
        self.cells_per_unit = CELLS / width if width > 0 and np.isfinite(CELLS / width) else 0.0
        own = self._cell(edges)
        self.first = np.searchsorted(own, np.arange(CELLS + 2))
        self.crowded = np.bincount(own, minlength=CELLS + 2) > 1
        self.next = np.append(edges, np.inf)

    def _cell(self, values: Floats) -> NDArray[np.int32]:
        """Cell 0 is all that lies below the range, the last all above; ascending as the values, rounding included."""
        places = (values - self.low) * self.cells_per_unit
        np.clip(places, -1.0, CELLS, out=places)
        places += 1.0
        return places.astype(np.int32)

    def find(self, values: Floats) -> Codes:
        """Count the edges below each finite value."""
        cells = self._cell(values)
        found: Codes = self.first[cells]
        found += values > self.next[found]
        if len(several := np.flatnonzero(self.crowded[cells])):
            found[several] = np.searchsorted(self.edges, values[several])
        return found


def _known_numbers(values: NDArray[Any]) -> Floats:
    known: Floats = values[~np.isnan(values)].astype(np.float64, copy=False)
    if not np.isfinite(known).all():
        raise ValueError("values must be finite or NaN for missing; quarantine infinite ones at ingest")
    return known


def _cut_values(ascending: Floats) -> Floats:
    """Give the edges: quantiles, and beside a value that repeats enough its left neighbour, so that it stands alone."""
    n = len(ascending)
    distinct, counts = np.unique(ascending, return_counts=True)
    if len(distinct) <= FINE_BINS:
        ends, heavy = distinct, distinct
    else:
        ends = np.unique(ascending[np.ceil(n * np.arange(1, FINE_BINS + 1) / FINE_BINS).astype(np.intp) - 1])
        heavy = np.append(distinct[counts * FINE_BINS >= n], distinct[0])
    return np.unique(np.concatenate([ends, heavy, np.nextafter(heavy, -np.inf)]))


def _is_missing(hashes: Hashes) -> NDArray[np.bool_]:
    return np.isin(hashes, hash_text(np.array([MISSING, ""])))


def _name_strangers(
    values: NDArray[np.str_], codes: Codes, strange: list[tuple[Codes, Hashes]], known: tuple[Hashes, Codes]
) -> tuple[Codes, NDArray[np.str_]]:
    """Number the categories that were not found at their slot: a few known ones that share it, and new ones."""
    rows, hashes = (np.concatenate(parts) for parts in zip(*strange, strict=True))
    unique, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    order = np.argsort(known[0])
    places = order[np.minimum(np.searchsorted(known[0], unique, sorter=order), len(order) - 1)]
    is_known = known[0][places] == unique
    fresh = values[rows[first[~is_known]]]
    numbers = known[1][places]
    numbers[~is_known] = len(known[0]) - 2 + np.argsort(np.argsort(fresh))
    codes[rows] = numbers[inverse]
    return codes, np.sort(fresh)
