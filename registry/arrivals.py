"""What a prediction of an export is to what is stored under its key: new, known, a truth that came late, a conflict."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import repeat, takewhile
from typing import Any, TypeAlias

from monitor.cohorts import Prediction
from registry.audit import canonical_json
from registry.entries import Counts, QuarantinedRow
from registry.rows import PredictionRow, prediction_content

KEY_CONFLICT = "key_conflict"

Key: TypeAlias = tuple[str, str, datetime]
Labels: TypeAlias = tuple[int | None, ...]


@dataclass(slots=True, kw_only=True)
class Stored:
    """What stands under a key: its row (None until it has one), its batch and content, and its truth step by step.

    Each step is the batch that brought labels and all labels known by then; none yet: ``steps`` is empty.
    """

    row: int | None
    batch: int
    content: str
    steps: list[tuple[int, Labels]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """A step to store: all labels of a prediction known now, and when the hospital knew (None: nobody told)."""

    stored: Stored
    labels: Labels
    added: int
    known_at: datetime | None


@dataclass(slots=True, kw_only=True)
class Reading:
    """One reading of a batch: ``met`` says of each key that it met what the rows so far told of its truth."""

    batch: int
    finished_before: bool
    counts: Counter[str] = field(default_factory=Counter)
    met: dict[Key, Labels] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Sorted:
    """A chunk of predictions, sorted, with what is to be stored of it; ``came_late`` counts late labels new to us."""

    fresh: dict[Key, tuple[Stored, dict[str, Any]]] = field(default_factory=dict)
    truth: list[Truth] = field(default_factory=list)
    came_late: int = 0
    accepted: int = 0
    labelled: int = 0
    duplicate: int = 0
    conflicts: list[QuarantinedRow] = field(default_factory=list)
    met: dict[Key, Labels] = field(default_factory=dict)

    @property
    def counts(self) -> Counts:
        """Count what became of the predictions."""
        return Counts(
            accepted=self.accepted, labelled=self.labelled, duplicate=self.duplicate, conflict=len(self.conflicts)
        )


def key_of(prediction: Prediction) -> Key:
    """Give the natural key of a prediction, within its model."""
    return prediction.model_version, prediction.study_uid, prediction.produced_at.astimezone(UTC)


def sort_arrivals(
    predictions: Sequence[Prediction], lines: Sequence[int] | None, reading: Reading, known: dict[Key, Stored]
) -> Sorted:
    """Tell what each prediction is to what is ``known``, which is brought up to date; the first of a key wins.

    Rows that an interrupted reading of the same batch has stored count as they did then.
    """
    done = Sorted()
    for line, prediction in zip(repeat(0) if lines is None else lines, predictions, strict=lines is not None):
        key, row = key_of(prediction), PredictionRow.columns_of(prediction, reading.batch)
        stored = known.get(key)
        if stored is None:
            stored = known[key] = Stored(row=None, batch=reading.batch, content=row["content_sha256"])
            done.fresh[key] = stored, row
            done.met[key] = prediction.labels
            done.accepted += 1
            _add_labels(done, stored, prediction, reading.batch)
        elif stored.content != row["content_sha256"] or _contradict(_newest(stored), prediction.labels):
            done.conflicts.append(_conflict(line, prediction, same=stored.content == row["content_sha256"]))
        else:
            met = done.met.get(key, reading.met.get(key))
            before = _before(stored, reading) if met is None else met
            after = _merge(before, prediction.labels)
            if _add_labels(done, stored, prediction, reading.batch):
                done.labelled += 1
                done.came_late += 1
            elif before is None:
                done.accepted += 1
            elif after != before and not reading.finished_before and (reading.batch, after) in stored.steps:
                done.labelled += 1
            else:
                done.duplicate += 1
            done.met[key] = after
    return done


def _add_labels(done: Sorted, stored: Stored, prediction: Prediction, batch: int) -> bool:
    """Take up labels that nobody told before; False when there are none."""
    newest = _newest(stored)
    labels = _merge(newest, prediction.labels)
    added = _known(labels) - _known(newest)
    if added:
        stored.steps.append((batch, labels))
        done.truth.append(Truth(stored=stored, labels=labels, added=added, known_at=prediction.labelled_at))
    return bool(added)


def _newest(stored: Stored) -> Labels | None:
    return stored.steps[-1][1] if stored.steps else None


def _before(stored: Stored, reading: Reading) -> Labels | None:
    """Give the labels under a key before this batch told any; None when the prediction itself came with it."""
    if reading.finished_before:
        return _newest(stored) or ()
    if stored.batch == reading.batch:
        return None
    earlier = [labels for _, labels in takewhile(lambda step: step[0] != reading.batch, stored.steps)]
    return earlier[-1] if earlier else ()


def _known(labels: Labels | None) -> int:
    return sum(label is not None for label in labels or ())


def _merge(known: Labels | None, told: Labels) -> Labels:
    return tuple(old if old is not None else new for old, new in zip(known or repeat(None), told, strict=False))


def _contradict(known: Labels | None, told: Labels) -> bool:
    return any(None not in (old, new) and old != new for old, new in zip(known or (), told, strict=False))


def _conflict(line: int, prediction: Prediction, *, same: bool) -> QuarantinedRow:
    what = "another truth" if same else "another content"
    detail = (
        f"study {prediction.study_uid} at {prediction.produced_at.isoformat()} is stored with {what}, which was kept"
    )
    content = canonical_json({**json.loads(prediction_content(prediction)), "labels": prediction.labels})
    return QuarantinedRow(line=line, reason=KEY_CONFLICT, detail=detail, content=content)
