"""The holdings: what was taken in, read back as lists, counts and cohorts."""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import String, func, type_coerce
from sqlmodel import Session, col, select

from monitor.cohorts import MISSING, Cohort, Window
from monitor.labels import LabelArrival, measure_arrival
from monitor.tasks import TASKS
from registry.entries import BatchSummary, QuarantinedRow, RecordsError
from registry.ledger import Ledger
from registry.memory_rows import PurgeRow
from registry.rows import BatchRow, EventRow, LabelRow, MetaRow, ModelRow, PredictionRow, QuarantineRow, sha256
from registry.settings import ModelSettings

VALUES_AT_ONCE = 500
COLUMNS = ("study_uid", "patient_key", "produced_at", "scores", "attributes", "image_sha256")
REHEARSAL = "ward.rehearsal"
PURGE_KEY = "purge_key"
"""Names the secret in the meta table by which removed patients are recognised."""


class Holdings(Ledger):
    """What the intake has taken in."""

    def models(self) -> dict[str, ModelSettings]:
        """List the registered models with their settings."""
        with self._reading() as session:
            rows = session.exec(select(ModelRow).order_by(col(ModelRow.name))).all()
            return {row.name: ModelSettings.model_validate_json(row.settings) for row in rows}

    @property
    def is_rehearsal(self) -> bool:
        """Tell whether the ward was marked as a rehearsal, which may hold simulated studies."""
        with self._reading() as session:
            return was_rehearsed(session)

    def finished_batch(self, model: str, content_sha256: str, settings: ModelSettings) -> BatchSummary | None:
        """Give the summary of an export that was read to its end under the same settings; None when there is none."""
        same = (col(BatchRow.content_sha256) == content_sha256) & (col(BatchRow.model) == model)
        same &= col(BatchRow.settings_sha256) == sha256(settings.model_dump_json())
        with self._reading() as session:
            row = session.exec(select(BatchRow).where(same, col(BatchRow.finished))).first()
            return None if row is None else row.value()

    def purged_test(self) -> Callable[[str], bool] | None:
        """Give a question that tells of a key whether its patient was removed; None while nobody was."""
        with self._reading() as session:
            return ask_purged(session)

    def images(self, model: str, batch_id: int | None = None) -> list[str]:
        """List the content hashes of the images of a model, or only of those that one batch brought."""
        query = select(PredictionRow.image_sha256).where(PredictionRow.model == model, PredictionRow.image_sha256 != "")
        if batch_id is not None:
            query = query.where(PredictionRow.batch_id == batch_id)
        with self._reading() as session:
            return list(session.exec(query.distinct()))

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

    def load_cohort(
        self,
        model: str,
        *,
        window: Window | None = None,
        model_version: str | None = None,
        known_by: datetime | None = None,
    ) -> Cohort:
        """Load predictions as a cohort in order of time, without embeddings; ``images`` are content hashes.

        With ``known_by`` the labels are those that had been told by that moment.

        Raises:
            RecordsError: the model is not registered.
        """
        time = col(PredictionRow.produced_at)
        columns: list[Any] = [getattr(PredictionRow, name) for name in COLUMNS]
        columns[COLUMNS.index("produced_at")] = type_coerce(time, String)  # NumPy reads it faster than SQL does
        newest = select(func.max(LabelRow.id)).where(LabelRow.prediction_id == PredictionRow.id)
        if known_by is not None:
            newest = newest.where(col(LabelRow.at) <= known_by)
        columns.append(LabelRow.labels)
        query = _of(
            select(*columns).outerjoin(LabelRow, col(LabelRow.id) == newest.correlate(PredictionRow).scalar_subquery()),
            model,
            window,
        )
        if model_version is not None:
            query = query.where(PredictionRow.model_version == model_version)
        with self._reading() as session:
            settings = settings_of(session, model)
            rows = session.exec(query.order_by(time, col(PredictionRow.study_uid), col(PredictionRow.id))).all()
        return _cohort_of(settings, list(zip(*rows, strict=True)) if rows else [()] * len(columns))

    def count(self, model: str, window: Window) -> tuple[int, int]:
        """Count the studies of a window and their known labels, of all findings, as a report of it does.

        Where some studies have an image, those without one are not watched, and so not counted.
        """
        studies = _of(select(func.count(col(PredictionRow.id))), model, window)
        labels = select(func.coalesce(func.sum(LabelRow.added), 0)).select_from(LabelRow)
        labels = _of(labels.join(PredictionRow, col(PredictionRow.id) == LabelRow.prediction_id), model, window)
        with_image = col(PredictionRow.image_sha256) != ""
        with self._reading() as session:
            if seen := session.exec(studies.where(with_image)).one():
                return seen, session.exec(labels.where(with_image)).one()
            return session.exec(studies).one(), session.exec(labels).one()

    def label_arrival(self, model: str, window: Window) -> LabelArrival:
        """Tell how many studies of a window have their truth, and how long it took; as of the last export."""
        query = select(type_coerce(PredictionRow.produced_at, String), type_coerce(LabelRow.known_at, String))
        complete = (col(LabelRow.prediction_id) == PredictionRow.id) & (col(LabelRow.unknown) == 0)
        with self._reading() as session:
            rows = session.exec(_of(query.select_from(PredictionRow).outerjoin(LabelRow, complete), model, window))
            times = [tuple(row) for row in rows]
            last = session.exec(select(func.max(BatchRow.at)).where(BatchRow.model == model)).one()
        produced, known = np.array(times, dtype="datetime64[us]").reshape(-1, 2).T
        return measure_arrival(window, produced, known, until=last)

    def image_paths(self, hashes: Sequence[str]) -> dict[str, str]:
        """Tell under which path each content hash was ingested; unknown hashes are left out."""
        paths: dict[str, str] = {}
        with self._reading() as session:
            for some in in_chunks(sorted({str(one) for one in hashes if one})):
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


def settings_of(session: Session, model: str) -> ModelSettings:
    """Look up a registered model.

    Raises:
        RecordsError: it is not registered.
    """
    row = session.get(ModelRow, model)
    if row is None:
        raise RecordsError(f"model {model!r} is not registered here yet; ingest an export of it first")
    return ModelSettings.model_validate_json(row.settings)


def was_rehearsed(session: Session) -> bool:
    """Tell whether the mark of a rehearsal stands in the chain."""
    return session.exec(select(EventRow.seq).where(EventRow.kind == REHEARSAL).limit(1)).first() is not None


def ask_purged(session: Session) -> Callable[[str], bool] | None:
    """Give a question that tells of a key whether its patient was removed; None while nobody was.

    Raises:
        RecordsError: the secret is gone, without which nobody who was removed can be recognised.
    """
    known = set(session.exec(select(PurgeRow.patient_hmac)))
    if not known:
        return None
    key = session.get(MetaRow, PURGE_KEY)
    if key is None:
        raise RecordsError("the key by which removed patients are recognised is gone; restore a backup of the records")
    secret = key.value
    return lambda text: hash_patient(secret, text.strip()) in known


def hash_patient(secret: str, patient: str) -> str:
    """Name a removed patient so that only who holds the records' secret can tell who it is (HMAC-SHA-256)."""
    return hmac.digest(bytes.fromhex(secret), b"wardround purge\x00" + patient.encode(), "sha256").hex()


def in_chunks(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Cut values into parts that one statement can ask for."""
    return (values[start : start + VALUES_AT_ONCE] for start in range(0, len(values), VALUES_AT_ONCE))


def _of(query: Any, model: str, window: Window | None) -> Any:
    """Keep the predictions of a model, in a window if there is one."""
    query = query.where(PredictionRow.model == model)
    if window is None:
        return query
    time = col(PredictionRow.produced_at)
    return query.where(time >= window.start, time < window.end)


def _cohort_of(settings: ModelSettings, columns: Sequence[tuple[Any, ...]]) -> Cohort:
    """Make a cohort of ``COLUMNS`` and the newest labels (JSON text, None where nothing is known), each of length n."""
    studies, patients, times, scores, attributes, images, labels = columns
    shape, n = TASKS[settings.task], len(studies)
    told = _parse(attributes)
    untold = json.dumps([None] * shape.label_columns(settings.classes))
    known = _parse([cell or untold for cell in labels])
    return Cohort(
        task=settings.task,
        classes=settings.classes,
        study_uid=np.array(studies, dtype=np.str_),
        patient_key=np.array(patients, dtype=np.str_),
        times=np.array(times, dtype="datetime64[us]"),
        scores=np.array(_parse(scores), dtype=np.float64).reshape(n, shape.score_columns(settings.classes)),
        labels=np.array(known, dtype=np.float64).reshape(n, shape.label_columns(settings.classes)),
        attributes={name: _attribute(told, name, settings) for name in settings.attributes},
        images=np.array(images, dtype=np.str_) if any(images) else None,
    )


def _parse(cells: Sequence[str]) -> list[Any]:
    return list(json.loads(f"[{','.join(cells)}]"))


def _attribute(rows: list[dict[str, Any]], name: str, settings: ModelSettings) -> NDArray[Any]:
    values = [row.get(name) for row in rows]
    if name in settings.numeric_attributes:
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    return np.array([MISSING if value in (None, "") else str(value) for value in values], dtype=np.str_)
