"""Exports of predictions: which columns they have, and how a CSV, Parquet or JSONL file becomes rows.

One row is one answer that the deployed model gave about one study. Text is UTF-8; CSV has a header
line and commas; JSONL has one object a line; Parquet has plain columns.

    column         type              required  meaning
    study_uid      text, 1 to 256    yes       keyed pseudonym of the study, never a name or number of a person
    patient_key    text, 1 to 256    yes       keyed pseudonym of the patient; the unit of every statistic
    produced_at    ISO 8601 time     yes       when the model answered, with offset: 2026-03-30T08:15:00+02:00 or …Z
    score          number, 0 to 1    binary    probability of the second class
    score_CLASS    number, 0 to 1    others    one column a class; multi-class scores sum to one
    label          class name        no        the truth for binary and multi-class; empty: not known yet
    label_CLASS    0, 1              no        the truth for multi-label, one column a class; empty: not known yet
    labelled_at    ISO 8601 time     no        when the truth was known, with offset; empty: when the export is read
    image          path              no        PNG, JPEG or DICOM, relative to the export or to the images folder
    model_version  text              no        the version that answered
    ATTRIBUTE      text or number    no        every column that the settings list under attributes; empty: missing

(study_uid, produced_at, model_version) names an answer: the same row again is a duplicate and changes
nothing. With labels that were missing it adds them, whenever they come; with other content, or another
truth, it is a conflict, and the first is kept. Other columns are ignored and named once. A row that cannot
be used is quarantined with one of ``Reason``; a file that cannot be read at all is a ``SourceError``, and
nothing of it is taken.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import count, islice
from pathlib import Path, PureWindowsPath
from typing import Any

from continual.files import content_sha256
from monitor.synthetic import SIMULATED
from monitor.tasks import TASKS
from registry.settings import ModelSettings

KEYS = ("study_uid", "patient_key", "produced_at")
OPTIONAL = ("labelled_at", "model_version", "image")
CONTENT_LENGTH = 4000
LINE_LENGTH = 1_000_000


class Reason(StrEnum):
    """Why a row is in quarantine."""

    NOT_FINITE_SCORE = "not_finite_score"
    SCORE_OUT_OF_RANGE = "score_out_of_range"
    SCORES_SUM = "scores_sum"
    NAIVE_TIME = "naive_time"
    BAD_TIME = "bad_time"
    UNKNOWN_CLASS = "unknown_class"
    MISSING_VALUE = "missing_value"
    IMAGE_MISSING = "image_missing"
    IMAGE_UNREADABLE = "image_unreadable"
    NOT_FINITE_EMBEDDING = "not_finite_embedding"
    PATH_OUTSIDE = "path_outside"
    KEY_CONFLICT = "key_conflict"
    UNKNOWN_STUDY = "unknown_study"
    NOT_ASKED = "not_asked"
    READERS_DISAGREE = "readers_disagree"
    LABELLED_DIFFERENTLY = "labelled_differently"
    BAD_ROW = "bad_row"
    PURGED_PATIENT = "purged patient"


class SourceError(ValueError):
    """An export cannot be read at all; the message names the file, the line and the cure."""


class RowRefused(ValueError):
    """One row cannot be used; it goes to quarantine under ``reason``."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of an export as it stands there; ``problem`` says why its cells could not be told apart."""

    line: int
    cells: Mapping[str, Any]
    problem: str = ""

    @property
    def content(self) -> str:
        """The cells as JSON text of at most 4,000 characters, for the quarantine table."""
        return json.dumps(dict(self.cells), default=str, sort_keys=True)[:CONTENT_LENGTH]


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """A readable export: every row was reached once, so reading it again only fails when it changes.

    ``simulated`` is the line of the first study that `wardround simulate` has named; None: there is none.
    """

    path: Path
    content_sha256: str
    columns: tuple[str, ...]
    rows: int
    simulated: int | None

    def chunks(self, size: int) -> Iterator[list[Row]]:
        """Read the rows in order, at most ``size`` at a time.

        Raises:
            SourceError: the file changed since it was opened.
        """
        rows = READERS[self.path.suffix.lower()](self.path)
        while chunk := list(islice(rows, size)):
            yield chunk
        if content_sha256(self.path) != self.content_sha256:
            raise SourceError(f"{self.path} changed while it was read; wait until it is complete and ingest it again")


def open_export(path: Path, settings: ModelSettings) -> Export:
    """Prove that an export can be read from end to end and has the columns that the model's task needs.

    Raises:
        SourceError: no such file, not a known format, broken, empty, or a required column is missing.
    """
    suffix = path.suffix.lower()
    if not path.exists():
        raise SourceError(f"{path} does not exist; check the name and the folder")
    if not path.is_file():
        raise SourceError(f"{path} is not a file; give one CSV, Parquet or JSONL file")
    if suffix not in READERS:
        raise SourceError(f"{path} is not an export that can be read; save it as .csv, .parquet or .jsonl")
    if not os.access(path, os.R_OK):
        raise SourceError(f"{path} may not be read by this user; give yourself permission to read it")
    if not path.stat().st_size:
        raise SourceError(f"{path} is empty; export it again")
    columns, rows, simulated = _reach_every_row(path)
    _require_columns(path, columns, settings)
    return Export(path=path, content_sha256=content_sha256(path), columns=columns, rows=rows, simulated=simulated)


def score_columns(settings: ModelSettings) -> tuple[str, ...]:
    """Name the score columns of a model's exports, in the order of its scores."""
    # one probability over two classes needs no name
    if TASKS[settings.task].score_columns(settings.classes) == 1 and len(settings.classes) > 1:
        return ("score",)
    return tuple(f"score_{name}" for name in settings.classes)


def label_columns(settings: ModelSettings) -> tuple[str, ...]:
    """Name the label columns of a model's exports, in the order of its labels."""
    if TASKS[settings.task].label_per_finding:
        return tuple(f"label_{name}" for name in settings.classes)
    return ("label",)


def known_columns(settings: ModelSettings) -> frozenset[str]:
    """Name every column that is read for a model; others are ignored."""
    return frozenset((*KEYS, *OPTIONAL, *score_columns(settings), *label_columns(settings), *settings.attributes))


def find_image(reference: str, roots: Sequence[Path]) -> Path:
    """Find an image by its relative path under the first root that has it.

    Links are followed before the path is judged, so that neither ``..`` nor a link leads out of the roots.

    Raises:
        RowRefused: the path is absolute, leads outside every root, or there is no such regular file.
    """
    if "\\" in reference or "\x00" in reference or PureWindowsPath(reference).drive or Path(reference).is_absolute():
        raise RowRefused(Reason.PATH_OUTSIDE, f"image must be a relative path with forward slashes, got {reference!r}")
    homes = [root.resolve() for root in roots]
    try:
        paths = [(home / reference).resolve() for home in homes]
        allowed = [path for path in paths if any(path.is_relative_to(home) for home in homes)]
        # a device or a pipe is no image, and opening one may block for ever
        found = next((path for path in allowed if path.is_file()), None)
    except (OSError, RuntimeError):  # a name too long, a folder that may not be entered, links in a circle
        raise RowRefused(Reason.IMAGE_MISSING, f"image {reference[:100]!r} cannot be reached") from None
    if found is not None:
        return found
    if paths[0] not in allowed:
        folders = " or ".join(str(home) for home in homes)
        raise RowRefused(Reason.PATH_OUTSIDE, f"image {reference!r} leads outside {folders}")
    raise RowRefused(Reason.IMAGE_MISSING, f"image {reference!r} does not exist")


def _reach_every_row(path: Path) -> tuple[tuple[str, ...], int, int | None]:
    columns: dict[str, None] = {}
    rows, problem, simulated = 0, "", None
    for row in READERS[path.suffix.lower()](path):
        rows += 1
        columns |= dict.fromkeys(name for name in row.cells if name)
        if simulated is None and str(row.cells.get(KEYS[0], "")).strip().startswith(SIMULATED):
            simulated = row.line
        if row.problem and not problem:
            problem = f"{path}, line {row.line}: {row.problem}; export it again"
    if not rows:
        raise SourceError(f"{path} has no rows; export it again")
    if not columns:
        raise SourceError(problem)
    return tuple(columns), rows, simulated


def _require_columns(path: Path, columns: Sequence[str], settings: ModelSettings) -> None:
    missing = [name for name in (*KEYS, *score_columns(settings)) if name not in columns]
    if not missing:
        return
    found = ", ".join(columns[:12]).encode("unicode_escape").decode()[:200]
    raise SourceError(
        f"{path}, line 1: no column {', '.join(missing)} (there: {found}); a {settings.task} model with classes "
        f"{', '.join(settings.classes)} needs {', '.join((*KEYS, *score_columns(settings)))}, in UTF-8"
    )


def _read_csv(path: Path) -> Iterator[Row]:
    # undecodable bytes survive as lone surrogates, so that one bad row costs one row
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
        line = 1
        try:
            header = [name.strip() for name in next(reader, [])]
            _require_distinct(path, header)
            line = reader.line_num + 1
            for cells in reader:
                if cells:
                    yield _csv_row(line, header, cells)
                line = reader.line_num + 1
        except csv.Error as error:
            raise SourceError(
                f"{path}, line {line}: {error}; a quotation mark is probably not closed, export it again"
            ) from None


def _csv_row(line: int, header: Sequence[str], cells: Sequence[str]) -> Row:
    named = dict(zip(header, cells, strict=False))
    if len(cells) == len(header):
        return Row(line=line, cells=named)
    # the names of all columns, so that the first row tells them even when it is ragged itself
    padded = {name: named.get(name) for name in header} | {"": list(cells[len(header) :])}
    return Row(line=line, cells=padded, problem=f"has {len(cells)} cells, the header has {len(header)}")


def _require_distinct(path: Path, header: Sequence[str]) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise SourceError(
            f"{path}, line 1: column {', '.join(map(repr, twice))} stands there twice; rename one of them"
        )


def _read_jsonl(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for line, text in enumerate(iter(lambda: file.readline(LINE_LENGTH), ""), start=1):
            if text.strip():
                yield _json_row(line, text)


def _json_row(line: int, text: str) -> Row:
    try:
        cells = json.loads(text, object_pairs_hook=_distinct_pairs)
    except (ValueError, RecursionError) as error:
        return Row(line=line, cells={"": text[:CONTENT_LENGTH]}, problem=f"is not a JSON object: {error}")
    if not isinstance(cells, dict):
        return Row(line=line, cells={"": text[:CONTENT_LENGTH]}, problem="is not a JSON object")
    return Row(line=line, cells=cells)


def _distinct_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    cells = dict(pairs)
    if len(cells) != len(pairs):
        raise ValueError("a name stands there twice")
    return cells


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    lines = count(1)
    try:
        with pq.ParquetFile(path) as file:
            _require_distinct(path, file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=10_000):
                yield from (Row(line=next(lines), cells=cells) for cells in batch.to_pylist())
    except SourceError:
        raise
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise SourceError(
            f"{path}, row {next(lines)}: not a readable Parquet file ({first}); export it again"
        ) from None


def is_missing(value: object) -> bool:
    """Tell whether a cell is empty: null, blank text, or the NaN by which data frames mean null."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
