"""What is learned from, stage by stage, and which of it is kept for rehearsal. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from monitor.cohorts import binary_labels
from monitor.tasks import Task


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Experience:
    """Labelled studies of one stage, as what enters the adapter (latent rehearsal: no image is kept).

    ``tokens`` as ``read_inputs`` gives them: cached tokens (n, T, width) float16, or cached embeddings
    (n, 1, width) float32 for an adapter that changes no block; ``labels`` (n, label columns), NaN where
    unknown; ``patient_key`` (n,). ``strata`` (n,) are the groups that share a rehearsal memory beside the
    labels, ``image`` (n,) the content hashes of the images; both may be left out.

    Raises:
        ValueError: the columns have different lengths, or a token is not finite.
    """

    name: str
    tokens: NDArray[np.float16] | NDArray[np.float32]
    labels: NDArray[np.float64]
    patient_key: NDArray[np.str_]
    strata: NDArray[np.str_] = field(default_factory=lambda: np.empty(0, dtype=np.str_))
    image: NDArray[np.str_] = field(default_factory=lambda: np.empty(0, dtype=np.str_))

    def __post_init__(self) -> None:
        n = len(self.tokens)
        for name in ("strata", "image"):
            if (column := getattr(self, name)).shape not in {(0,), (n,)}:
                raise ValueError(f"experience {self.name}: {name} must have shape ({n},), got {column.shape}")
            if len(column) != n:
                object.__setattr__(self, name, np.full(n, "", dtype=np.str_))
        if self.tokens.ndim != 3 or self.labels.ndim != 2 or len(self.labels) != n or self.patient_key.shape != (n,):
            raise ValueError(
                f"experience {self.name}: tokens (n, T, width), labels (n, columns) and patient_key (n,) do not fit: "
                f"{self.tokens.shape}, {self.labels.shape}, {self.patient_key.shape}"
            )
        if not np.isfinite(self.tokens).all():
            raise ValueError(f"experience {self.name}: a token is not finite; ingest its image again")

    def __len__(self) -> int:
        return len(self.tokens)

    def select(self, rows: NDArray[np.bool_] | NDArray[np.intp]) -> Experience:
        """Keep the given rows."""
        columns = {name: getattr(self, name)[rows] for name in ("tokens", "labels", "patient_key", "strata", "image")}
        return Experience(name=self.name, **columns)

    def labelled(self) -> Experience:
        """Keep the studies of which at least one label is known."""
        return self.select(np.flatnonzero(~np.isnan(self.labels).all(axis=1)))


def why_not_learnable(experience: Experience, task: Task, classes: tuple[str, ...]) -> str:
    """Say why nothing can be learned from an experience; empty if something can."""
    if not len(experience):
        return f"{experience.name} has no labelled study"
    targets = binary_labels(task, classes, experience.labels)
    if not ((targets == 0).any(axis=0) & (targets == 1).any(axis=0)).any():
        return f"all {len(experience)} labelled studies of {experience.name} have the same label"
    return ""


def order_for_rehearsal(
    labels: NDArray[np.float64],
    patient_key: NDArray[np.str_],
    generator: np.random.Generator,
    strata: NDArray[np.str_] | None = None,
) -> NDArray[np.intp]:
    """Rank studies for the rehearsal memory in a random order that is balanced; shape (n,).

    Every beginning of the ranking is balanced over the labels and ``strata``, and within such a group no
    patient comes a second time before each patient came once: a memory that shrinks keeps a beginning.
    """
    return balance(generator.permutation(len(labels)), group_of(labels, strata), patient_key)


def group_of(labels: NDArray[np.float64], strata: NDArray[np.str_] | None = None) -> NDArray[np.intp]:
    """Number the groups of equal labels, and strata if there are any, that share a memory evenly; shape (n,)."""
    _, group = np.unique(np.nan_to_num(labels, nan=-1), axis=0, return_inverse=True)
    if strata is not None and len(strata):
        _, stratum = np.unique(strata, return_inverse=True)
        _, group = np.unique(np.stack([group.ravel(), stratum], axis=1), axis=0, return_inverse=True)
    numbers: NDArray[np.intp] = group.ravel()
    return numbers


def balance(wanted: NDArray[np.intp], group: NDArray[np.intp], patient_key: NDArray[np.str_]) -> NDArray[np.intp]:
    """Deal a ranking out over groups in turn, and within a group over its patients; its order stays otherwise.

    ``wanted`` (m,) are rows, the most wanted first; ``group`` and ``patient_key`` (n,) those of all rows.
    """
    _, patient = np.unique(patient_key, return_inverse=True)
    stratum, patient = group[wanted], patient[wanted]
    turn = _count_before(np.stack([stratum, patient], axis=1))  # how often this patient came before in this group
    by_turn = np.lexsort((np.arange(len(wanted)), turn))
    place = np.empty(len(wanted), dtype=np.intp)
    place[by_turn] = _count_before(stratum[by_turn, None])  # its place within its group
    ranking: NDArray[np.intp] = wanted[np.lexsort((stratum, place))]
    return ranking


def share_memory(sizes: Sequence[int], total: int) -> list[int]:
    """Divide a memory over experiences as evenly as their sizes allow; the largest gets the remainder."""
    shares = [0] * len(sizes)
    left = total
    order = sorted(range(len(sizes)), key=lambda i: sizes[i])
    for position, i in enumerate(order):
        shares[i] = min(sizes[i], left // (len(order) - position))
        left -= shares[i]
    return shares


def _count_before(keys: NDArray[np.intp]) -> NDArray[np.intp]:
    """Count for each row the equal rows before it; (n, columns) to (n,)."""
    _, group = np.unique(keys, axis=0, return_inverse=True)
    group = group.ravel()
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], group[order], side="left")
    before = np.empty(len(group), dtype=np.intp)
    before[order] = np.arange(len(group)) - starts
    return before
