"""Which columns of a cohort are compared, by which detector, and where what is missing is part of the question."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitor.cohorts import MISSING, Cohort
from monitor.policies import DriftPolicy
from monitor.results import DriftKind
from monitor.uncertainty import entropy, margin

COLUMNS_VERSION = "columns-1"
"""Names which columns are compared and how they are sketched; change it whenever either changes."""

KNOWN = "known"
"""What a number that is not missing is called where only that is asked."""
GAPS = "missing "
"""Begins the name of a comparison of what is missing against what is known."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Column:
    """One side of a comparison of columns.

    Attributes:
        detector: by name.
        kind: what a difference would mean.
        feature: what is compared.
        values: numbers or words, shape (n,).
        missing: studies without a value, shape (n,), where that they have none is part of the question.
        is_late: whether values come later than studies, so that a window without any is not asked about.
    """

    detector: str
    kind: DriftKind
    feature: str
    values: NDArray[Any]
    missing: NDArray[np.bool_] | None = None
    is_late: bool = False


def list_columns(cohort: Cohort, policy: DriftPolicy) -> Iterator[Column]:
    """List what is compared of a cohort beside embeddings: image statistics, scores, attributes and labels.

    A word that is missing is a category of its own. Numbers that are missing cannot take part in a comparison of
    numbers, so they are asked about beside it.
    """
    for name, column in cohort.image_statistics.items():
        yield from _with_gaps("ks", DriftKind.APPEARANCE, f"image {name}", column)
    scores = [(f"score {finding}", cohort.scores[:, place]) for place, finding in enumerate(cohort.findings)]
    scores.append(("uncertainty", entropy(cohort.scores, cohort.task)))
    if cohort.scores.shape[1] > 1:  # of one chance the margin is the uncertainty read backwards
        scores.append(("margin", margin(cohort.scores, cohort.task)))
    for feature, values in scores:
        yield Column(detector=policy.score_detector, kind=DriftKind.BEHAVIOUR, feature=feature, values=values)
    for name, column in cohort.attributes.items():
        if policy.acquisition and name not in policy.acquisition + policy.case_mix:
            continue
        kind = DriftKind.CASE_MIX if name in policy.case_mix else DriftKind.ACQUISITION
        if column.dtype.kind == "f":
            yield from _with_gaps("ks", kind, name, column)
        else:
            yield Column(detector="chi_square", kind=kind, feature=name, values=column, missing=column == MISSING)
    labels = cohort.binary_labels()
    for place, finding in enumerate(cohort.findings):
        yield Column(
            detector="chi_square",
            kind=DriftKind.CASE_MIX,
            feature=f"prevalence {finding}",
            values=labels[:, place],
            is_late=True,
        )


def is_asked(before: Column, now: Column) -> bool:
    """Tell whether there is anything to compare: no labels may be there yet, or nothing be missing on either side."""
    if now.is_late:
        return not np.isnan(now.values).all()
    if before.missing is not None and now.missing is not None and now.feature.startswith(GAPS):
        return bool(before.missing.any() or now.missing.any())
    return True


def shares_missing(before: Column, now: Column) -> tuple[float, float] | None:
    """Give the share of studies without a value on either side, where it is part of the question and not 0 on both."""
    if before.missing is None or now.missing is None or not (before.missing.any() or now.missing.any()):
        return None
    return before.missing.sum() / max(len(before.missing), 1), now.missing.sum() / max(len(now.missing), 1)


def name_columns(cohort: Cohort, policy: DriftPolicy) -> str:
    """Name the columns of a cohort with whose they are: one content, policy and version, one name."""
    digest = hashlib.sha256(f"{COLUMNS_VERSION} {len(cohort)}".encode())
    columns = [(f"{column.detector} {column.feature}", column.values) for column in list_columns(cohort, policy)]
    for name, values in [("patients", cohort.patient_key), *columns]:
        digest.update(f"\n{name} {values.dtype}\n".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def _with_gaps(detector: str, kind: DriftKind, feature: str, values: NDArray[Any]) -> Iterator[Column]:
    yield Column(detector=detector, kind=kind, feature=feature, values=values)
    missing = np.isnan(values)
    words = np.where(missing, MISSING, KNOWN)
    yield Column(detector="chi_square", kind=kind, feature=GAPS + feature, values=words, missing=missing)
