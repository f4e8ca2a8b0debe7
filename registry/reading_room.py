"""The reading room's side of the records: what was asked of it, and what readers said."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlmodel import Session, col, select

from continual.label_uses import hide_from_measuring
from continual.worklists import Part, Worklist
from monitor.cohorts import Cohort
from registry.entries import KnownStudy, RecordsError, StudyReading
from registry.held_out import PatientRole, roles_of
from registry.holdings import in_chunks
from registry.ledger import SYSTEM
from registry.purging import Purging
from registry.rows import LabelRow, PredictionRow, ReadingRow, WorklistRow, sha256
from registry.settings import RoleShares

REQUESTED, IMPORTED = "worklist.requested", "labels.imported"


class ReadingRoom(Purging):
    """Worklists, and readings of what stood on them."""

    def save_worklist(self, worklist: Worklist, at: datetime, *, actor: str = SYSTEM) -> None:
        """Keep a worklist, once; the event says how many studies were drawn, how, and from how many."""
        with self._writing() as session:
            row = WorklistRow.of(worklist, at)
            if session.exec(select(WorklistRow.id).where(WorklistRow.id == row.id)).first() is not None:
                return
            session.add(row)
            payload = {
                "studies": len(worklist.items),
                "random": len(worklist.studies(Part.RANDOM)),
                "frame": worklist.frame,
                "windows": [window.key for window in worklist.windows],
                "sha256": sha256(row.content),
            }
            model = worklist.model
            self._append(session, at=at, kind=REQUESTED, model=model, subject=row.id, payload=payload, actor=actor)

    def worklists(self, model: str) -> list[Worklist]:
        """List the worklists of a model, oldest first."""
        with self._reading() as session:
            query = select(WorklistRow).where(WorklistRow.model == model).order_by(col(WorklistRow.number))
            return [row.value() for row in session.exec(query)]

    def labelled_studies(self, model: str, studies: Iterable[str] | None = None) -> frozenset[str]:
        """Name the studies of which a label of every finding is known, among some or all of a model."""
        query = select(PredictionRow.study_uid).join(LabelRow, col(LabelRow.prediction_id) == PredictionRow.id)
        query = query.where(PredictionRow.model == model, LabelRow.unknown == 0)
        with self._reading() as session:
            if studies is None:
                return frozenset(session.exec(query))
            some = in_chunks(sorted(studies))
            found = [session.exec(query.where(col(PredictionRow.study_uid).in_(part))).all() for part in some]
            return frozenset(study for part in found for study in part)

    def labels_to_measure(self, model: str, cohort: Cohort, shares: RoleShares) -> NDArray[np.float64]:
        """Give the labels that the performance of a window may be measured by, NaN for the others; shape of ``labels``.

        See ``continual.label_uses.hide_from_measuring``.
        """
        chosen = frozenset[str]().union(*(one.studies(Part.CHOSEN) for one in self.worklists(model)))
        if not chosen:
            return cohort.labels
        learning = np.asarray(roles_of(cohort.patient_key, shares) == PatientRole.LEARNING)
        return hide_from_measuring(
            cohort.labels, learning=learning, chosen=learning & np.isin(cohort.study_uid, sorted(chosen))
        )

    def known_studies(self, model: str, studies: Iterable[str], *, batch_id: int) -> dict[str, KnownStudy]:
        """Look up what is stored about studies, and the newest worklist that each stands on (empty: on none).

        What an interrupted reading of the same, unfinished batch has brought is left out, so that the second
        reading tells the same as an undisturbed one.
        """
        asked = {study: one.worklist_id for one in self.worklists(model) for study in one.studies()}
        unfinished = not self._reading_of(batch_id).finished_before
        found: dict[str, list[tuple[PredictionRow, str | None]]] = {}
        with self._reading() as session:
            for some in in_chunks(sorted(set(studies))):
                query = select(PredictionRow).where(PredictionRow.model == model)
                for row in session.exec(
                    query.where(col(PredictionRow.study_uid).in_(some)).order_by(col(PredictionRow.id))
                ):
                    told = _newest_labels(session, int(row.id or 0), batch_id if unfinished else None)
                    found.setdefault(row.study_uid, []).append((row, told))
        return {
            study: KnownStudy(
                answers=tuple(row.value() for row, _ in rows),
                labels=_merge([told for _, told in rows]),
                worklist_id=asked.get(study, ""),
            )
            for study, rows in found.items()
        }

    def add_readings(self, batch_id: int, readings: Sequence[StudyReading], at: datetime) -> int:
        """Keep who read what and when; the same answer of the same reader counts once. Returns how many are new."""
        self._reading_of(batch_id)
        with self._writing() as session:
            known = {_identity(one) for one in self._readings_in(session, {one.study_uid for one in readings})}
            fresh = {_identity(one): one for one in readings if _identity(one) not in known}
            session.add_all(ReadingRow.of(one, batch_id=batch_id, at=at) for one in fresh.values())
            return len(fresh)

    def readings(self, model: str) -> list[StudyReading]:
        """List what readers said of a model's studies, in the order of import."""
        with self._reading() as session:
            query = select(ReadingRow).where(ReadingRow.model == model).order_by(col(ReadingRow.id))
            return [row.value() for row in session.exec(query)]

    def tell_import(self, *, model: str, subject: str, payload: dict[str, Any], at: datetime) -> None:
        """Enter the import of a file into the chain, once."""
        known = [event.payload for event in self.events(model, kind=IMPORTED) if event.subject == subject]
        if any(json.loads(one)["sha256"] == payload["sha256"] for one in known):
            return
        self.tell(at=at, kind=IMPORTED, model=model, subject=subject, payload=payload, actor=SYSTEM)

    def _readings_in(self, session: Session, studies: set[str]) -> Iterable[StudyReading]:
        for some in in_chunks(sorted(studies)):
            for row in session.exec(select(ReadingRow).where(col(ReadingRow.study_uid).in_(some))):
                yield row.value()


def open_worklist(worklists: Sequence[Worklist], worklist_id: str) -> Worklist:
    """Look up a worklist by its identity.

    Raises:
        RecordsError: there is none of that name.
    """
    found = next((one for one in worklists if one.worklist_id == worklist_id), None)
    if found is None:
        raise RecordsError(f"there is no worklist {worklist_id!r}; `wardround status` lists those that are open")
    return found


def _newest_labels(session: Session, prediction_id: int, without_batch: int | None) -> str | None:
    query = select(LabelRow.labels).where(LabelRow.prediction_id == prediction_id)
    if without_batch is not None:
        query = query.where(LabelRow.batch_id != without_batch)
    return session.exec(query.order_by(col(LabelRow.id).desc())).first()


def _merge(told: Sequence[str | None]) -> tuple[int | None, ...]:
    """Join what is known of one study by all answers about it; the first that says something counts."""
    known = [json.loads(labels) for labels in told if labels is not None]
    columns = zip(*known, strict=True) if known else []
    return tuple(next((label for label in column if label is not None), None) for column in columns)


def _identity(reading: StudyReading) -> tuple[object, ...]:
    return reading.model, reading.study_uid, reading.reader, reading.labels
