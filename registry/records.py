"""The records: one SQL database that is the authority on everything that happened.

Every change and the event that tells of it are one transaction. Events are chained by digest, and
triggers refuse to change or delete them.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Engine, create_engine, event, func, text
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, SQLModel, col, select

from continual.plans import AdaptationPlan, AdaptationRun
from monitor.cohorts import MISSING, Cohort, Prediction, Window
from monitor.results import WindowReport
from monitor.tasks import TASKS
from registry.audit import BEGINNING, ChainState, Event, canonical_json, event_digest, verify_chain
from registry.decisions import GateDecision, Signature
from registry.entries import BatchSummary, ChampionRecord, Counts, Look, QuarantinedRow, User
from registry.held_out import HeldOutCohort
from registry.rows import (
    BatchRow,
    ChampionRow,
    DecisionRow,
    DriftResultRow,
    EventRow,
    HeldOutRow,
    LookRow,
    MetaRow,
    ModelRow,
    PlanRow,
    PredictionRow,
    QuarantineRow,
    ReportRow,
    RunRow,
    SignatureRow,
    UserRow,
)
from registry.settings import ModelSettings

SCHEMA = "1"
KEY_CONFLICT = "key_conflict"
SYSTEM = "wardround"
APPEND_ONLY = ("events", "champions", "signatures", "decisions", "held_out", "held_out_looks")

Document = TypeVar("Document", PlanRow, RunRow, DecisionRow)


class RecordsError(ValueError):
    """The records cannot do what was asked; the message names the cure."""


class StaleChampion(RecordsError):
    """Somebody else moved the champion first."""


def open_records(url: str) -> Records:
    """Open the database, creating the tables in an empty one.

    Raises:
        RecordsError: the database has another schema version, or cannot be opened.
    """
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    records = Records(engine)
    records._prepare()
    return records


class Records:
    """Everything that is kept, and the only way to it. Open with ``open_records``."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._passes: dict[int, Counter[str]] = {}

    # --- models and predictions

    def register_model(self, name: str, settings: ModelSettings, at: datetime) -> None:
        """Put a model under watch; new settings of a known model are an event of their own."""
        content = settings.model_dump_json()
        with self._writing() as session:
            row = session.get(ModelRow, name)
            if row is not None and row.settings == content:
                return
            session.merge(ModelRow(name=name, settings=content))
            self._append(session, at=at, kind="model.registered", model=name, subject=name, payload=json.loads(content))

    def models(self) -> dict[str, ModelSettings]:
        """List the registered models with their settings."""
        with self._reading() as session:
            rows = session.exec(select(ModelRow)).all()
            return {row.name: ModelSettings.model_validate_json(row.settings) for row in rows}

    def begin_batch(self, model: str, source_name: str, content_sha256: str, at: datetime) -> int:
        """Begin, or take up again, the batch of one export; the same content is the same batch."""
        with self._writing() as session:
            row = session.exec(
                select(BatchRow).where(BatchRow.model == model, BatchRow.content_sha256 == content_sha256)
            ).first()
            if row is None:
                row = BatchRow(model=model, source=source_name, content_sha256=content_sha256, at=at)
                session.add(row)
                session.flush()
            assert row.id is not None
            self._passes[row.id] = Counter()
            return row.id

    def add_predictions(self, batch_id: int, predictions: Sequence[Prediction], at: datetime) -> Counts:
        """Add predictions under their natural key in one transaction.

        The same key with the same content is a duplicate; with other content it is a conflict: the
        stored one stays and the new one goes to quarantine.
        """
        with self._writing() as session:
            batch = session.get_one(BatchRow, batch_id)
            known = self._known(session, batch.model, predictions)
            fresh: list[PredictionRow] = []
            counts: Counter[str] = Counter()
            for prediction in predictions:
                row = PredictionRow.of(prediction, batch_id)
                key = _natural_key(row)
                if key not in known:
                    known[key] = row.content
                    fresh.append(row)
                elif known[key] != row.content:
                    counts["conflict"] += self._refuse_conflict(session, batch, row, at)
            session.add_all(fresh)
            counts["accepted"] = len(fresh)
            counts["duplicate"] = len(predictions) - len(fresh) - counts["conflict"]
            self._passes[batch_id].update(counts)
            if fresh:
                payload = {"batch": batch_id, "accepted": len(fresh)}
                self._append(
                    session, at=at, kind="predictions.added", model=batch.model, subject=batch.source, payload=payload
                )
            return Counts(**counts)

    def quarantine(self, batch_id: int, rows: Sequence[QuarantinedRow], at: datetime) -> int:
        """Keep refused rows with their reasons; the same row of the same export is kept once. Returns how many are new."""
        with self._writing() as session:
            batch = session.get_one(BatchRow, batch_id)
            lines = session.exec(
                select(QuarantineRow.line, QuarantineRow.reason).where(QuarantineRow.batch_id == batch_id)
            ).all()
            known = set(lines)
            fresh = [row for row in rows if (row.line, row.reason) not in known]
            session.add_all(QuarantineRow(batch_id=batch_id, model=batch.model, at=at, **asdict(row)) for row in fresh)
            self._passes[batch_id]["quarantined"] += len(rows)
            if fresh:
                payload = {"batch": batch_id, "reasons": dict(Counter(row.reason for row in fresh))}
                self._append(
                    session, at=at, kind="rows.quarantined", model=batch.model, subject=batch.source, payload=payload
                )
            return len(fresh)

    def finish_batch(self, batch_id: int, at: datetime) -> BatchSummary:
        """Close a batch and say what became of every row.

        Of an export that was read before, the answer tells of this reading (all known already); the
        stored summary stays that of the first.
        """
        seen = self._passes.pop(batch_id)
        received = seen["accepted"] + seen["duplicate"] + seen["conflict"] + seen["quarantined"]
        with self._writing() as session:
            row = session.get_one(BatchRow, batch_id)
            if row.finished:
                parts: dict[str, Any] = {
                    name: seen[name] for name in ("accepted", "duplicate", "conflict", "quarantined")
                }
                return replace(row.value(), received=received, **parts)
            row.accepted = session.exec(
                select(func.count()).select_from(PredictionRow).where(PredictionRow.batch_id == batch_id)
            ).one()
            row.received, row.conflict, row.quarantined = received, seen["conflict"], seen["quarantined"]
            row.duplicate = received - row.accepted - row.conflict - row.quarantined
            row.finished = True
            session.add(row)
            summary = row.value()
            payload = {**asdict(summary), "at": summary.at.isoformat()}
            self._append(session, at=at, kind="ingest.finished", model=row.model, subject=row.source, payload=payload)
            return summary

    def batches(self, model: str) -> list[BatchSummary]:
        """List finished batches, oldest first."""
        with self._reading() as session:
            query = select(BatchRow).where(BatchRow.model == model, col(BatchRow.finished)).order_by(col(BatchRow.id))
            return [row.value() for row in session.exec(query)]

    def quarantined(self, model: str) -> list[QuarantinedRow]:
        """List the rows in quarantine, oldest first."""
        with self._reading() as session:
            query = select(QuarantineRow).where(QuarantineRow.model == model).order_by(col(QuarantineRow.id))
            return [row.value() for row in session.exec(query)]

    def load_cohort(self, model: str, *, window: Window | None = None, model_version: str | None = None) -> Cohort:
        """Load predictions as a cohort in order of time, without embeddings; ``images`` are content hashes."""
        settings = self._settings_of(model)
        query = select(
            PredictionRow.study_uid,
            PredictionRow.patient_key,
            PredictionRow.produced_at,
            PredictionRow.scores,
            PredictionRow.labels,
            PredictionRow.attributes,
            PredictionRow.image_sha256,
        ).where(PredictionRow.model == model)  # type: ignore[call-overload]
        if window is not None:
            query = query.where(PredictionRow.produced_at >= window.start, PredictionRow.produced_at < window.end)
        if model_version is not None:
            query = query.where(PredictionRow.model_version == model_version)
        with self._reading() as session:
            rows = session.exec(query.order_by(PredictionRow.produced_at, PredictionRow.study_uid)).all()
        columns: list[tuple[Any, ...]] = list(zip(*rows, strict=True)) if rows else [()] * 7
        return _cohort_of(settings, columns)

    def image_paths(self, hashes: Sequence[str]) -> dict[str, str]:
        """Tell under which path each content hash was ingested."""
        with self._reading() as session:
            query = select(PredictionRow.image_sha256, PredictionRow.image).where(
                col(PredictionRow.image_sha256).in_(list(hashes))
            )
            return dict(session.exec(query).all())

    def studies_span(self, model: str) -> tuple[datetime, datetime] | None:
        """Tell the moments of the first and the last study; None when there is none."""
        with self._reading() as session:
            times = col(PredictionRow.produced_at)
            query = select(func.min(times), func.max(times)).where(PredictionRow.model == model)
            first, last = session.exec(query).one()
            return None if first is None else (first, last)

    # --- reports, plans, runs, decisions

    def save_report(self, report: WindowReport, at: datetime) -> None:
        """Keep a report; a later one of the same window takes its place in what is shown, the earlier stays stored."""
        with self._writing() as session:
            row, last = ReportRow.of(report, at), self._report_row(session, report.model, report.window)
            if last is not None and last.content == row.content:
                return
            session.add(row)
            session.flush()
            session.add_all(DriftResultRow.of(result, report_id=row.id) for result in report.results)
            payload = {"verdict": row.verdict, "studies": row.n, "sha256": _sha256(row.content)}
            subject = report.window.key
            self._append(session, at=at, kind="window.watched", model=report.model, subject=subject, payload=payload)

    def reports(self, model: str) -> list[WindowReport]:
        """List the report in force of every watched window, in order of time."""
        with self._reading() as session:
            query = select(ReportRow).where(ReportRow.model == model).order_by(col(ReportRow.id))
            newest = {row.window_start: row for row in session.exec(query)}
            return [newest[start].value() for start in sorted(newest)]

    def report(self, model: str, window: Window) -> WindowReport | None:
        """Give the report in force of one window."""
        with self._reading() as session:
            row = self._report_row(session, model, window)
            return None if row is None else row.value()

    def save_plan(self, plan: AdaptationPlan, at: datetime) -> None:
        """Keep a plan, once."""
        payload = {"treatment": plan.treatment.value, "reason": plan.reason, "evidence": list(plan.evidence)}
        self._save(PlanRow, plan, at, kind="plan.made", actor=plan.proposed_by, payload=payload)

    def plans(self, model: str) -> list[AdaptationPlan]:
        """List the plans of a model, oldest first."""
        return [row.value() for row in self._documents(PlanRow, model)]

    def plan(self, plan_id: str) -> AdaptationPlan:
        """Look up one plan."""
        return self._document(PlanRow, plan_id, "plan").value()

    def save_run(self, run: AdaptationRun, at: datetime) -> None:
        """Keep a run, once."""
        payload = {"state": run.state.value, "adapter_sha256": run.adapter_sha256, "forgetting": run.forgetting}
        self._save(RunRow, run, at, kind="adapter.trained", actor=SYSTEM, payload=payload)

    def runs(self, model: str) -> list[AdaptationRun]:
        """List the runs of a model, oldest first."""
        return [row.value() for row in self._documents(RunRow, model)]

    def run(self, run_id: str) -> AdaptationRun:
        """Look up one run."""
        return self._document(RunRow, run_id, "run").value()

    def save_decision(self, decision: GateDecision, at: datetime) -> None:
        """Keep a gate decision, once."""
        payload = {"promote": decision.promote, "digest": decision.digest, "reasons": list(decision.reasons)}
        self._save(DecisionRow, decision, at, kind="gate.decided", actor=SYSTEM, payload=payload)

    def decisions(self, model: str) -> list[GateDecision]:
        """List the gate decisions of a model, oldest first."""
        return [row.value() for row in self._documents(DecisionRow, model)]

    def decision(self, decision_id: str) -> GateDecision:
        """Look up one gate decision."""
        return self._document(DecisionRow, decision_id, "gate decision").value()

    # --- held-out cohorts

    def lock_held_out(self, model: str, cohort: HeldOutCohort, at: datetime) -> None:
        """Lock a held-out cohort for ever; a second lock of the same name is refused unless it is the same."""
        with self._writing() as session:
            query = select(HeldOutRow).where(HeldOutRow.model == model, HeldOutRow.name == cohort.name)
            row = session.exec(query).first()
            if row is not None and row.digest != cohort.digest:
                raise RecordsError(
                    f"held-out cohort {cohort.name!r} is locked with another content; choose another name"
                )
            if row is None:
                session.add(HeldOutRow.of(model, cohort, at))
                payload = {"digest": cohort.digest, "kind": cohort.kind, "studies": len(cohort.manifest)}
                self._append(session, at=at, kind="held_out.locked", model=model, subject=cohort.name, payload=payload)

    def held_out(self, model: str) -> list[HeldOutCohort]:
        """List the locked held-out cohorts, oldest first."""
        with self._reading() as session:
            query = select(HeldOutRow).where(HeldOutRow.model == model).order_by(col(HeldOutRow.id))
            return [row.value() for row in session.exec(query)]

    def look_at_held_out(self, model: str, name: str, digest: str, run_id: str, at: datetime) -> None:
        """Enter one look at a held-out cohort into the ledger."""
        look = Look(model=model, name=name, digest=digest, run_id=run_id, at=at)
        with self._writing() as session:
            session.add(LookRow.of(look))
            payload = {"digest": digest, "run": run_id}
            self._append(session, at=at, kind="held_out.looked_at", model=model, subject=name, payload=payload)

    def looks(self, model: str) -> list[Look]:
        """List every look at the held-out cohorts of a model."""
        with self._reading() as session:
            query = select(LookRow).where(LookRow.model == model).order_by(col(LookRow.id))
            return [row.value() for row in session.exec(query)]

    # --- people, signatures, champions

    def add_user(self, name: str, role: str, password_hash: str, at: datetime) -> None:
        """Add a person; a name is given once."""
        with self._writing() as session:
            if session.get(UserRow, name) is not None:
                raise RecordsError(f"there is a user {name!r} already")
            session.add(UserRow(name=name, role=role, password_hash=password_hash, active=True))
            self._append(session, at=at, kind="user.added", model="", subject=name, payload={"role": role})

    def user(self, name: str) -> User | None:
        """Look up a person."""
        with self._reading() as session:
            row = session.get(UserRow, name)
            return None if row is None else row.value()

    def users(self) -> list[User]:
        """List the people."""
        with self._reading() as session:
            return [row.value() for row in session.exec(select(UserRow).order_by(col(UserRow.name)))]

    def save_signature(self, signature: Signature, at: datetime) -> None:
        """Keep a signature; the first final word on a decision stands.

        Raises:
            RecordsError: the decision is signed or refused already, or the digest is not the decision's.
        """
        with self._writing() as session:
            decision = self._get(session, DecisionRow, signature.decision_id, "gate decision")
            if decision.digest != signature.digest:
                raise RecordsError("what was signed is not what the gate decided; open the decision again")
            query = select(SignatureRow).where(SignatureRow.decision_id == signature.decision_id)
            if (row := session.exec(query).first()) is not None:
                word = "approved" if row.approved else "rejected"
                raise RecordsError(f"{signature.decision_id} was {word} by {row.user} already")
            session.add(SignatureRow.of(signature))
            payload = {"approved": signature.approved, "meaning": signature.meaning, "digest": signature.digest}
            self._append(
                session,
                at=at,
                kind="decision.signed",
                model=decision.model,
                subject=signature.decision_id,
                payload=payload,
                actor=signature.user,
            )

    def signatures(self, decision_id: str) -> list[Signature]:
        """List the signatures under a decision."""
        with self._reading() as session:
            query = select(SignatureRow).where(SignatureRow.decision_id == decision_id).order_by(col(SignatureRow.id))
            return [row.value() for row in session.exec(query)]

    def champion(self, model: str) -> ChampionRecord | None:
        """Give the version that is live."""
        history = self.champion_history(model)
        return history[-1] if history else None

    def champion_history(self, model: str) -> list[ChampionRecord]:
        """List every move of the champion, oldest first."""
        with self._reading() as session:
            query = select(ChampionRow).where(ChampionRow.model == model).order_by(col(ChampionRow.number))
            return [row.value() for row in session.exec(query)]

    def move_champion(self, to: ChampionRecord, *, expected: str | None) -> ChampionRecord:
        """Make a version live, if the one that is live is ``expected``: the one commit point of a promotion.

        ``to.number`` is given here. A trigger refuses a promotion without an approval under its decision.

        Raises:
            StaleChampion: another version is live.
            RecordsError: the approval is missing.
        """
        with self._writing() as session:
            query = select(ChampionRow).where(ChampionRow.model == to.model).order_by(col(ChampionRow.number).desc())
            last = session.exec(query).first()
            if (last.version if last else None) != expected:
                live = last.version if last else "none"
                raise StaleChampion(f"version {expected or 'none'} was expected to be live, but {live} is; look again")
            to = replace(to, number=last.number + 1 if last else 1)
            session.add(ChampionRow.of(to))
            try:
                session.flush()
            except IntegrityError as error:
                raise RecordsError(f"version {to.version} was not promoted: {error.orig}") from None
            payload = {"kind": to.kind, "from": expected, "to": to.version, "adapter_sha256": to.adapter_sha256}
            payload |= {"decision": to.decision_id, "reason": to.reason}
            self._append(
                session,
                at=to.since,
                kind="champion.moved",
                model=to.model,
                subject=to.version,
                payload=payload,
                actor=to.actor,
            )
            return to

    # --- events

    def tell(  # noqa: PLR0913 - an event is that wide
        self, *, at: datetime, kind: str, model: str, subject: str, payload: dict[str, Any], actor: str
    ) -> None:
        """Append an event that changes no other table, such as a projection into MLflow."""
        with self._writing() as session:
            self._append(session, at=at, kind=kind, model=model, subject=subject, payload=payload, actor=actor)

    def events(self, model: str | None = None) -> list[Event]:
        """List the events in order, of one model or of all."""
        with self._reading() as session:
            query = select(EventRow).order_by(col(EventRow.seq))
            if model is not None:
                query = query.where(EventRow.model == model)
            return [row.value() for row in session.exec(query)]

    def verify_events(self) -> ChainState:
        """Recompute the chain over every event."""
        with self._reading() as session:
            rows = session.exec(select(EventRow).order_by(col(EventRow.seq))).yield_per(5000)
            count, head = session.get_one(MetaRow, "events"), session.get_one(MetaRow, "head")
            return verify_chain((row.value() for row in rows), count=int(count.value), head=head.value)

    # --- inside

    @contextmanager
    def _writing(self) -> Iterator[Session]:
        with (
            self._engine.connect().execution_options(writing=True) as connection,
            connection.begin(),
            Session(connection, expire_on_commit=False) as session,
        ):
            yield session
            session.flush()

    @contextmanager
    def _reading(self) -> Iterator[Session]:
        with Session(self._engine) as session:
            yield session

    def _append(  # noqa: PLR0913 - an event is that wide
        self,
        session: Session,
        *,
        at: datetime,
        kind: str,
        model: str,
        subject: str,
        payload: dict[str, Any],
        actor: str = SYSTEM,
    ) -> None:
        """Chain an event to the last one, inside the caller's transaction."""
        count, head = session.get_one(MetaRow, "events"), session.get_one(MetaRow, "head")
        told = Event(
            seq=int(count.value) + 1,
            at=at,
            actor=actor,
            kind=kind,
            model=model,
            subject=subject,
            payload=canonical_json(payload),
            previous=head.value,
            digest="",
        )
        told = replace(told, digest=event_digest(told))
        session.add(EventRow.of(told))
        count.value, head.value = str(told.seq), told.digest
        session.add_all([count, head])
        session.flush()

    def _save(
        self, table: type[Document], value: Any, at: datetime, *, kind: str, actor: str, payload: dict[str, Any]
    ) -> None:
        with self._writing() as session:
            number = session.exec(select(func.count()).select_from(table)).one() + 1
            row = table.of(value, number, at)
            if session.get(table, row.id) is None:
                session.add(row)
                payload = {**payload, "sha256": _sha256(row.content)}
                self._append(session, at=at, kind=kind, model=row.model, subject=row.id, payload=payload, actor=actor)

    def _documents(self, table: type[Document], model: str) -> list[Document]:
        with self._reading() as session:
            query = select(table).where(table.model == model).order_by(col(table.number))
            return list(session.exec(query))

    def _document(self, table: type[Document], key: str, what: str) -> Document:
        with self._reading() as session:
            return self._get(session, table, key, what)

    def _get(self, session: Session, table: type[Document], key: str, what: str) -> Document:
        row = session.get(table, key)
        if row is None:
            raise RecordsError(f"there is no {what} {key!r}; `wardround status` lists what there is")
        return row

    def _report_row(self, session: Session, model: str, window: Window) -> ReportRow | None:
        query = select(ReportRow).where(
            ReportRow.model == model, ReportRow.window_start == window.start, ReportRow.window_end == window.end
        )
        return session.exec(query.order_by(col(ReportRow.id).desc())).first()

    def _settings_of(self, model: str) -> ModelSettings:
        with self._reading() as session:
            row = session.get(ModelRow, model)
        if row is None:
            raise RecordsError(f"model {model!r} is not registered here yet; ingest an export of it first")
        return ModelSettings.model_validate_json(row.settings)

    def _known(
        self, session: Session, model: str, predictions: Sequence[Prediction]
    ) -> dict[tuple[str, str, datetime], str]:
        """Load the stored content under every natural key that the predictions may meet."""
        studies = [prediction.study_uid for prediction in predictions]
        known: dict[tuple[str, str, datetime], str] = {}
        for start in range(0, len(studies), 500):
            query = select(PredictionRow).where(
                PredictionRow.model == model, col(PredictionRow.study_uid).in_(studies[start : start + 500])
            )
            known |= {_natural_key(row): row.content for row in session.exec(query)}
        session.expunge_all()
        return known

    def _refuse_conflict(self, session: Session, batch: BatchRow, row: PredictionRow, at: datetime) -> int:
        query = select(QuarantineRow).where(
            QuarantineRow.batch_id == batch.id,
            QuarantineRow.reason == KEY_CONFLICT,
            QuarantineRow.content == row.content,
        )
        if session.exec(query).first() is None:
            lowest = session.exec(select(func.min(QuarantineRow.line)).where(QuarantineRow.batch_id == batch.id)).one()
            detail = (
                f"study {row.study_uid} at {row.produced_at.isoformat()} is stored with another content; it was kept"
            )
            line = min(lowest or 0, 0) - 1  # the export's own line is not known here
            kept: dict[str, Any] = {
                "batch_id": batch.id,
                "model": batch.model,
                "at": at,
                "line": line,
                "reason": KEY_CONFLICT,
            }
            session.add(QuarantineRow(**kept, detail=detail, content=row.content))
            session.flush()
        return 1

    def _prepare(self) -> None:
        with self._engine.connect().execution_options(writing=True) as connection, connection.begin():
            SQLModel.metadata.create_all(connection)
            with Session(connection) as session:
                stored = session.get(MetaRow, "schema")
                if stored is None:
                    for key, value in (("schema", SCHEMA), ("events", "0"), ("head", BEGINNING)):
                        session.add(MetaRow(key=key, value=value))
                    session.flush()
                    _protect(connection)
                elif stored.value != SCHEMA:
                    raise RecordsError(
                        f"the database has schema {stored.value}, this version of Wardround needs {SCHEMA}; "
                        "use the version that wrote it"
                    )


def _natural_key(row: PredictionRow) -> tuple[str, str, datetime]:
    return row.model_version, row.study_uid, row.produced_at


def _sha256(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


def _cohort_of(settings: ModelSettings, columns: list[tuple[Any, ...]]) -> Cohort:
    studies, patients, times, scores, labels, attributes, images = columns
    shape, n = TASKS[settings.task], len(studies)
    told = _parse(attributes)
    return Cohort(
        task=settings.task,
        classes=settings.classes,
        study_uid=np.array(studies, dtype=np.str_),
        patient_key=np.array(patients, dtype=np.str_),
        times=np.array([moment.replace(tzinfo=None) for moment in times], dtype="datetime64[us]"),
        scores=np.array(_parse(scores), dtype=np.float64).reshape(n, shape.score_columns(settings.classes)),
        labels=np.array(_parse(labels), dtype=np.float64).reshape(n, shape.label_columns(settings.classes)),
        attributes={name: _attribute(told, name, settings) for name in settings.attributes},
        images=np.array(images, dtype=np.str_) if any(images) else None,
    )


def _parse(cells: tuple[str, ...]) -> list[Any]:
    return list(json.loads(f"[{','.join(cells)}]"))


def _attribute(rows: list[dict[str, Any]], name: str, settings: ModelSettings) -> NDArray[Any]:
    values = [row.get(name) for row in rows]
    if name in settings.numeric_attributes:
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    return np.array([MISSING if value in (None, "") else str(value) for value in values], dtype=np.str_)


def _set_up_sqlite(connection: sqlite3.Connection, _: object) -> None:
    """Give every connection the durable profile; transactions are begun by us, not by the driver."""
    connection.isolation_level = None
    journal = "WAL" if wal_is_safe(sqlite3.sqlite_version_info) else "TRUNCATE"
    for pragma in (
        "foreign_keys=ON",
        "busy_timeout=30000",
        f"journal_mode={journal}",
        "synchronous=FULL",
        "secure_delete=ON",
        "trusted_schema=OFF",
    ):
        connection.execute(f"PRAGMA {pragma}")


def wal_is_safe(version: tuple[int, ...]) -> bool:
    """Tell whether SQLite's write-ahead log is free of the WAL-reset data race (fixed in 3.44.6, 3.50.7, 3.51.3)."""
    return version >= (3, 51, 3) or (3, 44, 6) <= version < (3, 45) or (3, 50, 7) <= version < (3, 51)


def _begin_sqlite(connection: Connection) -> None:
    """Take the write lock at once when writing, so that nobody else can chain an event in between."""
    writing = connection.get_execution_options().get("writing")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


def _protect(connection: Connection) -> None:
    """Let the database itself refuse what must never happen."""
    if connection.dialect.name != "sqlite":
        return
    for table in APPEND_ONLY:
        for verb in ("UPDATE", "DELETE"):
            connection.execute(
                text(
                    f"CREATE TRIGGER {table}_refuse_{verb.lower()} BEFORE {verb} ON {table} "
                    f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
                )
            )
    connection.execute(
        text(
            "CREATE TRIGGER promotion_needs_approval BEFORE INSERT ON champions WHEN NEW.kind = 'promote' "
            "AND NOT EXISTS (SELECT 1 FROM signatures s JOIN decisions d ON d.id = s.decision_id "
            "WHERE s.decision_id = NEW.decision_id AND s.approved = 1 AND s.digest = d.digest AND d.promote = 1) "
            "BEGIN SELECT RAISE(ABORT, 'a promotion needs an approval under its gate decision'); END"
        )
    )
