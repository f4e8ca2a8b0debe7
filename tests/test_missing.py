"""What goes missing is asked about: only where anything is, over patients, counted and named like any other change."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from scipy.stats import binom

from monitor import comparisons
from monitor.cohorts import MISSING, Cohort, Window
from monitor.comparisons import answer, list_questions
from monitor.detectors import Outcome
from monitor.policies import DriftPolicy
from monitor.results import DriftKind, Verdict
from monitor.tasks import Task
from monitor.watching import watch_window

WEEK = Window(start=datetime(2026, 1, 5, tzinfo=UTC), end=datetime(2026, 1, 12, tzinfo=UTC))
POLICY = DriftPolicy(alibi_detect=False, permutations=99, resamples=100)


def sample(rng, patients, side, *, images=2) -> Cohort:
    """Draw patients with sex and age, without embeddings."""
    owner = np.arange(patients).repeat(images)
    n = len(owner)
    return Cohort(
        task=Task.BINARY,
        classes=("healthy", "tumour"),
        study_uid=np.array([f"{side}-{i}" for i in range(n)], dtype=np.str_),
        patient_key=np.array([f"{side}-{i}" for i in owner], dtype=np.str_),
        times=np.full(n, np.datetime64("2026-01-06", "us")),
        scores=rng.random((n, 1)),
        labels=rng.integers(0, 2, (n, 1)).astype(float),
        attributes={"sex": rng.choice(["F", "M"], patients)[owner], "age": rng.normal(60, 10, patients)[owner]},
    )


def pair(*, patients=(60, 40), images=2) -> tuple[Cohort, Cohort]:
    rng = np.random.default_rng(0)
    return sample(rng, patients[0], "r", images=images), sample(rng, patients[1], "c", images=images)


def watch(reference, current, **changes):
    arguments = {"model": "model", "model_version": "2", "window": WEEK, "policy": POLICY} | changes
    return watch_window(reference, current, **arguments)


def rows(report):
    return {(result.detector, result.feature): result for result in report.results}


def losing(cohort, rng, *, age=0.0, sex=0.0, whole=False):
    """Leave out attributes of a share of the studies, or of whole patients."""

    def lost(share):
        drawn = rng.random(len(cohort))
        return (drawn[cohort.patient_index] if whole else drawn) < share

    attributes = dict(cohort.attributes)
    attributes["age"] = np.where(lost(age), np.nan, attributes["age"])
    attributes["sex"] = np.where(lost(sex), MISSING, attributes["sex"])
    return replace(cohort, attributes=attributes)


def test_nothing_is_asked_where_nothing_is_missing_and_one_comparison_more_where_something_is():
    reference, current = pair()
    rng = np.random.default_rng(0)
    plain = [question.feature for question in list_questions(reference, current, POLICY)]
    assert not [feature for feature in plain if "missing" in feature]
    for sides in ((losing(reference, rng, age=0.1), current), (reference, losing(current, rng, age=0.1))):
        asked = [question.feature for question in list_questions(*sides, POLICY)]
        assert asked == [*plain[:4], "missing age", *plain[4:]]
    (question,) = (q for q in list_questions(*sides, POLICY) if q.feature == "missing age")
    assert (question.detector, question.kind) == ("chi_square", DriftKind.CASE_MIX)
    assert question.missing == (0.0, np.isnan(sides[1].attributes["age"]).mean())


@pytest.mark.parametrize("most", [2000, 50])
def test_an_attribute_that_is_not_filled_in_any_more_is_drift_and_told_plainly(monkeypatch, most):
    monkeypatch.setattr(comparisons, "MOST_PERMUTED", most)
    rng = np.random.default_rng(1)
    reference, current = pair(patients=(100, 60), images=1)
    current = losing(current, rng, age=0.4, sex=0.5)
    report = watch(losing(reference, rng, sex=0.02), current)
    found = rows(report)
    for key, name in ((("chi_square", "missing age"), "age"), (("chi_square", "sex"), "sex")):
        assert found[key].verdict is Verdict.DRIFT
        missing = current.attributes[name]
        share = np.mean(np.isnan(missing) if name == "age" else missing == MISSING)
        assert f"{name} is missing in {share:.0%}".replace("%", " %") in found[key].reason
        assert f"{name} is missing in {share:.0%}".replace("%", " %") in report.reason
    assert "never seen" not in found["chi_square", "sex"].reason
    assert found["ks", "age"].verdict is Verdict.NO_DRIFT  # also by bins, where 41 ages are too few for its law


def test_an_attribute_that_is_all_gone_is_drift_though_its_values_cannot_be_compared():
    reference, current = pair()
    found = rows(watch(reference, replace(current, attributes={"age": np.full(80, np.nan)})))
    assert found["ks", "age"].verdict is Verdict.NOT_ENOUGH_DATA
    assert found["chi_square", "missing age"].verdict is Verdict.DRIFT
    assert found["chi_square", "missing age"].reason.endswith(
        "age is missing in 100 % of studies, 0 % in the reference"
    )


def test_image_statistics_that_go_missing_are_appearance():
    reference, current = pair()
    rng = np.random.default_rng(2)
    sides = [
        replace(
            side, image_statistics={"noise": np.where(rng.random(len(side)) < gone, np.nan, 1 + rng.random(len(side)))}
        )
        for side, gone in ((reference, 0.0), (current, 0.6))
    ]
    found = rows(watch(*sides))["chi_square", "missing image noise"]
    assert (found.verdict, found.kind) == (Verdict.DRIFT, DriftKind.APPEARANCE)


def test_labels_that_are_not_there_yet_are_no_missing_attribute():
    reference, current = pair()
    unlabelled = replace(current, labels=np.where(np.arange(80)[:, None] < 40, np.nan, current.labels))
    assert not [q.feature for q in list_questions(reference, unlabelled, POLICY) if "missing" in q.feature]


@pytest.mark.parametrize(("most", "patients", "runs"), [(2000, (40, 25), 300), (50, (200, 80), 300)])
def test_the_same_share_missing_on_both_sides_alarms_as_rarely_as_promised(monkeypatch, most, patients, runs):
    """Whole patients miss their age, so that three studies of one are one piece of evidence."""
    monkeypatch.setattr(comparisons, "MOST_PERMUTED", most)
    rng, p_values = np.random.default_rng(3), []
    for _ in range(runs):
        sides = [
            losing(sample(rng, n, name, images=3), rng, age=0.3, whole=True)
            for n, name in zip(patients, "rc", strict=True)
        ]
        (question,) = (q for q in list_questions(*sides, POLICY) if q.feature == "missing age")
        told = answer(question, 99, POLICY, rng)
        assert isinstance(told, Outcome)
        p_values.append(told.p_value)
    for alpha in (0.05, 0.2):
        assert (np.array(p_values) <= alpha).sum() <= binom.ppf(1 - 1e-4, runs, alpha), alpha
    assert (np.array(p_values) <= 0.2).sum() >= binom.ppf(1e-4, runs, 0.12)


def test_what_a_question_says_of_missing_values_is_nothing_for_an_empty_side():
    reference, current = pair()
    empty = losing(current, np.random.default_rng(4), age=0.5).select(np.zeros(80, dtype=bool))
    report = watch(losing(reference, np.random.default_rng(5), age=0.5), empty)
    assert report.reason == "No study arrived in this window."


def test_a_column_with_gaps_gives_the_same_answer_fitted_before_or_not(monkeypatch):
    monkeypatch.setattr(comparisons, "MOST_PERMUTED", 50)
    rng = np.random.default_rng(6)
    reference, current = (losing(side, rng, age=0.2, sex=0.2) for side in pair(patients=(200, 80)))
    known = replace(
        current, patient_key=np.where(np.arange(160) < 40, reference.patient_key[:160], current.patient_key)
    )
    background = comparisons.Background(cohort=reference, columns=comparisons.sketch_reference(reference, POLICY))
    assert watch(reference, known, background=background).results == watch(reference, known).results
    assert {*background.columns} >= {"ks on age", "chi_square on missing age", "chi_square on sex"}
