"""Stored columns become a cohort."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitor.cohorts import MISSING, Cohort
from monitor.tasks import TASKS
from registry.settings import ModelSettings

COLUMNS = ("study_uid", "patient_key", "produced_at", "scores", "attributes", "image_sha256")


def cohort_of(settings: ModelSettings, columns: Sequence[tuple[Any, ...]]) -> Cohort:
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
