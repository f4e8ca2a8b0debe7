"""What is learned from, stage by stage, and which of it is kept for rehearsal. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from monitor.cohorts import binary_labels
from monitor.tasks import Task


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Experience:
    """Labelled studies of one stage, as what enters the adapter (latent rehearsal: no image is kept).

    ``tokens`` as ``read_inputs`` gives them: cached tokens (n, T, width) float16, or cached embeddings
    (n, 1, width) float32 for an adapter that changes no block; ``labels`` (n, label columns), NaN where
    unknown; ``patient_key`` (n,).

    Raises:
        ValueError: the columns have different lengths, or a token is not finite.
    """

    name: str
    tokens: NDArray[np.float16] | NDArray[np.float32]
    labels: NDArray[np.float64]
    patient_key: NDArray[np.str_]

    def __post_init__(self) -> None:
        n = len(self.tokens)
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
        return Experience(
            name=self.name, tokens=self.tokens[rows], labels=self.labels[rows], patient_key=self.patient_key[rows]
        )

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
    labels: NDArray[np.float64], patient_key: NDArray[np.str_], generator: np.random.Generator
) -> NDArray[np.intp]:
    """Rank studies for the rehearsal memory, the most wanted first; shape (n,).

    Every beginning of the ranking is balanced over the labels, and within a label no patient comes a
    second time before each patient came once: a memory that shrinks keeps a beginning.
    """
    n = len(labels)
    drawn = generator.permutation(n)
    _, stratum = np.unique(np.nan_to_num(labels, nan=-1), axis=0, return_inverse=True)
    _, patient = np.unique(patient_key, return_inverse=True)
    stratum, patient = stratum.ravel()[drawn], patient[drawn]
    turn = _count_before(np.stack([stratum, patient], axis=1))  # how often this patient came before in this label
    by_turn = np.lexsort((np.arange(n), turn))
    place = np.empty(n, dtype=np.intp)
    place[by_turn] = _count_before(stratum[by_turn, None])  # its place within its label
    ranking: NDArray[np.intp] = drawn[np.lexsort((stratum, place))]
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
