"""Real studies to start a simulation from: the ward's own, or those of an export, with the files of their images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from continual.files import content_sha256
from flows.checking import check_row, locate_image
from flows.sources import RowRefused, find_image, open_export
from flows.ward import StepRefused, Ward, version_at
from monitor.cohorts import MISSING, Cohort, Prediction, Window
from registry.settings import ModelSettings

CHUNK = 5_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Studies:
    """Real studies to start from, n of them: where each image lies (n, or none) and which version answered (n)."""

    cohort: Cohort
    images: tuple[Path, ...] = ()
    versions: tuple[str, ...]
    left_out: int = 0


def read_ward_studies(ward: Ward, model: str, *, window: Window | None, folder: Path | None, images: bool) -> Studies:
    """Take studies that the ward has; with ``images`` their files, found where they were ingested from.

    Raises:
        StepRefused: there are no studies, or an image is not there any more.
    """
    cohort = ward.records.load_cohort(model, window=window)
    if not len(cohort):
        raise StepRefused("there are no studies to start from; ingest an export, or choose another --window")
    cohort, left_out = _with_images(cohort if images else replace(cohort, images=None))
    versions = _versions(ward, model, cohort.times)
    if cohort.images is None:
        return Studies(cohort=cohort, versions=versions, left_out=left_out)
    home = ward.settings.directory
    roots = [*([folder] if folder else []), home, *([home / "exports"] if (home / "exports").is_dir() else [])]
    named = ward.records.image_paths(list(cohort.images))
    found = {sha256: _find(reference, sha256, roots) for sha256, reference in named.items()}
    paths = tuple(found[str(sha256)] for sha256 in cohort.images)
    return Studies(cohort=cohort, images=paths, versions=versions, left_out=left_out)


def read_export_studies(ward: Ward, model: str, path: Path, *, images: bool) -> Studies:
    """Take the studies of an export, ingested or not; rows that ingest would refuse are left out and counted.

    Raises:
        SourceError: the export cannot be read at all.
        StepRefused: no row of it can be used.
    """
    settings = ward.settings.model(model)
    export = open_export(path, settings)
    wanted = images and "image" in export.columns
    taken: list[Prediction] = []
    paths: list[Path] = []
    for row in (row for chunk in export.chunks(CHUNK) for row in chunk):
        try:
            prediction = check_row(row, model=model, settings=settings, image_required=wanted)
            if wanted:
                prediction, place = locate_image(prediction, (path.parent, ward.settings.directory))
                paths.append(place)
        except RowRefused:
            continue
        taken.append(prediction)
    if not taken:
        raise StepRefused(f"no row of {path} can be used; `wardround ingest` tells why")
    cohort = _cohort_of(taken, settings, with_images=wanted)
    versions = tuple(prediction.model_version for prediction in taken)
    return Studies(cohort=cohort, images=tuple(paths), versions=versions, left_out=export.rows - len(taken))


def _find(reference: str, sha256: str, roots: Sequence[Path]) -> Path:
    """Find an image by the path it was ingested under, and only with the content it had."""
    problem = ""
    for root in roots:
        try:
            path = find_image(reference, (root, *roots))
        except RowRefused as error:
            problem = str(error)
            continue
        if content_sha256(path) == sha256:
            return path
        problem = f"image {reference!r} is not the one that was ingested"
    raise StepRefused(
        f"{problem}; name the folder that its export lay in with --images, or do without them with --no-images"
    )


def _with_images(cohort: Cohort) -> tuple[Cohort, int]:
    """Leave out studies without an image where others have one, as an export needs; and count them."""
    if cohort.images is None or (seen := cohort.images != "").all():
        return cohort, 0
    return cohort.select(seen), int((~seen).sum())


def _versions(ward: Ward, model: str, times: NDArray[np.datetime64]) -> tuple[str, ...]:
    """Name who was champion at each moment; the exports' own words about it are not in a cohort."""
    versions = np.full(len(times), version_at(ward, model, datetime.min.replace(tzinfo=UTC)), dtype=object)
    for entry in ward.records.champion_history(model):
        versions[times >= np.datetime64(entry.since.astimezone(UTC).replace(tzinfo=None), "us")] = entry.version
    return tuple(map(str, versions))


def _cohort_of(predictions: Sequence[Prediction], settings: ModelSettings, *, with_images: bool) -> Cohort:
    def column(name: str) -> NDArray[Any]:
        values = [prediction.attributes.get(name) for prediction in predictions]
        if name in settings.numeric_attributes:
            return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
        return np.array([MISSING if value in (None, "") else str(value) for value in values], dtype=np.str_)

    labels = [[np.nan if label is None else label for label in prediction.labels] for prediction in predictions]
    return Cohort(
        task=settings.task,
        classes=settings.classes,
        study_uid=np.array([prediction.study_uid for prediction in predictions], dtype=np.str_),
        patient_key=np.array([prediction.patient_key for prediction in predictions], dtype=np.str_),
        times=np.array([prediction.produced_at.replace(tzinfo=None) for prediction in predictions], "datetime64[us]"),
        scores=np.array([prediction.scores for prediction in predictions], dtype=np.float64),
        labels=np.array(labels, dtype=np.float64),
        attributes={name: column(name) for name in settings.attributes},
        images=np.array([p.image_sha256 for p in predictions], dtype=np.str_) if with_images else None,
    )
