"""Streams without drift, simulated many at once: what the online tests of alibi-detect set their thresholds by.

The statistics are alibi-detect's own, number by number. Its simulations, a stream at a time, took 76 s for an expected
run of 500 patients (MMD, reference 400); these took 0.3 s, and 8 s for one of 16,384.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]

STREAMS_AT_ONCE = 128
"""Few enough that what is made of them stays in the processor's cache."""


def simulate_mmd(kernel: Floats, window: int, streams: int, generator: np.random.Generator) -> Floats:
    """Simulate the squared MMD of a sliding window against the rest of the reference (Cobb 2022).

    Args:
        kernel: of the reference with itself, shape (n, n).
        window: studies of a sliding window; 2 ``window`` - 1 are drawn, so that it slides ``window`` times.
        streams: how many streams.
        generator: source of randomness.

    Returns: shape (streams, window).
    """
    off_diagonal = kernel.astype(np.float64)
    np.fill_diagonal(off_diagonal, 0)
    total, columns, drawn = off_diagonal.sum(), off_diagonal.sum(axis=0), 2 * window - 1
    rest = len(kernel) - drawn
    statistics = np.empty((streams, window))
    for some in _parts(streams):
        taken = generator.random((some.stop - some.start, len(kernel))).argsort(axis=1)[:, :drawn]
        among = off_diagonal[taken[:, :, None], taken[:, None, :]]
        across = columns[taken] - among.sum(axis=1)  # of each drawn study with the rest of the reference
        within_rest = (total - among.sum(axis=(1, 2)) - 2 * across.sum(axis=1)) / (rest * (rest - 1))
        within_window = _slide_square(_add_up(among), window) / (window * (window - 1))
        statistics[some] = within_rest[:, None] + within_window - 2 * _slide(across, window) / (rest * window)
    return statistics


def simulate_cvm(n: int, windows: Sequence[int], length: int, streams: int, generator: np.random.Generator) -> Singles:
    """Simulate the standardised Cramér–von Mises statistic of sliding windows against a reference (Ross 2012).

    It is a statistic of ranks: any continuous distribution serves, and of the reference only how many of it lie
    below each study is needed. Both sums of squared differences are then sums over pairs of the window.

    Args:
        n: studies in the reference.
        windows: studies of each sliding window.
        length: of a stream, in studies.
        streams: how many streams.
        generator: source of randomness.

    Returns: shape (streams, length, windows); NaN until a window is full.
    """
    statistics = np.full((streams, length, len(windows)), np.nan, dtype=np.float32)
    for some in _parts(streams):
        count = some.stop - some.start
        reference = np.sort(generator.random((count, n)), axis=1)
        stream = generator.random((count, length))
        # row by row at once: what is added to a row keeps it apart from the others
        rows = np.arange(count)[:, None]
        below = np.searchsorted((reference + rows).ravel(), (stream + rows).ravel()).reshape(stream.shape) - n * rows
        statistics[some] = measure_cvm(stream, below.astype(np.float64), n, windows)
    return statistics


def measure_cvm(stream: Floats, below: Floats, n: int, windows: Sequence[int]) -> Floats:
    """Give the statistic of `simulate_cvm` for streams (b, length) of whose studies so many of the n lie ``below``."""
    whole = below.astype(np.int32)
    pairs = n - np.maximum(whole[:, :, None], whole[:, None, :])
    earlier = (stream[:, None, :] <= stream[:, :, None]) * whole[:, :, None]
    reached, squares = (n * (n + 1) - below * (below + 1)) / 2, below**2
    sums_of_pairs, sums_of_earlier = _add_up(pairs), _add_up(earlier)
    found = np.full((*stream.shape, len(windows)), np.nan)
    for place, window in enumerate(windows):
        own = (window + 1) * (2 * window + 1) / (6 * window)
        on_reference = (
            (n + 1) * (2 * n + 1) / (6 * n)
            - 2 / (n * window) * _slide(reached, window)
            + _slide_square(sums_of_pairs, window) / window**2
        )
        on_window = _slide(squares, window) / n**2 - 2 / (n * window) * _slide_square(sums_of_earlier, window) + own
        both = n + window
        mean = 1 / 6 + 1 / (6 * both)
        variance: float = (both + 1) * (4 * n * window * both - 3 * (n**2 + window**2) - 2 * n * window)
        variance /= 45 * both**2 * 4 * n * window
        found[:, window - 1 :, place] = ((on_reference + on_window) * n * window / both**2 - mean) / np.sqrt(variance)
    return found


def simulate_fet(  # noqa: PLR0913 - a test of alibi-detect's has that many settings
    positives: int,
    n: int,
    windows: Sequence[int],
    length: int,
    streams: int,
    *,
    rise: bool,
    smoothing: float,
    generator: np.random.Generator,
) -> Singles:
    """Simulate one less the p-value of Fisher's exact test, smoothed over time, of sliding windows (Ross 2012).

    Each stream has its own share of positives, drawn from what ``positives`` of ``n`` leave possible (Beta, Jeffreys'
    prior): the share of the reference is not that of the population, and thresholds that take it for that give
    false alarms too often.

    Args:
        positives: of the reference.
        n: studies in the reference.
        windows: studies of each sliding window.
        length: of a stream, in studies.
        streams: how many streams.
        rise: whether a rise is looked for, else a fall.
        smoothing: weight of the newest in the exponential moving average.
        generator: source of randomness.

    Returns: shape (streams, length, windows); NaN until a window is full.
    """
    statistics = np.full((streams, length, len(windows)), np.nan, dtype=np.float32)
    tables = [tabulate_fet(positives, n, window, rise=rise) for window in windows]
    for some in _parts(streams):
        shares = generator.beta(positives + 0.5, n - positives + 0.5, some.stop - some.start)
        stream = (generator.random((len(shares), length)) < shares[:, None]).astype(np.float64)
        for place, (window, table) in enumerate(zip(windows, tables, strict=True)):
            now = table[np.rint(_slide(stream, window)).astype(np.intp)]
            for time in range(1, now.shape[1]):
                now[:, time] = (1 - smoothing) * now[:, time - 1] + smoothing * now[:, time]
            statistics[some, window - 1 :, place] = now
    return statistics


def tabulate_fet(positives: int, n: int, window: int, *, rise: bool) -> Floats:
    """Give one less the p-value for 0 … ``window`` positives in a window, shape (window + 1,)."""
    seen = np.arange(window + 1)
    if rise:
        return np.asarray(1 - hypergeom.cdf(positives, n + window, positives + seen, n))
    return np.asarray(1 - hypergeom.cdf(seen, n + window, positives + seen, window))


def _parts(streams: int) -> Iterator[slice]:
    return (slice(start, min(start + STREAMS_AT_ONCE, streams)) for start in range(0, streams, STREAMS_AT_ONCE))


def _slide(values: Floats, window: int) -> Floats:
    """Sum each window of so many in a row, (b, length) to (b, length - window + 1)."""
    sums = np.zeros((len(values), values.shape[1] + 1))
    np.cumsum(values, axis=1, out=sums[:, 1:])
    return np.asarray(sums[:, window:] - sums[:, :-window])


def _add_up(pairs: NDArray[Any]) -> NDArray[Any]:
    """Cumulate (b, length, length) over both of a pair, with a row and a column of zeros before."""
    length = pairs.shape[1] + 1
    sums = np.zeros((len(pairs), length, length), dtype=pairs.dtype)
    np.cumsum(pairs, axis=1, out=sums[:, 1:, 1:])
    np.cumsum(sums[:, 1:, 1:], axis=2, out=sums[:, 1:, 1:])
    return sums


def _slide_square(sums: NDArray[Any], window: int) -> NDArray[Any]:
    """Give the sum over the pairs within each window, (b, windows), from what `_add_up` gave."""
    last = np.arange(window, sums.shape[1])
    first = last - window
    return np.asarray(sums[:, last, last] - sums[:, first, last] - sums[:, last, first] + sums[:, first, first])
