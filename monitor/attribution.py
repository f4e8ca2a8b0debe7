"""Where a drift sits: which attribute values gained or lost share, and in which the embeddings moved most."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from monitor.cohorts import MISSING, Cohort, Window
from monitor.results import Contribution

Floats = NDArray[np.float64]


def attribute_drift(reference: Cohort, current: Cohort, *, window: Window) -> tuple[Contribution, ...]:
    """List the values of every attribute by how much they carry of the drift, most first.

    A numeric attribute is cut at the reference's quartiles. ``shift`` is the mean, inside the value, of
    the study's place along the direction between the two mean embeddings, in reference standard
    deviations; None without embeddings or without current studies.
    """
    places = _places(reference, current)
    contributions = []
    for name, column in current.attributes.items():
        if name not in reference.attributes:
            continue
        before, now = _as_words(reference.attributes[name], column)
        for value in np.unique(np.concatenate([before, now])):
            inside = now == value
            contributions.append(
                Contribution(
                    window=window,
                    attribute=name,
                    value=str(value),
                    n_current=int(inside.sum()),
                    share_reference=float((before == value).mean()) if len(before) else 0.0,
                    share_current=float(inside.mean()) if len(now) else 0.0,
                    shift=float(places[inside].mean()) if places is not None and inside.any() else None,
                )
            )
    return tuple(sorted(contributions, key=_importance))


def _importance(contribution: Contribution) -> tuple[float, float, str, str]:
    """Rank by change of share, a value that arrived before one that went."""
    change = contribution.share_current - contribution.share_reference
    return -round(abs(change), 9), -change, contribution.attribute, contribution.value


def _places(reference: Cohort, current: Cohort) -> Floats | None:
    if reference.embeddings is None or current.embeddings is None or len(reference) < 2 or not len(current):
        return None
    before, now = reference.embeddings.astype(np.float64), current.embeddings.astype(np.float64)
    direction = now.mean(axis=0) - before.mean(axis=0)
    along = before @ direction
    spread = float(along.std(ddof=1))
    return (now @ direction - along.mean()) / spread if spread > 0 else None


def _as_words(before: NDArray[np.generic], now: NDArray[np.generic]) -> tuple[NDArray[np.str_], NDArray[np.str_]]:
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
