"""Which studies teach most when few can be read: unsure, unlike each other, from every subgroup. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from monitor.cohorts import cut_at_median

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pool:
    """Studies to choose from, n of them; only those marked ``free`` may be chosen.

    ``uncertainty`` (n,) is 0 where the model is certain. ``embeddings`` (n, width), or None without images. ``known``
    (n,) marks what has been, or is being, read: what looks just like it teaches nothing new.

    Raises:
        ValueError: a column has another length, or the uncertainty is negative or no number.
    """

    study_uid: NDArray[np.str_]
    patient_key: NDArray[np.str_]
    subgroup: NDArray[np.str_]
    uncertainty: Floats
    free: Mask
    known: Mask
    embeddings: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        n = len(self.study_uid)
        columns = (self.patient_key, self.subgroup, self.uncertainty, self.free, self.known)
        if any(column.shape != (n,) for column in columns):
            raise ValueError(f"every column has {n} rows, got {[column.shape for column in columns]}")
        if not (self.uncertainty >= 0).all():
            raise ValueError("uncertainty is 0 or more for every study")
        if self.embeddings is not None and (self.embeddings.ndim != 2 or len(self.embeddings) != n):
            raise ValueError(f"embeddings have shape ({n}, width), got {self.embeddings.shape}")

    def __len__(self) -> int:
        return len(self.study_uid)


METHODS: Mapping[str, Callable[[Floats, Floats], Floats]] = {
    "uncertainty": lambda uncertainty, distance: uncertainty,
    "diversity": lambda uncertainty, distance: distance,
    "both": lambda uncertainty, distance: uncertainty * distance,
}
"""What a study is worth by its uncertainty (n,) and its distance (n,) to the nearest one that is known or chosen.

- uncertainty: the least sure answers (uncertainty sampling, Lewis and Gale 1994).
- diversity: the farthest from everything known (greedy k-centre; core-set, Sener and Savarese 2018).
- both: their product. BADGE (Ash et al. 2020) looks for the same by drawing at random; to take the best each time
  needed fewer labels on real images (``benchmarks.labels``), and gives the same studies every time.
"""


def choose_studies(
    pool: Pool, n: int, *, method: str, quotas: Mapping[str, int], near_duplicate: float
) -> NDArray[np.intp]:
    """Choose up to n free studies, best first; returns their rows.

    Within a subgroup nobody gives a second study while another patient could give a first. No study is chosen whose
    embedding has a cosine similarity above ``near_duplicate`` with one that is known or chosen. A subgroup gives
    no more than its quota, unless all others have given what they can. Fewer than n come back where no more may be
    chosen. The same pool gives the same rows; of equals the first comes first.

    Raises:
        ValueError: there is no such method.
    """
    if method not in METHODS:
        raise ValueError(f"studies are chosen by {', '.join(METHODS)}, got {method!r}")
    state = _Choosing.of(pool, quotas)
    while len(state.chosen) < n and (allowed := state.allowed(pool, near_duplicate)).any():
        worth = METHODS[method](pool.uncertainty, state.distance)
        state.add(pool, int(np.argmax(np.where(allowed, worth, -1.0))))
    return np.array(state.chosen, dtype=np.intp)


def share_quotas(
    population: Mapping[str, int], available: Mapping[str, int], total: int, *, floor: int
) -> dict[str, int]:
    """Divide a number of studies over subgroups in proportion to their size, no subgroup below the floor.

    A subgroup gets no more than is available of it, and less than the floor only then, or where the floors together
    exceed the total; the largest come first then. What is left goes, one by one, to who lacks most.
    """
    quotas = dict.fromkeys(population, 0)
    left = min(total, sum(available.get(name, 0) for name in population))
    for name in sorted(population, key=lambda name: (-population[name], name)):
        quotas[name] = min(floor, available.get(name, 0), left)
        left -= quotas[name]
    everybody = sum(population.values())
    for _ in range(left):
        open_ones = [name for name in population if quotas[name] < available.get(name, 0)]
        quotas[max(open_ones, key=lambda name: (total * population[name] / everybody - quotas[name], name))] += 1
    return quotas


def name_subgroups(attributes: Mapping[str, NDArray[np.generic]], names: tuple[str, ...], n: int) -> NDArray[np.str_]:
    """Name the subgroup of each of n studies by its values; a numeric attribute is cut at its median; shape (n,).

    Attributes that the studies do not have are left out; without any, all are one subgroup with an empty name.
    """
    told = [[f"{name} {value}" for value in cut_at_median(attributes[name])] for name in names if name in attributes]
    return np.array([" & ".join(values) for values in zip(*told, strict=True)] if told else [""] * n, dtype=np.str_)


@dataclass(slots=True, kw_only=True)
class _Choosing:
    """What was chosen so far, and what follows from it for every study of the pool."""

    chosen: list[int]
    left: NDArray[np.bool_]
    distance: Floats
    similarity: Floats
    directions: Floats | None
    centred: Floats | None
    turns: NDArray[np.intp]
    patients: NDArray[np.intp]
    subgroups: NDArray[np.intp]
    room: NDArray[np.intp]

    @classmethod
    def of(cls, pool: Pool, quotas: Mapping[str, int]) -> _Choosing:
        names, subgroups = np.unique(pool.subgroup, return_inverse=True)
        patients = np.unique(pool.patient_key, return_inverse=True)[1]
        values = None if pool.embeddings is None else pool.embeddings.astype(np.float64)
        state = cls(
            chosen=[],
            left=pool.free & ~pool.known,
            # everything is far as long as nothing is known; 2 is the largest distance on a sphere
            distance=np.full(len(pool), 2.0),
            similarity=np.full(len(pool), -1.0),
            directions=None if values is None else _to_unit(values),
            # what all images share makes every pair alike; distances are measured without it
            centred=None if values is None else _to_unit(values - values.mean(axis=0)),
            turns=np.zeros(patients.max(initial=0) + 1, dtype=np.intp),
            patients=patients,
            subgroups=subgroups,
            room=np.array([quotas.get(str(name), 0) for name in names], dtype=np.intp),
        )
        for row in np.flatnonzero(pool.known):
            state._approach(int(row))
        return state

    def allowed(self, pool: Pool, near_duplicate: float) -> Mask:
        """Mark what may be chosen next; where every quota is used up or dry, the quotas no longer hold."""
        new = self.left & (self.similarity <= near_duplicate)
        within = new & (self.room[self.subgroups] > 0)
        groups = self.subgroups if within.any() else np.zeros_like(self.subgroups)
        new = within if within.any() else new
        turn = self.turns[self.patients]
        first = np.full(groups.max(initial=0) + 1, np.iinfo(np.intp).max)
        np.minimum.at(first, groups[new], turn[new])
        return np.asarray(new & (turn == first[groups]))

    def add(self, pool: Pool, row: int) -> None:
        """Take a study."""
        self.chosen.append(row)
        self.left[row] = False
        self.turns[self.patients[row]] += 1
        self.room[self.subgroups[row]] -= 1
        self._approach(row)

    def _approach(self, row: int) -> None:
        """Measure how near every study now lies to what is known or chosen."""
        if self.directions is not None and self.centred is not None:
            np.maximum(self.similarity, self.directions @ self.directions[row], out=self.similarity)
            apart = np.sqrt(np.maximum(2 - 2 * (self.centred @ self.centred[row]), 0.0))
            np.minimum(self.distance, apart, out=self.distance)


def _to_unit(values: Floats) -> Floats:
    return np.asarray(values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12))
