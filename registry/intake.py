"""The intake: registered models, exports taken in row by row, and the cohorts read back from them."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from itertools import repeat
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import String, func, insert, type_coerce
from sqlmodel import Session, col, select

from monitor.cohorts import MISSING, Cohort, Prediction, Window
from monitor.tasks import TASKS
from registry.entries import BatchSummary, Counts, QuarantinedRow, RecordsError
from registry.ledger import Ledger
from registry.rows import BatchRow, ModelRow, PredictionRow, QuarantineRow, prediction_content
from registry.settings import ModelSettings

KEY_CONFLICT = "key_conflict"
VALUES_AT_ONCE = 500
COHORT_COLUMNS = ("study_uid", "patient_key", "produced_at", "scores", "labels", "attributes", "image_sha256")

Key: TypeAlias = tuple[str, str, datetime]


@dataclass(slots=True, kw_only=True)
class _Reading:
    """One reading of an export: what became of its rows so far, and which keys it has met."""

    finished_before: bool
    counts: Counter[str] = field(default_factory=Counter)
    met: set[Key] = field(default_factory=set)


@dataclass(slots=True, kw_only=True)
class _Sorted:
    """A chunk of predictions, sorted; ``resumed`` were accepted by an earlier, interrupted reading."""

    fresh: list[dict[str, Any]] = field(default_factory=list)
    resumed: int = 0
    duplicate: int = 0
    conflicts: list[QuarantinedRow] = field(default_factory=list)
    met: set[Key] = field(default_factory=set)


class Intake(Ledger):
    """Models, batches, predictions and quarantine."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._readings: dict[int, _Reading] = {}

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

    def models(self) -> dict[str, ModelSettings]:
        """List the registered models with their settings."""
        with self._reading() as session:
            rows = session.exec(select(ModelRow).order_by(col(ModelRow.name))).all()
            return {row.name: ModelSettings.model_validate_json(row.settings) for row in rows}

    def begin_batch(self, model: str, source_name: str, content_sha256: str, at: datetime) -> int:
        """Begin, or take up again, the batch of one export; the same content is the same batch.

        Raises:
            RecordsError: the model is not registered.
        """
        with self._writing() as session:
            _settings(session, model)
            query = select(BatchRow).where(BatchRow.model == model, BatchRow.content_sha256 == content_sha256)
            row = session.exec(query).first()
            if row is None:
                row = BatchRow(model=model, source=source_name, content_sha256=content_sha256, at=at)
                session.add(row)
                session.flush()
                payload = {"batch": row.id, "sha256": content_sha256}
                self._append(session, at=at, kind="ingest.begun", model=model, subject=source_name, payload=payload)
            batch_id, finished = int(row.id or 0), row.finished
        self._readings[batch_id] = _Reading(finished_before=finished)
        return batch_id

    def add_predictions(
        self, batch_id: int, predictions: Sequence[Prediction], at: datetime, *, lines: Sequence[int] | None = None
    ) -> Counts:
        """Add predictions under their natural key in one transaction; ``lines`` says where they stood.

        The same key with the same content is a duplicate; with other content it is a conflict: the
        stored one stays and the new one goes to quarantine.

        Raises:
            ValueError: a prediction is of another model or of another shape; nothing of the chunk was kept.
            RecordsError: the batch was not begun.
        """
        reading = self._reading_of(batch_id)
        with self._writing() as session:
            batch = session.get_one(BatchRow, batch_id)
            settings = _settings(session, batch.model)
            for prediction in predictions:
                _check_prediction(prediction, batch.model, settings)
            done = _sort(predictions, lines, batch_id, reading, _known(session, batch.model, predictions))
            if done.fresh:
                session.connection().execute(insert(PredictionRow), done.fresh)
                payload = {"batch": batch_id, "accepted": len(done.fresh)}
                self._append(
                    session, at=at, kind="predictions.added", model=batch.model, subject=batch.source, payload=payload
                )
            self._keep(session, batch, done.conflicts, at)
        counts = Counts(accepted=len(done.fresh), duplicate=done.duplicate, conflict=len(done.conflicts))
        reading.counts.update(asdict(counts))
        reading.counts.update(accepted=done.resumed, duplicate=-done.resumed)
        reading.met |= done.met
        return counts

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
            name: reading.counts[name] for name in ("accepted", "duplicate", "conflict", "quarantined")
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
                session.add(row)
                summary = row.value()
                payload = {**asdict(summary), "at": summary.at.isoformat()}
                self._append(
                    session, at=at, kind="ingest.finished", model=row.model, subject=row.source, payload=payload
                )
        del self._readings[batch_id]
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
        """Load predictions as a cohort in order of time, without embeddings; ``images`` are content hashes.

        Raises:
            RecordsError: the model is not registered.
        """
        time = col(PredictionRow.produced_at)
        columns: list[Any] = [getattr(PredictionRow, name) for name in COHORT_COLUMNS]
        columns[COHORT_COLUMNS.index("produced_at")] = type_coerce(time, String)  # NumPy reads it faster than SQL does
        query = select(*columns).where(PredictionRow.model == model)
        if window is not None:
            query = query.where(time >= window.start, time < window.end)
        if model_version is not None:
            query = query.where(PredictionRow.model_version == model_version)
        with self._reading() as session:
            settings = _settings(session, model)
            rows = session.exec(query.order_by(time, col(PredictionRow.study_uid), col(PredictionRow.id))).all()
        return _cohort_of(settings, list(zip(*rows, strict=True)) if rows else [()] * len(COHORT_COLUMNS))

    def image_paths(self, hashes: Sequence[str]) -> dict[str, str]:
        """Tell under which path each content hash was ingested; unknown hashes are left out."""
        paths: dict[str, str] = {}
        with self._reading() as session:
            for some in _chunks(sorted({str(one) for one in hashes if one})):
                query = select(PredictionRow.image_sha256, PredictionRow.image)
                paths |= dict(session.exec(query.where(col(PredictionRow.image_sha256).in_(some))).all())
        return paths

    def studies_span(self, model: str) -> tuple[datetime, datetime] | None:
        """Tell the moments of the first and the last study; None when there is none."""
        with self._reading() as session:
            times = col(PredictionRow.produced_at)
            query = select(func.min(times), func.max(times)).where(PredictionRow.model == model)
            first, last = session.exec(query).one()
            return None if first is None else (first, last)

    def _reading_of(self, batch_id: int) -> _Reading:
        if batch_id not in self._readings:
            raise RecordsError(f"batch {batch_id} is not open here; begin_batch opens it, again after finish_batch")
        return self._readings[batch_id]

    def _has_predictions(self, session: Session, model: str) -> bool:
        return session.exec(select(PredictionRow.id).where(PredictionRow.model == model).limit(1)).first() is not None

    def _keep(self, session: Session, batch: BatchRow, rows: Sequence[QuarantinedRow], at: datetime) -> int:
        """Quarantine what is not there yet; one event tells how many rows for which reasons."""
        batch_id = int(batch.id or 0)
        fresh: dict[tuple[int, str, str], QuarantinedRow] = {}
        for some in _chunks(rows):
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


def _settings(session: Session, model: str) -> ModelSettings:
    row = session.get(ModelRow, model)
    if row is None:
        raise RecordsError(f"model {model!r} is not registered here yet; ingest an export of it first")
    return ModelSettings.model_validate_json(row.settings)


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


def _chunks(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (values[start : start + VALUES_AT_ONCE] for start in range(0, len(values), VALUES_AT_ONCE))


def _known(session: Session, model: str, predictions: Sequence[Prediction]) -> dict[Key, tuple[int, str]]:
    """Load batch and content hash of what is stored under every key that the predictions may meet."""
    known: dict[Key, tuple[int, str]] = {}
    row = PredictionRow
    for studies in _chunks([prediction.study_uid for prediction in predictions]):
        query = select(row.model_version, row.study_uid, row.produced_at, row.batch_id, row.content_sha256)  # type: ignore[call-overload]
        for *key, batch, content in session.exec(query.where(row.model == model, col(row.study_uid).in_(studies))):
            known[tuple(key)] = batch, content
    return known


def _sort(
    predictions: Sequence[Prediction],
    lines: Sequence[int] | None,
    batch_id: int,
    reading: _Reading,
    known: dict[Key, tuple[int, str]],
) -> _Sorted:
    """Tell fresh predictions from duplicates and conflicts; the first of a key in an export wins."""
    done = _Sorted()
    for line, prediction in zip(repeat(0) if lines is None else lines, predictions, strict=lines is not None):
        row = PredictionRow.columns_of(prediction, batch_id)
        key = prediction.model_version, prediction.study_uid, prediction.produced_at.astimezone(UTC)
        batch, content = known.setdefault(key, (0, row["content_sha256"]))
        if content != row["content_sha256"]:
            done.conflicts.append(_conflict(line, prediction))
            continue
        seen = key in done.met or key in reading.met
        done.met.add(key)
        if batch == 0 and not seen:
            done.fresh.append(row)
        else:
            done.duplicate += 1
            done.resumed += batch == batch_id and not seen and not reading.finished_before
    return done


def _conflict(line: int, prediction: Prediction) -> QuarantinedRow:
    detail = (
        f"study {prediction.study_uid} at {prediction.produced_at.isoformat()} is stored with another content, "
        "which was kept"
    )
    return QuarantinedRow(line=line, reason=KEY_CONFLICT, detail=detail, content=prediction_content(prediction))


def _cohort_of(settings: ModelSettings, columns: list[tuple[Any, ...]]) -> Cohort:
    studies, patients, times, scores, labels, attributes, images = columns
    shape, n = TASKS[settings.task], len(studies)
    told = _parse(attributes)
    return Cohort(
        task=settings.task,
        classes=settings.classes,
        study_uid=np.array(studies, dtype=np.str_),
        patient_key=np.array(patients, dtype=np.str_),
        times=np.array(times, dtype="datetime64[us]"),
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
