"""What is compared in a window: every detector on every feature, asked alike for a verdict and for calibration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitor.alarms import name_comparison
from monitor.asked_columns import is_asked, list_columns, shares_missing
from monitor.cohorts import MISSING, Cohort
from monitor.column_reference import (
    CATEGORY_TESTS,
    LEAST_PATIENTS,
    NUMERIC_TESTS,
    ColumnSketch,
    compare_columns,
    fit_columns,
    forget_studies,
)
from monitor.detectors import EFFECT_NAMES, Outcome, Sample, compare
from monitor.effect_calibration import calibrate_effects
from monitor.embedding_shift import Reference, test_shift
from monitor.policies import DriftPolicy
from monitor.reconciliation import EstimationError
from monitor.results import DriftKind, NotEnoughData

Floats = NDArray[np.float64]

PERMUTATIONS_TO_CALIBRATE = 99
MOST_PERMUTED = 2000
"""Patients on both sides together beyond which a column is compared by its bins and not by relabelling, unless a side
has too few for a large-sample law."""

AT_EQUAL_MIX = ("alibi_context_mmd",)
"""Detectors that ask for drift beyond the change in case mix."""

SLOW = "alibi_"
"""Detectors of alibi-detect take seconds each: too long for the many repeats of a calibration."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Question:
    """One comparison to be made: a detector on a feature of both sides.

    ``missing`` is the share of studies without a value, in the reference and in the window, where that is part of the
    question and any is missing.
    """

    detector: str
    kind: DriftKind
    feature: str
    reference: Sample
    current: Sample
    missing: tuple[float, float] | None = None

    @property
    def name(self) -> str:
        """Name the comparison, as least effects and alarms do."""
        return name_comparison(self.detector, self.feature)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Background:
    """What a window is seen against.

    ``cohort`` is what it is compared with: the reference and the quiet windows that joined it. ``least_effects`` are
    the effects that count, by comparison; the policy's least serves where none was calibrated. ``errors`` are what
    earlier estimates without labels were off by. ``embedding`` is the cohort fitted for ``embedding_shift``; without it
    features are learned anew from both sides, which sees more but costs more where a reference is large. ``columns``
    are its columns by comparison, from `sketch_reference`; one that is not there is sketched when it is needed.
    """

    cohort: Cohort
    least_effects: Mapping[str, float] = field(default_factory=dict)
    errors: tuple[EstimationError, ...] = ()
    embedding: Reference | None = None
    columns: Mapping[str, ColumnSketch] = field(default_factory=dict)

    def least_effect(self, question: Question, policy: DriftPolicy) -> float:
        """Give the least effect that counts in a comparison."""
        return self.least_effects.get(question.name, policy.minimum_effect)


def calibrate(
    reference: Cohort, patients: int, policy: DriftPolicy, generator: np.random.Generator
) -> dict[str, float]:
    """Learn from the reference itself which effects count, by comparison, for windows of so many patients."""

    def measure(rest: Cohort, stretch: Cohort) -> dict[str, float]:
        questions = [q for q in list_questions(rest, stretch, policy) if not q.detector.startswith(SLOW)]
        answers = ((q, answer(q, PERMUTATIONS_TO_CALIBRATE, policy, generator)) for q in questions)
        return {question.name: found.effect for question, found in answers if isinstance(found, Outcome)}

    return calibrate_effects(reference, measure, patients=patients, policy=policy, generator=generator)


def list_questions(reference: Cohort, current: Cohort, policy: DriftPolicy) -> Iterator[Question]:
    """List every comparison that the policy asks for and the cohorts allow."""
    if reference.embeddings is not None or current.embeddings is not None:
        for name in policy.embedding_detectors:
            if policy.alibi_detect or not name.startswith("alibi_"):
                mixes = _case_mix(reference, current, policy) if name in AT_EQUAL_MIX else (None, None)
                yield Question(
                    detector=name,
                    kind=DriftKind.APPEARANCE,
                    feature="embedding",
                    reference=_embedded(reference, mixes[0]),
                    current=_embedded(current, mixes[1]),
                )
    # numbers for keys, given once and in the keys' order, are told apart ten times faster in every comparison
    owners = np.unique(np.concatenate([reference.patient_key, current.patient_key]), return_inverse=True)[1]
    known = {column.feature: column for column in list_columns(reference, policy)}
    for now in list_columns(current, policy):
        before = known.get(now.feature)
        if before is not None and is_asked(before, now):
            yield Question(
                detector=now.detector,
                kind=now.kind,
                feature=now.feature,
                reference=_known(before.values, owners[: len(reference)]),
                current=_known(now.values, owners[len(reference) :]),
                missing=shares_missing(before, now),
            )


def sketch_reference(cohort: Cohort, policy: DriftPolicy) -> dict[str, ColumnSketch]:
    """Fit the columns of a cohort once for all windows that are compared by bins; by the comparison's name."""
    owners = cohort.patient_index
    return {
        name_comparison(column.detector, column.feature): _sketch(column.detector, _known(column.values, owners))
        for column in list_columns(cohort, policy)
        if column.detector in NUMERIC_TESTS + CATEGORY_TESTS
    }


def _sketch(detector: str, sample: Sample) -> ColumnSketch:
    return fit_columns({"column": _as_read(detector, sample.values)}, sample.patients)["column"]


def _as_read(detector: str, values: NDArray[Any]) -> NDArray[Any]:
    """Give a column as the test of its bins reads it: numbers that are categories as words."""
    return values.astype(np.str_, copy=False) if detector == "chi_square" else values


def answer(
    question: Question,
    permutations: int,
    policy: DriftPolicy,
    generator: np.random.Generator,
    background: Background | None = None,
) -> Outcome | str:
    """Make one comparison, against what the background has fitted of it; a text says why it cannot be made."""
    sides = {"reference": question.reference, "window": question.current}
    patients = {side: len(np.unique(sample.patients)) for side, sample in sides.items()}
    for side, n in patients.items():
        if n < policy.minimum_patients:
            return f"{n} patients in the {side}, {policy.minimum_patients} needed"
    try:
        if question.detector == "embedding_shift" and background is not None and background.embedding is not None:
            return _answer_by_fit(question, background.embedding, permutations, generator)
        many = sum(patients.values()) > MOST_PERMUTED and min(patients.values()) >= LEAST_PATIENTS
        if many and question.detector in NUMERIC_TESTS + CATEGORY_TESTS:
            return _answer_by_bins(question, background.columns.get(question.name) if background else None)
        return compare(
            question.detector, question.reference, question.current, permutations=permutations, generator=generator
        )
    except NotEnoughData as error:
        return str(error)


def _answer_by_fit(question: Question, fitted: Reference, permutations: int, generator: np.random.Generator) -> Outcome:
    current = question.current
    shift = test_shift(fitted, current.values, current.patients, permutations=permutations, generator=generator)
    return Outcome(
        statistic=shift.statistic,
        effect=shift.effect,
        effect_name=EFFECT_NAMES[question.detector],
        p_value=shift.p_value,
    )


def _answer_by_bins(question: Question, fitted: ColumnSketch | None) -> Outcome:
    """Compare a column of many patients by its bins: the large-sample law over patients, at a cost linear in n.

    Patients on both sides count as current only, so what the reference has of them is taken off its bins.
    """
    reference, current, detector = question.reference, question.current, question.detector
    known = fitted or _sketch(detector, reference)
    twice = reference.select(np.isin(reference.patients, current.patients))
    others = forget_studies(known, _as_read(detector, twice.values), twice.patients)
    column = {"column": _as_read(detector, current.values)}
    found = compare_columns({"column": others}, column, current.patients, tests=(detector,))
    outcome = found[detector, "column"]
    if isinstance(outcome, str):
        raise NotEnoughData(outcome)
    return Outcome(
        statistic=outcome.statistic,
        effect=outcome.effect,
        effect_name=EFFECT_NAMES[detector],
        p_value=outcome.p_value,
    )


def _known(values: NDArray[Any], patients: NDArray[Any]) -> Sample:
    """Leave out rows whose value is not known (yet)."""
    if values.dtype.kind == "f":
        known = ~np.isnan(values)
        return Sample(values=values[known], patients=patients[known])
    return Sample(values=values, patients=patients)


def _embedded(cohort: Cohort, mix: Floats | None = None) -> Sample:
    """Give the embeddings; no rows for a cohort without images, so that its comparison answers NOT_ENOUGH_DATA.

    With a case mix (n, k), only studies of whom all of it is known.
    """
    if cohort.embeddings is None:
        return Sample(values=np.empty((0, 0)), patients=cohort.patient_key[:0])
    sample = Sample(values=cohort.embeddings.astype(np.float64), patients=cohort.patient_key, context=mix)
    return sample if mix is None else sample.select(np.flatnonzero(~np.isnan(mix).any(axis=1)))


def _case_mix(reference: Cohort, current: Cohort, policy: DriftPolicy) -> tuple[Floats | None, Floats | None]:
    """Write the attributes of the case mix as numbers, words as one column a value; NaN where one is not known."""
    columns: list[Floats] = []
    for name in policy.case_mix:
        if name in reference.attributes and name in current.attributes:
            both = np.concatenate([reference.attributes[name], current.attributes[name]])
            if both.dtype.kind == "f":
                columns.append(both[:, None])
                continue
            values = np.setdiff1d(both, [MISSING])
            columns.append(np.where((both == MISSING)[:, None], np.nan, both[:, None] == values[1:]))
    if not columns:
        return None, None
    mix = np.concatenate(columns, axis=1).astype(np.float64)
    return mix[: len(reference)], mix[len(reference) :]
