"""What we store: one table per value, with ``Row.of(value)`` and ``row.value()``.

A table copies a value; the dataclass is the truth. Rows are written only through ``of``.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from datetime import UTC, datetime
from enum import Enum
from typing import Any, ClassVar, Self, get_type_hints

from pydantic import TypeAdapter
from sqlalchemy import CheckConstraint, Column, DateTime, Dialect, Index, TypeDecorator, UniqueConstraint
from sqlmodel import Field, SQLModel

from continual.plans import AdaptationPlan, AdaptationRun
from continual.worklists import Worklist
from monitor.cohorts import Prediction, Window
from monitor.results import DriftResult, WindowReport
from registry.audit import Event, StoredEvent, canonical_json, stored_time
from registry.decisions import GateDecision, Signature
from registry.entries import AlarmEntry, BatchSummary, ChampionRecord, Look, QuarantinedRow, StudyReading, User
from registry.held_out import HeldOutCohort


class UtcTime(TypeDecorator[datetime]):
    """A moment in UTC; SQLite forgets time zones, so a naive moment is refused and UTC is put back."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse a naive moment and store UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a stored moment needs a time zone, got {value!r}; use datetime(..., tzinfo=UTC)")
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give the moment back in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def utc_column(*, index: bool = False, nullable: bool = False) -> Any:
    """Declare a column of moments."""
    return Field(sa_column=Column(UtcTime(), nullable=nullable, index=index))


def to_json(value: Any) -> str:
    """Write a dataclass as canonical JSON; a figure that is not finite is refused."""
    return canonical_json(TypeAdapter(type(value)).dump_python(value, mode="json"))


def sha256(content: str) -> str:
    """Hash a text (hexadecimal)."""
    return hashlib.sha256(content.encode()).hexdigest()


class MetaRow(SQLModel, table=True):
    """What the store says of itself: schema version, number of events, head of the chain."""

    __tablename__ = "meta"
    key: str = Field(primary_key=True)
    value: str


class EventRow(SQLModel, table=True):
    """One event of the append-only chain, in the letters that its digest covers."""

    __tablename__ = "events"
    seq: int = Field(primary_key=True)
    at: str
    actor: str
    kind: str = Field(index=True)
    model: str = Field(index=True)
    subject: str
    payload: str
    previous: str = Field(unique=True)
    digest: str = Field(unique=True)

    @classmethod
    def of(cls, event: Event) -> Self:
        """Copy an event."""
        columns = {field.name: getattr(event, field.name) for field in fields(event)}
        return cls(**columns | {"at": stored_time(event.at)})

    def value(self) -> Event:
        """Give the event back."""
        columns = {field.name: getattr(self, field.name) for field in fields(Event)}
        return Event(**columns | {"at": datetime.fromisoformat(self.at)})


STORED_EVENT = tuple(field.name for field in fields(StoredEvent))
"""The columns that the chain is proved from."""


class ModelRow(SQLModel, table=True):
    """A model under watch, with the settings it was registered with."""

    __tablename__ = "models"
    name: str = Field(primary_key=True)
    settings: str


class BatchRow(SQLModel, table=True):
    """One export; its content hash makes reading it twice one batch."""

    __tablename__ = "batches"
    __table_args__ = (
        UniqueConstraint("model", "content_sha256"),
        CheckConstraint("received = accepted + labelled + duplicate + conflict + quarantined", name="nothing_lost"),
    )
    id: int | None = Field(default=None, primary_key=True)
    model: str
    source: str
    content_sha256: str
    settings_sha256: str = ""
    at: datetime = utc_column()
    finished: bool = False
    received: int = 0
    accepted: int = 0
    labelled: int = 0
    duplicate: int = 0
    conflict: int = 0
    quarantined: int = 0

    def value(self) -> BatchSummary:
        """Give the summary back."""
        names = [field.name for field in fields(BatchSummary) if field.name != "batch_id"]
        return BatchSummary(batch_id=self.id or 0, **{name: getattr(self, name) for name in names})


_PLAIN = ("model", "model_version", "study_uid", "produced_at", "patient_key", "image", "image_sha256")
_JSON = ("scores", "attributes")


def prediction_content(prediction: Prediction) -> str:
    """Write what a prediction says beside its natural key; where the image lay and the truth are not part of it."""
    said = {name: getattr(prediction, name) for name in ("patient_key", "image_sha256", *_JSON)}
    return canonical_json(said)


class PredictionRow(SQLModel, table=True):
    """One prediction under its natural key; its truth may come later, as a ``LabelRow``."""

    __tablename__ = "predictions"
    __table_args__ = (
        UniqueConstraint("model", "study_uid", "produced_at", "model_version"),  # looked up by study
        Index("predictions_by_time", "model", "produced_at"),
    )
    id: int | None = Field(default=None, primary_key=True)
    batch_id: int = Field(foreign_key="batches.id", index=True)
    model: str
    model_version: str
    study_uid: str
    produced_at: datetime = utc_column()
    patient_key: str
    scores: str
    attributes: str
    image: str
    image_sha256: str = Field(index=True)
    content_sha256: str

    @classmethod
    def of(cls, prediction: Prediction, batch_id: int) -> Self:
        """Copy a prediction."""
        return cls(**cls.columns_of(prediction, batch_id))

    @staticmethod
    def columns_of(prediction: Prediction, batch_id: int) -> dict[str, Any]:
        """Copy a prediction to plain columns, three times as fast as making a row of it.

        ``content_sha256`` is what tells a known prediction from a conflict.
        """
        columns: dict[str, Any] = {name: getattr(prediction, name) for name in _PLAIN}
        columns |= {name: canonical_json(getattr(prediction, name)) for name in _JSON}
        return {**columns, "batch_id": batch_id, "content_sha256": sha256(prediction_content(prediction))}

    def value(self) -> Prediction:
        """Give the prediction back, without the truth."""
        columns = {name: json.loads(getattr(self, name)) for name in _JSON}
        return Prediction(**columns, labels=(), **{name: getattr(self, name) for name in _PLAIN})


class LabelRow(SQLModel, table=True):
    """The truth about one study as it stood after one export; the newest row of a prediction is in force.

    ``labels`` are all that is known by then, ``added`` of them new, ``unknown`` still missing; ``known_at`` says when
    the hospital knew, ``at`` when we were told.
    """

    __tablename__ = "labels"
    __table_args__ = (UniqueConstraint("prediction_id", "labels"),)
    id: int | None = Field(default=None, primary_key=True)
    prediction_id: int = Field(foreign_key="predictions.id")
    batch_id: int = Field(foreign_key="batches.id", index=True)
    labels: str
    added: int
    unknown: int
    known_at: datetime = utc_column()
    at: datetime = utc_column()


class QuarantineRow(SQLModel, table=True):
    """A refused row with its reason."""

    __tablename__ = "quarantine"
    __table_args__ = (UniqueConstraint("batch_id", "line", "reason", "content"),)
    id: int | None = Field(default=None, primary_key=True)
    batch_id: int = Field(foreign_key="batches.id", index=True)
    model: str = Field(index=True)
    at: datetime = utc_column()
    line: int
    reason: str
    detail: str
    content: str

    def value(self) -> QuarantinedRow:
        """Give the refused row back."""
        return QuarantinedRow(line=self.line, reason=self.reason, detail=self.detail, content=self.content)


class _Mirror(SQLModel):
    """A row whose columns are the fields of one dataclass; a Window becomes two columns."""

    mirrored: ClassVar[type[Any]]

    @classmethod
    def of(cls, value: Any, **more: Any) -> Self:
        """Copy a value; ``more`` fills the columns that the value does not have."""
        columns: dict[str, Any] = {}
        for field in fields(value):
            content = getattr(value, field.name)
            if isinstance(content, Window):
                columns |= {"window_start": content.start, "window_end": content.end}
            else:
                columns[field.name] = content.value if isinstance(content, Enum) else content
        return cls(**columns, **more)

    def value(self) -> Any:
        """Give the value back."""
        hints = get_type_hints(self.mirrored)
        columns: dict[str, Any] = {}
        for field in fields(self.mirrored):
            kind = hints[field.name]
            if kind is Window:
                columns[field.name] = Window(start=self.window_start, end=self.window_end)  # type: ignore[attr-defined]
            else:
                content = getattr(self, field.name)
                columns[field.name] = kind(content) if isinstance(kind, type) and issubclass(kind, Enum) else content
        return self.mirrored(**columns)


class DriftResultRow(_Mirror, table=True):
    """One measured comparison."""

    __tablename__ = "drift_results"
    mirrored = DriftResult
    id: int | None = Field(default=None, primary_key=True)
    report_id: int = Field(foreign_key="reports.id", index=True)
    window_start: datetime = utc_column()
    window_end: datetime = utc_column()
    detector: str
    kind: str
    feature: str
    verdict: str
    statistic: float | None
    effect: float | None
    effect_name: str
    p_value: float | None
    threshold: float
    n_reference: int
    n_current: int
    patients_reference: int
    patients_current: int
    reason: str
    least_effect: float


class ReportRow(SQLModel, table=True):
    """Everything one visit measured in one window; the newest row of a window is in force."""

    __tablename__ = "reports"
    __table_args__ = (Index("reports_by_window", "model", "window_start"),)
    id: int | None = Field(default=None, primary_key=True)
    model: str
    window_start: datetime = utc_column()
    window_end: datetime = utc_column()
    verdict: str
    n: int
    n_labels: int
    at: datetime = utc_column()
    content: str

    @classmethod
    def of(cls, report: WindowReport, at: datetime) -> Self:
        """Copy a report."""
        window = report.window
        columns: dict[str, Any] = {
            "model": report.model,
            "window_start": window.start,
            "window_end": window.end,
            "n": report.n,
            "n_labels": report.n_labels,
        }
        return cls(**columns, verdict=report.verdict.value, at=at, content=to_json(report))

    def value(self) -> WindowReport:
        """Give the report back."""
        return _REPORT.validate_json(self.content)


class AlarmRow(SQLModel, table=True):
    """Where the alarm stood after one window; the newest row of a window is in force."""

    __tablename__ = "alarms"
    __table_args__ = (Index("alarms_by_window", "model", "window_start"),)
    id: int | None = Field(default=None, primary_key=True)
    model: str
    window_start: datetime = utc_column()
    window_end: datetime = utc_column()
    open: bool
    at: datetime = utc_column()
    content: str

    @classmethod
    def of(cls, entry: AlarmEntry, at: datetime) -> Self:
        """Copy an entry."""
        columns: dict[str, Any] = {"window_start": entry.window.start, "window_end": entry.window.end}
        return cls(model=entry.model, **columns, open=entry.open, at=at, content=to_json(entry))

    def value(self) -> AlarmEntry:
        """Give the entry back."""
        return _ALARM.validate_json(self.content)


class _Document(SQLModel):
    """A value kept whole as JSON, in order of ``number``."""

    number: int | None = Field(default=None, primary_key=True)
    id: str = Field(unique=True)
    model: str = Field(index=True)
    at: datetime = Field(sa_type=UtcTime)
    content: str


class PlanRow(_Document, table=True):
    """One adaptation plan."""

    __tablename__ = "plans"
    proposed_by: str

    @classmethod
    def of(cls, plan: AdaptationPlan, at: datetime) -> Self:
        """Copy a plan."""
        identity: dict[str, Any] = {"id": plan.plan_id, "model": plan.model, "proposed_by": plan.proposed_by}
        return cls(**identity, at=at, content=to_json(plan))

    def value(self) -> AdaptationPlan:
        """Give the plan back."""
        return _PLAN.validate_json(self.content)


class RunRow(_Document, table=True):
    """One adaptation run; one that failed or was stopped is tried again, and an identity's newest row is in force."""

    __tablename__ = "runs"
    id: str = Field(index=True)
    plan_id: str = Field(index=True)
    state: str

    @classmethod
    def of(cls, run: AdaptationRun, at: datetime) -> Self:
        """Copy a run."""
        identity: dict[str, Any] = {"id": run.run_id, "plan_id": run.plan_id, "model": run.model}
        return cls(**identity, state=run.state.value, at=at, content=to_json(run))

    def value(self) -> AdaptationRun:
        """Give the run back."""
        return _RUN.validate_json(self.content)


class DecisionRow(_Document, table=True):
    """One gate decision; ``digest`` is what signatures cover."""

    __tablename__ = "decisions"
    plan_id: str
    adapter_sha256: str
    promote: bool
    digest: str

    @classmethod
    def of(cls, decision: GateDecision, at: datetime) -> Self:
        """Copy a decision."""
        names = ("model", "plan_id", "adapter_sha256", "promote", "digest")
        columns: dict[str, Any] = {name: getattr(decision, name) for name in names}
        return cls(id=decision.decision_id, **columns, at=at, content=to_json(decision))

    def value(self) -> GateDecision:
        """Give the decision back."""
        return _DECISION.validate_json(self.content)


class SignatureRow(_Mirror, table=True):
    """The one final word on a decision."""

    __tablename__ = "signatures"
    mirrored = Signature
    id: int | None = Field(default=None, primary_key=True)
    decision_id: str = Field(foreign_key="decisions.id", unique=True)
    digest: str
    user: str = Field(foreign_key="users.name")
    role: str
    approved: bool
    meaning: str
    at: datetime = utc_column()


class UserRow(_Mirror, table=True):
    """A person who may act."""

    __tablename__ = "users"
    mirrored = User
    name: str = Field(primary_key=True)
    role: str
    password_hash: str
    active: bool


class ChampionRow(_Mirror, table=True):
    """One move of the champion; (model, number) is unique, so two movers cannot both win."""

    __tablename__ = "champions"
    __table_args__ = (
        UniqueConstraint("model", "number"),
        CheckConstraint("kind IN ('first', 'promote', 'rollback')", name="known_kind"),
    )
    mirrored = ChampionRecord
    id: int | None = Field(default=None, primary_key=True)
    model: str = Field(index=True)
    number: int
    version: str
    adapter_sha256: str
    decision_id: str
    kind: str
    actor: str
    reason: str
    since: datetime = utc_column()


class HeldOutRow(SQLModel, table=True):
    """A locked held-out cohort."""

    __tablename__ = "held_out"
    __table_args__ = (UniqueConstraint("model", "name"),)
    id: int | None = Field(default=None, primary_key=True)
    model: str
    name: str
    kind: str
    digest: str
    manifest: str
    at: datetime = utc_column()

    @classmethod
    def of(cls, model: str, cohort: HeldOutCohort, at: datetime) -> Self:
        """Copy a lock."""
        lock: dict[str, Any] = {"name": cohort.name, "kind": cohort.kind, "digest": cohort.digest}
        return cls(model=model, **lock, manifest=canonical_json(cohort.manifest), at=at)

    def value(self) -> HeldOutCohort:
        """Give the lock back."""
        manifest = tuple(json.loads(self.manifest))
        return HeldOutCohort(name=self.name, kind=self.kind, manifest=manifest, digest=self.digest)


class LookRow(_Mirror, table=True):
    """One look at a locked held-out cohort."""

    __tablename__ = "held_out_looks"
    mirrored = Look
    id: int | None = Field(default=None, primary_key=True)
    model: str = Field(index=True)
    name: str
    digest: str
    run_id: str
    at: datetime = utc_column()


class WorklistRow(_Document, table=True):
    """One worklist, with the reason for each study; readers never see it."""

    __tablename__ = "worklists"

    @classmethod
    def of(cls, worklist: Worklist, at: datetime) -> Self:
        """Copy a worklist."""
        return cls(id=worklist.worklist_id, model=worklist.model, at=at, content=to_json(worklist))

    def value(self) -> Worklist:
        """Give the worklist back."""
        return _WORKLIST.validate_json(self.content)


class ReadingRow(_Mirror, table=True):
    """What one reader said about one study of a worklist."""

    __tablename__ = "readings"
    __table_args__ = (UniqueConstraint("model", "study_uid", "reader", "labels"),)
    mirrored = StudyReading
    id: int | None = Field(default=None, primary_key=True)
    batch_id: int = Field(foreign_key="batches.id", index=True)
    model: str
    worklist_id: str = Field(foreign_key="worklists.id")
    study_uid: str
    reader: str
    read_at: datetime = utc_column()
    labels: str
    comment: str
    at: datetime = utc_column()


_REPORT = TypeAdapter(WindowReport)
_ALARM = TypeAdapter(AlarmEntry)
_PLAN = TypeAdapter(AdaptationPlan)
_RUN = TypeAdapter(AdaptationRun)
_DECISION = TypeAdapter(GateDecision)
_WORKLIST = TypeAdapter(Worklist)
