"""Where a drift sits: which attribute values gained or lost share, in which the images look other than they did."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from monitor.cohorts import MISSING, Cohort, Window
from monitor.domain_classifier import score_studies
from monitor.multiplicity import holm_thresholds
from monitor.permutations import contrasts, p_value, sides_by_patient
from monitor.results import Contribution

Floats = NDArray[np.float64]
Codes = NDArray[np.intp]

PERMUTATIONS = 1999
"""So many that Holm's first step can be reached by a hundred tests."""
LEAST_PATIENTS = 5
COMPONENTS = 16
"""Leading principal components, learned from both sides without looking at which is which, that are compared."""

ALPHA = 0.05
"""Probability that any value is said to be beyond chance when none is, over all values of the window."""


def attribute_drift(
    reference: Cohort, current: Cohort, *, window: Window, generator: np.random.Generator
) -> tuple[Contribution, ...]:
    """List the values of every attribute by how much they carry of the drift, most first.

    A numeric attribute is cut at the reference's quartiles. ``shift`` is the mean score, inside the value, of a
    domain classifier learned on other patients (`monitor.domain_classifier`), in reference standard deviations: about
    0 where nothing changed; ``carried`` is the value's part of the difference between both sides' mean scores. Both are
    None without embeddings or with fewer than ``LEAST_PATIENTS`` patients on a side. ``p_share`` tests whether the
    value's share changed, ``p_within`` whether the images of studies with this value moved among themselves, which
    no change of shares can do; both relabel patients. A patient on both sides counts as current only, but in the
    shares. What is beyond chance over all values (Holm) comes first.
    """
    components = _components(reference, current)
    strangers = ~np.isin(reference.patient_key, current.patient_key)
    keys = np.concatenate([reference.patient_key[strangers], current.patient_key])
    owners = np.unique(keys, return_inverse=True)[1]
    is_current = np.arange(len(keys)) >= strangers.sum()
    enough = min(len(np.unique(owners[is_current])), len(np.unique(owners[~is_current]))) >= LEAST_PATIENTS
    weights = contrasts(*sides_by_patient(owners, is_current), PERMUTATIONS, generator) if enough else None
    kept = np.concatenate([strangers, np.ones(len(current), dtype=np.bool_)])
    scores = _score(reference, current, kept, owners, is_current, generator) if enough else None
    rows: list[Contribution] = []
    for name, column in current.attributes.items():
        if name not in reference.attributes:
            continue
        before, now = as_words(reference.attributes[name], column)
        values, codes = np.unique(np.concatenate([before, now]), return_inverse=True)
        tested = codes[kept]
        shifts, carried = _weigh(scores, tested, is_current, len(values))
        p_shares = _test_shares(tested, len(values), owners, weights)
        for place, value in enumerate(values):
            mine = tested == place
            rows.append(
                replace(
                    _describe(window, name, str(value), before, now, shifts[place]),
                    carried=carried[place],
                    p_share=p_shares[place],
                    p_within=_test_within(components, mine, kept, owners, is_current, generator),
                    patients_reference=len(np.unique(reference.patient_key[before == value])),
                    patients_current=len(np.unique(current.patient_key[now == value])),
                )
            )
    return tuple(sorted(_judge(rows), key=_importance))


def _describe(
    window: Window, name: str, value: str, before: NDArray[np.str_], now: NDArray[np.str_], shift: float | None
) -> Contribution:
    inside = now == value
    return Contribution(
        window=window,
        attribute=name,
        value=value,
        n_current=int(inside.sum()),
        share_reference=float((before == value).mean()) if len(before) else 0.0,
        share_current=float(inside.mean()) if len(now) else 0.0,
        shift=shift,
    )


def _judge(rows: Sequence[Contribution]) -> list[Contribution]:
    """Say which values are beyond chance in either way, both p-values of all values corrected together."""
    tests = [(i, p) for i, row in enumerate(rows) for p in (row.p_share, row.p_within) if p is not None]
    passed = {
        i for (i, p), bound in zip(tests, holm_thresholds([p for _, p in tests], ALPHA), strict=True) if p <= bound
    }
    return [replace(row, beyond_chance=i in passed) for i, row in enumerate(rows)]


def _importance(contribution: Contribution) -> tuple[bool, float, float, str, str]:
    """Rank what is beyond chance first, then by change of share, a value that arrived before one that went."""
    change = (contribution.share_current or 0.0) - (contribution.share_reference or 0.0)
    beyond = not contribution.beyond_chance
    return beyond, -round(abs(change), 9), -change, contribution.attribute, contribution.value


def _test_shares(codes: Codes, values: int, owners: Codes, weights: Floats | None) -> list[float | None]:
    """Test, for each value, whether its share of the studies changed."""
    if weights is None:
        return [None] * values
    counts = np.zeros((weights.shape[1], values))
    np.add.at(counts, (owners, codes), 1)
    return [p_value(column) for column in np.abs(weights @ counts).T]


def _test_within(
    components: Floats | None,
    mine: NDArray[np.bool_],
    kept: NDArray[np.bool_],
    owners: Codes,
    is_current: NDArray[np.bool_],
    generator: np.random.Generator,
) -> float | None:
    """Test whether the mean of the components moved among the studies of one value; None with too few patients."""
    if components is None:
        return None
    own = np.unique(owners[mine], return_inverse=True)[1]
    sides = [len(np.unique(own[is_current[mine] == side])) for side in (True, False)]
    if min(sides) < LEAST_PATIENTS or sum(sides) > int(own.max(initial=-1)) + 1:
        return None
    sums = np.zeros((int(own.max()) + 1, components.shape[1]))
    np.add.at(sums, own, components[kept][mine])
    weights = contrasts(*sides_by_patient(own, is_current[mine]), PERMUTATIONS, generator)
    moved = np.square(weights @ sums)
    usual = moved.mean(axis=0)  # of all relabellings, the observed among them, so that the p-value stays exact
    return p_value((moved / np.where(usual > 0, usual, 1)).sum(axis=1))


def _components(reference: Cohort, current: Cohort) -> Floats | None:
    """Give the leading components of all embeddings, each with a spread of 1; (n_reference + n_current, k)."""
    if reference.embeddings is None or current.embeddings is None or len(reference) < 2 or not len(current):
        return None
    both = np.concatenate([reference.embeddings, current.embeddings]).astype(np.float64)
    centred = both - both.mean(axis=0)
    spread, axes = np.linalg.eigh(centred.T @ centred / len(centred))
    leading = np.argsort(spread)[::-1][:COMPONENTS]
    leading = leading[spread[leading] > 1e-9 * max(float(spread.max()), 1e-300)]
    return np.asarray(centred @ (axes[:, leading] / np.sqrt(spread[leading]))) if len(leading) else None


def _score(
    reference: Cohort,
    current: Cohort,
    kept: NDArray[np.bool_],
    owners: Codes,
    is_current: NDArray[np.bool_],
    generator: np.random.Generator,
) -> Floats | None:
    """Score the kept studies by how much they look like the window; None without embeddings."""
    if reference.embeddings is None or current.embeddings is None:
        return None
    values = np.concatenate([reference.embeddings, current.embeddings])[kept]
    return score_studies(values.astype(np.float64), owners, is_current, generator=generator)


def _weigh(
    scores: Floats | None, codes: Codes, is_current: NDArray[np.bool_], values: int
) -> tuple[list[float | None], list[float | None]]:
    """Give the mean score of each value's current studies, and its part of what lies between both sides' mean scores.

    The parts sum to 1; None where the classifier saw the window no farther than the reference.
    """
    nothing: list[float | None] = [None] * values
    if scores is None:
        return nothing, nothing
    now, before = (
        np.bincount(codes[side], weights=scores[side], minlength=values) for side in (is_current, ~is_current)
    )
    counts = np.bincount(codes[is_current], minlength=values)
    shifts = [float(total / n) if n else None for total, n in zip(now, counts, strict=True)]
    parts = now / is_current.sum() - before / (~is_current).sum()
    apart = float(parts.sum())
    return shifts, [float(part) for part in parts / apart] if apart > 0 else nothing


def as_words(before: NDArray[np.generic], now: NDArray[np.generic]) -> tuple[NDArray[np.str_], NDArray[np.str_]]:
    """Turn a numeric attribute into quartiles of the reference; words stay."""
    if before.dtype.kind != "f" or now.dtype.kind != "f":
        return before.astype(np.str_), now.astype(np.str_)
    known = before[~np.isnan(before)]
    cuts = np.unique(np.quantile(known, [0.25, 0.5, 0.75])) if len(known) else known
    between = [f"{low:g} to {high:g}" for low, high in itertools.pairwise(cuts)]
    names = np.array([f"≤ {cuts[0]:g}", *between, f"> {cuts[-1]:g}"] if len(known) else ["known"])

    def words(column: NDArray[np.generic]) -> NDArray[np.str_]:
        return np.where(np.isnan(column), MISSING, names[np.searchsorted(cuts, column, side="left")])

    return words(before), words(now)
