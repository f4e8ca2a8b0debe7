"""Worklists that come back: how a file that a spreadsheet wrote becomes rows, and rows become readings. Pure but for
reading the file.

UTF-8, with or without a byte order mark, UTF-16 and Windows' western code page are read; commas, semicolons and tabs;
any line end. What cannot be read as a whole is one ``SourceError``.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

from flows.checking import ANSWERS
from flows.sources import Reason, Row, RowRefused, SourceError, label_columns
from monitor.tasks import TASKS
from registry.entries import KnownStudy, QuarantinedRow
from registry.settings import ModelSettings

Labels = tuple[int | None, ...]

OTHERS = ("reader", "read_at", "comment")
EARLIEST_ZONE = timedelta(hours=14)
"""By so much a clock on the wall may be ahead of UTC."""
CONTROL = re.compile("[\x00-\x1f\x7f]+")
COMMENT_LENGTH, READER_LENGTH = 1000, 256
BINARY_FORMATS = {b"PK": "an Excel workbook", b"\xd0\xcf": "an old Excel workbook", b"PAR1": "a Parquet file"}
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingFile:
    """A readable file: its rows by the names that we know, and the hash of its bytes."""

    name: str
    content_sha256: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderRow:
    """What a reader said in one row; ``labels`` holds None where nothing was said."""

    row: Row
    study_uid: str
    labels: Labels
    reader: str
    read_at: datetime
    comment: str


@dataclass(slots=True, kw_only=True)
class SortedReadings:
    """Every row of a file, in exactly one of five places."""

    accepted: list[ReaderRow] = field(default_factory=list)
    duplicate: list[ReaderRow] = field(default_factory=list)
    conflict: list[QuarantinedRow] = field(default_factory=list)
    quarantined: list[QuarantinedRow] = field(default_factory=list)
    empty: int = 0


def read_worklist_file(path: Path, settings: ModelSettings) -> ReadingFile:
    """Read a worklist that came back, whoever saved it.

    Raises:
        SourceError: no such file, not a CSV, broken, or a column is missing; the message names the cure.
    """
    if not path.is_file():
        raise SourceError(f"{path} does not exist or is no file; give the CSV that came back from the reading room")
    content = path.read_bytes()
    text = _decode(path, content)
    header, rows = _split(path, text)
    columns = _find_columns(path, header, settings)
    return ReadingFile(
        name=path.name,
        content_sha256=hashlib.sha256(content).hexdigest(),
        rows=tuple(_row(line, cells, columns, len(header)) for line, cells in rows),
    )


def without_rows(content: bytes, named: re.Pattern[str]) -> tuple[bytes, int]:
    """Leave out the rows of a worklist in which a pattern is found; returns the bytes that are left, and how many went.

    A row is what the spreadsheet calls one, line ends within a cell included. The rest stays as it is, to the byte.
    """
    lines = list(io.StringIO(content.decode(encoding := _encoding_of(content)), newline=""))
    header = next((line for line in lines if "study_uid" in line.casefold()), "")
    reader = csv.reader(lines, delimiter=max(",;\t", key=header.count))
    ends = [0, *(reader.line_num for _ in reader)]
    rows = ["".join(lines[start:end]) for start, end in pairwise(ends)]
    left = [row for row in rows if not named.search(row)]
    return "".join(left).encode(encoding), len(rows) - len(left)


def sort_readings(
    rows: Sequence[Row], known: Mapping[str, KnownStudy], settings: ModelSettings, at: datetime
) -> SortedReadings:
    """Tell what each row of a file is to what is known of its study: new, known, in conflict, empty or unusable.

    Of readers who disagree within the file nobody is believed; against what is stored, what is stored stays.
    """
    done = SortedReadings()
    by_study: dict[str, list[ReaderRow]] = {}
    for row in rows:
        if not row.problem and not any(_cell(row, name) for name in label_columns(settings)):
            done.empty += 1
            continue
        try:
            said = check_reading(row, known, settings, at)
            by_study.setdefault(said.study_uid, []).append(said)
        except RowRefused as error:
            done.quarantined.append(_refuse(row, error.reason, error.detail))
    for study, readings in by_study.items():
        _sort_study(done, readings, known[study].labels)
    return done


def check_reading(row: Row, known: Mapping[str, KnownStudy], settings: ModelSettings, at: datetime) -> ReaderRow:
    """Read one row that has at least one label.

    Raises:
        RowRefused: a cell cannot be read, or the study is unknown or was never asked for.
    """
    if row.problem:
        raise RowRefused(Reason.BAD_ROW, row.problem)
    study = study_of(row)
    if not study:
        raise RowRefused(Reason.MISSING_VALUE, "study_uid is empty")
    read: Callable[[str, str, tuple[str, ...]], int | None]
    read = _yes_or_no if TASKS[settings.task].label_per_finding else _class
    labels = tuple(read(name, _cell(row, name), settings.classes) for name in label_columns(settings))
    if study not in known:
        raise RowRefused(
            Reason.UNKNOWN_STUDY, f"there is no study {study[:60]!r}; a spreadsheet may have rewritten its name"
        )
    if not known[study].worklist_id:
        raise RowRefused(
            Reason.NOT_ASKED, f"study {study[:60]!r} stands on no worklist; `wardround ingest` takes other labels"
        )
    return ReaderRow(
        row=row,
        study_uid=study,
        labels=labels,
        reader=_words(row, "reader", READER_LENGTH),
        read_at=_moment(_cell(row, "read_at"), at),
        comment=_words(row, "comment", COMMENT_LENGTH),
    )


def study_of(row: Row) -> str:
    """Give the study that a row names, without the apostrophe that kept a spreadsheet from running it."""
    return _cell(row, "study_uid").removeprefix("'")


def _sort_study(done: SortedReadings, said: Sequence[ReaderRow], stored: Labels) -> None:
    if any(_contradict(one.labels, other.labels) for i, one in enumerate(said) for other in said[:i]):
        who = ", ".join(sorted({f"{one.reader or 'somebody'} in line {one.row.line}" for one in said}))
        detail = f"readers disagree about study {said[0].study_uid} ({who}); send in what they agree on"
        done.conflict += [_refuse(one.row, Reason.READERS_DISAGREE, detail) for one in said]
        return
    for one in said:
        if _contradict(stored, one.labels):
            detail = f"study {one.study_uid} is labelled differently already; what is stored was kept"
            done.conflict.append(_refuse(one.row, Reason.LABELLED_DIFFERENTLY, detail))
            continue
        merged = _merge(stored, one.labels)
        (done.duplicate if merged == stored else done.accepted).append(one)
        stored = merged


def _contradict(one: Labels, other: Labels) -> bool:
    return any(None not in (a, b) and a != b for a, b in zip(one, other, strict=False))


def _merge(stored: Labels, told: Labels) -> Labels:
    return tuple(old if old is not None else new for old, new in zip(stored or (None,) * len(told), told, strict=True))


def _refuse(row: Row, reason: Reason, detail: str) -> QuarantinedRow:
    return QuarantinedRow(line=row.line, reason=reason, detail=detail, content=row.content)


def _cell(row: Row, name: str) -> str:
    return str(row.cells.get(name, "")).strip()


def _words(row: Row, name: str, limit: int) -> str:
    text = CONTROL.sub(" ", _cell(row, name)).removeprefix("'")
    if len(text) > limit:
        raise RowRefused(Reason.BAD_ROW, f"{name} has {len(text)} characters, at most {limit} are allowed")
    return text


def _class(name: str, text: str, classes: tuple[str, ...]) -> int | None:
    if not text:
        return None
    alike = [i for i, one in enumerate(classes) if one.casefold() == text.casefold()]
    if text not in classes and len(alike) != 1:
        raise RowRefused(Reason.UNKNOWN_CLASS, f"{name} {text[:40]!r} is none of {', '.join(classes)}")
    return classes.index(text) if text in classes else alike[0]


def _yes_or_no(name: str, text: str, classes: tuple[str, ...]) -> int | None:
    if text and text.capitalize() not in ANSWERS:
        raise RowRefused(Reason.UNKNOWN_CLASS, f"{name} {text[:40]!r} is neither 0 nor 1")
    return ANSWERS[text.capitalize()] if text else None


def _moment(text: str, at: datetime) -> datetime:
    """Read when a study was read: a day or a moment, in UTC where no offset is named; nothing: now."""
    if not text:
        return at
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise RowRefused(
            Reason.BAD_TIME, f"read_at {text[:40]!r} is no day or time; write 2026-05-04 or 2026-05-04T14:30"
        ) from None
    slack = EARLIEST_ZONE if moment.tzinfo is None else timedelta(0)
    utc = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    if utc > at + slack:
        raise RowRefused(Reason.BAD_TIME, f"read_at {text[:40]} is in the future")
    return min(utc, at)


def _decode(path: Path, content: bytes) -> str:
    if not content.strip():
        raise SourceError(f"{path} is empty; save the worklist again")
    for start, what in BINARY_FORMATS.items():
        if content.startswith(start):
            raise SourceError(f"{path} is {what}; save it as CSV and import that")
    encodings = ("utf-16",) if content.startswith(UTF_16) else ("utf-8-sig", "cp1252")
    for encoding in encodings:
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\x00" not in text:
            return text
    raise SourceError(f"{path} is no text that can be read; save it as CSV in UTF-8 and import that")


def _encoding_of(content: bytes) -> str:
    """Name an encoding that gives every byte back; a byte order mark stays a character of the text."""
    if content.startswith(UTF_16):
        return "utf-16-le" if content.startswith(codecs.BOM_UTF16_LE) else "utf-16-be"
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8"


def _split(path: Path, text: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Cut a text into header and rows by the separator with which the header names a study_uid."""
    skipped = 1 if text[:4].casefold() == "sep=" else 0
    body = text.split("\n", 1)[-1] if skipped else text
    first = body.splitlines()[0] if body else ""
    names = {mark: [name.strip() for name in next(csv.reader([first], delimiter=mark), [])] for mark in ",;\t"}
    mark = next((mark for mark, found in names.items() if "study_uid" in map(str.casefold, found)), None)
    if mark is None:
        raise SourceError(f"{path}, line {1 + skipped}: no column study_uid (there: {first[:100]!r}); keep the header")
    return names[mark], list(_lines(path, body, mark, skipped))


def _lines(path: Path, body: str, mark: str, skipped: int) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(body, newline=""), delimiter=mark, strict=True)
    line = 1 + skipped
    try:
        next(reader)
        line = reader.line_num + 1 + skipped
        for cells in reader:
            if cells:
                yield line, cells
            line = reader.line_num + 1 + skipped
    except csv.Error as error:
        raise SourceError(
            f"{path}, line {line}: {error}; a quotation mark is probably not closed, save the worklist again"
        ) from None


def _find_columns(path: Path, header: Sequence[str], settings: ModelSettings) -> dict[str, int]:
    """Find the columns that we know by name, whatever else a reader added."""
    wanted = ("study_uid", *label_columns(settings), *OTHERS)
    found: dict[str, int] = {}
    for name in wanted:
        places = [i for i, one in enumerate(header) if one == name]
        places = places or [i for i, one in enumerate(header) if one.casefold() == name.casefold()]
        if len(places) > 1:
            raise SourceError(f"{path}, line 1: column {name!r} stands there twice; remove one of them")
        if places:
            found[name] = places[0]
    if missing := [name for name in label_columns(settings) if name not in found]:
        raise SourceError(f"{path}, line 1: no column {', '.join(missing)}; keep the header as it was written")
    return found


def _row(line: int, cells: Sequence[str], columns: Mapping[str, int], width: int) -> Row:
    """Name the cells; a spreadsheet leaves out, or adds, empty ones at the end."""
    named = {name: cells[place] if place < len(cells) else "" for name, place in columns.items()}
    more = [cell for cell in cells[width:] if cell.strip()]
    return Row(line=line, cells=named, problem=f"has {len(cells)} cells, the header has {width}" if more else "")
