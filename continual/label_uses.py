"""What labels may be used for: how many are missing to learn from, and which may measure performance. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime

import numpy as np
from numpy.typing import NDArray

from continual.worklists import LabelPolicy, Part, Worklist, studies_to_ask


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenWorklist:
    """A worklist that has not come back whole: how many studies it asked for, how many have come back, how old it is.

    ``to_learn_from`` counts what is still to come of its chosen part.
    """

    worklist_id: str
    since: date
    days: int
    asked: int
    returned: int
    to_learn_from: int

    @property
    def return_rate(self) -> float:
        """Give the share of its studies that have come back."""
        return self.returned / self.asked if self.asked else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelNeed:
    """How many labels there are to learn from, how many are asked for, and what is on its way."""

    there: int
    needed: int
    waiting: tuple[OpenWorklist, ...] = ()

    @property
    def missing(self) -> int:
        """Count the labels that are neither there nor on a worklist."""
        return max(0, self.needed - self.there - sum(worklist.to_learn_from for worklist in self.waiting))

    @property
    def enough(self) -> bool:
        """Tell whether there are enough to learn from."""
        return self.there >= self.needed


def missing_labels(there: int, needed: int, worklists: Sequence[OpenWorklist] = ()) -> LabelNeed:
    """Say how many labels to learn from are missing, those on open worklists counted as on their way."""
    waiting = tuple(worklist for worklist in worklists if worklist.to_learn_from)
    return LabelNeed(there=there, needed=needed, waiting=waiting)


def tell_missing(need: LabelNeed, policy: LabelPolicy) -> str:
    """Say in one sentence how many labels are there, on their way, and to be asked for, and by which command."""
    parts = [f"{need.there} of {need.needed} labels to learn from {_be(need.there)} there"]
    parts += [
        f"{one.to_learn_from} {_be(one.to_learn_from)} on worklist {one.worklist_id} since {one.since}"
        for one in need.waiting
    ]
    if need.missing:
        n = studies_to_ask(need.missing, policy)
        more = f", {n - need.missing} of them to measure by" if n > need.missing else ""
        parts.append(f"request {need.missing} more with `wardround labels request --n {n}`{more}")
    return "; ".join(parts)


def look_at_worklists(
    worklists: Sequence[Worklist], labelled: frozenset[str], at: datetime
) -> tuple[OpenWorklist, ...]:
    """List the worklists that have not come back whole, oldest first."""
    return tuple(
        OpenWorklist(
            worklist_id=worklist.worklist_id,
            since=worklist.requested_at.date(),
            days=(at - worklist.requested_at).days,
            asked=len(worklist.items),
            returned=len(worklist.studies() & labelled),
            to_learn_from=len(worklist.studies(Part.CHOSEN) - labelled),
        )
        for worklist in sorted(worklists, key=lambda one: one.requested_at)
        if worklist.is_open(labelled, at)
    )


def hide_from_measuring(
    labels: NDArray[np.float64], *, learning: NDArray[np.bool_], chosen: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Take the labels of learning patients out of a window's performance while we decide which of them exist.

    Studies are chosen because the model is unsure of them: counted like others they make it look worse than it is.
    To leave out the chosen ones alone is no better, for what remains is easier than the whole. But studies are
    chosen among learning patients only, and a patient's role does not depend on the case: the labels of all others
    are what they would be had nobody chosen anything, and what they show holds for the window. Once every study of
    learning patients is labelled, choosing has no effect any more and all count again.

    ``labels`` (n, columns) with NaN where unknown, of one window; ``learning`` (n,) marks the studies of learning
    patients, ``chosen`` (n,) those that were chosen for a worklist. Returns the labels to measure by.
    """
    known = ~np.isnan(labels)
    if not known[chosen].any() or known[learning].all():
        return labels
    kept = labels.copy()
    kept[learning] = np.nan
    return kept


def _be(count: int) -> str:
    return "is" if count == 1 else "are"
