"""Permutation tests fast enough for hundreds of years of days, and the rule of Evidently's preset.

The product relabels the patients of both sides anew for every comparison. Where each patient has one study the same law
can be had from the window's side alone: a relabelling is n of N places in the order of all values, or a draw from the
hypergeometric law of a table with fixed margins. Features of embeddings are mapped once instead of three times, and
summed over the places. Statistics are the product's to the last digits, p-values are draws from the same law;
`compare_with_product` shows it.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial.distance import jensenshannon
from scipy.stats import chisquare, ks_2samp, norm, wasserstein_distance

from monitor.alarms import WORTHLESS
from monitor.columns import chi_square, effect_of
from monitor.comparisons import Question
from monitor.detectors import EFFECT_NAMES, Outcome, compare
from monitor.embedding_features import (
    FLAT,
    GROUPS,
    FeatureMap,
    _breadth,
    _groups,
    columns,
    plan_features,
)
from monitor.embedding_shift import PATIENTS_A_DIRECTION, _judge
from monitor.permutations import p_value

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Places = NDArray[np.intp]
Columns = dict[str, NDArray[Any]]

LIFE = 30
"""Tests after which relabellings are drawn anew."""
LARGE_REFERENCE = 1_000
FEW_VALUES = 5
LEVEL, DISTANCE = 0.05, 0.1


class Relabellings:
    """Who might have been the window: for N patients, n of them current, as sorted places (draws, n) of N."""

    def __init__(self, generator: np.random.Generator) -> None:
        self.generator = generator
        self.drawn: dict[tuple[int, int, int], tuple[int, Places]] = {}

    def places(self, n: int, among: int, draws: int) -> Places:
        """Give relabellings, the same ones to all columns of LIFE windows."""
        used, places = self.drawn.get((n, among, draws), (LIFE, np.empty((0, n), dtype=np.intp)))
        if used >= LIFE:
            if not any(key[1] == among for key in self.drawn):
                self.drawn.clear()  # the comparison set has grown
            used, places = 0, _draw_places(n, among, draws, self.generator)
        self.drawn[n, among, draws] = used + 1, places
        return places

    def test(self, question: Question, permutations: int) -> Outcome:
        """Make one comparison by KS, chi-square or `embedding_shift`, as `monitor.detectors.compare` does."""
        before, now = question.reference.values, question.current.values
        if question.detector == "embedding_shift":
            return self._shift(before, now, permutations)
        if question.detector == "chi_square":
            statistics = self._tables(before, now, permutations)
            sizes, name = np.sqrt(statistics / (len(before) + len(now))), "Cramér's V"
        else:
            statistics = sizes = self._distances(before, now, permutations)
            name = "KS distance"
        return Outcome(
            statistic=float(statistics[0]), effect=effect_of(sizes), effect_name=name, p_value=p_value(statistics)
        )

    def _shift(self, before: Floats, now: Floats, permutations: int) -> Outcome:
        """Do what `monitor.embedding_shift.permutation_shift` does; breadths only where the effect will matter."""
        both, n = np.concatenate([before, now]), len(now)
        learned, features = _learn(both, self.generator, max(1, len(both) // PATIENTS_A_DIRECTION))
        places = self.places(n, len(both), permutations)
        moved = np.concatenate(
            [
                features[-n:].sum(axis=0, dtype=np.float64)[None],
                *(
                    features[some].sum(axis=1, dtype=np.float32)
                    for some in np.array_split(places, len(places) // 50 + 1)
                ),
            ]
        ).astype(np.float64)
        differences = moved / n - (features.sum(axis=0, dtype=np.float64) - moved) / len(before)
        variance = (features[:-n].var(axis=0, dtype=np.float64) + features[-n:].var(axis=0, dtype=np.float64)) / 2
        shift = _judge(learned, differences, variance, (n, 0))
        if shift.p_value < WORTHLESS:
            breadth = np.array([_breadth(features[:, group]) for group in columns(learned.axes.shape)])
            shift = _judge(replace(learned, breadth=breadth), differences, variance, (n, 0))
        name = EFFECT_NAMES["embedding_shift"]
        return Outcome(statistic=shift.statistic, effect=shift.effect, effect_name=name, p_value=shift.p_value)

    def _tables(self, before: NDArray[Any], now: NDArray[Any], permutations: int) -> Floats:
        levels, codes = np.unique(np.concatenate([before, now]), return_inverse=True)
        totals = np.bincount(codes, minlength=len(levels))
        seen = np.bincount(codes[len(before) :], minlength=len(levels))[None]
        drawn = self.generator.multivariate_hypergeometric(totals, len(now), size=permutations, method="marginals")
        counts = np.concatenate([seen, drawn]).astype(np.float64)
        return chi_square(counts, totals - counts)

    def _distances(self, before: Floats, now: Floats, permutations: int) -> Floats:
        """Give KS distances by F_now - F_before = N / (N - n) (F_now - F_all), found at the window's values alone."""
        both = np.sort(np.concatenate([before, now]))
        among, n = len(both), len(now)
        first_of_tie = np.searchsorted(both, both, side="left")
        last_of_tie = np.searchsorted(both, both, side="right")
        observed = np.searchsorted(both, np.sort(now), side="left")[None]
        drawn = self.places(n, among, permutations)
        upper, lower = np.arange(1, n + 1) / n, np.arange(n) / n
        distances = [
            np.maximum(
                (upper - last_of_tie[some] / among).max(axis=1), (first_of_tie[some] / among - lower).max(axis=1)
            )
            for some in (observed, drawn)
        ]
        return np.concatenate(distances) * (among / (among - n))


def _learn(values: Floats, generator: np.random.Generator, most: int) -> tuple[FeatureMap, Singles]:
    """Learn as `monitor.embedding_features.learn`, all breadths 1; with the standardised features of the rows."""
    centre, axes, whitening, frequencies = plan = plan_features(values, generator, most)
    features = np.concatenate(_groups(*plan, values), axis=1)
    middle, scale = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    scale[scale < FLAT] = 1
    features -= middle.astype(np.float32)
    features /= scale.astype(np.float32)
    learned = FeatureMap(
        centre=centre,
        axes=axes,
        whitening=whitening,
        frequencies=frequencies,
        middle=middle.astype(np.float32),
        scale=scale.astype(np.float32),
        breadth=np.ones(len(GROUPS)),
    )
    return learned, features


def _draw_places(n: int, among: int, draws: int, generator: np.random.Generator) -> Places:
    """Draw n of N places without replacement, evenly: with replacement, and what has a place twice is drawn again."""
    if n * n > 4 * among:
        return np.sort(generator.permuted(np.tile(np.arange(among), (draws, 1)), axis=1)[:, :n], axis=1)
    kept: list[Places] = []
    while (missing := draws - sum(map(len, kept))) > 0:
        drawn = np.sort(generator.integers(among, size=(2 * missing, n)), axis=1)
        kept.append(drawn[(np.diff(drawn, axis=1) > 0).all(axis=1)][:missing])
    return np.concatenate(kept)


def compare_with_product(question: Question, permutations: int, seed: int) -> tuple[float, float]:
    """Tell by how much statistic and p-value of one comparison differ, the latter in binomial errors of its draws.

    The statistic of embeddings is in units of the draws themselves and is not compared; its p-values differ by 1.7
    such errors (root mean square over 100 windows), and so do the product's own with other draws.
    """
    ours = Relabellings(np.random.default_rng(seed)).test(question, permutations)
    sides = question.reference, question.current
    theirs = compare(question.detector, *sides, permutations=permutations, generator=np.random.default_rng(seed))
    middle = (ours.p_value + theirs.p_value) / 2
    error = np.sqrt(2 * middle * max(1 - middle, 1 / permutations) / permutations)
    drawn = question.detector == "embedding_shift"
    return 0.0 if drawn else abs(ours.statistic - theirs.statistic), float(abs(ours.p_value - theirs.p_value) / error)


# --- Evidently's DataDriftPreset at its defaults ---------------------------------------------------


def evidently_rule(reference: Columns, window: Columns) -> tuple[bool, bool]:
    """Say whether any column drifted, and whether half of them did, as DataDriftPreset does.

    Up to 1,000 rows of reference: KS, chi-square or a z-test of two shares at 0.05; above: Wasserstein distance in
    standard deviations or Jensen-Shannon distance of at least 0.1.
    """
    drifted = []
    for name, before in reference.items():
        numeric = before.dtype.kind == "f" and len(np.unique(np.concatenate([before, window[name]]))) > FEW_VALUES
        test = (_ks, _shares_test, _wasserstein, _jensen_shannon)[2 * (len(before) > LARGE_REFERENCE) + (not numeric)]
        drifted.append(test(before, window[name]))
    return any(drifted), sum(drifted) >= len(drifted) / 2


KNOWN: dict[tuple[int, int, float], bool] = {}
"""Whether SciPy's exact test is at most 0.05, which depends on both sizes and the distance alone."""


def _ks(before: Floats, now: Floats) -> bool:
    ordered, at = np.sort(before), np.sort(now)
    steps = np.arange(len(at) + 1) / len(at)
    above = (steps[1:] - np.searchsorted(ordered, at, side="right") / len(ordered)).max()
    below = (np.searchsorted(ordered, at, side="left") / len(ordered) - steps[:-1]).max()
    key = len(before), len(now), round(float(max(above, below)), 9)
    if key not in KNOWN:
        KNOWN[key] = bool(ks_2samp(before, now).pvalue <= LEVEL)
    return KNOWN[key]


def _shares_test(before: NDArray[Any], now: NDArray[Any]) -> bool:
    values = np.unique(np.concatenate([before, now]))
    if len(values) < 2:
        return False
    counts = [np.array([(side == value).sum() for value in values], dtype=np.float64) for side in (before, now)]
    if len(values) > 2:
        with np.errstate(divide="ignore", invalid="ignore"):
            return bool(chisquare(counts[1], counts[0] * (len(now) / len(before)), sum_check=False).pvalue < LEVEL)
    n, m = len(before), len(now)
    pooled = (counts[0][1] + counts[1][1]) / (n + m)
    z = (counts[0][1] / n - counts[1][1] / m) / np.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
    return bool(2 * norm.sf(abs(z)) < LEVEL)


def _wasserstein(before: Floats, now: Floats) -> bool:
    return bool(wasserstein_distance(before, now) / max(float(np.std(before)), 1e-3) >= DISTANCE)


def _jensen_shannon(before: NDArray[Any], now: NDArray[Any]) -> bool:
    values = np.unique(np.concatenate([before, now]))
    shares = [np.array([(side == value).mean() for value in values]) for side in (before, now)]
    return bool(jensenshannon(*shares, base=2) >= DISTANCE)


def agrees_with_evidently(reference: Columns, window: Columns) -> bool:
    """Tell whether the rule finds as the real preset does whether any column drifted, and whether half of them did."""
    os.environ["DO_NOT_TRACK"] = "true"
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    numbers = [name for name, column in reference.items() if column.dtype.kind == "f"]
    words = [name for name in reference if name not in numbers]
    definition = DataDefinition(numerical_columns=numbers, categorical_columns=words)
    sides = [Dataset.from_pandas(pd.DataFrame(side), data_definition=definition) for side in (window, reference)]
    told = Report([DataDriftPreset()]).run(*sides).dict()
    counts = next(metric["value"] for metric in told["metrics"] if "DriftedColumnsCount" in str(metric))
    found = float(counts["count"]) > 0, float(counts["share"]) >= 0.5
    return found == evidently_rule(reference, window)
