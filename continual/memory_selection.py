"""Which studies of a stage are worth keeping for rehearsal: a policy, and rankings by four methods. Pure.

Every ranking is dealt out over groups (label and strata, by default site and device) and patients, so that each
of its beginnings is balanced: a memory that shrinks keeps a beginning.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

from continual.experiences import Experience, balance, group_of, order_for_rehearsal

Floats: TypeAlias = NDArray[np.float32]
Rows: TypeAlias = NDArray[np.intp]

ROWS_AT_ONCE = 16_384
POOL = 40
"""Candidates for each study that is wanted: the greedy methods choose among so many drawn in a balanced way."""
LEAST_POOL = 8_192
OUTLIERS = 0.05
"""Share of a group's largest losses that ``hardest`` takes last: that is where mislabelled studies are."""
MEGABYTE = 2**20


class MemoryPolicy(BaseModel):
    """What is kept of the past for rehearsal, and how long."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    studies: int = Field(150, ge=1, description="at most so many are kept")
    megabytes: float = Field(256.0, gt=0, description="and at most so much of their features")
    retention_days: int = Field(730, ge=1, description="studies older than this are not taken over")
    selection: str = Field("reservoir", description="reservoir, herding, k_centre or hardest")
    quotas: tuple[str, ...] = Field(
        ("site", "device"), description="attributes that share the memory evenly, beside the label; absent ones do not"
    )

    @field_validator("selection")
    @classmethod
    def _check_selection(cls, name: str) -> str:
        if name not in SELECTIONS:
            raise ValueError(f"there is no selection {name!r}; choose one of {', '.join(SELECTIONS)}")
        return name

    def limit(self, bytes_each: int) -> int:
        """Tell how many studies of a size fit under both limits."""
        return min(self.studies, int(self.megabytes * MEGABYTE) // max(bytes_each, 1))


def rank_for_rehearsal(
    experience: Experience,
    generator: np.random.Generator,
    selection: str = "reservoir",
    difficulty: NDArray[np.float64] | None = None,
    *,
    most: int | None = None,
) -> Rows:
    """Rank the studies of a stage for the memory, the most wanted first; shape (n,).

    reservoir: at random. herding: so that the mean of what is kept stays that of all (Welling 2009; iCaRL,
    Rebuffi et al. 2017). k_centre: each time the study farthest from all that are kept, a 2-approximation of the
    smallest covering radius (Gonzalez 1985). hardest: every other one of those with the largest loss. The greedy
    ones look at the mean token of a study, and choose the first ``most`` (default: all) out of ``POOL`` times as
    many drawn in a balanced way, at least ``LEAST_POOL``; what is beyond follows at random.

    Args:
        experience: the stage.
        generator: source of randomness.
        selection: a name in ``SELECTIONS``.
        difficulty: loss of each study under the current model, shape (n,); needed by ``hardest``.
        most: how many studies will be kept at most.

    Raises:
        ValueError: no such selection, or a difficulty is missing, of another length or not finite.
    """
    if selection not in SELECTIONS:
        raise ValueError(f"there is no selection {selection!r}; choose one of {', '.join(SELECTIONS)}")
    group = group_of(experience.labels, experience.strata)
    drawn = order_for_rehearsal(experience.labels, experience.patient_key, generator, experience.strata)
    if selection == "reservoir":
        return drawn
    if selection == "hardest":
        wanted = _hardest_first(_check_difficulty(difficulty, len(experience)), group, drawn)
        return balance(wanted, group, experience.patient_key)
    most = len(experience) if most is None else min(most, len(experience))
    pool = drawn[: max(POOL * most, LEAST_POOL)]
    greedy = _choose_in_groups(experience, pool, group, most, GREEDY[selection])
    rest = drawn[~np.isin(drawn, greedy)]
    return balance(np.concatenate([greedy, rest]), group, experience.patient_key)


def measure_difficulty(scores: NDArray[np.float64], answers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give each study's mean log loss over its known findings, 0 with none; shape (n,).

    ``scores`` (n, findings) are probabilities, ``answers`` (n, findings) 0, 1 or NaN.
    """
    sure = np.clip(scores, 1e-12, 1 - 1e-12)
    losses = -np.where(answers == 1, np.log(sure), np.log1p(-sure))
    known = ~np.isnan(answers)
    total: NDArray[np.float64] = np.where(known, losses, 0.0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    return total


def mean_token(tokens: NDArray[np.floating]) -> Floats:
    """Average the tokens of each study, chunk by chunk; (n, T, width) to (n, width)."""
    means = np.empty((len(tokens), tokens.shape[2]), dtype=np.float32)
    for start in range(0, len(tokens), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        means[part] = tokens[part].mean(axis=1, dtype=np.float32)
    return means


def herd(points: Floats, target: Floats, most: int) -> Rows:
    """Choose rows one by one so that their mean comes as near to ``target`` as one more can bring it; shape (most,)."""
    chosen = np.empty(min(most, len(points)), dtype=np.intp)
    score, norms = points @ target, np.einsum("ij,ij->i", points, points)
    total = np.zeros_like(norms)  # inner product of each row with the sum of those chosen
    open_ = np.ones(len(points), dtype=np.bool_)
    for step in range(len(chosen)):
        # |target - (sum + x) / k|² without what is alike for all x; k = step + 1
        cost = (norms + 2 * total) / (step + 1) - 2 * score
        cost[~open_] = np.inf
        best = chosen[step] = int(cost.argmin())
        open_[best] = False
        total += points @ points[best]
    return chosen


def cover(points: Floats, target: Floats, most: int) -> Rows:
    """Choose the row nearest to ``target``, then each time the one farthest from all chosen; shape (most,)."""
    chosen = np.empty(min(most, len(points)), dtype=np.intp)
    norms = np.einsum("ij,ij->i", points, points)
    distance = np.full(len(points), np.inf, dtype=np.float32)
    place = int((norms - 2 * (points @ target)).argmin()) if len(points) else 0
    for step in range(len(chosen)):
        chosen[step] = place
        distance = np.minimum(distance, np.maximum(norms - 2 * (points @ points[place]) + norms[place], 0))
        distance[chosen[: step + 1]] = -1
        place = int(distance.argmax())
    return chosen


Greedy = Callable[[Floats, Floats, int], Rows]
GREEDY: dict[str, Greedy] = {"herding": herd, "k_centre": cover}
SELECTIONS = ("reservoir", *GREEDY, "hardest")


def _choose_in_groups(experience: Experience, pool: Rows, group: Rows, most: int, choose: Greedy) -> Rows:
    """Let every group choose as many as it could ever be dealt among the first ``most``; (m,), groups in turn."""
    groups = np.unique(group)
    counts = np.bincount(group)[groups]
    chosen = []
    for one, count in zip(groups, counts, strict=True):
        mine = pool[group[pool] == one]
        share = _largest_share(counts, most, count)
        target = _group_mean(experience, group == one)
        chosen.append(mine[choose(mean_token(experience.tokens[mine]), target, share)])
    return np.concatenate(chosen) if chosen else pool


def _largest_share(counts: NDArray[np.intp], most: int, mine: int) -> int:
    """Tell how many a group gets of ``most`` places dealt in turn: at most this many."""
    level = 0
    left, sizes = most, np.sort(counts)
    for position, size in enumerate(sizes):
        level = -(-left // (len(sizes) - position))
        if size >= level:
            break
        left -= int(size)
    return int(min(mine, level))


def _group_mean(experience: Experience, mask: NDArray[np.bool_]) -> Floats:
    rows = np.flatnonzero(mask)
    total = np.zeros(experience.tokens.shape[2], dtype=np.float64)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = experience.tokens[rows[start : start + ROWS_AT_ONCE]]
        total += part.mean(axis=1, dtype=np.float32).sum(axis=0, dtype=np.float64)
    return (total / max(len(rows), 1)).astype(np.float32)


def _check_difficulty(difficulty: NDArray[np.float64] | None, n: int) -> NDArray[np.float64]:
    if difficulty is None or difficulty.shape != (n,) or not np.isfinite(difficulty).all():
        raise ValueError(f"hardest needs the finite loss of each of {n} studies; measure_difficulty gives them")
    return difficulty


def _hardest_first(difficulty: NDArray[np.float64], group: Rows, drawn: Rows) -> Rows:
    """Take the hardest and one drawn at random in turn; a group's outliers come after all others.

    With losses alone a memory would fill with outliers and wrong labels, and rehearse nothing of the ordinary.
    """
    outlying = np.zeros(len(difficulty), dtype=np.bool_)
    for one in np.unique(group):
        rows = np.flatnonzero(group == one)
        count = int(np.ceil(OUTLIERS * len(rows))) if len(rows) > 1 else 0
        outlying[rows[np.argsort(difficulty[rows], kind="stable")[len(rows) - count :]]] = True
    order = []
    for one in np.unique(group):
        mine = drawn[(group[drawn] == one) & ~outlying[drawn]]
        hard = mine[np.argsort(-difficulty[mine], kind="stable")]
        both = np.empty(2 * len(mine), dtype=np.intp)
        both[::2], both[1::2] = hard, mine
        _, first = np.unique(both, return_index=True)
        order.append(both[np.sort(first)])
    return np.concatenate([*order, drawn[outlying[drawn]]]) if order else drawn
