"""What the records answer with: counts, people, champions, and refusals. Pure types."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from monitor.alarms import AlarmState
from monitor.cohorts import Prediction, Window


class RecordsError(ValueError):
    """The records cannot do what was asked; the message names the cure."""


class StaleChampion(RecordsError):
    """Somebody else moved the champion first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What became of some predictions offered to the records; ``labelled`` ones brought labels that were missing."""

    accepted: int = 0
    labelled: int = 0
    duplicate: int = 0
    conflict: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantinedRow:
    """A row of an export that was refused, with the reason code and enough to mend it."""

    line: int
    reason: str
    detail: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSummary:
    """What became of every row of an export; nothing is ever lost: the five parts add up to ``received``.

    ``labelled`` counts rows of known studies that brought labels which were missing.
    """

    batch_id: int
    model: str
    source: str
    content_sha256: str
    at: datetime
    received: int
    accepted: int
    duplicate: int
    conflict: int
    quarantined: int
    labelled: int = 0

    def __post_init__(self) -> None:
        if self.received != self.accepted + self.labelled + self.duplicate + self.conflict + self.quarantined:
            raise ValueError(f"rows were lost or counted twice in {self.source}: {self}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyReading:
    """What one reader said about one study of a worklist; ``labels`` is JSON, null where nothing was said.

    ``read_at`` is when it was read, in UTC; where nobody said, when it was imported.
    """

    model: str
    worklist_id: str
    study_uid: str
    reader: str
    read_at: datetime
    labels: str
    comment: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownStudy:
    """Every stored answer about one study, with the labels known by now (None: no label yet) and its worklist."""

    answers: tuple[Prediction, ...]
    labels: tuple[int | None, ...]
    worklist_id: str


ROLES = ("engineer", "quality officer", "clinician", "administrator", "auditor")


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """A person who may act; ``role`` is one of ``ROLES``, ``password_hash`` is argon2's."""

    name: str
    role: str
    password_hash: str
    active: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ChampionRecord:
    """One move of the champion; ``kind`` is first, promote or rollback; the newest one is live."""

    model: str
    number: int
    version: str
    adapter_sha256: str
    decision_id: str
    kind: str
    actor: str
    reason: str
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One look at a locked held-out cohort, for one run."""

    model: str
    name: str
    digest: str
    run_id: str
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryVersion:
    """The rehearsal memory beside an adapter: whose it is, its name, and why this version was made.

    ``made_by`` is the run that left it, or "version 1" of an adapter that was live before.
    """

    model: str
    adapter_sha256: str
    made_by: str
    sha256: str
    why: str
    studies: int
    patients: int
    bytes: int
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Purge:
    """The removal of one patient, whom nobody can name from it; ``state`` is begun or done.

    ``adapters`` and ``counts`` are JSON: who learned from the patient, and what was removed.
    """

    patient_hmac: str
    state: str
    actor: str
    reason: str
    adapters: str
    counts: str
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmEntry:
    """Where a model's alarm stood after a window, under the version that was live in it.

    ``joined`` says whether the studies of the window joined what later ones are compared with.
    """

    model: str
    window: Window
    version: str
    joined: bool
    state: AlarmState

    @property
    def open(self) -> bool:
        """Tell whether an alarm is open after the window."""
        return self.state.open_since is not None


def windows_open(entries: Sequence[AlarmEntry], window: Window) -> int:
    """Count the windows, up to and with this one, for which its alarm has been open; 0 if none is."""
    here = next((entry for entry in entries if entry.window == window), None)
    if here is None or here.state.open_since is None:
        return 0
    since = here.state.open_since
    return sum(entry.state.open_since == since and entry.window.start <= window.start for entry in entries)
