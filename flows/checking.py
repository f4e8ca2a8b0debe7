"""Check one row of an export: a ``Prediction`` in canonical form, or a reason for the quarantine."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from math import isfinite, isinf
from pathlib import Path
from typing import Any

from continual.files import content_sha256
from flows.sources import KEYS, Reason, Row, RowRefused, find_image, is_missing, label_columns, score_columns
from monitor.cohorts import Prediction
from monitor.tasks import TASKS
from registry.settings import ModelSettings

TEXT_LENGTH = 256
SUM_TOLERANCE = 0.02
CONTROL = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
ANSWERS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "False": 0, "True": 1}


def check_row(row: Row, *, model: str, settings: ModelSettings, image_required: bool = False) -> Prediction:
    """Turn a row into a prediction, its image still unread.

    Raises:
        RowRefused: the row breaks a rule of the export; the first rule that it breaks is named.
    """
    if row.problem:
        raise RowRefused(Reason.BAD_ROW, row.problem)
    cells = row.cells
    study, patient = (_text(cells, name, required=True) for name in KEYS[:2])
    return Prediction(
        model=model,
        model_version=_text(cells, "model_version"),
        study_uid=study,
        patient_key=patient,
        produced_at=_moment(cells, "produced_at"),
        scores=_scores(cells, settings),
        labels=_labels(cells, settings),
        labelled_at=None if is_missing(cells.get("labelled_at")) else _moment(cells, "labelled_at"),
        attributes=_attributes(cells, settings),
        image=_text(cells, "image", required=image_required, limit=1024),
    )


def locate_image(prediction: Prediction, roots: Sequence[Path]) -> tuple[Prediction, Path]:
    """Find a prediction's image and name its content in the prediction.

    Raises:
        RowRefused: the path leads outside the roots, or the image is missing or may not be read.
    """
    path = find_image(prediction.image, roots)
    try:
        return prediction.model_copy(update={"image_sha256": content_sha256(path)}), path
    except OSError as error:
        raise RowRefused(Reason.IMAGE_UNREADABLE, f"image {prediction.image!r}: {error.strerror}") from None


def _text(cells: Mapping[str, Any], name: str, *, required: bool = False, limit: int = TEXT_LENGTH) -> str:
    value = cells.get(name)
    text = "" if is_missing(value) else _plain_text(name, value, limit)
    if required and not text:
        raise RowRefused(Reason.MISSING_VALUE, f"{name} is empty")
    return text


def _plain_text(name: str, value: object, limit: int = TEXT_LENGTH) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # how a data frame writes whole numbers beside empty cells; never shortened to 1.2e+09
    if isinstance(value, float):
        value = repr(value)
    if not isinstance(value, str | int):
        raise RowRefused(Reason.BAD_ROW, f"{name} must be text, got {type(value).__name__}")
    text = str(value).strip()
    if len(text) > limit:
        raise RowRefused(Reason.BAD_ROW, f"{name} has {len(text)} characters, at most {limit} are allowed")
    if CONTROL.search(text):
        raise RowRefused(Reason.BAD_ROW, f"{name} holds control characters or is not UTF-8")
    return text


def _moment(cells: Mapping[str, Any], name: str) -> datetime:
    value = cells.get(name)
    if is_missing(value):
        raise RowRefused(Reason.MISSING_VALUE, f"{name} is empty")
    if isinstance(value, str):
        text, value = value.strip(), None
        try:
            value = datetime.fromisoformat(text)
        except ValueError:
            raise RowRefused(Reason.BAD_TIME, f"{name} {text[:40]!r} is not an ISO 8601 time") from None
    if not isinstance(value, datetime):
        raise RowRefused(Reason.BAD_TIME, f"{name} must be an ISO 8601 time, got {type(value).__name__}")
    if value.utcoffset() is None:
        raise RowRefused(
            Reason.NAIVE_TIME,
            f"{name} {value.isoformat()} names no offset; write for example {value.isoformat()}Z",
        )
    try:
        utc = value.astimezone(UTC)
    except OverflowError:
        raise RowRefused(Reason.BAD_TIME, f"{name} {value.isoformat()} is out of range in UTC") from None
    # a data frame's timestamp may carry nanoseconds, which nothing of ours stores
    return datetime(utc.year, utc.month, utc.day, utc.hour, utc.minute, utc.second, utc.microsecond, tzinfo=UTC)


def _scores(cells: Mapping[str, Any], settings: ModelSettings) -> tuple[float, ...]:
    scores = tuple(_score(name, cells.get(name)) for name in score_columns(settings))
    if TASKS[settings.task].scores_sum_to_one and abs(sum(scores) - 1) > SUM_TOLERANCE:
        raise RowRefused(Reason.SCORES_SUM, f"the scores of all classes sum to {sum(scores):.3f}, not 1")
    return scores


def _score(name: str, value: object) -> float:
    if value is None or (isinstance(value, str) and not value.strip()):
        raise RowRefused(Reason.MISSING_VALUE, f"{name} is empty")
    score = _number(name, value)
    if not isfinite(score):
        raise RowRefused(Reason.NOT_FINITE_SCORE, f"{name} is {score}")
    if not 0 <= score <= 1:
        raise RowRefused(Reason.SCORE_OUT_OF_RANGE, f"{name} is {score:g}, a probability lies in 0 to 1")
    return score


def _number(name: str, value: object) -> float:
    if isinstance(value, str | int | float | Decimal) and not isinstance(value, bool) and "_" not in str(value):
        try:
            return float(value)
        except (ValueError, OverflowError):
            pass
    raise RowRefused(Reason.BAD_ROW, f"{name} is not a number: {str(value)[:40]!r}")


def _labels(cells: Mapping[str, Any], settings: ModelSettings) -> tuple[int | None, ...]:
    label = _answer if TASKS[settings.task].label_per_finding else _class_index
    return tuple(
        None if is_missing(value := cells.get(name)) else label(name, value, settings.classes)
        for name in label_columns(settings)
    )


def _class_index(name: str, value: object, classes: tuple[str, ...]) -> int | None:
    text = _plain_text(name, value)
    if text and text not in classes:
        raise RowRefused(Reason.UNKNOWN_CLASS, f"{name} {text!r} is none of {', '.join(classes)}")
    return classes.index(text) if text else None


def _answer(name: str, value: object, classes: tuple[str, ...]) -> int | None:
    text = str(value).strip()
    if text and text not in ANSWERS:
        raise RowRefused(Reason.UNKNOWN_CLASS, f"{name} {text[:40]!r} is neither 0 nor 1")
    return ANSWERS[text] if text else None


def _attributes(cells: Mapping[str, Any], settings: ModelSettings) -> dict[str, str | float | None]:
    numeric = set(settings.numeric_attributes)
    return {name: (_amount if name in numeric else _word)(name, cells.get(name)) for name in settings.attributes}


def _word(name: str, value: object) -> str | None:
    return None if is_missing(value) else _plain_text(name, value) or None


def _amount(name: str, value: object) -> float | None:
    amount = None if is_missing(value) else _number(name, value)
    if amount is not None and isinf(amount):
        raise RowRefused(Reason.BAD_ROW, f"{name} is infinite")
    # text "nan" in a CSV is how data frames write an empty number
    return None if amount is None or amount != amount else amount  # noqa: PLR0124
