"""Evidently's report of a window, as a file a person opens. The one file that may import Evidently.

Our verdicts never come from it. Its HTML would run markup found in names, so every text is mapped to
safe characters before it goes in; a missing column is filled, because Evidently would drop it silently.

Its HTML also carries counts of every value, the least and the largest number, and single scores. So nothing goes in
that names a small cell: values of few patients are pooled, numbers become the quartiles of the reference, and a
score becomes the mean of its bin, which holds none or enough patients of each side and each class.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monitor.attribution import as_words
from monitor.cohorts import MISSING, Cohort
from monitor.measures import THRESHOLD
from monitor.suppression import Cell, Name, find_blank
from monitor.tasks import TASKS

UNSAFE = re.compile(r"[^\w .,:;%+\-–≤≥/()]")
MINIMUM_ROWS = 5
POOLED = "suppressed (few patients)"
MOST_BINS = 20
"""Bins of a score on either side of the threshold, at most."""

Floats = NDArray[np.float64]
Words = NDArray[np.str_]
Rows = NDArray[np.intp]


def write_report(
    reference: Cohort, current: Cohort, path: Path, *, smallest: int, blank: Collection[Name] = ()
) -> Path | None:
    """Write Evidently's data drift and data summary, and classification quality where labels exist, as one HTML file.

    The file appears whole or not at all. Returns None, and writes nothing, when a side has fewer than five studies
    or fewer than ``smallest`` patients. ``blank`` are the values whose counts are blank elsewhere: they are pooled
    here too, with those of fewer than ``smallest`` patients.
    """
    if min(len(reference), len(current)) < MINIMUM_ROWS or min(reference.patients, current.patients) < smallest:
        return None
    before, now = safe_frames(reference, current, smallest=smallest, blank=blank)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # Evidently divides by zero on constant columns and says so at length
        shared = [name for name in now if name in before]  # all but labels that one side alone has
        html = _run(before[shared], now[shared], current)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(html)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    return path


def safe_text(value: object) -> str:
    """Replace every character that could be markup or script in a report."""
    return UNSAFE.sub("_", str(value))


def _run(before: pd.DataFrame, now: pd.DataFrame, current: Cohort) -> str:
    from evidently import BinaryClassification, DataDefinition, Dataset, MulticlassClassification, Report
    from evidently.presets import ClassificationPreset, DataDriftPreset, DataSummaryPreset

    numeric = [name for name in now if now[name].dtype.kind == "f"]
    definition: dict[str, Any] = {
        "numerical_columns": numeric,
        "categorical_columns": [name for name in now if name not in numeric],
    }
    presets: list[Any] = [DataDriftPreset(), DataSummaryPreset()]
    if "label" in now and min(frame["label"].nunique() for frame in (before, now)) > 1:
        score = f"score {safe_text(current.findings[0])}"
        definition["classification"] = [
            BinaryClassification(target="label", prediction_probas=score, pos_label=safe_text(current.classes[1]))
            if len(current.findings) == 1
            else MulticlassClassification(target="label", prediction_labels="predicted")
        ]
        presets.append(ClassificationPreset(probas_threshold=_threshold(current, 0) if current.thresholds else None))
    sides = [Dataset.from_pandas(frame, data_definition=DataDefinition(**definition)) for frame in (now, before)]
    snapshot = Report(presets).run(sides[0], sides[1])
    return str(snapshot.get_html_str(as_iframe=False))


def safe_frames(
    reference: Cohort, current: Cohort, *, smallest: int, blank: Collection[Name] = ()
) -> Iterator[pd.DataFrame]:
    """Give what Evidently may see of both sides, in which no value holds fewer than ``smallest`` patients.

    Each side has that many. Values of few patients, and ``blank`` ones, are pooled as ``POOLED``.
    """
    sides = reference, current
    columns: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for name in sides[1].attributes:
        for column, words in zip(columns, _coarsen(sides, name, smallest, blank), strict=True):
            column[safe_text(name)] = [safe_text(word) for word in words]
    classes = [_labels(cohort, smallest) for cohort in sides]
    for place, finding in enumerate(sides[1].findings):
        binned = _bin_scores(sides, place, classes, smallest)
        for column, scores in zip(columns, binned, strict=True):
            column[f"score {safe_text(finding)}"] = scores
    for cohort, column, labels in zip(sides, columns, classes, strict=True):
        if labels is not None:
            names = np.array([safe_text(name) for name in cohort.classes])
            column["label"] = names[labels]
            if len(cohort.findings) > 1:
                column["predicted"] = names[cohort.scores.argmax(axis=1)]
        yield pd.DataFrame(column)


def _labels(cohort: Cohort, smallest: int) -> NDArray[np.intp] | None:
    """Give the class of every study; None unless all are known and no class has few patients."""
    if TASKS[cohort.task].label_per_finding or not cohort.labelled.all():
        return None
    labels = cohort.labels[:, 0].astype(np.intp)
    few = any(0 < _count(cohort.patient_key[labels == one]) < smallest for one in range(len(cohort.classes)))
    return None if few else labels


def _coarsen(sides: tuple[Cohort, Cohort], name: str, smallest: int, blank: Collection[Name]) -> list[Words]:
    """Write an attribute of both sides as words, numbers as quartiles of the reference, values of few patients pooled.

    An attribute that the reference lacks is missing there.
    """
    now = sides[1].attributes[name]
    before = sides[0].attributes.get(name)
    if before is None:
        before = np.full(len(sides[0]), np.nan if now.dtype.kind == "f" else MISSING, dtype=now.dtype)
    columns = as_words(before, now)
    cells = [
        Cell(name=(name, str(value)), patients=_count(cohort.patient_key[column == value]), table=side)
        for side, (cohort, column) in enumerate(zip(sides, columns, strict=True))
        for value in np.unique(column)
    ]
    pooled = {value for attribute, value in find_blank(cells, smallest, blank) if attribute == name}
    rest = sorted((cell.patients, cell.name[1]) for cell in cells if cell.name[1] not in pooled)
    # a patient of several values counts in each: the pool may hold fewer patients than its values together
    while rest and any(
        0 < _count(side.patient_key[np.isin(column, list(pooled))]) < smallest
        for side, column in zip(sides, columns, strict=True)
    ):
        pooled.add(rest.pop(0)[1])
    return [np.where(np.isin(column, list(pooled)), POOLED, column) for column in columns]


def _bin_scores(
    sides: tuple[Cohort, Cohort], place: int, classes: Sequence[NDArray[np.intp] | None], smallest: int
) -> list[Floats]:
    """Replace each score by the mean of its bin, cut at the threshold and wherever no bin holds few patients.

    How many lie on either side of the threshold is performance and stays; few on a side are given its middle.
    """
    scores = np.concatenate([side.scores[:, place] for side in sides])
    keys = np.concatenate([side.patient_key for side in sides])
    groups = np.concatenate(
        [
            (np.zeros(len(cohort), dtype=np.intp) if labels is None else labels) * 2 + side
            for side, (cohort, labels) in enumerate(zip(sides, classes, strict=True))
        ]
    )

    def holds(part: Rows) -> bool:
        return all(_count(keys[part][groups[part] == group]) >= smallest for group in np.unique(groups[part]))

    binned, cut = np.empty_like(scores), _threshold(sides[1], place)
    for half, middle in ((scores < cut, cut / 2), (scores >= cut, (cut + 1) / 2)):
        rows = np.flatnonzero(half)
        for part in _cut(rows[np.argsort(scores[rows], kind="stable")], scores, holds):
            binned[part] = scores[part].mean() if holds(part) else middle
    return np.split(binned, [len(sides[0])])


def _threshold(cohort: Cohort, place: int) -> float:
    return cohort.thresholds[place] if cohort.thresholds else THRESHOLD


def _cut(rows: Rows, scores: Floats, holds: Callable[[Rows], bool]) -> list[Rows]:
    """Cut rows, in the order of their scores, into bins that hold enough, ties together; one bin if none does."""
    places = np.unique(np.linspace(0, len(rows), MOST_BINS + 1).astype(np.intp))[1:-1]
    edges = [place for place in places if scores[rows[place - 1]] < scores[rows[place]]]
    parts: list[Rows] = []
    start = 0
    for edge in edges:
        if holds(rows[start:edge]):
            parts.append(rows[start:edge])
            start = edge
    rest = rows[start:]
    while parts and not holds(rest):
        rest = np.concatenate([parts.pop(), rest])
    return [*parts, rest] if len(rest) else parts


def _count(patients: Words) -> int:
    return len(np.unique(patients))
