"""Take in what came back from the reading room. Safe to repeat and to interrupt."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

from flows.labelling import tell_need
from flows.reading_files import ReaderRow, read_worklist_file, sort_readings, study_of
from flows.sources import Reason
from flows.ward import Ward
from monitor.cohorts import Prediction
from registry.audit import canonical_json
from registry.entries import KnownStudy, QuarantinedRow, StudyReading


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportSummary:
    """What became of every row of a worklist that came back; nothing is lost: the five parts add up to ``received``.

    ``conflict`` counts rows that contradict each other or what is stored; they lie in quarantine with their reason.
    ``reasons`` counts what was refused by reason; ``needed`` says what is still missing to learn from, if anything.
    """

    source: str
    content_sha256: str
    received: int
    accepted: int
    duplicate: int
    conflict: int
    empty: int
    quarantined: int
    reasons: dict[str, int]
    needed: str = ""

    def __post_init__(self) -> None:
        parts = self.accepted + self.duplicate + self.conflict + self.empty + self.quarantined
        if self.received != parts:
            raise ValueError(f"rows were lost or counted twice in {self.source}: {self}")


def import_labels(path: Path, *, model: str, ward: Ward, at: datetime) -> ImportSummary:
    """Take in a worklist that came back, whole or in part, as often as it comes; the same file changes nothing.

    Labels are added to every stored answer about a study, as late labels are; windows that get some become due again.

    Raises:
        SourceError: the file cannot be read at all; nothing of it was taken.
        SettingsError: there is no such model.
    """
    settings = ward.settings.model(model)
    file = read_worklist_file(path, settings)
    ward.records.register_model(model, settings, at)
    batch = ward.records.begin_batch(model, file.name, file.content_sha256, at)
    studies = {study_of(row) for row in file.rows}
    known = ward.records.known_studies(model, studies, batch_id=batch)
    done = sort_readings(file.rows, known, settings, at)
    said = [*done.accepted, *done.duplicate]
    ward.records.add_readings(batch, [_reading(one, known[one.study_uid], model) for one in said], at)
    told = [(one.row.line, answer) for one in said for answer in _answers(one, known[one.study_uid])]
    ward.records.add_predictions(batch, [answer for _, answer in told], at, lines=[line for line, _ in told])
    refused = [*done.conflict, *(_discreet(ward, row) for row in done.quarantined)]
    ward.records.quarantine(batch, refused, at)
    ward.records.finish_batch(batch, at)
    summary = ImportSummary(
        source=file.name,
        content_sha256=file.content_sha256,
        received=len(file.rows),
        accepted=len(done.accepted),
        duplicate=len(done.duplicate),
        conflict=len(done.conflict),
        empty=done.empty,
        quarantined=len(done.quarantined),
        reasons=dict(sorted(Counter(str(row.reason) for row in refused).items())),
        needed=tell_need(ward, model, at=at),
    )
    payload = {name: value for name, value in asdict(summary).items() if name not in ("needed", "content_sha256")}
    payload["sha256"] = file.content_sha256
    ward.records.tell_import(model=model, subject=file.name, payload=payload, at=at)
    return summary


def _discreet(ward: Ward, row: QuarantinedRow) -> QuarantinedRow:
    """Keep nothing of a row about a study that is not stored once patients were removed: it may be one of theirs."""
    if row.reason != Reason.UNKNOWN_STUDY or not ward.records.purges():
        return row
    return replace(row, detail="no such study is stored; it may be one of a patient who was removed", content="")


def _reading(said: ReaderRow, known: KnownStudy, model: str) -> StudyReading:
    return StudyReading(
        model=model,
        worklist_id=known.worklist_id,
        study_uid=said.study_uid,
        reader=said.reader,
        read_at=said.read_at,
        labels=canonical_json(said.labels),
        comment=said.comment,
    )


def _answers(said: ReaderRow, known: KnownStudy) -> list[Prediction]:
    """Repeat every stored answer about a study, with the labels that were missing."""
    told = {"labels": said.labels, "labelled_at": said.read_at}
    return [answer.model_copy(update=told) for answer in known.answers]
