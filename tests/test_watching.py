"""Watching a window: one corrected verdict, a row for every comparison, a sentence that promises no more."""

from datetime import UTC, datetime

import numpy as np
import pytest
from scipy.stats import binom

from monitor import comparisons
from monitor.cohorts import Cohort, Window
from monitor.comparisons import Background
from monitor.embedding_shift import fit_reference
from monitor.policies import DriftPolicy
from monitor.results import DriftKind, Source, Verdict, WindowReport
from monitor.tasks import Task
from monitor.watching import headline_verdict, watch_window

WEEK = Window(start=datetime(2026, 1, 5, tzinfo=UTC), end=datetime(2026, 1, 12, tzinfo=UTC))
POLICY = DriftPolicy(alibi_detect=False, permutations=99, resamples=100, embedding_detectors=("mmd",))
CLASSES = {Task.BINARY: ("healthy", "tumour"), Task.MULTI_CLASS: ("a", "b", "c"), Task.MULTI_LABEL: ("x", "y")}


def sample(rng, patients, side, *, task=Task.BINARY, images=2, shift=0.0, **changes) -> Cohort:
    """Draw patients with images that are alike; ``shift`` moves scores and embeddings."""
    owner = np.arange(patients).repeat(images)
    n, classes = len(owner), CLASSES[task]
    evidence = rng.normal(shift, 1, (patients, len(classes)))[owner] + rng.normal(0, 0.3, (n, len(classes)))
    shares = np.exp(evidence) / np.exp(evidence).sum(axis=1, keepdims=True)
    yes = 1 / (1 + np.exp(-evidence))
    columns = {
        "scores": {Task.BINARY: yes[:, :1], Task.MULTI_CLASS: shares, Task.MULTI_LABEL: yes}[task],
        "labels": rng.integers(0, 2, (n, len(classes) if task is Task.MULTI_LABEL else 1)).astype(float),
        "attributes": {
            "sex": rng.choice(["F", "M"], patients)[owner],
            "device": rng.choice(["north", "south"], patients)[owner],
            "age": rng.normal(60, 10, patients)[owner],
        },
        "embeddings": (rng.normal(shift, 1, (patients, 5))[owner] + rng.normal(0, 0.2, (n, 5))).astype(np.float32),
    }
    return Cohort(
        task=task,
        classes=classes,
        study_uid=np.array([f"{side}-{i}" for i in range(n)], dtype=np.str_),
        patient_key=np.array([f"{side}-{i}" for i in owner], dtype=np.str_),
        times=np.full(n, np.datetime64("2026-01-06", "us")),
        **(columns | changes),
    )


def watch(reference: Cohort, current: Cohort, policy: DriftPolicy = POLICY, **changes) -> WindowReport:
    arguments = {"model": "model", "model_version": "2", "window": WEEK, "policy": policy} | changes
    return watch_window(reference, current, **arguments)


def pair(seed=0, *, shift=0.0, patients=(60, 40), **options) -> tuple[Cohort, Cohort]:
    rng = np.random.default_rng(seed)
    return sample(rng, patients[0], "r", **options), sample(rng, patients[1], "c", shift=shift, **options)


def replaced(cohort: Cohort, **changes) -> Cohort:
    names = ("task", "classes", "study_uid", "patient_key", "times", "scores", "labels", "attributes", "embeddings")
    return Cohort(**({name: getattr(cohort, name) for name in names} | changes))


def rows(report: WindowReport) -> dict:
    return {(result.detector, result.feature): result for result in report.results}


PLANNED = [
    ("mmd", "embedding", DriftKind.APPEARANCE),
    ("ks", "score tumour", DriftKind.BEHAVIOUR),
    ("ks", "uncertainty", DriftKind.BEHAVIOUR),
    ("chi_square", "sex", DriftKind.CASE_MIX),
    ("chi_square", "device", DriftKind.ACQUISITION),
    ("ks", "age", DriftKind.CASE_MIX),
    ("chi_square", "prevalence tumour", DriftKind.CASE_MIX),
]


def test_a_quiet_window_has_a_row_for_every_planned_comparison():
    report = watch(*pair())
    assert report.verdict is Verdict.NO_DRIFT
    assert report.reason == "Nothing in 80 studies of 40 patients differs from the reference beyond chance."
    assert [(result.detector, result.feature, result.kind) for result in report.results] == PLANNED
    for result in report.results:
        assert (result.n_reference, result.n_current) == (120, 80)
        assert (result.patients_reference, result.patients_current) == (60, 40)
        assert result.window == WEEK
        assert 0 < result.p_value <= 1
        assert result.effect_name in result.reason
    assert (report.model, report.n, report.patients, report.n_labelled) == ("model", 80, 40, 80)
    assert report.evaluations[0].model_version == "2"
    assert {harm.source for harm in report.harms} == set(Source)
    assert report.gaps
    assert report.contributions


def test_a_shift_is_drift_of_the_kinds_that_moved_and_of_no_other():
    report = watch(*pair(shift=2))
    assert report.verdict is Verdict.DRIFT
    drifted = {result.kind for result in report.results if result.verdict is Verdict.DRIFT}
    assert drifted == {DriftKind.APPEARANCE, DriftKind.BEHAVIOUR}
    assert report.reason.startswith("Changed: appearance, behaviour (embedding, score tumour")
    assert "in the reference, surely worse." in report.reason
    for result in report.results:
        assert (result.p_value <= result.threshold) == (result.verdict is Verdict.DRIFT)
        assert result.threshold <= POLICY.drift_alpha(WEEK)


def test_few_patients_are_not_enough_data_and_the_sentence_says_how_few():
    reference, current = pair(patients=(60, 9))
    report = watch(reference, current)
    assert report.verdict is Verdict.NOT_ENOUGH_DATA
    assert report.reason == "18 studies of 9 patients are too few to judge: 9 patients in the window, 20 needed."
    assert len(report.results) == len(PLANNED)
    for result in report.results:
        assert (result.verdict, result.p_value, result.statistic) == (Verdict.NOT_ENOUGH_DATA, None, None)
        assert result.reason == "9 patients in the window, 20 needed"
    assert "9 patients in the reference" in watch(current, reference).reason


def test_an_empty_window_is_not_enough_data_and_no_quiet_window():
    reference, current = pair()
    report = watch(reference, current.select(np.zeros(80, dtype=bool)))
    assert report.verdict is Verdict.NOT_ENOUGH_DATA
    assert report.reason == "No study arrived in this window."
    assert (report.n, report.patients, report.n_labelled) == (0, 0, 0)
    assert {result.verdict for result in report.results} == {Verdict.NOT_ENOUGH_DATA}
    assert {gap.verdict for gap in report.gaps} == {Verdict.NOT_ENOUGH_DATA}
    assert {metric.value for metric in report.evaluations[0].metrics} == {None}
    assert {harm.loss for harm in report.harms} == {None}


def test_a_window_with_one_class_has_reasons_and_no_figures():
    reference, current = pair()
    report = watch(reference, replaced(current, labels=np.zeros((80, 1))))
    area = report.evaluations[0].metric("auroc")
    assert (area.value, area.low, area.reason) == (None, None, "single class: no labelled study has tumour")
    assert report.evaluations[0].metric("specificity").value is not None
    [loss] = [harm for harm in report.harms if (harm.source, harm.metric) == (Source.REALISED, "auroc")]
    assert (loss.loss, loss.reason) == (None, "window: single class: no labelled study has tumour")
    assert rows(report)["chi_square", "prevalence tumour"].verdict is Verdict.DRIFT


def test_without_labels_prevalence_is_not_planned_and_the_loss_is_only_estimated():
    reference, current = pair(shift=2)
    report = watch(reference, replaced(current, labels=np.full((80, 1), np.nan)))
    assert ("chi_square", "prevalence tumour") not in rows(report)
    assert len(report.results) == len(PLANNED) - 1
    assert "Without labels the loss is only estimated." in report.reason


def test_one_embedding_for_the_whole_window_is_drift_and_the_sentence_asks_why():
    reference, current = pair()
    report = watch(reference, replaced(current, embeddings=np.ones((80, 5), np.float32)))
    result = rows(report)["mmd", "embedding"]
    assert result.verdict is Verdict.DRIFT
    assert result.reason.endswith(
        "; every study of the window has the same embedding: is preprocessing upstream broken?"
    )
    assert report.verdict is Verdict.DRIFT
    assert "Every study of the window has the same embedding: is preprocessing upstream broken?" in report.reason


@pytest.mark.parametrize(("blind", "side"), [(0, "reference"), (1, "window")])
def test_embeddings_missing_on_one_side_leave_a_row_that_is_not_judged(blind, side):
    sides = list(pair())
    sides[blind] = replaced(sides[blind], embeddings=None)
    report = watch(*sides)
    result = rows(report)["mmd", "embedding"]
    assert result.verdict is Verdict.NOT_ENOUGH_DATA
    assert result.reason == f"0 patients in the {side}, 20 needed"
    assert f"Not judged: embedding (0 patients in the {side}, 20 needed)." in report.reason


def test_a_model_without_images_is_watched_by_its_scores_and_attributes():
    report = watch(*(replaced(side, embeddings=None) for side in pair()))
    assert [(result.detector, result.feature, result.kind) for result in report.results] == PLANNED[1:]
    assert report.verdict is Verdict.NO_DRIFT


def test_what_is_not_known_yet_is_left_out_and_what_is_never_known_is_not_judged():
    reference, current = pair()
    labels, ages = current.labels.copy(), np.full(80, np.nan)
    labels[:20] = np.nan
    report = watch(reference, replaced(current, labels=labels, attributes=current.attributes | {"age": ages}))
    prevalence, age = rows(report)["chi_square", "prevalence tumour"], rows(report)["ks", "age"]
    assert (prevalence.n_current, prevalence.patients_current) == (60, 30)
    assert (age.n_current, age.reason) == (0, "0 patients in the window, 20 needed")
    assert report.n_labelled == 60


def test_a_new_category_is_named():
    reference, current = pair()
    device = np.array(["east"] * 40 + [*current.attributes["device"][40:]])
    report = watch(reference, replaced(current, attributes=current.attributes | {"device": device}))
    result = rows(report)["chi_square", "device"]
    assert result.verdict is Verdict.DRIFT
    assert result.reason.endswith("; never seen in the reference: east")
    assert "Most of it sits in device = east: 0% of the reference, 50% now." in report.reason


def test_a_surely_changed_but_small_effect_is_no_drift_and_says_so():
    rng = np.random.default_rng(1)
    sides = [
        sample(rng, 800, side, images=1, shift=shift, embeddings=None, attributes={})
        for side, shift in (("r", 0), ("c", 0.3))
    ]
    strict, tolerant = (watch(*sides, POLICY.model_copy(update={"minimum_effect": least})) for least in (0, 0.2))
    before, now = (rows(report)["ks", "score tumour"] for report in (strict, tolerant))
    assert (before.verdict, now.verdict) == (Verdict.DRIFT, Verdict.NO_DRIFT)
    assert before.p_value == now.p_value <= now.threshold
    assert 0 < now.effect < 0.2
    assert now.reason.endswith(": surely there, but smaller than 0.2, the least that counts")
    assert tolerant.verdict is Verdict.NO_DRIFT
    assert "by enough to count; surely but slightly changed: score tumour" in tolerant.reason


def test_the_same_cohorts_and_policy_give_the_same_report():
    sides = pair(shift=0.3)
    np.random.seed(1)  # nothing depends on the global generator
    first = watch(*sides)
    np.random.seed(2)
    assert watch(*sides) == first
    reseeded = watch(*sides, POLICY.model_copy(update={"seed": 1}))
    assert [r.statistic for r in reseeded.results] == [r.statistic for r in first.results]
    assert [r.p_value for r in reseeded.results] != [r.p_value for r in first.results]


def test_permutations_suffice_for_the_strictest_threshold():
    report = watch(*pair(shift=3), POLICY.model_copy(update={"false_alarms_per_year": 0.1}))
    assert rows(report)["mmd", "embedding"].verdict is Verdict.DRIFT
    assert rows(report)["mmd", "embedding"].p_value <= 0.0015 / len(PLANNED)


def test_an_image_statistic_that_moved_is_appearance_and_named():
    reference, current = pair()
    rng = np.random.default_rng(3)
    sides = [
        replaced(
            side,
            image_statistics={"sharpness": rng.normal(by, 1, len(side)), "native width": np.full(len(side), 512.0)},
        )
        for side, by in ((reference, 0), (current, -2))
    ]
    report = watch(*sides)
    blurred, width = (rows(report)["ks", f"image {name}"] for name in ("sharpness", "native width"))
    assert (blurred.verdict, blurred.kind) == (Verdict.DRIFT, DriftKind.APPEARANCE)
    assert width.verdict is Verdict.NOT_ENOUGH_DATA
    assert "Changed: appearance (image sharpness)" in report.reason


def test_the_policy_chooses_what_is_acquisition_and_what_is_case_mix():
    chosen = POLICY.model_copy(update={"acquisition": ("device",), "case_mix": ("age",)})
    kinds = {result.feature: result.kind for result in watch(*pair(), chosen).results}
    assert (kinds["device"], kinds["age"]) == (DriftKind.ACQUISITION, DriftKind.CASE_MIX)
    assert "sex" not in kinds


@pytest.mark.parametrize("task", [Task.MULTI_CLASS, Task.MULTI_LABEL])
def test_every_finding_of_every_task_is_compared(task):
    quiet, drifted = (watch(*pair(2, task=task, shift=shift)) for shift in (0, 3))
    findings = CLASSES[task]
    features = [result.feature for result in quiet.results]
    assert [f for f in features if f.startswith("score ")] == [f"score {finding}" for finding in findings]
    assert [f for f in features if f.startswith("prevalence ")] == [f"prevalence {finding}" for finding in findings]
    assert {metric.finding for metric in quiet.evaluations[0].metrics} == set(findings)
    assert (quiet.verdict, drifted.verdict) == (Verdict.NO_DRIFT, Verdict.DRIFT)


def test_progress_is_told():
    told: list[str] = []
    watch(*pair(), progress=told.append)
    assert told[0] == "mmd on embedding"
    assert told[-3:] == ["subgroups", "harm", "prevalence"]
    assert len(told) == len(PLANNED) + 4


def test_the_headline_is_drift_over_no_drift_over_not_enough():
    some = {verdict: next(r for r in _of_every_verdict() if r.verdict is verdict) for verdict in Verdict}
    enough, drift, few = some[Verdict.NO_DRIFT], some[Verdict.DRIFT], some[Verdict.NOT_ENOUGH_DATA]
    assert headline_verdict([few, enough, drift]) is Verdict.DRIFT
    assert headline_verdict([few, enough]) is Verdict.NO_DRIFT
    assert headline_verdict([few, few]) is Verdict.NOT_ENOUGH_DATA
    assert headline_verdict([]) is Verdict.NOT_ENOUGH_DATA


def _of_every_verdict():
    reference, current = pair(shift=2)
    yield from watch(reference, replaced(current, attributes=current.attributes | {"age": np.full(80, np.nan)})).results


@pytest.mark.slow
@pytest.mark.parametrize("images", [1, 4])
def test_false_alarms_of_a_whole_window_stay_at_alpha(images):
    runs, policy = 250, POLICY.model_copy(update={"false_alarms_per_year": 100, "minimum_effect": 0})
    rng, alarms = np.random.default_rng(7), 0
    for seed in range(runs):
        sides = sample(rng, 50, "r", images=images), sample(rng, 30, "c", images=images)
        alarms += watch(*sides, policy.model_copy(update={"seed": seed})).verdict is Verdict.DRIFT
    assert alarms <= binom.ppf(1 - 1e-4, runs, policy.drift_alpha(WEEK))


def test_many_patients_are_compared_by_bins_with_the_same_words_and_nearly_the_same_figures(monkeypatch):
    reference, current = pair(patients=(700, 300), shift=0.3, images=1)
    exact = rows(watch(reference, current))
    monkeypatch.setattr(comparisons, "MOST_PERMUTED", 500)
    binned = rows(watch(reference, current))
    for key in (("ks", "score tumour"), ("chi_square", "device"), ("ks", "age")):
        assert binned[key].effect_name == exact[key].effect_name
        assert binned[key].effect == pytest.approx(exact[key].effect, abs=0.03)
        assert binned[key].verdict is exact[key].verdict
    assert binned["ks", "score tumour"].p_value < exact["ks", "score tumour"].p_value


def test_a_fitted_reference_serves_in_place_of_learning_anew():
    reference, current = pair(patients=(200, 60), shift=1.5)
    policy = POLICY.model_copy(update={"embedding_detectors": ("embedding_shift",)})
    fitted = fit_reference(reference.embeddings, reference.patient_key, generator=np.random.default_rng(0))
    report = watch(reference, current, policy, background=Background(cohort=reference, embedding=fitted))
    found = rows(report)["embedding_shift", "embedding"]
    assert (found.verdict, found.effect_name) == (Verdict.DRIFT, "standardised feature distance")
    known = watch(reference, reference, policy, background=Background(cohort=reference, embedding=fitted))
    assert rows(known)["embedding_shift", "embedding"].verdict is Verdict.NOT_ENOUGH_DATA


@pytest.mark.slow
def test_drift_beyond_the_case_mix_is_asked_with_what_is_known_of_it():
    reference, current = pair(patients=(80, 60), shift=1.5)
    policy = DriftPolicy(permutations=99, resamples=100, embedding_detectors=("alibi_context_mmd",), case_mix=("age",))
    assert rows(watch(reference, current, policy))["alibi_context_mmd", "embedding"].p_value < 0.05
    unknown = [replaced(side, attributes={}) for side in (reference, current)]
    found = rows(watch(*unknown, policy))["alibi_context_mmd", "embedding"]
    assert (found.verdict, found.reason) == (Verdict.NOT_ENOUGH_DATA, "no case mix is known to compare at")
