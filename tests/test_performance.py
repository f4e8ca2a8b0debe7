"""Performance figures against scikit-learn and hand arithmetic; their intervals against simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, norm
from sklearn.metrics import average_precision_score, brier_score_loss, recall_score, roc_auc_score

from monitor import intervals
from monitor.cohorts import Cohort
from monitor.intervals import Difference, Estimate, Form, draw_both, draw_patients
from monitor.measures import Answers, estimate, rank_average_precision
from monitor.performance import auroc, evaluate, fast_auroc, mean_auroc
from monitor.policies import DriftPolicy
from monitor.results import Evaluation, Source
from monitor.tasks import Task

POLICY = DriftPolicy(resamples=200)
UNBOUNDED = {"calibration_slope", "calibration_intercept", "brier_resolution", "brier_uncertainty"}


def make_cohort(scores, labels, *, task=Task.BINARY, classes=("healthy", "tumour"), patients=None) -> Cohort:
    scores, labels = np.asarray(scores, dtype=float), np.asarray(labels, dtype=float)
    n = len(scores)
    return Cohort(
        task=task,
        classes=classes,
        study_uid=np.array([f"s{i}" for i in range(n)], dtype=np.str_),
        patient_key=np.array([f"p{i}" for i in range(n)] if patients is None else patients, dtype=np.str_),
        times=np.full(n, np.datetime64("2026-01-05", "us")),
        scores=scores if scores.ndim == 2 else scores[:, None],
        labels=labels if labels.ndim == 2 else labels[:, None],
    )


def judge(cohort: Cohort, seed: int = 0, policy: DriftPolicy = POLICY) -> Evaluation:
    return evaluate(cohort, name="week", model_version="1", policy=policy, generator=np.random.default_rng(seed))


scored = st.lists(
    st.tuples(st.sampled_from([0, 0.1, 0.25, 0.5, 0.5001, 0.9, 1]), st.booleans(), st.integers(0, 3)),
    min_size=2,
    max_size=40,
)


@given(scored)
def test_areas_match_scikit_learn_with_ties_and_weights(rows):
    scores, labels, weights = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    yes, no = weights @ labels, weights @ (1 - labels)
    order, statistic = rank_average_precision(scores, labels)
    area, precision = fast_auroc(scores, labels, weights[None])[0], statistic(weights[None, order])[0]
    if yes and no:
        assert area == pytest.approx(roc_auc_score(labels, scores, sample_weight=weights), abs=1e-12)
        assert precision == pytest.approx(average_precision_score(labels, scores, sample_weight=weights), abs=1e-12)
        repeated = np.repeat(np.arange(len(scores)), weights.astype(int))
        assert auroc(scores[repeated], labels[repeated]) == pytest.approx(area, abs=1e-12)
    else:
        assert np.isnan(area)
        assert np.isnan(precision) == (not yes)


def test_auroc_by_hand():
    # Pairs (positive, negative): (.8,.8) tie, (.8,.2) win, (.4,.8) loss, (.4,.2) win.
    assert auroc([0.8, 0.4, 0.8, 0.2], [1, 1, 0, 0]) == 2.5 / 4
    assert auroc([0.8, 0.4, 0.8, 0.2, 0.1], [1, 1, 0, 0, np.nan]) == 2.5 / 4
    assert auroc([0.8, 0.4], [1, 1]) is None
    assert auroc([], []) is None


def test_auroc_refuses_what_it_cannot_rank():
    with pytest.raises(ValueError, match="binary_labels"):
        auroc([0.1, 0.2, 0.3], [0, 1, 2])
    with pytest.raises(ValueError, match="quarantine"):
        auroc([np.nan, 0.2], [0, 1])
    with pytest.raises(ValueError, match="one shape"):
        auroc([0.1], [0, 1])


def test_mean_auroc_leaves_undefined_findings_out():
    scores = np.array([[0.9, 0.9], [0.1, 0.8], [0.5, 0.1]])
    assert mean_auroc(scores, [[1, 1], [0, 1], [np.nan, 1]]) == 1
    assert mean_auroc(scores, [[1, 0], [0, 1], [np.nan, np.nan]]) == 0.5
    assert mean_auroc(scores, np.ones((3, 2))) is None


def test_binary_figures_by_hand_and_from_scikit_learn():
    scores = np.array([0.95, 0.5, 0.49, 0.05, 0.65, 0.15, 0.05, 0.35])
    labels = np.array([1, 1, 1, 0, 0, 0, 0, 1.0])
    found = judge(make_cohort(scores, labels))
    assert (found.source, found.n, found.patients, found.n_labelled) == (Source.REALISED, 8, 8, 8)
    assert found.metric("sensitivity").value == 0.5  # 0.95 and 0.5 of four: a score of 0.5 is a yes
    assert found.metric("specificity").value == 0.75
    assert found.metric("accuracy").value == 5 / 8
    assert (found.metric("sensitivity").n, found.metric("specificity").n, found.metric("auroc").n) == (4, 4, 8)
    assert found.metric("auroc").value == pytest.approx(roc_auc_score(labels, scores), abs=1e-15)
    assert found.metric("average_precision").value == pytest.approx(average_precision_score(labels, scores), abs=1e-15)
    assert found.metric("brier").value == pytest.approx(brier_score_loss(labels, scores), abs=1e-15)
    # Bins by tenths: |.05-1| + |.5-1| alone? .95 | .5 | .49 | .35 | .65 | .15 | .05 and .05, each off by:
    off = 0.05 + 0.5 + 0.51 + 0.65 + 0.65 + 0.15 + 0.10
    assert found.metric("ece").value == pytest.approx(off / 8, abs=1e-15)
    for metric in found.metrics:
        assert metric.low <= metric.value <= metric.high
        assert metric.name in UNBOUNDED or 0 <= metric.low <= metric.high <= 1
        assert metric.reason == ""


def test_calibration_error_nets_out_inside_a_bin():
    assert judge(make_cohort([0.62, 0.68], [1, 0])).metric("ece").value == pytest.approx(0.15)
    assert judge(make_cohort([1, 0], [1, 0])).metric("ece").value == 0


def test_multi_class_is_one_against_the_rest_and_the_most_probable_class_is_the_answer():
    rng = np.random.default_rng(3)
    scores, labels = rng.dirichlet(np.ones(4), 200), rng.integers(0, 4, 200)
    classes = ("a", "b", "c", "d")
    found = judge(make_cohort(scores, labels, task=Task.MULTI_CLASS, classes=classes))
    recalls = recall_score(labels, scores.argmax(axis=1), average=None)
    for column, name in enumerate(classes):
        truth = labels == column
        assert found.metric("auroc", name).value == pytest.approx(roc_auc_score(truth, scores[:, column]), abs=1e-12)
        assert found.metric("sensitivity", name).value == pytest.approx(recalls[column], abs=1e-12)
        assert found.metric("brier", name).value == pytest.approx(brier_score_loss(truth, scores[:, column]), abs=1e-12)
    assert {metric.finding for metric in found.metrics} == set(classes)


def test_multi_label_uses_each_findings_own_known_labels():
    rng = np.random.default_rng(4)
    scores, labels = rng.random((60, 3)), rng.integers(0, 2, (60, 3)).astype(float)
    labels[::2, 0] = np.nan
    labels[:, 2] = np.nan
    found = judge(make_cohort(scores, labels, task=Task.MULTI_LABEL, classes=("effusion", "nodule", "mass")))
    known = slice(1, None, 2)
    assert found.metric("auroc", "effusion").value == pytest.approx(roc_auc_score(labels[known, 0], scores[known, 0]))
    assert found.metric("auroc", "nodule").value == pytest.approx(roc_auc_score(labels[:, 1], scores[:, 1]))
    assert (found.metric("auroc", "effusion").n, found.metric("auroc", "nodule").n, found.n_labelled) == (30, 60, 60)
    nothing = found.metric("brier", "mass")
    assert (nothing.value, nothing.low, nothing.high, nothing.n) == (None, None, None, 0)
    assert nothing.reason == "no labelled study"


def test_single_class_has_a_reason_and_no_number():
    found = judge(make_cohort([0.9, 0.2, 0.7], [1, 1, 1]))
    for name in ("auroc", "average_precision", "specificity"):
        assert found.metric(name).value is None
        assert found.metric(name).reason == "single class: every labelled study has tumour"
    assert found.metric("sensitivity").value == 2 / 3
    none_has_it = judge(make_cohort([0.9, 0.2, 0.7], [0, 0, np.nan]))
    assert none_has_it.metric("sensitivity").reason == "single class: no labelled study has tumour"
    assert none_has_it.metric("auroc").value is None
    assert none_has_it.n_labelled == 2


def test_empty_and_unlabelled_cohorts_have_reasons():
    for cohort in (make_cohort(np.empty((0, 1)), np.empty((0, 1))), make_cohort([0.1, 0.9], [np.nan, np.nan])):
        assert {(metric.value, metric.reason) for metric in judge(cohort).metrics} == {(None, "no labelled study")}


def test_one_patient_gives_a_value_and_no_interval():
    found = judge(make_cohort([0.9, 0.2, 0.7], [1, 0, 1], patients=["p", "p", "p"]))
    assert found.metric("accuracy").value == 1
    assert (found.metric("accuracy").low, found.metric("accuracy").high) == (None, None)
    assert found.metric("accuracy").reason == "one patient alone gives no interval"


def test_a_perfect_score_is_not_certainty():
    found = judge(make_cohort([0.9] * 20 + [0.1] * 20, [1] * 20 + [0] * 20))
    for name in ("auroc", "sensitivity", "specificity", "accuracy"):
        assert found.metric(name).value == 1
        assert found.metric(name).high == 1
    # The share that 20 of 20 patients still leaves possible, by Wilson with Student's t at 19: n / (n + t²).
    assert found.metric("sensitivity").low == pytest.approx(20 / (20 + 2.0930240544**2), abs=1e-9)
    assert 0.85 < found.metric("auroc").low < 0.95


def test_the_same_seed_gives_the_same_interval_in_any_chunk(monkeypatch):
    rng = np.random.default_rng(5)
    cohort = make_cohort(rng.random(50), rng.integers(0, 2, 50))
    whole = judge(cohort, seed=1)
    monkeypatch.setattr(intervals, "CHUNK", 170)
    again = judge(cohort, seed=1)
    for one, other in zip(whole.metrics, again.metrics, strict=True):
        assert (one.low, one.high) == pytest.approx((other.low, other.high), rel=1e-12)
    assert judge(cohort, seed=2).metric("average_precision").low != whole.metric("average_precision").low


def test_more_images_of_the_same_patients_do_not_narrow_an_interval():
    rng = np.random.default_rng(6)
    scores, labels = rng.random(60), rng.integers(0, 2, 60).astype(float)
    once = judge(make_cohort(scores, labels)).metric("auroc")
    patients = np.repeat([f"p{i}" for i in range(60)], 4)
    four = judge(make_cohort(np.repeat(scores, 4), np.repeat(labels, 4), patients=patients)).metric("auroc")
    assert (four.low, four.high) == pytest.approx((once.low, once.high), rel=1e-9)
    strangers = judge(make_cohort(np.repeat(scores, 4), np.repeat(labels, 4))).metric("auroc")
    assert strangers.high - strangers.low < 0.7 * (four.high - four.low)


@pytest.mark.parametrize("images", [1, 4])
def test_intervals_cover_the_truth_even_near_one(images):
    rng, patients, shift, runs = np.random.default_rng(7), 40, 3.0, 300
    truth = {"auroc": norm.cdf(shift / np.sqrt(2)), "sensitivity": norm.cdf(shift - 1), "specificity": norm.cdf(1)}
    covered = dict.fromkeys(truth, 0)
    owner = np.repeat(np.arange(patients), images)
    for _ in range(runs):
        labels = np.repeat(rng.permutation(patients) % 2, images).astype(float)
        shared = rng.normal(size=patients)[owner] * np.sqrt(0.6)
        scores = shift * labels + shared + rng.normal(size=len(owner)) * np.sqrt(0.4)
        answers = Answers(finding="f", scores=scores, said=(scores > 1) * 1.0, labels=labels, patients=owner)
        counts = draw_patients(np.zeros(patients, dtype=np.intp), 200, rng)
        for name, figure in estimate(answers, tuple(truth), counts).items():
            low, high = figure.interval(0.95)
            covered[name] += low <= truth[name] <= high
    # At least 93 % hold; the bound is what 300 runs of such a method miss once in ten thousand.
    assert min(covered.values()) >= binom.ppf(1e-4, runs, 0.93), covered


def test_calibration_error_of_a_calibrated_model_reaches_down_to_zero():
    rng, runs, reached = np.random.default_rng(8), 100, 0
    for seed in range(runs):
        chance = rng.random(150)
        found = judge(make_cohort(chance, rng.random(150) < chance), seed=seed, policy=DriftPolicy(resamples=200))
        reached += found.metric("ece").low == 0
    assert reached >= binom.ppf(1e-4, runs, 0.93)


def test_rate_intervals_are_wilsons_with_the_effective_number_of_answers():
    value, n = 0.85, 40
    spread = np.sqrt(value * (1 - value) / n)
    figure = Estimate(
        value=value,
        replicates=value + spread * np.array([-1, 1]) / np.sqrt(2),
        form=Form.WILSON,
        studies=n,
        patients=10**9,
        informative=n,
    )
    expected = binomtest(34, 40).proportion_ci(method="wilson")
    assert figure.interval(0.95) == pytest.approx((expected.low, expected.high), abs=1e-7)


def test_differences_of_rates_are_newcombes():
    def rate(k: int, n: int) -> Estimate:
        return Estimate(
            value=k / n, replicates=np.full(5, k / n), form=Form.WILSON, studies=n, patients=10**9, informative=n
        )

    # Newcombe 1998, method 10: 56/70 against 48/80.
    difference = Difference(first=rate(56, 70), second=rate(48, 80))
    assert difference.value == pytest.approx(0.2)
    assert difference.interval(0.95) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_patients_of_both_sides_are_drawn_together_and_each_side_keeps_its_size():
    reference, current = np.array(["a", "b", "c", "c"]), np.array(["c", "d", "e", "f", "b"])
    counts, first, second = draw_both(reference, current, 500, np.random.default_rng(0))
    keys = np.array(["a", "b", "c", "d", "e", "f"])
    assert (keys[first] == reference).all()
    assert (keys[second] == current).all()
    assert (counts[:, 0] == 1).all()
    assert (counts[:, [1, 2]].sum(axis=1) == 2).all()
    assert (counts[:, 3:].sum(axis=1) == 3).all()
    assert counts[:, 3:].mean() == pytest.approx(1)
