"""One column reduced to bins: learned once from a reference, then any window is counted in one pass.

Numbers are cut at quantiles of the reference, so that every distribution function is known at some hundred places,
whatever n was; few distinct values are kept exactly. A value finds its bin through a table of many equal cells
of the reference's range. Where no cell holds much of the reference the cuts are moved to the cells' ends, so that the
table alone tells the bin; elsewhere a cut inside a cell is looked at. A word is looked up by some of its letters and
held against the whole category that they point at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitor.cohorts import MISSING
from monitor.text_hashing import ROWS_AT_ONCE, hash_text, mix_bits

Floats = NDArray[np.float64]
Codes = NDArray[np.intp]
SmallCodes = NDArray[np.int16]

FINE_BINS = 512
COARSE_BINS = 40
MOST_CATEGORIES = 500
CELLS = 1 << 16
SLOTS = 16
"""Bits of a hash that find a category."""
TRIES = 16


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
        grid: lower end of the cells and cells per unit, shape (2,).
        first: first bin of each cell; cell 0 is all that lies below, the last all above; shape (CELLS + 2,).
        inner: edges inside each cell, that is not at its end, from `first` on, shape (CELLS + 2,); empty if none has.
    """

    edges: Floats
    counts: Floats
    centres: Floats
    coarse: Codes
    spread: Floats
    grid: Floats
    first: SmallCodes
    inner: SmallCodes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CategorySketch:
    """The shares of a column of categories.

    Attributes:
        levels: the categories, sorted, then MISSING, shape (L,); MISSING alone if there are more than MOST_CATEGORIES.
        counts: studies of the reference in each, shape (L,).
        distinct: how many different categories there were beside MISSING, shape (1,).
        letters: places of the letters that a word is looked up by, shape (k,).
        factors: what these are multiplied with, shape (k,).
    """

    levels: NDArray[np.str_]
    counts: Floats
    distinct: Codes
    letters: Codes
    factors: NDArray[np.uint32]


Sketch = NumberSketch | CategorySketch


def sketch_numbers(values: NDArray[Any]) -> NumberSketch:
    """Sketch a numeric column (n,); NaN is missing.

    The Kolmogorov–Smirnov distance of any window at the sketch's edges is exact for up to 512 distinct values;
    beyond, it falls short by at most the largest share a bin has of the reference without an edge's own value:
    under 2 / 512.

    Raises:
        ValueError: infinite values.
    """
    known = np.sort(_known_numbers(values))
    edges, grid = _cut_values(known) if len(known) else (np.zeros(0), np.zeros(2))
    first, inner = _lay_cells(edges, grid)
    ends = np.searchsorted(known, edges, side="right")
    counts = np.diff(ends, prepend=0, append=len(known)).astype(np.float64)
    return NumberSketch(
        edges=edges,
        counts=counts,
        centres=_centre_bins(known, edges, ends, counts) if len(known) else np.zeros(1),
        coarse=merge_bins(counts, COARSE_BINS, keep_heavy=True),
        spread=np.array([float(known.std()) or 1.0 if len(known) else 1.0]),
        grid=grid,
        first=first,
        inner=inner,
    )


def sketch_categories(values: NDArray[np.str_]) -> CategorySketch:
    """Sketch a column of categories (n,); the empty text is MISSING."""
    hashes = hash_text(values)
    order = np.argsort(hashes)
    starts = np.flatnonzero(np.diff(hashes[order], prepend=~hashes[order[:1]]))
    names, counts = values[order[starts]], np.diff(np.append(starts, len(values))).astype(np.float64)
    empty = (names == MISSING) | (names == "")
    missing, names, counts = counts[empty].sum(), names[~empty], counts[~empty]
    distinct = len(names)
    if distinct > MOST_CATEGORIES:
        names, counts = names[:0], counts[:0]
    order = np.argsort(names)
    levels = np.append(names[order], MISSING)
    letters, factors = _choose_letters(levels)
    return CategorySketch(
        levels=levels,
        counts=np.append(counts[order], missing),
        distinct=np.array([distinct]),
        letters=letters,
        factors=factors,
    )


def merge_bins(counts: Floats, parts: int, *, keep_heavy: bool) -> Codes:
    """Give each of the bins (K,) its place among about ``parts`` merged ones, cut at quantiles of the counts.

    With ``keep_heavy`` a bin that holds a part or more stays alone, and so do the first and the last.
    """
    if len(counts) < 2:
        return np.zeros(len(counts), dtype=np.intp)
    wanted = counts.sum() * np.arange(1, parts) / parts
    last = np.searchsorted(np.cumsum(counts), wanted - 1e-9)
    starts = np.zeros(len(counts) + 1, dtype=np.bool_)
    starts[last + 1] = True
    if keep_heavy:
        heavy = np.flatnonzero(counts >= counts.sum() / parts)
        starts[np.concatenate([heavy, heavy + 1, [1, len(counts) - 1]])] = True
    starts[0] = False
    return np.cumsum(starts[:-1])


def find_bins(sketch: NumberSketch, values: NDArray[Any]) -> SmallCodes:
    """Give the bin of each value (n,); one that is missing gets the number of bins, E + 1.

    Raises:
        ValueError: infinite values.
    """
    codes = np.empty(len(values), dtype=np.int16)
    for start in range(0, len(values), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        block = values[rows].astype(np.float64, copy=False)
        if np.isfinite(block).all():
            codes[rows] = _look_up(sketch, block)
        else:
            missing = np.isnan(block)
            codes[rows][~missing] = _look_up(sketch, _known_numbers(block))
            codes[rows][missing] = len(sketch.counts)
    return codes


def find_levels(sketch: CategorySketch, values: NDArray[np.str_]) -> SmallCodes:
    """Give the number of each category (n,), the empty text's as MISSING; one that the reference has not gets L."""
    wide = np.ascontiguousarray(values, dtype=values.dtype if values.dtype.itemsize else "U1")
    width, new = wide.dtype.itemsize // 4, len(sketch.levels)
    letters = wide.view(np.uint32).reshape(len(wide), width)
    known = np.append(sketch.levels, "")
    fitting = np.flatnonzero(np.char.str_len(known) <= width)
    names = known[fitting].astype(f"U{width}").view(np.uint32).reshape(len(fitting), width)
    numbers = np.minimum(fitting, new - 1).astype(np.int16)
    slots = np.zeros(1 << SLOTS, dtype=np.intp)
    own = _slots(names, sketch.letters, sketch.factors)
    slots[own] = np.arange(len(names))
    crowded_out = np.flatnonzero(slots[own] != np.arange(len(names)))
    codes = np.empty(len(wide), dtype=np.int16)
    for start in range(0, len(wide), ROWS_AT_ONCE):
        block = letters[start : start + ROWS_AT_ONCE]
        places = slots.take(_slots(block, sketch.letters, sketch.factors))
        pointed, found = names.take(places, axis=0), numbers.take(places)
        if not np.array_equal(pointed.reshape(-1), block.reshape(-1)):
            others = np.flatnonzero((pointed != block).any(axis=1))
            found[others] = new
            for place in crowded_out:
                found[others[(block[others] == names[place]).all(axis=1)]] = numbers[place]
        codes[start : start + ROWS_AT_ONCE] = found
    return codes


def _look_up(sketch: NumberSketch, values: Floats) -> SmallCodes:
    """Count the edges below each finite value."""
    cells = _cell_of(values, sketch.grid)
    found: SmallCodes = sketch.first.take(cells)
    if not len(sketch.inner):
        return found
    following = np.append(sketch.edges, np.inf)
    for _ in range(2):  # a value that stands alone has an edge on either side
        found += values > following[found]
    if sketch.inner.max() > 2 and len(several := np.flatnonzero(sketch.inner[cells] > 2)):
        found[several] = np.searchsorted(sketch.edges, values[several])
    return found


def _cell_of(values: Floats, grid: Floats) -> Codes:
    """Give the cell 0 … CELLS + 1 of each value; ascending as the values are, rounding included."""
    with np.errstate(over="ignore"):  # what is far away is in an outer cell
        places = values - grid[0]
        places *= grid[1]
    np.clip(places, 0.0, CELLS + 1.0, out=places)
    cells: Codes = places.astype(np.intp)
    return cells


def _grid(low: float, high: float) -> Floats:
    """Lay cells 1 … CELLS over a range."""
    width = (high - low) / (CELLS - 2)
    if not (0 < width < np.inf) or not np.isfinite(1 / width):
        return np.zeros(2)
    return np.array([low - 2 * width, 1 / width])


def _lay_cells(edges: Floats, grid: Floats) -> tuple[SmallCodes, SmallCodes]:
    """Tell for each cell how many edges lie in cells before it, and how many inside it, not at its end."""
    own = _cell_of(edges, grid)
    inside = own[_cell_of(np.nextafter(edges, np.inf), grid) == own]
    first = np.searchsorted(own, np.arange(CELLS + 2)).astype(np.int16)
    inner = np.bincount(inside, minlength=CELLS + 2).astype(np.int16)
    return first, inner if len(inside) else inner[:0]


def _cut_values(ascending: Floats) -> tuple[Floats, Floats]:
    """Give the edges and the grid of cells: at ends of cells, or at values where some repeat or crowd in few cells."""
    grid = _grid(float(ascending[0]), float(ascending[-1]))
    cells = _cell_of(ascending, grid)
    counts = np.bincount(cells, minlength=CELLS + 2)
    if counts.max() * FINE_BINS < len(ascending):
        wanted = np.ceil(len(ascending) * np.arange(1, FINE_BINS + 1) / FINE_BINS)
        ends = np.searchsorted(np.cumsum(counts), wanted)
        return _ends_of_cells(np.unique(np.concatenate([[cells[0] - 1], ends])), grid), grid
    edges = _cut_at_values(ascending)
    few = max(1, len(edges) // 500)
    middle = edges[few:-few] if len(edges) > 2 * few + 1 else edges
    return edges, _grid(float(middle[0]), float(middle[-1]))


def _cut_at_values(ascending: Floats) -> Floats:
    """Give quantiles, and beside a value that repeats enough its left neighbour, so that it stands alone."""
    n = len(ascending)
    distinct, counts = np.unique(ascending, return_counts=True)
    if len(distinct) <= FINE_BINS:
        ends, heavy = distinct, distinct
    else:
        ends = np.unique(ascending[np.ceil(n * np.arange(1, FINE_BINS + 1) / FINE_BINS).astype(np.intp) - 1])
        heavy = np.append(distinct[counts * FINE_BINS >= n], distinct[0])
    return np.unique(np.concatenate([ends, heavy, np.nextafter(heavy, -np.inf)]))


def _ends_of_cells(cells: Codes, grid: Floats) -> Floats:
    """Find the last number in each cell, by halving the numbers between two that enclose it."""
    near = grid[0] + (cells + 1) / grid[1]
    slack = 1 / grid[1]
    low, high = _rank(near - slack), _rank(near + slack)
    while (high - low).max() > 1:
        middle = low + (high - low) // 2
        inside = _cell_of(_number(middle), grid) <= cells
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    return _number(low)


def _rank(numbers: Floats) -> Codes:
    """Number the finite floats in order."""
    bits = numbers.view(np.int64)
    return np.where(bits >= 0, bits, -(bits & np.iinfo(np.int64).max))


def _number(ranks: Codes) -> Floats:
    """Undo `_rank`."""
    return np.where(ranks >= 0, ranks, np.iinfo(np.int64).min - ranks).view(np.float64)


def _centre_bins(known: Floats, edges: Floats, ends: Codes, counts: Floats) -> Floats:
    """Give the mean of each bin's values; of an empty one the middle."""
    middles = np.concatenate([edges[:1], edges[:-1] / 2 + edges[1:] / 2, edges[-1:]])
    filled = np.flatnonzero(counts)
    middles[filled] = np.add.reduceat(known, np.concatenate([[0], ends])[filled]) / counts[filled]
    return middles


def _known_numbers(values: NDArray[Any]) -> Floats:
    known: Floats = values[~np.isnan(values)].astype(np.float64, copy=False)
    if not np.isfinite(known).all():
        raise ValueError("values must be finite or NaN for missing; quarantine infinite ones at ingest")
    return known


def _choose_letters(levels: NDArray[np.str_]) -> tuple[Codes, NDArray[np.uint32]]:
    """Choose a few letters that tell the levels and the empty text apart, and factors that give each its own slot."""
    texts = np.append(levels, "")
    letters = texts.view(np.uint32).reshape(len(texts), -1)
    chosen: list[int] = []
    parts = np.zeros(len(texts), dtype=np.intp)
    while (told := parts.max() + 1) < len(texts):
        splits = [np.unique(parts * (1 << 21) + column, return_inverse=True)[1] for column in letters.T]
        best = int(np.argmax([split.max() for split in splits]))
        if splits[best].max() + 1 == told:
            break
        chosen, parts = [*chosen, best], splits[best]
    places = np.array(chosen, dtype=np.intp)
    seeds = np.arange(TRIES * len(places), dtype=np.uint64).reshape(TRIES, len(places))
    tried = (mix_bits(seeds) >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
    apart = [len(set(_slots(letters, places, factors).tolist())) for factors in tried]
    return places, tried[int(np.argmax(apart))]


def _slots(letters: NDArray[np.uint32], places: Codes, factors: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Give the slot of texts that are shown as letters (n, width); what lies beyond the width is blank."""
    sums = np.zeros(len(letters), dtype=np.uint32)
    for place, factor in zip(places, factors, strict=True):
        if place < letters.shape[1]:
            sums += letters[:, place] * factor
    return sums >> np.uint32(32 - SLOTS)
