"""Harm against hand arithmetic, scikit-learn's logistic regression and simulation with a known loss."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import binom

from monitor.assumptions import tell_unseen_images
from monitor.cohorts import Cohort, Window
from monitor.harm import HARM_MEASURES, measure_harm
from monitor.performance import auroc, evaluate
from monitor.policies import DriftPolicy
from monitor.reconciliation import EstimationError
from monitor.results import Harm, Source
from monitor.tasks import Task

WEEK = Window(start=datetime(2026, 1, 5, tzinfo=UTC), end=datetime(2026, 1, 12, tzinfo=UTC))
POLICY = DriftPolicy(resamples=200)


def make_cohort(scores, labels, *, task=Task.BINARY, classes=("healthy", "tumour"), patients=None, first=0) -> Cohort:
    scores, labels = np.asarray(scores, dtype=float), np.asarray(labels, dtype=float)
    n = len(scores)
    names = [f"p{first + i}" for i in range(n)] if patients is None else patients
    return Cohort(
        task=task,
        classes=classes,
        study_uid=np.array([f"s{first + i}" for i in range(n)], dtype=np.str_),
        patient_key=np.array(names, dtype=np.str_),
        times=np.full(n, np.datetime64("2026-01-05", "us")),
        scores=scores if scores.ndim == 2 else scores[:, None],
        labels=labels if labels.ndim == 2 else labels[:, None],
    )


def sample(rng, patients, *, center=-0.5, spread=1.6, images=1, first=0, labelled=True, shared=False) -> Cohort:
    """Draw patients whose score is their true chance of a finding: a calibrated model by construction.

    ``shared``: one luck decides all labels of a patient.
    """
    owner = np.repeat(np.arange(patients), images)
    evidence = rng.normal(center, spread, patients)[owner] + rng.normal(0, 0.5, len(owner))
    luck = rng.random(patients)[owner] if shared else rng.random(len(owner))
    labels = (luck < expit(evidence)).astype(float)
    keys = [f"p{first + i}" for i in owner]
    return make_cohort(expit(evidence), labels if labelled else np.full(len(owner), np.nan), patients=keys, first=first)


def measure(reference: Cohort, current: Cohort, seed: int = 0, policy: DriftPolicy = POLICY) -> dict:
    harms = measure_harm(reference, current, window=WEEK, policy=policy, generator=np.random.default_rng(seed))
    return {(harm.source, harm.metric, harm.finding): harm for harm in harms}


def one(harms: dict, source: Source, metric: str = "auroc", finding: str = "tumour") -> Harm:
    return harms[source, metric, finding]


def test_realised_loss_is_reference_minus_current():
    rng = np.random.default_rng(0)
    reference, current = sample(rng, 200), sample(rng, 60, first=1000)
    harms = measure(reference, current)
    assert [harm.source for harm in harms.values()] == [Source.REALISED] * 4 + [Source.ESTIMATED] * 4
    before = evaluate(reference, name="", model_version="", policy=POLICY, generator=rng)
    now = evaluate(current, name="", model_version="", policy=POLICY, generator=rng)
    for name in HARM_MEASURES:
        harm = one(harms, Source.REALISED, name)
        assert (harm.reference, harm.current) == (before.metric(name).value, now.metric(name).value)
        assert harm.loss == harm.reference - harm.current
        assert harm.low < harm.loss < harm.high
        assert harm.n == now.metric(name).n
        assert harm.current_low < harm.current < harm.current_high
        assert harm.window == WEEK
    assert one(harms, Source.ESTIMATED).n == 60


def test_without_labels_the_estimate_remains():
    rng = np.random.default_rng(1)
    harms = measure(sample(rng, 200), sample(rng, 60, first=1000, labelled=False))
    realised, estimated = one(harms, Source.REALISED), one(harms, Source.ESTIMATED)
    assert (realised.current, realised.loss, realised.low) == (None, None, None)
    assert realised.reason == "window: no labelled study"
    assert realised.reference is not None
    assert estimated.low <= estimated.loss <= estimated.high
    assert "if scores still mean what they meant there" in estimated.reason


def test_labels_of_the_window_do_not_touch_the_estimate():
    rng = np.random.default_rng(2)
    reference, current = sample(rng, 150), sample(rng, 50, first=1000)
    blind = make_cohort(current.scores, np.full((50, 1), np.nan), first=1000)
    for name in HARM_MEASURES:
        seen, unseen = (one(measure(reference, side), Source.ESTIMATED, name) for side in (current, blind))
        assert replace(seen, assumptions=()) == unseen


def test_single_class_and_too_few_have_reasons():
    rng = np.random.default_rng(3)
    reference = sample(rng, 100)
    healthy = measure(reference, make_cohort(np.full(30, 0.2), np.zeros(30), first=1000))
    assert one(healthy, Source.REALISED).reason == "window: single class: no labelled study has tumour"
    assert one(healthy, Source.REALISED).loss is None
    assert one(healthy, Source.REALISED, "specificity").current == 1
    few = measure(reference, sample(rng, 6, first=1000))
    assert one(few, Source.REALISED, "accuracy").reason == "window: 6 labelled patients, 20 are needed"
    assert one(few, Source.ESTIMATED).reason == "window: 6 patients, 20 are needed"
    assert one(few, Source.ESTIMATED).loss is None
    unlabelled = measure(sample(rng, 100, labelled=False), sample(rng, 40, first=1000))
    assert one(unlabelled, Source.REALISED).reason == "reference: no labelled study"
    assert one(unlabelled, Source.ESTIMATED).loss is None
    nobody = measure(reference, reference.select(np.zeros(100, dtype=bool)))
    assert {harm.loss for harm in nobody.values()} == {None}


def test_a_reference_that_cannot_calibrate_says_so():
    reference = make_cohort(np.linspace(0, 1, 40), [1.0] * 3 + [0.0] * 37)
    harm = one(measure(reference, make_cohort(np.linspace(0, 1, 40), np.zeros(40), first=1000)), Source.ESTIMATED)
    assert harm.current is None
    assert "3 labelled positive patients in the reference, 5 are needed" in harm.reason


def test_the_estimate_is_none_where_nothing_changed():
    rng = np.random.default_rng(4)
    reference = sample(rng, 120)
    harms = measure(reference, reference)
    for name in HARM_MEASURES:
        assert one(harms, Source.REALISED, name).loss == 0
        assert one(harms, Source.ESTIMATED, name).loss == pytest.approx(0, abs=1e-12)
        assert one(harms, Source.ESTIMATED, name).current == pytest.approx(one(harms, Source.REALISED, name).reference)


def test_patients_seen_on_both_sides_are_resampled_together():
    rng = np.random.default_rng(5)
    reference = sample(rng, 120)
    strangers = make_cohort(reference.scores, reference.labels, first=1000)
    same, other = (one(measure(reference, side), Source.REALISED) for side in (reference, strangers))
    assert same.high - same.low < 0.3 * (other.high - other.low)


def test_perfect_on_both_sides_is_not_certainty():
    scores, labels = [0.9] * 20 + [0.1] * 20, [1] * 20 + [0] * 20
    harm = one(measure(make_cohort(scores, labels), make_cohort(scores, labels, first=1000)), Source.REALISED)
    assert harm.loss == 0
    assert harm.low < -0.03
    assert harm.high > 0.03
    assert harm.reason == "no sure change from the reference"


def test_every_finding_of_a_multi_label_model_is_judged_by_its_own_labels():
    rng = np.random.default_rng(6)
    sides = []
    for first in (0, 1000):
        scores = rng.random((150, 2))
        labels = (rng.random((150, 2)) < scores).astype(float)
        labels[: 150 if first else 0, 1] = np.nan
        sides.append(make_cohort(scores, labels, task=Task.MULTI_LABEL, classes=("effusion", "mass"), first=first))
    harms = measure(*sides)
    assert one(harms, Source.REALISED, "auroc", "effusion").current == auroc(
        sides[1].scores[:, 0], sides[1].labels[:, 0]
    )
    assert one(harms, Source.REALISED, "auroc", "mass").reason == "window: no labelled study"
    assert one(harms, Source.ESTIMATED, "auroc", "mass").loss is not None


def test_both_kinds_of_harm_cover_the_true_loss_of_a_harder_case_mix():
    rng, runs = np.random.default_rng(9), 120
    before, now = (sample(rng, 200_000, center=-0.5, spread=spread) for spread in (1.6, 0.8))
    quick = DriftPolicy(resamples=100)
    truth = {name: _exactly(before, name) - _exactly(now, name) for name in HARM_MEASURES}
    assert truth["auroc"] > 0.08
    covered = {(source, name): 0 for source in Source for name in HARM_MEASURES}
    for seed in range(runs):
        current = sample(rng, 40, spread=0.8, images=2, first=1000)
        for (source, name, _), harm in measure(sample(rng, 150), current, seed, quick).items():
            covered[source, name] += harm.low <= truth[name] <= harm.high
    assert min(covered.values()) >= binom.ppf(1e-4, runs, 0.93), covered


@pytest.mark.parametrize(
    ("before", "now", "more"),
    [
        ((150, {}), (120, {}), {}),
        ((150, {"images": 2}), (40, {"images": 3, "spread": 0.8}), {}),
        ((150, {"images": 3}), (40, {"images": 3}), {"shared": True}),
        ((300, {"center": -1, "spread": 5}), (60, {"center": -1, "spread": 5}), {}),
    ],
    ids=["one study a patient", "harder, several studies a patient", "one label a patient", "a model near 1"],
)
def test_the_interval_of_an_estimate_holds_what_labels_then_show(before, now, more):
    rng, runs = np.random.default_rng(14), 100
    quick, covered = DriftPolicy(resamples=100), dict.fromkeys(HARM_MEASURES, 0)
    for seed in range(runs):
        reference, current = (
            sample(rng, before[0], **before[1], **more),
            sample(rng, now[0], **now[1], **more, first=1000),
        )
        harms = measure(reference, current, seed, quick)
        for name in HARM_MEASURES:
            guess = one(harms, Source.ESTIMATED, name)
            covered[name] += guess.current_low <= one(harms, Source.REALISED, name).current <= guess.current_high
    for count in covered.values():
        assert binom.ppf(1e-4, runs, 0.93) <= count <= binom.ppf(1 - 1e-4, runs, 0.99), covered


@pytest.mark.parametrize("task", [Task.MULTI_CLASS, Task.MULTI_LABEL])
def test_the_interval_holds_what_labels_show_of_each_of_several_findings(task):
    rng, runs, covered = np.random.default_rng(15), 50, 0
    classes = ("a", "b", "c")
    for seed in range(runs):
        sides = []
        for first, n in ((0, 200), (1000, 100)):
            chances = rng.dirichlet(np.ones(3), n)
            drawn = rng.random((n, 3)) < chances
            labels = drawn if task is Task.MULTI_LABEL else [rng.choice(3, p=p) for p in chances]
            sides.append(make_cohort(chances, labels, task=task, classes=classes, first=first))
        harms = measure(*sides, seed, DriftPolicy(resamples=100))
        for finding in classes:
            for name in HARM_MEASURES:
                guess, truth = (one(harms, source, name, finding) for source in (Source.ESTIMATED, Source.REALISED))
                covered += guess.current_low <= truth.current <= guess.current_high
    assert 0.92 <= covered / (12 * runs) <= 0.99


def test_a_window_without_change_is_called_surely_worse_as_rarely_as_promised():
    """Over all four figures together at most (1 - level) / 2; with few without the finding, as in a small hospital."""
    windows, alarms, single = 400, 0, 0
    for seed in range(windows):
        rng = np.random.default_rng(seed)
        harms = measure(sample(rng, 80, center=1.5), sample(rng, 50, center=1.5, first=1000), seed)
        realised = [harm for harm in harms.values() if harm.source is Source.REALISED]
        alarms += any(harm.sure for harm in realised)
        single += any(harm.low is not None and harm.low > 0 for harm in realised)
        assert all(harm.low > 0 for harm in realised if harm.sure)
    assert alarms <= binom.ppf(0.999, windows, 0.025)
    assert single > alarms


def test_concept_drift_shows_in_the_labels_alone():
    rng = np.random.default_rng(10)
    reference, current = sample(rng, 300), sample(rng, 200, first=1000)
    blind = make_cohort(rng.permutation(current.scores), current.labels, first=1000)
    harms = measure(reference, blind)
    assert one(harms, Source.REALISED).reason == "worse than in the reference"
    assert one(harms, Source.REALISED).low > 0.1
    assert abs(one(harms, Source.ESTIMATED).loss) < 0.05


def test_assumptions_that_do_not_hold_are_named_and_those_that_hold_are_not():
    rng = np.random.default_rng(11)
    reference = sample(rng, 400)

    def doubts(current: Cohort) -> str:
        return "; ".join(one(measure(reference, current), Source.ESTIMATED).assumptions)

    assert doubts(sample(rng, 200, first=1000)) == ""
    assert doubts(sample(rng, 200, center=-2, spread=0.5, first=1000)) == ""
    shuffled = sample(rng, 200, first=1000)
    told = doubts(make_cohort(rng.permutation(shuffled.scores), shuffled.labels, first=1000))
    assert "concept drift suspected: labels show another auroc" in told
    assert "calibration lost: scores are too extreme" in told
    rarer = sample(rng, 200, first=1000)
    fewer = np.where(rng.random((200, 1)) < 0.7, 0.0, rarer.labels)
    assert "tumour is less frequent than the scores say" in doubts(make_cohort(rarer.scores, fewer, first=1000))
    beyond = make_cohort(np.r_[np.full(30, 0.9999), rng.random(70)], np.full(100, np.nan), first=1000)
    assert "unseen region: 3" in doubts(beyond)


def test_quiet_windows_raise_doubts_as_rarely_as_promised():
    raised, windows = 0, 200
    for seed in range(windows):
        rng = np.random.default_rng([12, seed])
        harms = measure(sample(rng, 200), sample(rng, 80, images=2, first=1000), seed)
        raised += bool(one(harms, Source.ESTIMATED).assumptions)
    assert raised <= binom.ppf(0.9999, windows, 3 * 0.01)


def pictured(rng, patients, *, images=2, first=0, far=0, copies=False) -> Cohort:
    """Draw patients with embeddings around each patient's own place; the first ``far`` lie elsewhere."""
    cohort = sample(rng, patients, images=images, first=first)
    places = rng.normal(size=(patients, 16)) + np.where(np.arange(patients) < far, 3.0, 0.0)[:, None]
    values = places.repeat(images, axis=0) + 0.3 * rng.normal(size=(patients * images, 16))
    return replace(cohort, embeddings=(np.ones_like(values) if copies else values).astype(np.float32))


def test_images_unlike_any_of_the_reference_are_an_unseen_region_with_their_share():
    rng = np.random.default_rng(16)
    reference = pictured(rng, 150)
    harms = measure(reference, pictured(rng, 50, first=1000, far=10), policy=DriftPolicy(resamples=100))
    told = {harm.assumptions for harm in harms.values() if harm.source is Source.ESTIMATED}
    ((words,),) = told
    share = int(words.removeprefix("unseen region: ").split("%")[0])
    assert 20 <= share <= 26
    assert words.endswith("% of the patients have images unlike any that the reference showed")
    assert all(harm.assumptions == () for harm in harms.values() if harm.source is Source.REALISED)


@pytest.mark.parametrize("images", [1, 4])
def test_unseen_images_are_named_as_rarely_as_promised_and_found_where_planted(images):
    found = {0: 0, 6: 0}
    runs = 200
    for seed in range(runs):
        for far in found:
            rng = np.random.default_rng([17, seed, far])
            sides = pictured(rng, 100, images=images), pictured(rng, 60, images=5 - images, first=1000, far=far)
            found[far] += bool(tell_unseen_images(*sides, rng))
    assert found[0] <= binom.ppf(0.9999, runs, 0.01)
    assert found[6] >= binom.ppf(1e-4, runs, 0.9)


def test_equal_images_returning_patients_and_few_patients_are_not_unseen():
    rng = np.random.default_rng(18)
    alike = pictured(rng, 60, copies=True), pictured(rng, 60, first=1000, copies=True)
    reference = pictured(rng, 100)
    assert tell_unseen_images(*alike, rng) == ""
    assert tell_unseen_images(reference, reference, rng) == ""
    assert tell_unseen_images(reference, pictured(rng, 19, first=1000, far=19), rng) == ""
    assert tell_unseen_images(reference, sample(rng, 60, first=1000), rng) == ""


@pytest.mark.slow
@pytest.mark.parametrize("images", [1, 3])
def test_each_doubt_is_raised_in_quiet_windows_as_rarely_as_promised(images):
    runs, raised = 400, dict.fromkeys(("unseen region", "calibration lost", "concept drift suspected"), 0)
    for seed in range(runs):
        rng = np.random.default_rng([19, seed])
        harms = measure(sample(rng, 250), sample(rng, 100, images=images, first=1000), seed, DriftPolicy(resamples=100))
        for words in one(harms, Source.ESTIMATED).assumptions:
            raised[words.split(":")[0]] += 1
    # of calibration two figures are tested
    assert raised["calibration lost"] <= binom.ppf(0.9999, runs, 0.02)
    assert max(raised["unseen region"], raised["concept drift suspected"]) <= binom.ppf(0.9999, runs, 0.01)


def test_past_errors_widen_an_estimate_and_leave_the_realised_loss_alone():
    rng = np.random.default_rng(13)
    sides = sample(rng, 200), sample(rng, 80, first=1000)
    history = tuple(
        EstimationError(
            window=WEEK,
            metric="auroc",
            finding="tumour",
            estimated=0.9,
            realised=0.9 - error,
            error=error,
            variance=0.0,
            n=80,
        )
        for error in (0.1, -0.1, 0.1, -0.1)
    )
    plain, wide = (
        {(h.source, h.metric): h for h in measure_harm(*sides, window=WEEK, policy=POLICY, generator=generator, **more)}
        for generator, more in ((np.random.default_rng(0), {}), (np.random.default_rng(0), {"history": history}))
    )
    key = (Source.ESTIMATED, "auroc")
    assert wide[key].past_error == pytest.approx(0.1)
    assert wide[key].current_error == plain[key].current_error
    assert wide[key].current_low < plain[key].current_low - 0.05
    reach = [(harm.high - harm.loss) for harm in (plain[key], wide[key])]
    assert reach[1] == pytest.approx(np.hypot(reach[0], 1.959964 * 0.1), rel=1e-6)
    assert {k: h for k, h in wide.items() if k != key} == {k: h for k, h in plain.items() if k != key}


def _exactly(cohort: Cohort, name: str) -> float:
    scores, labels = cohort.scores[:, 0], cohort.labels[:, 0]
    said = scores >= 0.5
    return {
        "auroc": auroc(scores, labels),
        "sensitivity": said[labels == 1].mean(),
        "specificity": 1 - said[labels == 0].mean(),
        "accuracy": (said == labels).mean(),
    }[name]
