"""Removing a patient from the records: the one way in which what is append-only loses a row, told as an event."""

from __future__ import annotations

import json
import re
import secrets
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import delete, update
from sqlmodel import Session, col, select

from monitor.results import WindowReport
from registry.audit import canonical_json
from registry.entries import Purge, RecordsError
from registry.held_out import HeldOutCohort, digest_of
from registry.holdings import PURGE_KEY, hash_patient, in_chunks
from registry.memories import Memories
from registry.memory_rows import PurgeRow, RemovingRow
from registry.rows import (
    EventRow,
    HeldOutRow,
    LabelRow,
    MetaRow,
    PredictionRow,
    QuarantineRow,
    ReadingRow,
    ReportRow,
    WorklistRow,
    sha256,
    to_json,
)

BEGUN, PURGED, RELOCKED = "patient.purge_begun", "patient.purged", "held_out.relocked"
DONE, OPEN = "done", "begun"
WORD = r"[0-9A-Za-z_.\-]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Who is removed: the patient, their studies, the images of theirs, and those that no other patient shares."""

    patient: str
    studies: frozenset[str]
    images: frozenset[str]
    own_images: frozenset[str]

    @property
    def names(self) -> frozenset[str]:
        """Every text that names the patient."""
        return frozenset({self.patient, *self.studies, *self.own_images})


class Purging(Memories):
    """Tombstones, and what is taken out of the tables."""

    def purges(self) -> list[Purge]:
        """List the removals as they stand, oldest first."""
        with self._reading() as session:
            rows = session.exec(select(PurgeRow).order_by(col(PurgeRow.id)))
            return list({row.patient_hmac: row.value() for row in rows}.values())

    def purge_of(self, patient: str) -> Purge | None:
        """Give the removal of a patient; None when nobody of that key was removed."""
        with self._reading() as session:
            row = _row_of(session, patient)
            return None if row is None else row.value()

    def subject_of(self, patient: str) -> Subject:
        """Find a patient's studies and images in every model, quarantine included."""
        with self._reading() as session:
            mine = select(PredictionRow.study_uid, PredictionRow.image_sha256)
            rows = session.exec(mine.where(PredictionRow.patient_key == patient)).all()
            quarantined = [json_of(row.content) for row in session.exec(select(QuarantineRow))]
            studies = {study for study, _ in rows}
            refused = [cells for cells in quarantined if text_of(cells.get("patient_key")) == patient]
            images = {image for _, image in rows} | {text_of(cells.get("image_sha256")) for cells in refused}
            images.discard("")
            shared: set[str] = set()
            for some in in_chunks(sorted(images)):
                others = select(PredictionRow.image_sha256).where(PredictionRow.patient_key != patient)
                shared |= set(session.exec(others.where(col(PredictionRow.image_sha256).in_(some))))
        studies |= {text_of(cells.get("study_uid")) for cells in refused} - {""}
        return Subject(
            patient=patient, studies=frozenset(studies), images=frozenset(images), own_images=frozenset(images - shared)
        )

    def begin_purge(self, patient: str, *, actor: str, reason: str, adapters: Sequence[Any], at: datetime) -> Purge:
        """Set the tombstone, before anything is removed; again gives the one that stands.

        Raises:
            RecordsError: the reason names the patient.
        """
        if re.search(rf"(?<!{WORD}){re.escape(patient)}(?!{WORD})", reason):
            raise RecordsError("the reason stands in the record for ever; write one that does not name the patient")
        with self._writing() as session:
            if session.get(MetaRow, PURGE_KEY) is None:
                session.add(MetaRow(key=PURGE_KEY, value=secrets.token_hex(32)))
                session.flush()
            row = _row_of(session, patient)
            if row is None:
                hashed = hash_patient(session.get_one(MetaRow, PURGE_KEY).value, patient)
                purge = Purge(
                    patient_hmac=hashed,
                    state=OPEN,
                    actor=actor,
                    reason=reason,
                    adapters=canonical_json(adapters),
                    counts="{}",
                    at=at,
                )
                row = PurgeRow.of(purge)
                session.add(row)
                self._append(
                    session, at=at, kind=BEGUN, model="", subject=hashed[:16], payload={"reason": reason}, actor=actor
                )
            made: Purge = row.value()
            return made

    def remove_rows(self, subject: Subject, *, actor: str, at: datetime) -> Counter[str]:
        """Take every row of a patient out of every table, in one transaction; returns how many, by table.

        Stored reports lose the studies that they show; held-out cohorts are locked again without the patient,
        which is an event in the name of ``actor``. The digests of what was changed are part of the events.
        """
        with self._writing() as session:
            row = _row_of(session, subject.patient)
            if row is None:
                raise RecordsError("no removal of this patient was begun")
            mark = RemovingRow(ends="with this transaction")
            session.add(mark)
            session.flush()
            counts = _delete_rows(session, subject)
            changed = _redact_reports(session, subject)
            counts["reports"] = len(changed)
            counts["held_out"] = self._relock(session, subject, actor=actor, at=at)
            if changed:
                payload = {"sha256": changed}
                kind = "reports.redacted"
                self._append(
                    session, at=at, kind=kind, model="", subject=row.patient_hmac[:16], payload=payload, actor=actor
                )
            session.delete(mark)
        return counts

    def finish_purge(self, patient: str, counts: dict[str, int], *, actor: str, at: datetime) -> Purge:
        """Note that a removal is complete, with what it removed; again changes nothing."""
        with self._writing() as session:
            row = _row_of(session, patient)
            if row is None:
                raise RecordsError("no removal of this patient was begun")
            if row.state == OPEN:
                done = replace(row.value(), state=DONE, counts=canonical_json(counts), at=at, actor=actor)
                row = PurgeRow.of(done)
                session.add(row)
                payload = {"removed": counts, "learned_from": json.loads(row.adapters), "reason": row.reason}
                subject = row.patient_hmac[:16]
                self._append(session, at=at, kind=PURGED, model="", subject=subject, payload=payload, actor=actor)
            made: Purge = row.value()
            return made

    def compact(self) -> None:
        """Rebuild the file, so that no free page holds what was deleted (secure_delete has blanked them before)."""
        connection = self._engine.raw_connection()
        try:
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            connection.close()

    def events_naming(self, names: Iterable[str]) -> list[int]:
        """List the events that hold one of some texts; they are never changed, so a person must know."""
        pattern = re.compile("|".join(rf"(?<!{WORD}){re.escape(name)}(?!{WORD})" for name in sorted(names)))
        with self._reading() as session:
            rows = session.exec(select(EventRow.seq, EventRow.subject, EventRow.payload))
            return [seq for seq, subject, payload in rows if pattern.search(f"{subject} {payload}")]

    def _relock(self, session: Session, subject: Subject, *, actor: str, at: datetime) -> int:
        changed = 0
        for row in session.exec(select(HeldOutRow).order_by(col(HeldOutRow.id))):
            locked = row.value()
            lines = tuple(line for line in locked.manifest if json.loads(line)[1] != subject.patient)
            if len(lines) == len(locked.manifest):
                continue
            after = HeldOutCohort(name=locked.name, kind=locked.kind, manifest=lines, digest=digest_of(lines))
            row.manifest, row.digest = canonical_json(lines), after.digest
            session.add(row)
            payload = {"before": locked.digest, "after": after.digest, "studies": len(lines)}
            self._append(session, at=at, kind=RELOCKED, model=row.model, subject=row.name, payload=payload, actor=actor)
            changed += 1
        return changed


def json_of(content: str) -> dict[str, Any]:
    """Read the cells of a quarantined row; empty where they cannot be told apart."""
    try:
        cells = json.loads(content)
    except ValueError:
        return {}
    return cells if isinstance(cells, dict) else {}


def text_of(value: Any) -> str:
    """Give a cell as the text that a key is compared with."""
    return "" if value is None else str(value).strip()


def _row_of(session: Session, patient: str) -> PurgeRow | None:
    key = session.get(MetaRow, PURGE_KEY)
    if key is None:
        return None
    query = select(PurgeRow).where(PurgeRow.patient_hmac == hash_patient(key.value, patient))
    return session.exec(query.order_by(col(PurgeRow.id).desc())).first()


def _delete_rows(session: Session, subject: Subject) -> Counter[str]:
    """Delete predictions with their labels, and quarantined rows; a table with a key of its own is added here."""
    counts: Counter[str] = Counter()
    mine = select(PredictionRow.id).where(PredictionRow.patient_key == subject.patient)
    counts["labels"] = session.exec(delete(LabelRow).where(col(LabelRow.prediction_id).in_(mine))).rowcount
    gone = delete(PredictionRow).where(col(PredictionRow.patient_key) == subject.patient)
    counts["predictions"] = session.exec(gone).rowcount
    for some in in_chunks(sorted(subject.studies)):
        counts["readings"] += session.exec(delete(ReadingRow).where(col(ReadingRow.study_uid).in_(some))).rowcount
    counts["worklists"] = _strike_from_worklists(session, subject)
    named = [row.id for row in session.exec(select(QuarantineRow)) if _names(row, subject)]
    for some in in_chunks(named):
        session.exec(delete(QuarantineRow).where(col(QuarantineRow.id).in_(some)))
    counts["quarantine"] = len(named)
    return counts


def _strike_from_worklists(session: Session, subject: Subject) -> int:
    """Take a patient's studies off every worklist; returns how many were on one."""
    struck = 0
    for row in session.exec(select(WorklistRow)).all():
        worklist = row.value()
        left = tuple(item for item in worklist.items if item.study_uid not in subject.studies)
        if len(left) < len(worklist.items):
            struck += len(worklist.items) - len(left)
            content = to_json(replace(worklist, items=left))
            session.exec(update(WorklistRow).where(col(WorklistRow.id) == row.id).values(content=content))
    return struck


def _names(row: QuarantineRow, subject: Subject) -> bool:
    """Tell whether a refused row is about the patient or a study of theirs, whatever is broken in it."""
    cells = json_of(row.content)
    texts = {subject.patient, *subject.studies}
    if {text_of(cells.get("patient_key")), text_of(cells.get("study_uid"))} & texts:
        return True
    if cells.get("patient_key") and cells.get("study_uid"):
        return False
    pattern = "|".join(rf"(?<!{WORD}){re.escape(text)}(?!{WORD})" for text in sorted(texts))
    return re.search(pattern, f"{row.content} {row.detail}") is not None


def _redact_reports(session: Session, subject: Subject) -> list[tuple[str, str]]:
    """Take a patient's studies out of what stored reports show; returns the hashes of each before and after."""
    changed = []
    for row in session.exec(select(ReportRow)):
        if not any(study in row.content for study in subject.studies):
            continue
        report = row.value()
        after = redact(report, subject.studies)
        if after != report:
            content = to_json(after)
            session.exec(update(ReportRow).where(col(ReportRow.id) == row.id).values(content=content))
            changed.append((sha256(row.content), sha256(content)))
    return changed


def redact(report: WindowReport, studies: Collection[str]) -> WindowReport:
    """Leave out examples that are some studies, and these as neighbours of others."""
    examples = []
    for example in report.examples:
        if example.study_uid not in studies:
            near = [
                (name, distance)
                for name, distance in zip(example.neighbours, example.distances, strict=True)
                if name not in studies
            ]
            names, distances = (tuple(name for name, _ in near), tuple(distance for _, distance in near))
            examples.append(replace(example, neighbours=names, distances=distances))
    return replace(report, examples=tuple(examples))
