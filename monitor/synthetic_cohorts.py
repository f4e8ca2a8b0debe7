"""Planted changes of cohorts: who comes, what is known of them, what the model says.

Every change takes a cohort of n studies, what it aims at, a strength for each study, shape (n,) in [0, 1], and a
generator. It tells which studies are kept, or gives the cohort with other columns. Nothing is invented: case mix and
prevalence change because whole patients are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitor.cohorts import MISSING, Cohort
from monitor.tasks import TASKS

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

OFFSET = 2.0
"""Logits by which ``score_offset`` moves a score at full strength."""
UNSURE = 0.1
"""What is left of the logits of a study whose class the model never learned."""
SUREST = 1e-6
"""A score is taken to be at least so far from 0 and 1 before its logit is shrunk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """What a change acts on; for a numeric attribute a value means that value and above."""

    attribute: str = ""
    value: str = ""


Keep = Callable[[Cohort, Aim, Floats, np.random.Generator], Mask]
Rewrite = Callable[[Cohort, Aim, Floats, np.random.Generator], Cohort]


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortChange:
    """One change of cohorts, which keeps some of the studies or rewrites them.

    ``needs`` is what the cohort must have, ``asks`` and ``takes`` the parts of an aim that must or may be given.
    """

    description: str
    strength: str
    needs: str
    asks: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    keep: Keep | None = None
    rewrite: Rewrite | None = None


def mark_value(cohort: Cohort, attribute: str, value: str) -> Mask:
    """Mark the studies whose attribute has a value; a numeric one: that value or more. Shape (n,).

    Raises:
        ValueError: there is no such attribute, or it is numeric and the value is no number.
    """
    column = _attribute(cohort, attribute)
    if column.dtype.kind != "f":
        return np.asarray(column == value, dtype=np.bool_)
    try:
        return np.asarray(column >= float(value), dtype=np.bool_)
    except ValueError:
        raise ValueError(f"{attribute} is a number, so its value must be one, got {value!r}") from None


# --- who is met


def _spread_evenly(n: int, generator: np.random.Generator) -> Floats:
    """Deal the numbers 0.5/n, 1.5/n, … in random order: exactly the asked share of them, rounded, is below it."""
    return np.asarray((generator.permutation(n) + 0.5) / max(n, 1), dtype=np.float64)


def _meet_studies(strengths: Floats, generator: np.random.Generator) -> Mask:
    """Mark the studies that are met, a share ``strengths`` of them; shape (n,)."""
    return _meet_owners(np.arange(len(strengths)), strengths, generator)


def _meet_owners(owner: NDArray[np.intp], strengths: Floats, generator: np.random.Generator) -> Mask:
    """Mark the studies of a share ``strengths`` of the owners; an owner is met once and for all."""
    met = strengths > 0
    owners, index = np.unique(owner[met], return_inverse=True)
    met[met] = _spread_evenly(len(owners), generator)[index] < strengths[met]
    return met


def _favour(cohort: Cohort, has: Mask, known: Mask, strengths: Floats, generator: np.random.Generator) -> Mask:
    """Keep whoever has something, and so many of the others that its share p becomes p + strength (1 - p).

    Whole patients are left out. One of whom nothing is known, or who has a study that is not to change, stays.
    """
    patient, n = cohort.patient_index, cohort.patients
    strength, having, told = np.ones(n), np.zeros(n, dtype=np.bool_), np.zeros(n, dtype=np.bool_)
    np.minimum.at(strength, patient, strengths)
    np.logical_or.at(having, patient, has)
    np.logical_or.at(told, patient, known)
    touched = told & (strength > 0)
    if not touched.any():
        return np.ones(len(cohort), dtype=np.bool_)
    share = having[touched].mean()
    if share == 0:
        raise ValueError("no patient to favour: nobody whom the change meets has that value; choose another")
    others = np.flatnonzero(touched & ~having)
    kept = np.ones(n, dtype=np.bool_)
    left = (1 - strength) * share / (share + strength * (1 - share))
    kept[others] = _spread_evenly(len(others), generator) < left[others]
    return np.asarray(kept[patient], dtype=np.bool_)


def _attribute(cohort: Cohort, name: str) -> NDArray[Any]:
    if name not in cohort.attributes:
        known = ", ".join(cohort.attributes) or "none"
        raise ValueError(f"there is no attribute {name!r} (there: {known}); list it under attributes and ingest it")
    column: NDArray[Any] = cohort.attributes[name]
    return column


def _class_index(cohort: Cohort, name: str) -> int:
    if name and name not in cohort.classes:
        raise ValueError(f"there is no class {name!r}; there are {', '.join(cohort.classes)}")
    return cohort.classes.index(name) if name else len(cohort.classes) - 1


# --- what changes


def _keep_case_mix(cohort: Cohort, aim: Aim, strengths: Floats, generator: np.random.Generator) -> Mask:
    column = _attribute(cohort, aim.attribute)
    known = ~np.isnan(column) if column.dtype.kind == "f" else column != MISSING
    return _favour(cohort, mark_value(cohort, aim.attribute, aim.value), known, strengths, generator)


def _keep_prevalence(cohort: Cohort, aim: Aim, strengths: Floats, generator: np.random.Generator) -> Mask:
    number = _class_index(cohort, aim.value)
    by_finding = TASKS[cohort.task].label_per_finding
    labels, positive = (cohort.labels[:, number], 1) if by_finding else (cohort.labels[:, 0], number)
    return _favour(cohort, labels == positive, ~np.isnan(labels), strengths, generator)


def _confuse_labels(cohort: Cohort, aim: Aim, strengths: Floats, generator: np.random.Generator) -> Cohort:
    known = np.where(np.isnan(cohort.labels), 0.0, strengths[:, None])
    met = np.column_stack([_meet_studies(column, generator) for column in known.T])
    levels = TASKS[cohort.task].label_levels(cohort.classes)
    wrong = (cohort.labels + generator.integers(1, levels, cohort.labels.shape)) % levels  # an unknown one stays so
    return replace(cohort, labels=np.where(met, wrong, cohort.labels))


def _offset_scores(cohort: Cohort, aim: Aim, strengths: Floats, generator: np.random.Generator) -> Cohort:
    """Multiply odds, so that scores of 0 and 1, whose logit is infinite, stay what they are."""
    shape, number = TASKS[cohort.task], _class_index(cohort, aim.value)
    logits = np.zeros((len(cohort), len(cohort.classes)))
    every = shape.label_per_finding and not aim.value
    logits[:, slice(None) if every else number] = (OFFSET * strengths)[:, None] if every else OFFSET * strengths
    if shape.score_columns(cohort.classes) < len(cohort.classes):
        logits = logits[:, -1:] - logits[:, :1]
    return _rescore(cohort, strengths > 0, lambda scores: scores, np.exp(logits))


def _add_class(cohort: Cohort, aim: Aim, strengths: Floats, generator: np.random.Generator) -> Cohort:
    met = _meet_owners(cohort.patient_index, strengths, generator)
    # none of several findings is an answer; none of several classes has no name in the list
    truth = 0.0 if TASKS[cohort.task].label_per_finding else np.nan
    labels = np.where(met[:, None] & ~np.isnan(cohort.labels), truth, cohort.labels)
    unsure = _rescore(cohort, met, lambda scores: np.maximum(scores, SUREST) ** UNSURE, np.ones_like(cohort.scores))
    return replace(unsure, labels=labels)


def _rescore(cohort: Cohort, met: Mask, bend: Callable[[Floats], Floats], factor: Floats) -> Cohort:
    """Bend probabilities, multiply them by a factor (odds, where a score stands alone) and make them sum to one."""
    scores = cohort.scores
    risen = bend(scores) * factor
    alone = not TASKS[cohort.task].scores_sum_to_one
    total = risen + bend(1 - scores) if alone else risen.sum(axis=1, keepdims=True)
    return replace(cohort, scores=np.where(met[:, None], risen / total, scores))


def _lose_attribute(cohort: Cohort, aim: Aim, strengths: Floats, generator: np.random.Generator) -> Cohort:
    column = _attribute(cohort, aim.attribute)
    empty: Any = np.nan if column.dtype.kind == "f" else MISSING
    return _with_attribute(cohort, aim.attribute, np.where(_meet_studies(strengths, generator), empty, column))


def _add_site(cohort: Cohort, aim: Aim, strengths: Floats, generator: np.random.Generator) -> Cohort:
    name = aim.attribute or "site"
    column = _attribute(cohort, name)
    if column.dtype.kind == "f":
        raise ValueError(f"{name} is a number, and a new site is a name; choose another attribute")
    met = _meet_owners(cohort.patient_index, strengths, generator)
    return _with_attribute(cohort, name, np.where(met, aim.value or "new site", column))


def _with_attribute(cohort: Cohort, name: str, column: NDArray[Any]) -> Cohort:
    return replace(cohort, attributes={**cohort.attributes, name: column})


COHORT_CHANGES: Mapping[str, CohortChange] = {
    "case_mix": CohortChange(
        description="other patients come: those with a value (a number: that and above) become more frequent",
        strength="their share p becomes p + strength (1 - p)",
        needs="attributes",
        asks=("attribute", "value"),
        keep=_keep_case_mix,
    ),
    "new_site": CohortChange(
        description="patients come from a site that was never seen (combine with image changes --only there)",
        strength="share of the patients",
        needs="attributes",
        takes=("attribute", "value"),
        rewrite=_add_site,
    ),
    "missing_attribute": CohortChange(
        description="an attribute is not filled in any more",
        strength="share of the studies",
        needs="attributes",
        asks=("attribute",),
        rewrite=_lose_attribute,
    ),
    "prevalence": CohortChange(
        description="a class (the last unless a value names one) becomes more frequent",
        strength="its share p of the patients becomes p + strength (1 - p)",
        needs="labels",
        takes=("value",),
        keep=_keep_prevalence,
    ),
    "label_noise": CohortChange(
        description="labels are wrong, each replaced by another class",
        strength="share of the known labels",
        needs="labels",
        rewrite=_confuse_labels,
    ),
    "score_offset": CohortChange(
        description="scores of a class (the last unless a value names one; of several findings all) are too high",
        strength="logits added, up to 2 (odds times 7.4)",
        needs="scores",
        takes=("value",),
        rewrite=_offset_scores,
    ),
    "new_class": CohortChange(
        description="patients with what the model never learned: unsure scores, no label among the classes",
        strength="share of the patients",
        needs="scores",
        rewrite=_add_class,
    ),
}
"""Every change of cohorts by name."""
