"""Predictions, windows of time, and cohorts: the column-oriented input of everything else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from monitor.tasks import TASKS, Task

MISSING = "missing"


class Prediction(BaseModel):
    """One answer that a deployed model gave about one study, checked and in canonical form.

    ``scores`` has one probability per score column of the task; ``labels`` one value per label
    column, None where the truth is not known yet; ``labelled_at`` says when it became known, if anybody told.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(min_length=1)
    model_version: str = ""
    study_uid: str = Field(min_length=1, max_length=256)
    patient_key: str = Field(min_length=1, max_length=256)
    produced_at: AwareDatetime
    scores: tuple[float, ...]
    labels: tuple[int | None, ...]
    labelled_at: AwareDatetime | None = None
    attributes: dict[str, str | float | None] = {}
    image: str = ""
    image_sha256: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Window:
    """Half-open time interval [start, end) in UTC."""

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        for moment in (self.start, self.end):
            if moment.tzinfo is None or moment.utcoffset() != timedelta(0):
                raise ValueError(f"a window is in UTC, got {moment!r}; use datetime(..., tzinfo=UTC)")
        if self.end <= self.start:
            raise ValueError(f"a window ends after it starts, got [{self.start}, {self.end})")

    @property
    def key(self) -> str:
        """Identify the window in file names, tables and on screen: 2026-01-05/2026-01-12."""
        return f"{_stamp(self.start)}/{_stamp(self.end)}"

    @classmethod
    def from_key(cls, key: str) -> Window:
        """Read back what ``key`` wrote."""
        start, end = (datetime.fromisoformat(part) for part in key.split("/"))
        return cls(start=_as_utc(start), end=_as_utc(end))

    @property
    def middle(self) -> datetime:
        """The moment half-way between start and end."""
        return self.start + (self.end - self.start) / 2

    def contains(self, moment: datetime) -> bool:
        """Tell whether a moment lies in [start, end)."""
        return self.start <= moment < self.end


def tile_windows(start: datetime, end: datetime, length: timedelta) -> Iterator[Window]:
    """Cut [start, end) into consecutive windows of one length; a last partial window is left out."""
    if length <= timedelta(0):
        raise ValueError(f"a window length is positive, got {length}")
    while start + length <= end:
        yield Window(start=start, end=start + length)
        start += length


def span_of(windows: Sequence[Window]) -> Window:
    """Give the shortest window that holds some windows, of which there is at least one."""
    return Window(start=min(window.start for window in windows), end=max(window.end for window in windows))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cohort:
    """A set of studies with predictions, labels, attributes, embeddings and image references.

    Shapes: every column has length n. ``scores`` (n, score columns) in [0, 1]; ``labels``
    (n, label columns), NaN where unknown; ``embeddings`` (n, width) or None; ``times``
    datetime64[us] in UTC; each attribute a string column (MISSING where empty) or a float column
    (NaN where empty); each image statistic a float column. Construction proves every score and embedding
    finite: one NaN would blind a KS test and deafen an MMD. ``thresholds`` are those of the model version that is
    judged, one a finding: the score from which on it says yes; empty: 0.5, and always where scores sum to one.

    Raises:
        ValueError: a column has a wrong length, range or a value that is not finite.
    """

    task: Task
    classes: tuple[str, ...]
    study_uid: NDArray[np.str_]
    patient_key: NDArray[np.str_]
    times: NDArray[np.datetime64]
    scores: NDArray[np.float64]
    labels: NDArray[np.float64]
    attributes: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    embeddings: NDArray[np.float32] | None = None
    images: NDArray[np.str_] | None = None
    image_statistics: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    thresholds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        shape, n = TASKS[self.task], len(self.study_uid)
        if len(self.classes) < shape.minimum_classes:
            raise ValueError(f"{self.task} needs at least {shape.minimum_classes} classes, got {self.classes}")
        expected = {
            "patient_key": (n,),
            "times": (n,),
            "scores": (n, shape.score_columns(self.classes)),
            "labels": (n, shape.label_columns(self.classes)),
        }
        for name, want in expected.items():
            got = getattr(self, name).shape
            if got != want:
                raise ValueError(f"{name} must have shape {want} for {n} studies of {self.task}, got {got}")
        for word, columns in (("attribute", self.attributes), ("image statistic", self.image_statistics)):
            for name, column in columns.items():
                if column.shape != (n,):
                    raise ValueError(f"{word} {name!r} must have shape {(n,)}, got {column.shape}")
        if not np.all((self.scores >= 0) & (self.scores <= 1)):
            raise ValueError("scores must be finite and in [0, 1]; quarantine the others at ingest")
        check_thresholds(self.task, self.thresholds, self.scores.shape[1])
        _check_labels(self.labels, shape.label_levels(self.classes))
        if self.embeddings is not None and (
            self.embeddings.ndim != 2 or len(self.embeddings) != n or not np.isfinite(self.embeddings).all()
        ):
            raise ValueError(f"embeddings must be finite with shape ({n}, width), got {self.embeddings.shape}")
        if self.images is not None and self.images.shape != (n,):
            raise ValueError(f"images must have shape {(n,)}, got {self.images.shape}")

    def __len__(self) -> int:
        return len(self.study_uid)

    @property
    def findings(self) -> tuple[str, ...]:
        """Name each yes/no question the scores answer, one for each score column."""
        return TASKS[self.task].findings(self.classes)

    @property
    def patients(self) -> int:
        """Count distinct patients: the unit of every permutation and bootstrap."""
        return len(np.unique(self.patient_key))

    @property
    def patient_index(self) -> NDArray[np.intp]:
        """Number the patients 0 … patients-1; shape (n,)."""
        return np.unique(self.patient_key, return_inverse=True)[1]

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """Mark the studies whose every label is known; shape (n,)."""
        return np.asarray(~np.isnan(self.labels).any(axis=1), dtype=np.bool_)

    @property
    def digest(self) -> str:
        """Hash of the content that decides results: keys, times, labels and images; order-free."""
        images = self.images if self.images is not None else np.full(len(self), "")
        lines = sorted(
            f"{uid}\x1f{patient}\x1f{time}\x1f{label.tolist()}\x1f{image}"
            for uid, patient, time, label, image in zip(
                self.study_uid, self.patient_key, self.times, self.labels, images, strict=True
            )
        )
        return hashlib.sha256("\x1e".join([self.task, *self.classes, *lines]).encode()).hexdigest()

    def select(self, rows: NDArray[np.bool_] | NDArray[np.intp] | slice) -> Cohort:
        """Keep the given rows (mask, indices or slice)."""
        columns: dict[str, Any] = {
            name: getattr(self, name)[rows] for name in ("study_uid", "patient_key", "times", "scores", "labels")
        }
        return replace(
            self,
            **columns,
            attributes={name: column[rows] for name, column in self.attributes.items()},
            image_statistics={name: column[rows] for name, column in self.image_statistics.items()},
            embeddings=None if self.embeddings is None else self.embeddings[rows],
            images=None if self.images is None else self.images[rows],
        )

    def within(self, window: Window) -> Cohort:
        """Keep the studies of a window."""
        start, end = (np.datetime64(moment.replace(tzinfo=None), "us") for moment in (window.start, window.end))
        return self.select((self.times >= start) & (self.times < end))

    def binary_labels(self) -> NDArray[np.float64]:
        """Turn labels into one yes/no column a finding, NaN where unknown; shape of ``scores``."""
        return binary_labels(self.task, self.classes, self.labels)


def binary_labels(task: Task, classes: tuple[str, ...], labels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn labels (n, label columns) into one yes/no column a score column, NaN where unknown."""
    shape = TASKS[task]
    if shape.label_per_finding:
        return labels
    positives = np.arange(len(classes))[-shape.score_columns(classes) :]
    answers: NDArray[np.float64] = np.asarray(labels == positives, dtype=np.float64)
    answers[np.isnan(labels[:, 0])] = np.nan
    return answers


def cut_at_median(column: NDArray[np.generic]) -> NDArray[np.str_]:
    """Turn an attribute (n,) into words: numbers are cut at their median, NaN is MISSING; words stay."""
    if column.dtype.kind != "f":
        return column.astype(np.str_)
    numbers = column.astype(np.float64)
    cut = float(np.nanmedian(numbers)) if np.isfinite(numbers).any() else 0.0
    halves = np.where(numbers <= cut, f"≤ {cut:g}", f"> {cut:g}")
    return np.where(np.isnan(numbers), MISSING, halves).astype(np.str_)


def check_thresholds(task: Task, thresholds: tuple[float, ...], columns: int) -> None:
    """Prove that thresholds are none, or one a score column between 0 and 1 for a task that has them.

    Raises:
        ValueError: they are not.
    """
    if not thresholds:
        return
    if TASKS[task].scores_sum_to_one:
        raise ValueError("a model that chooses one of several classes has no thresholds")
    if len(thresholds) != columns or not all(0 < one < 1 for one in thresholds):
        raise ValueError(f"thresholds are {columns}, one a finding, each between 0 and 1, got {thresholds}")


def concatenate(cohorts: Sequence[Cohort]) -> Cohort:
    """Join cohorts of one task, classes and thresholds; only attributes and image statistics that all have are kept."""
    first = cohorts[0]
    alike = (first.task, first.classes, first.thresholds)
    if any((cohort.task, cohort.classes, cohort.thresholds) != alike for cohort in cohorts):
        raise ValueError("only cohorts of the same task and classes, and with the same thresholds, can be joined")
    optional: dict[str, Any] = {
        name: np.concatenate([getattr(cohort, name) for cohort in cohorts])
        if all(getattr(cohort, name) is not None for cohort in cohorts)
        else None
        for name in ("embeddings", "images")
    }
    tables = ("attributes", "image_statistics")
    names = [f.name for f in fields(Cohort) if f.name not in {"task", "classes", "thresholds", *tables, *optional}]
    columns: dict[str, Any] = {name: np.concatenate([getattr(c, name) for c in cohorts]) for name in names}
    shared: dict[str, Any] = {table: _join_shared([getattr(c, table) for c in cohorts]) for table in tables}
    return replace(first, **columns, **optional, **shared)


def _join_shared(tables: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, Any]:
    names = [name for name in tables[0] if all(name in table for table in tables)]
    return {name: np.concatenate([table[name] for table in tables]) for name in names}


def _check_labels(labels: NDArray[np.float64], levels: int) -> None:
    known = labels[~np.isnan(labels)]
    if not np.isin(known, np.arange(levels)).all():
        raise ValueError(f"labels must be NaN or one of 0 … {levels - 1}, got {np.unique(known)[:10]}")


def _as_utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _stamp(moment: datetime) -> str:
    plain = moment.replace(tzinfo=None)
    return plain.date().isoformat() if plain.time() == datetime.min.time() else plain.isoformat()
