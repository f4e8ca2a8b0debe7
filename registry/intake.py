"""The intake: registered models, and exports taken in row by row."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

from sqlalchemy import insert
from sqlmodel import Session, col, select

from monitor.cohorts import Prediction
from monitor.tasks import TASKS
from registry.arrivals import Key, Reading, Sorted, Stored, sort_arrivals
from registry.audit import canonical_json
from registry.entries import BatchSummary, Counts, QuarantinedRow, RecordsError
from registry.holdings import REHEARSAL, Holdings, ask_purged, in_chunks, settings_of, was_rehearsed
from registry.rows import BatchRow, LabelRow, ModelRow, PredictionRow, QuarantineRow, sha256
from registry.settings import ModelSettings


class Intake(Holdings):
    """Models, batches, predictions, their truth, and quarantine."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._readings: dict[int, Reading] = {}

    def register_model(self, name: str, settings: ModelSettings, at: datetime) -> None:
        """Put a model under watch; new settings of a known model are an event of their own.

        Raises:
            RecordsError: the new settings would give stored predictions another meaning.
        """
        content = settings.model_dump_json()
        with self._writing() as session:
            row = session.get(ModelRow, name)
            if row is not None and row.settings == content:
                return
            if row is not None and self._has_predictions(session, name):
                _check_change(name, ModelSettings.model_validate_json(row.settings), settings)
            session.merge(ModelRow(name=name, settings=content))
            self._append(session, at=at, kind="model.registered", model=name, subject=name, payload=json.loads(content))

    def mark_rehearsal(self, at: datetime) -> None:
        """Mark the ward as a rehearsal, for ever and once."""
        with self._writing() as session:
            if not was_rehearsed(session):
                self._append(session, at=at, kind=REHEARSAL, model="", subject="", payload={})

    def begin_batch(self, model: str, source_name: str, content_sha256: str, at: datetime) -> int:
        """Begin, or take up again, the batch of one export; the same content is the same batch.

        Raises:
            RecordsError: the model is not registered.
        """
        with self._writing() as session:
            settings_of(session, model)
            query = select(BatchRow).where(BatchRow.model == model, BatchRow.content_sha256 == content_sha256)
            row = session.exec(query).first()
            if row is None:
                row = BatchRow(model=model, source=source_name, content_sha256=content_sha256, at=at)
                session.add(row)
                session.flush()
                payload = {"batch": row.id, "sha256": content_sha256}
                self._append(session, at=at, kind="ingest.begun", model=model, subject=source_name, payload=payload)
            batch_id, finished = int(row.id or 0), row.finished
        self._readings[batch_id] = Reading(batch=batch_id, finished_before=finished)
        return batch_id

    def add_predictions(
        self, batch_id: int, predictions: Sequence[Prediction], at: datetime, *, lines: Sequence[int] | None = None
    ) -> Counts:
        """Add predictions under their natural key in one transaction; ``lines`` says where they stood.

        The same key with the same content is known already, and brings late labels where it has some that were
        missing; with other content, or labels that contradict the stored ones, it is a conflict: what is stored
        stays and the new one goes to quarantine. Labels count as told ``at`` that moment.

        Raises:
            ValueError: a prediction is of another model or of another shape; nothing of the chunk was kept.
            RecordsError: the batch was not begun, or a patient was removed while the export was read.
        """
        reading = self._reading_of(batch_id)
        with self._writing() as session:
            batch = session.get_one(BatchRow, batch_id)
            settings = settings_of(session, batch.model)
            _check_nobody_purged(session, predictions)
            for prediction in predictions:
                _check_prediction(prediction, batch.model, settings)
            known = _known(session, batch.model, [prediction.study_uid for prediction in predictions])
            done = sort_arrivals(predictions, lines, reading, known)
            _insert(session, done, batch, at)
            for kind, name, n in (
                ("predictions.added", "accepted", len(done.fresh)),
                ("labels.added", "labelled", done.came_late),
            ):
                if n:
                    payload = {"batch": batch_id, name: n}
                    self._append(session, at=at, kind=kind, model=batch.model, subject=batch.source, payload=payload)
            self._keep(session, batch, done.conflicts, at)
        reading.counts.update(asdict(done.counts))
        reading.met |= done.met
        return done.counts

    def quarantine(self, batch_id: int, rows: Sequence[QuarantinedRow], at: datetime) -> int:
        """Keep refused rows with their reasons; each once. Returns how many are new."""
        reading = self._reading_of(batch_id)
        with self._writing() as session:
            fresh = self._keep(session, session.get_one(BatchRow, batch_id), rows, at)
        reading.counts["quarantined"] += len(rows)
        return fresh

    def finish_batch(self, batch_id: int, at: datetime) -> BatchSummary:
        """Close a batch and say what became of every row.

        Rows that an earlier, interrupted reading of the export accepted count as accepted. Of an export
        that was read to its end before, the answer tells of this reading (all known already); the stored
        summary stays that of the first.
        """
        reading = self._reading_of(batch_id)
        parts: dict[str, Any] = {
            name: reading.counts[name] for name in ("accepted", "labelled", "duplicate", "conflict", "quarantined")
        }
        parts["received"] = sum(parts.values())
        with self._writing() as session:
            row = session.get_one(BatchRow, batch_id)
            if row.finished:
                summary = replace(row.value(), **parts)
            else:
                for name, value in parts.items():
                    setattr(row, name, value)
                row.finished = True
                row.settings_sha256 = sha256(session.get_one(ModelRow, row.model).settings)
                session.add(row)
                summary = row.value()
                payload = {**asdict(summary), "at": summary.at.isoformat()}
                self._append(
                    session, at=at, kind="ingest.finished", model=row.model, subject=row.source, payload=payload
                )
        del self._readings[batch_id]
        return summary

    def _reading_of(self, batch_id: int) -> Reading:
        if batch_id not in self._readings:
            raise RecordsError(f"batch {batch_id} is not open here; begin_batch opens it, again after finish_batch")
        return self._readings[batch_id]

    def _has_predictions(self, session: Session, model: str) -> bool:
        return session.exec(select(PredictionRow.id).where(PredictionRow.model == model).limit(1)).first() is not None

    def _keep(self, session: Session, batch: BatchRow, rows: Sequence[QuarantinedRow], at: datetime) -> int:
        """Quarantine what is not there yet; one event tells how many rows for which reasons."""
        batch_id = int(batch.id or 0)
        fresh: dict[tuple[int, str, str], QuarantinedRow] = {}
        for some in in_chunks(rows):
            lines = [row.line for row in some]
            query = select(QuarantineRow.line, QuarantineRow.reason, QuarantineRow.content)
            query = query.where(QuarantineRow.batch_id == batch_id, col(QuarantineRow.line).in_(lines))
            known = set(session.exec(query).all())
            identified = {(row.line, row.reason, row.content): row for row in some}
            fresh |= {identity: row for identity, row in identified.items() if identity not in known}
        if fresh:
            session.add_all(
                QuarantineRow(batch_id=batch_id, model=batch.model, at=at, **asdict(row)) for row in fresh.values()
            )
            payload = {"batch": batch_id, "reasons": dict(Counter(row.reason for row in fresh.values()))}
            self._append(
                session, at=at, kind="rows.quarantined", model=batch.model, subject=batch.source, payload=payload
            )
        return len(fresh)


def _check_change(name: str, old: ModelSettings, new: ModelSettings) -> None:
    """Refuse settings under which the stored scores, labels or attributes would mean something else."""
    shared = set(old.attributes) & set(new.attributes)
    changed = [field for field in ("task", "classes") if getattr(old, field) != getattr(new, field)]
    changed += sorted(shared & (set(old.numeric_attributes) ^ set(new.numeric_attributes)))
    if changed:
        raise RecordsError(
            f"{', '.join(changed)} of model {name!r} cannot change while predictions are stored; "
            "watch it under another name"
        )


def _check_nobody_purged(session: Session, predictions: Sequence[Prediction]) -> None:
    """Refuse whoever was removed between the reading of a row and this transaction."""
    was_purged = ask_purged(session)
    if was_purged is not None and any(was_purged(prediction.patient_key) for prediction in predictions):
        raise RecordsError("a patient was removed while the export was read; ingest it again")


def _check_prediction(prediction: Prediction, model: str, settings: ModelSettings) -> None:
    """Prove that a prediction fits its model: one that does not would spoil every cohort it is in."""
    shape = TASKS[settings.task]
    widths = shape.score_columns(settings.classes), shape.label_columns(settings.classes)
    levels = {None, *range(shape.label_levels(settings.classes))}
    numbers = [prediction.attributes.get(name) for name in settings.numeric_attributes]
    problem = (
        (prediction.model != model and f"it is of model {prediction.model!r}, the batch of {model!r}")
        or (
            (len(prediction.scores), len(prediction.labels)) != widths
            and f"{widths[0]} scores and {widths[1]} labels are needed"
        )
        or (not all(0 <= score <= 1 for score in prediction.scores) and "a score is not in [0, 1]")
        or (not levels.issuperset(prediction.labels) and f"a label is not one of {sorted(levels - {None})}")
        or (not all(_is_number(value) for value in numbers) and "a numeric attribute is no finite number")
    )
    if problem:
        raise ValueError(f"prediction of study {prediction.study_uid!r}: {problem}; put it into quarantine")


def _is_number(value: str | float | None) -> bool:
    return value is None or (not isinstance(value, str) and math.isfinite(value))


def _known(session: Session, model: str, studies: Sequence[str]) -> dict[Key, Stored]:
    """Load what is stored under every key of some studies."""
    known: dict[Key, Stored] = {}
    row = PredictionRow
    columns: list[Any] = [row.model_version, row.study_uid, row.produced_at, row.id, row.batch_id, row.content_sha256]
    query = select(*columns, LabelRow.batch_id, LabelRow.labels)  # type: ignore[call-overload]
    query = query.outerjoin(LabelRow, col(LabelRow.prediction_id) == row.id).order_by(col(LabelRow.id))
    for some in in_chunks(studies):
        found = session.exec(query.where(row.model == model, col(row.study_uid).in_(some)))
        for *key, number, batch, content, told_by, labels in found:
            stored = known.setdefault(tuple(key), Stored(row=number, batch=batch, content=content))
            if labels is not None:
                stored.steps.append((told_by, tuple(json.loads(labels))))
    return known


def _insert(session: Session, done: Sorted, batch: BatchRow, at: datetime) -> None:
    """Store new predictions, and every step of the truth about new and known ones."""
    if done.fresh:
        session.connection().execute(insert(PredictionRow), [columns for _, columns in done.fresh.values()])
        # RETURNING in order costs SQLite one statement a row; looking the numbers up is one for hundreds
        numbered = _known(session, batch.model, [study for _, study, _ in done.fresh])
        for key, (stored, _) in done.fresh.items():
            stored.row = numbered[key].row
    if done.truth:
        rows = [
            {
                "prediction_id": told.stored.row,
                "batch_id": batch.id,
                "labels": canonical_json(told.labels),
                "added": told.added,
                "unknown": told.labels.count(None),
                "known_at": told.known_at or at,
                "at": at,
            }
            for told in done.truth
        ]
        session.connection().execute(insert(LabelRow), rows)
