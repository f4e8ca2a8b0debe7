"""A worklist: which studies a reading room is asked to read, how they came onto it, and with what chance. Pure."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import count

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

from continual.choosing import METHODS, Pool, choose_studies, share_quotas
from monitor.cohorts import Window


class LabelPolicy(BaseModel):
    """How a worklist for the reading room is put together."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    random_share: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="part drawn at random from patients that nothing learns from, to measure without bias",
    )
    method: str = Field("both", description="how studies to learn from are chosen: uncertainty, diversity or both")
    subgroups: tuple[str, ...] = Field((), description="attributes whose values get their share of what is chosen")
    smallest_quota: int = Field(5, ge=0, description="studies that even a small subgroup gets, where it has them")
    near_duplicate: float = Field(
        0.98, gt=0, le=1, description="cosine similarity of embeddings above which two studies teach the same"
    )
    open_days: int = Field(60, ge=1, description="days after which what a worklist did not bring may be asked again")
    seed: int = 0

    @field_validator("method")
    @classmethod
    def _check_method(cls, method: str) -> str:
        if method not in METHODS:
            raise ValueError(f"studies are chosen by {', '.join(METHODS)}, got {method!r}")
        return method


class Part(StrEnum):
    """How a study came onto a worklist."""

    RANDOM = "random"
    CHOSEN = "chosen"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorklistItem:
    """A study to read. ``probability`` is the chance with which a study of the random part was drawn."""

    study_uid: str
    part: Part
    reason: str
    uncertainty: float
    subgroup: str
    probability: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Worklist:
    """What the reading room was asked for, in the order in which it was shown; ``asked`` is how many were wanted.

    ``frame`` counts the studies that the random part was drawn from, ``before`` the model's earlier worklists.
    """

    model: str
    windows: tuple[Window, ...]
    champion_version: str
    asked: int
    policy: LabelPolicy
    frame: int
    requested_at: datetime
    items: tuple[WorklistItem, ...]
    before: int = 0

    @property
    def worklist_id(self) -> str:
        """Identify the worklist by what was asked, when, and after how many others.

        Its studies play no part: they may leave it when a patient is removed.
        """
        content = [self.model, [w.key for w in self.windows], self.requested_at.isoformat(), self.asked, self.before]
        return "wl-" + hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]

    def studies(self, part: Part | None = None) -> frozenset[str]:
        """Name its studies, of one part or of both."""
        return frozenset(item.study_uid for item in self.items if part in (None, item.part))

    def is_open(self, labelled: frozenset[str], at: datetime) -> bool:
        """Tell whether an answer is still waited for: something is unlabelled, and it was not asked too long ago."""
        fresh = at - self.requested_at < timedelta(days=self.policy.open_days)
        return fresh and not self.studies() <= labelled


def draw_worklist(
    pool: Pool, learning: NDArray[np.bool_], n: int, *, policy: LabelPolicy, generator: np.random.Generator
) -> tuple[tuple[WorklistItem, ...], int]:
    """Draw a worklist of up to n studies; returns its items, shuffled, and the size of the random part's frame.

    The random part is a simple random sample of the free studies of patients that nothing learns from (``learning``
    (n,) False): those serve the gate and the measurement, and as roles do not depend on the case, what they show holds
    for all. Subgroups, near-duplicates and patients play no part in it, or every study would have a chance of its own.
    The chosen part consists of learning patients only, since nothing may be learned from anybody else.
    """
    wanted = round(n * policy.random_share)
    frame = np.flatnonzero(pool.free & ~pool.known & ~learning)
    drawn = np.sort(generator.choice(frame, min(wanted, len(frame)), replace=False)) if len(frame) else frame
    chance = len(drawn) / len(frame) if len(frame) else 0.0
    random_part = [
        _item(pool, int(row), Part.RANDOM, f"drawn at random, {len(drawn)} of {len(frame)}", chance) for row in drawn
    ]
    chosen_part = _choose(pool, learning, n - wanted, policy)
    items = [*random_part, *chosen_part]
    return tuple(items[place] for place in generator.permutation(len(items))), len(frame)


def studies_to_ask(to_learn_from: int, policy: LabelPolicy) -> int:
    """Say how many studies a worklist must have so that so many of them are to learn from."""
    return next(n for n in count(to_learn_from) if n - round(n * policy.random_share) >= to_learn_from)


def _choose(pool: Pool, learning: NDArray[np.bool_], n: int, policy: LabelPolicy) -> list[WorklistItem]:
    """Choose among learning patients; what was read of others is not looked at, so that nothing of them is used."""
    rows = np.flatnonzero(learning)
    if not len(rows):
        return []
    mine = Pool(
        study_uid=pool.study_uid[rows],
        patient_key=pool.patient_key[rows],
        subgroup=pool.subgroup[rows],
        uncertainty=pool.uncertainty[rows],
        free=pool.free[rows],
        known=pool.known[rows],
        embeddings=None if pool.embeddings is None else pool.embeddings[rows],
    )
    quotas = share_quotas(
        Counter(mine.subgroup.tolist()),
        Counter(mine.subgroup[mine.free & ~mine.known].tolist()),
        n,
        floor=policy.smallest_quota,
    )
    chosen = choose_studies(mine, n, method=policy.method, quotas=quotas, near_duplicate=policy.near_duplicate)
    return [_item(mine, int(row), Part.CHOSEN, _tell(mine, int(row), policy)) for row in chosen]


def _tell(pool: Pool, row: int, policy: LabelPolicy) -> str:
    ranked = np.mean(pool.uncertainty[pool.free] <= pool.uncertainty[row])
    of = f" of subgroup {pool.subgroup[row]}" if pool.subgroup[row] else ""
    return f"chosen by {policy.method}{of}: less sure than {ranked:.0%} of what could be chosen"


def _item(pool: Pool, row: int, part: Part, reason: str, probability: float | None = None) -> WorklistItem:
    return WorklistItem(
        study_uid=str(pool.study_uid[row]),
        part=part,
        reason=reason,
        uncertainty=round(float(pool.uncertainty[row]), 6),
        subgroup=str(pool.subgroup[row]),
        probability=probability,
    )


def waiting_on(worklists: Sequence[Worklist], labelled: frozenset[str], at: datetime) -> frozenset[str]:
    """Name the studies that an open worklist asked for and that nobody has labelled yet."""
    asked = [worklist.studies() for worklist in worklists if worklist.is_open(labelled, at)]
    return frozenset().union(*asked) - labelled
