"""What is compared in a window: every detector on every feature, asked alike for a verdict and for calibration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitor.alarms import name_comparison
from monitor.cohorts import MISSING, Cohort
from monitor.column_reference import CATEGORY_TESTS, NUMERIC_TESTS, compare_columns, fit_columns
from monitor.detectors import EFFECT_NAMES, Outcome, Sample, compare
from monitor.effect_calibration import calibrate_effects
from monitor.embedding_shift import Reference, test_shift
from monitor.policies import DriftPolicy
from monitor.reconciliation import EstimationError
from monitor.results import DriftKind, NotEnoughData
from monitor.uncertainty import entropy, margin

Floats = NDArray[np.float64]

PERMUTATIONS_TO_CALIBRATE = 99
MOST_PERMUTED = 2000
"""Patients on both sides together beyond which a column is compared by its bins and not by relabelling."""

AT_EQUAL_MIX = ("alibi_context_mmd",)
"""Detectors that ask for drift beyond the change in case mix."""

SLOW = "alibi_"
"""Detectors of alibi-detect take seconds each: too long for the many repeats of a calibration."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Question:
    """One comparison to be made: a detector on a feature of both sides."""

    detector: str
    kind: DriftKind
    feature: str
    reference: Sample
    current: Sample

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
    features are learned anew from both sides, which sees more but costs more where a reference is large.
    """

    cohort: Cohort
    least_effects: Mapping[str, float] = field(default_factory=dict)
    errors: tuple[EstimationError, ...] = ()
    embedding: Reference | None = None

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

    def ask(detector: str, kind: DriftKind, feature: str, before: NDArray[Any], now: NDArray[Any]) -> Question:
        return Question(
            detector=detector,
            kind=kind,
            feature=feature,
            reference=_known(before, reference.patient_key),
            current=_known(now, current.patient_key),
        )

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
    for name, column_now in current.image_statistics.items():
        if name in reference.image_statistics:
            yield ask("ks", DriftKind.APPEARANCE, f"image {name}", reference.image_statistics[name], column_now)
    for column, finding in enumerate(current.findings):
        sides = reference.scores[:, column], current.scores[:, column]
        yield ask(policy.score_detector, DriftKind.BEHAVIOUR, f"score {finding}", *sides)
    for feature, measure in (("uncertainty", entropy), ("margin", margin)):
        sides = measure(reference.scores, reference.task), measure(current.scores, current.task)
        # of one chance the margin is the uncertainty read backwards, and needs no test of its own
        if feature == "uncertainty" or current.scores.shape[1] > 1:
            yield ask(policy.score_detector, DriftKind.BEHAVIOUR, feature, *sides)
    for name, column_now in current.attributes.items():
        if name in reference.attributes and (not policy.acquisition or name in policy.acquisition + policy.case_mix):
            kind = DriftKind.CASE_MIX if name in policy.case_mix else DriftKind.ACQUISITION
            detector = "ks" if column_now.dtype.kind == "f" else "chi_square"
            yield ask(detector, kind, name, reference.attributes[name], column_now)
    labels = reference.binary_labels(), current.binary_labels()
    for column, finding in enumerate(current.findings):
        if not np.isnan(labels[1][:, column]).all():
            sides = labels[0][:, column], labels[1][:, column]
            yield ask("chi_square", DriftKind.CASE_MIX, f"prevalence {finding}", *sides)


def answer(
    question: Question,
    permutations: int,
    policy: DriftPolicy,
    generator: np.random.Generator,
    fitted: Reference | None = None,
) -> Outcome | str:
    """Make one comparison, against a fitted reference where there is one; a text says why it cannot be made."""
    sides = {"reference": question.reference, "window": question.current}
    patients = {side: len(np.unique(sample.patients)) for side, sample in sides.items()}
    for side, n in patients.items():
        if n < policy.minimum_patients:
            return f"{n} patients in the {side}, {policy.minimum_patients} needed"
    try:
        if question.detector == "embedding_shift" and fitted is not None:
            return _answer_by_fit(question, fitted, permutations, generator)
        if question.detector in NUMERIC_TESTS + CATEGORY_TESTS and sum(patients.values()) > MOST_PERMUTED:
            return _answer_by_bins(question)
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


def _answer_by_bins(question: Question) -> Outcome:
    """Compare a column of many patients by its bins: the large-sample law over patients, at a cost linear in n."""
    reference, current, detector = question.reference, question.current, question.detector
    strangers = reference.select(~np.isin(reference.patients, current.patients))
    sides = [strangers.values, current.values]
    if detector == "chi_square":
        sides = [side.astype(np.str_) for side in sides]
    fitted = fit_columns({"column": sides[0]}, strangers.patients)
    found = compare_columns(fitted, {"column": sides[1]}, current.patients, tests=(detector,))
    outcome = found[detector, "column"]
    if isinstance(outcome, str):
        raise NotEnoughData(outcome)
    return Outcome(
        statistic=outcome.statistic,
        effect=outcome.effect,
        effect_name=EFFECT_NAMES[detector],
        p_value=outcome.p_value,
    )


def _known(values: NDArray[Any], patients: NDArray[np.str_]) -> Sample:
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
