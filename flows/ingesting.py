"""Ingest: an export of predictions becomes rows, features and quarantined rows. Safe to repeat and to interrupt.

Rows are taken in chunks. A chunk's features are stored first, then its rows in one transaction; a
process killed between two chunks goes on where it stopped when the same command is run again.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from continual.files import content_sha256
from continual.images import UnreadableImage
from flows.checking import check_row, locate_image
from flows.features import compute_features
from flows.sources import KEYS, Export, Reason, Row, RowRefused, SourceError, known_columns, open_export
from flows.ward import Ward, backbone_of
from monitor.cohorts import Prediction
from registry.entries import BatchSummary, QuarantinedRow
from registry.settings import ModelSettings

ROWS_A_CHUNK = 5_000
IMAGES_A_CHUNK = 256
PURGED = "the patient was removed with `wardround memory purge`; what the row says is not kept"
log = logging.getLogger("wardround.ingesting")


def ingest_export(path: Path, *, model: str, ward: Ward, at: datetime, rehearsal: bool = False) -> BatchSummary:
    """Take in an export: every row is accepted, brings late labels, is known already, in conflict or in quarantine.

    Image paths are relative to the export's folder or to the ward's. The same export again changes nothing. With
    ``rehearsal`` the ward is marked, for ever, as one that simulated studies may be taken into.

    Raises:
        SourceError: the export cannot be read at all, or is simulated and the ward no rehearsal; nothing of it was
            taken.
        SettingsError: there is no such model.
    """
    settings = ward.settings.model(model)
    if not rehearsal and (known := _read_before(path, ward=ward, model=model)) is not None:
        return known
    export = open_export(path, settings)
    if rehearsal:
        ward.records.mark_rehearsal(at)
    if export.simulated is not None and not ward.records.is_rehearsal:
        raise SourceError(
            f"{path}, line {export.simulated}: the study is simulated, and this ward watches real patients; ingest it "
            "into a copy of the ward with --rehearsal, which marks the copy for ever"
        )
    _name_other_columns(export, settings)
    ward.records.register_model(model, settings, at)
    batch_id = ward.records.begin_batch(model, path.name, export.content_sha256, at)
    done = 0
    for rows in export.chunks(IMAGES_A_CHUNK if "image" in export.columns else ROWS_A_CHUNK):
        intake = _Intake()
        _check(rows, intake, export=export, ward=ward, model=model, at=at)
        _compute(intake, ward=ward, model=model, tell=_teller(ward, path, done, export.rows))
        lines, predictions = [row.line for row, _ in intake.accepted], [made for _, made in intake.accepted]
        ward.records.add_predictions(batch_id, predictions, at, lines=lines)
        ward.records.quarantine(batch_id, intake.refused, at)
        done += len(rows)
        ward.progress(f"Reading {path.name}", done, export.rows)
    return ward.records.finish_batch(batch_id, at)


def embed_images(paths: Sequence[Path], *, ward: Ward, model: str) -> NDArray[np.str_]:
    """Store the features of image files that no export names (yet), and return their hashes, shape (n,).

    Raises:
        UnreadableImage: a file is no readable image.
    """
    hashes = [content_sha256(path) for path in paths]
    refused = compute_features(
        dict(zip(hashes, paths, strict=True)),
        features=ward.features_of(model),
        backbone=lambda: backbone_of(ward, model),
        progress=lambda done: ward.progress("Computing features", done, len(paths)),
    )
    for error in refused.values():
        raise UnreadableImage(error.detail)
    return np.array(hashes, dtype=np.str_)


def _read_before(path: Path, *, ward: Ward, model: str) -> BatchSummary | None:
    """Say what reading an export again would come to, if nothing could come of it.

    Something could where rows were refused, which may be whole by now, where features of images are missing, or
    where a patient was removed since.
    """
    if not os.access(path, os.R_OK) or not path.is_file():
        return None
    done = ward.records.finished_batch(model, content_sha256(path), ward.settings.model(model))
    if done is None or done.quarantined or any(purge.at >= done.at for purge in ward.records.purges()):
        return None
    images = ward.records.images(model, done.batch_id if done.accepted == done.received else None)
    if ward.features_of(model).missing(images):
        return None
    return replace(done, accepted=0, labelled=0, duplicate=done.accepted + done.labelled + done.duplicate)


@dataclass(slots=True)
class _Intake:
    """What one chunk has come to so far."""

    accepted: list[tuple[Row, Prediction]] = field(default_factory=list)
    refused: list[QuarantinedRow] = field(default_factory=list)
    images: dict[str, Path] = field(default_factory=dict)

    def refuse(self, row: Row, error: RowRefused) -> None:
        self.refused.append(
            QuarantinedRow(line=row.line, reason=error.reason, detail=error.detail, content=row.content)
        )


def _check(rows: Sequence[Row], intake: _Intake, *, export: Export, ward: Ward, model: str, at: datetime) -> None:
    settings, roots = ward.settings.model(model), (export.path.parent, ward.settings.directory)
    was_purged = ward.records.purged_test()
    for row in rows:
        if was_purged is not None and _is_of_purged(row, was_purged):
            intake.refused.append(
                QuarantinedRow(line=row.line, reason=Reason.PURGED_PATIENT, detail=PURGED, content="")
            )
            continue
        try:
            prediction = check_row(row, model=model, settings=settings, image_required="image" in export.columns)
            if prediction.labelled_at is not None and prediction.labelled_at > at:
                raise RowRefused(Reason.BAD_TIME, f"labelled_at {prediction.labelled_at.isoformat()} is in the future")
            if prediction.image:
                prediction, path = locate_image(prediction, roots)
                intake.images[prediction.image_sha256] = path
            intake.accepted.append((row, prediction))
        except RowRefused as error:
            intake.refuse(row, error)


def _is_of_purged(row: Row, was_purged: Callable[[str], bool]) -> bool:
    """Tell whether a row is of a patient who was removed; of a broken row, whether any word of it names one."""
    if was_purged(str(row.cells.get(KEYS[1], ""))):
        return True
    return bool(row.problem) and any(map(was_purged, set(re.split(r"[\s,;:|\"'\[\]{}]+", row.content))))


def _compute(intake: _Intake, *, ward: Ward, model: str, tell: Callable[[int], None]) -> None:
    if not intake.images:
        return
    unusable = compute_features(
        intake.images, features=ward.features_of(model), backbone=lambda: backbone_of(ward, model), progress=tell
    )
    for row, prediction in intake.accepted:
        if prediction.image_sha256 in unusable:
            intake.refuse(row, unusable[prediction.image_sha256])
    intake.accepted = [(row, made) for row, made in intake.accepted if made.image_sha256 not in unusable]


def _teller(ward: Ward, path: Path, done: int, rows: int) -> Callable[[int], None]:
    return lambda images: ward.progress(f"Reading {path.name}", done + images, rows)


def _name_other_columns(export: Export, settings: ModelSettings) -> None:
    """Name once what will not be used, and what is expected and missing: a misspelt column must be seen."""
    if other := [name for name in export.columns if name not in known_columns(settings)]:
        log.warning(
            "%s: ignored columns %s; list them under attributes to keep them", export.path.name, ", ".join(other)
        )
    if absent := [name for name in settings.attributes if name not in export.columns]:
        log.warning("%s: no column %s; that attribute is missing for every row", export.path.name, ", ".join(absent))
