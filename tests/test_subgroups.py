"""Subgroup gaps against hand arithmetic, and their alarms against simulation."""

from datetime import UTC, datetime

import numpy as np
import pytest
from scipy.stats import binom

from monitor.cohorts import MISSING, Cohort, Window
from monitor.multiplicity import Multiplicity
from monitor.performance import auroc
from monitor.policies import DriftPolicy
from monitor.results import SubgroupGap, Verdict
from monitor.subgroups import EQUALISED_ODDS, GAP_MEASURES, OTHER, cut, find_partitions, measure_gaps
from monitor.tasks import Task

WEEK = Window(start=datetime(2026, 1, 5, tzinfo=UTC), end=datetime(2026, 1, 12, tzinfo=UTC))
POLICY = DriftPolicy(resamples=200, false_alarms_per_year=10, fairness_share=0.9)


def make_cohort(scores, labels, attributes, *, task=Task.BINARY, classes=("healthy", "tumour"), patients=None, first=0):
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
        attributes={name: np.asarray(column) for name, column in attributes.items()},
    )


def sample(rng, patients, *, images=1, first=0, spoiled=0.0) -> Cohort:
    """Draw patients of two sexes and three sites; for women, a share of the scores is replaced by noise."""
    owner = np.repeat(np.arange(patients), images)
    sex, site = rng.choice(["F", "M"], patients)[owner], rng.choice(["A", "B", "C"], patients)[owner]
    labels = (rng.random(patients) < 0.5)[owner].astype(float)
    scores = np.clip(0.3 + 0.4 * labels + rng.normal(0, 0.15, patients)[owner] + rng.normal(0, 0.1, len(owner)), 0, 1)
    noise = (sex == "F") & (rng.random(len(owner)) < spoiled)
    scores[noise] = rng.random(noise.sum())
    keys = [f"p{first + i}" for i in owner]
    return make_cohort(scores, labels, {"sex": sex, "site": site}, patients=keys, first=first)


def measure(reference: Cohort, current: Cohort, seed: int = 0, policy: DriftPolicy = POLICY) -> tuple[SubgroupGap, ...]:
    return measure_gaps(reference, current, window=WEEK, policy=policy, generator=np.random.default_rng(seed))


def one(gaps, attribute: str, value: str, metric: str, finding: str = "tumour") -> SubgroupGap:
    [found] = [g for g in gaps if (g.attribute, g.value, g.metric, g.finding) == (attribute, value, metric, finding)]
    return found


def test_gap_is_inside_minus_outside_and_change_is_gap_minus_reference_gap():
    rng = np.random.default_rng(0)
    reference, current = sample(rng, 300), sample(rng, 200, first=1000, spoiled=0.5)
    gaps = measure(reference, current)
    assert len(gaps) == (2 + 3) * (len(GAP_MEASURES) + 1)

    def by_hand(cohort: Cohort, metric: str) -> tuple[float, float]:
        sides = []
        for rows in (cohort.attributes["sex"] == "F", cohort.attributes["sex"] == "M"):
            scores, labels = cohort.scores[rows, 0], cohort.labels[rows, 0]
            said = scores >= 0.5
            sides.append(
                {
                    "auroc": auroc(scores, labels),
                    "sensitivity": said[labels == 1].mean(),
                    "specificity": 1 - said[labels == 0].mean(),
                    "selection_rate": said.mean(),
                    "calibration_offset": scores.mean() - labels.mean(),
                }[metric]
            )
        return sides[0], sides[1]

    for metric in GAP_MEASURES:
        gap = one(gaps, "sex", "F", metric)
        inside, outside = by_hand(current, metric)
        before_inside, before_outside = by_hand(reference, metric)
        assert (gap.inside, gap.outside) == pytest.approx((inside, outside), abs=1e-12)
        assert gap.gap == pytest.approx(inside - outside, abs=1e-12)
        assert gap.reference_gap == pytest.approx(before_inside - before_outside, abs=1e-12)
        assert gap.change == pytest.approx(gap.gap - gap.reference_gap, abs=1e-12)
        assert gap.low < gap.gap < gap.high
        assert gap.change_low < gap.change < gap.change_high
        assert gap.level == POLICY.level
        mirror = one(gaps, "sex", "M", metric)
        assert (mirror.gap, mirror.low, mirror.high) == pytest.approx((-gap.gap, -gap.high, -gap.low), abs=1e-12)
        assert mirror.verdict is gap.verdict


def test_a_subgroup_that_came_to_harm_is_named_and_no_other():
    rng = np.random.default_rng(1)
    gaps = measure(sample(rng, 400), sample(rng, 300, first=1000, spoiled=0.9))
    drifted = {(gap.attribute, gap.value) for gap in gaps if gap.verdict is Verdict.DRIFT}
    assert drifted == {("sex", "F"), ("sex", "M")}
    harmed = one(gaps, "sex", "F", "auroc")
    assert harmed.verdict is Verdict.DRIFT
    assert harmed.change < -0.15
    assert harmed.change_high < 0
    # Two sexes are one comparison and three sites are three, each by five figures.
    assert harmed.reason.endswith("since the reference, beyond chance over 20 comparisons")


def test_a_gap_that_was_there_before_is_no_drift():
    rng = np.random.default_rng(2)
    gaps = measure(sample(rng, 400, spoiled=0.9), sample(rng, 300, first=1000, spoiled=0.9))
    old = one(gaps, "sex", "F", "auroc")
    assert old.high < 0
    assert old.verdict is Verdict.NO_DRIFT
    assert old.change_low < 0 < old.change_high


@pytest.mark.parametrize("images", [1, 4])
def test_false_alarms_of_a_whole_window_stay_below_alpha(images):
    rng, runs, alarms, held, changes = np.random.default_rng(3), 100, 0, 0, 0
    quick = DriftPolicy(resamples=100, false_alarms_per_year=10, fairness_share=0.9)
    for seed in range(runs):
        gaps = measure(sample(rng, 120, images=images), sample(rng, 80, images=images, first=1000), seed, quick)
        alarms += any(gap.verdict is Verdict.DRIFT for gap in gaps)
        for gap in gaps:
            if gap.change is not None:
                changes += 1
                held += gap.change_low <= 0 <= gap.change_high
    assert alarms <= binom.ppf(1 - 1e-4, runs, quick.fairness_alpha(WEEK))
    assert changes > 15 * runs
    assert 0.93 <= held / changes <= 0.995


def test_small_sides_are_not_judged_and_say_how_small_they_are():
    rng = np.random.default_rng(4)
    reference = sample(rng, 300)
    n = 60
    labels = np.array([1, 0] * 30)
    sex = np.array(["F"] * 12 + ["M"] * 48)
    site = np.array(["A"] * 24 + ["B"] * 36)
    labels[:24] = [1, 1, 1] + [0] * 21
    current = make_cohort(rng.random(n), labels, {"sex": sex, "site": site}, first=1000)
    gaps = measure(reference, current)
    women = one(gaps, "sex", "F", "auroc")
    assert women.verdict is Verdict.NOT_ENOUGH_DATA
    assert women.reason == "inside: 12 labelled studies, 20 are needed"
    assert (women.gap, women.low, women.change, women.inside) == (None, None, None, None)
    assert women.n == 12
    assert one(gaps, "sex", "M", "selection_rate").reason == "outside: 12 studies, 20 are needed"
    assert one(gaps, "site", "A", "sensitivity").reason == "inside: 3 patients with tumour, 5 are needed"
    assert one(gaps, "site", "A", "auroc").verdict is Verdict.NOT_ENOUGH_DATA
    assert one(gaps, "site", "A", "specificity").verdict is Verdict.NO_DRIFT
    assert one(gaps, "site", "C", "selection_rate").reason == "inside: 0 studies, 20 are needed"


def test_a_reference_without_the_subgroup_leaves_the_gap_and_no_change():
    rng = np.random.default_rng(5)
    reference, current = sample(rng, 300), sample(rng, 200, first=1000)
    known = reference.select(reference.attributes["site"] != "C")
    gap = one(measure(known, current), "site", "C", "sensitivity")
    assert gap.gap is not None
    assert (gap.change, gap.reference_gap, gap.verdict) == (None, None, Verdict.NOT_ENOUGH_DATA)
    assert gap.reason == "reference: inside: 0 labelled studies, 20 are needed"


def test_without_labels_the_selection_rate_remains():
    rng = np.random.default_rng(6)
    current = sample(rng, 200, first=1000)
    blind = make_cohort(current.scores, np.full((200, 1), np.nan), current.attributes, first=1000)
    gaps = measure(sample(rng, 200), blind)
    assert {gap.metric for gap in gaps if gap.gap is not None} == {"selection_rate"}
    assert one(gaps, "sex", "F", "auroc").reason == "inside: 0 labelled studies, 20 are needed"


def test_many_images_of_few_patients_are_few_patients():
    rng = np.random.default_rng(7)
    current = sample(rng, 8, images=20, first=1000)
    gaps = measure(sample(rng, 200), current)
    assert all(gap.gap is None for gap in gaps if gap.metric == "auroc")
    assert all(gap.verdict is not Verdict.DRIFT for gap in gaps)


def test_subgroups_of_every_finding_of_a_multi_label_model():
    rng = np.random.default_rng(8)
    sides = []
    for first in (0, 1000):
        scores = rng.random((120, 2))
        labels = (rng.random((120, 2)) < scores).astype(float)
        labels[:110, 1] = np.nan
        attributes = {"sex": rng.choice(["F", "M"], 120)}
        sides.append(
            make_cohort(scores, labels, attributes, task=Task.MULTI_LABEL, classes=("effusion", "mass"), first=first)
        )
    gaps = measure(*sides)
    assert one(gaps, "sex", "F", "auroc", "effusion").gap is not None
    assert one(gaps, "sex", "F", "auroc", "mass").verdict is Verdict.NOT_ENOUGH_DATA
    assert one(gaps, "sex", "F", "selection_rate", "mass").gap is not None


def test_numbers_become_bands():
    ages, other = np.array([0, 17.9, 18, 39, 40, 64, 65, 120, np.nan]), np.array([50.0])
    before, now = cut("age", ages, other)
    assert before.tolist() == ["0-17"] * 2 + ["18-39"] * 2 + ["40-64"] * 2 + ["65+"] * 2 + [MISSING]
    assert now.tolist() == ["40-64"]
    before, now = cut("dose", np.array([1.0, 2.0, 3.0, np.nan]), np.array([2.0, 2.5, np.nan]))
    assert before.tolist() == ["≤ 2", "≤ 2", "> 2", MISSING]
    assert now.tolist() == ["≤ 2", "> 2", MISSING]
    before, now = cut("dose", np.array([np.nan, np.nan]), np.array([1.0]))
    assert (before.tolist(), now.tolist()) == ([MISSING] * 2, ["known"])


def subgroups(before, now, policy=POLICY):
    cohorts = [make_cohort(np.full(len(c), 0.5), np.zeros(len(c)), {"device": c}) for c in (before, now)]
    return [value for partition in find_partitions(*cohorts, policy) for value in partition.values]


def test_values_of_either_side_are_subgroups_and_one_value_is_none():
    assert subgroups(["x", "x"], ["x", "y", MISSING]) == [MISSING, "x", "y"]
    assert subgroups(["x", "x"], ["x"]) == []


def test_rare_values_of_a_long_list_are_pooled_and_not_dropped():
    common, rare = ["big"] * 40, [f"device {i}" for i in range(30)]
    assert subgroups(common + rare, common) == ["big", OTHER]
    assert subgroups(["big", "small"], ["big"]) == ["big", "small"]


def test_the_policy_chooses_attributes_and_unshared_ones_are_left_out():
    rng = np.random.default_rng(9)
    reference, current = sample(rng, 100), sample(rng, 100, first=1000)
    chosen = DriftPolicy(resamples=100, subgroup_attributes=("site", "ward"))
    assert {gap.attribute for gap in measure(reference, current, policy=chosen)} == {"site"}


def test_empty_windows_and_equal_seeds():
    rng = np.random.default_rng(10)
    reference, current = sample(rng, 150), sample(rng, 100, first=1000)
    nobody = measure(reference, current.select(np.zeros(100, dtype=bool)))
    assert {gap.verdict for gap in nobody} == {Verdict.NOT_ENOUGH_DATA}
    assert measure(reference, current, seed=3) == measure(reference, current, seed=3)


# --- intersections, equalised odds, p-values


def test_attributes_are_crossed_to_the_chosen_depth():
    rng = np.random.default_rng(11)
    reference, current = sample(rng, 300), sample(rng, 250, first=1000)
    crossed = POLICY.model_copy(update={"intersection_depth": 2})
    gaps = measure(reference, current, policy=crossed)
    assert {gap.attribute for gap in gaps} == {"sex", "site", "sex & site"}
    gap = one(gaps, "sex & site", "F & B", "selection_rate")
    assert gap.parts == (("sex", "F"), ("site", "B"))
    rows = (current.attributes["site"] == "B") & (current.attributes["sex"] == "F")
    said = current.scores[:, 0] >= 0.5
    assert (gap.n, gap.inside, gap.outside) == (rows.sum(), said[rows].mean(), pytest.approx(said[~rows].mean()))
    assert {g.value for g in gaps if g.attribute == "sex & site"} == {f"{a} & {b}" for a in "FM" for b in "ABC"}
    assert all(gap.parts == () for gap in gaps if gap.attribute == "sex")


def test_intersections_that_are_too_small_are_told_and_not_left_out():
    rng = np.random.default_rng(12)
    crossed = POLICY.model_copy(update={"intersection_depth": 2})
    gaps = measure(sample(rng, 200), sample(rng, 60, first=1000), policy=crossed)
    small = [gap for gap in gaps if gap.attribute == "sex & site" and gap.metric == "auroc"]
    assert len(small) == 6
    assert all(gap.reason.endswith("needed") for gap in small if gap.gap is None)
    assert any(gap.gap is None for gap in small)


def test_equalised_odds_is_the_larger_of_both_error_rates_gaps():
    rng = np.random.default_rng(13)
    gaps = measure(sample(rng, 400), sample(rng, 300, first=1000, spoiled=0.6))
    for value in "FM":
        parts = [one(gaps, "sex", value, name) for name in ("sensitivity", "specificity")]
        odds = one(gaps, "sex", value, EQUALISED_ODDS)
        assert odds.gap == pytest.approx(max(abs(part.gap) for part in parts))
        assert odds.reference_gap == pytest.approx(max(abs(part.reference_gap) for part in parts))
        assert odds.change == pytest.approx(odds.gap - odds.reference_gap)
        assert 0 <= odds.low <= odds.gap <= odds.high
        assert odds.change_low < odds.change < odds.change_high
        moved = any(part.verdict is Verdict.DRIFT for part in parts)
        assert odds.verdict is (Verdict.DRIFT if moved else Verdict.NO_DRIFT)
    assert one(gaps, "sex", "F", EQUALISED_ODDS).p_value is None


RATES = {
    "no gap": (0.8, 0.8, 0.8, 0.8),
    "one gap": (0.6, 0.8, 0.8, 0.8),
    "two gaps alike": (0.65, 0.8, 0.65, 0.8),
    "the other rate's gap": (0.8, 0.8, 0.6, 0.8),
}
"""Sensitivity of women and men, then specificity of women and men."""


def answer_at(rng, patients: int, rates: tuple[float, ...], *, first: int = 0) -> Cohort:
    """Draw patients of two sexes whom a model answers with known error rates."""
    woman, ill = rng.random(patients) < 0.5, rng.random(patients) < 0.5
    right = rng.random(patients) < np.where(ill, np.where(woman, *rates[:2]), np.where(woman, *rates[2:]))
    attributes = {"sex": np.where(woman, "F", "M")}
    return make_cohort(np.where(right == ill, 0.8, 0.2), ill.astype(float), attributes, first=first)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(400, 120), (150, 150)])
@pytest.mark.parametrize(
    ("before", "now"),
    [
        ("no gap", "no gap"),
        ("one gap", "one gap"),
        ("two gaps alike", "two gaps alike"),
        ("no gap", "one gap"),
        ("one gap", "the other rate's gap"),
    ],
)
def test_the_change_of_equalised_odds_is_covered_by_its_interval(before, now, sizes):
    """The larger of two absolute gaps has a kink at 0, where a bootstrap fails: two bounds are combined instead."""
    rng, runs, missed, drifted, untrue = np.random.default_rng([16, *sizes]), 200, 0, 0, 0
    truth = (0.2 if "one" in now or "other" in now else 0.0) - (0.2 if "one" in before else 0.0)
    quick = POLICY.model_copy(update={"resamples": 100})
    for seed in range(runs):
        cohorts = answer_at(rng, sizes[0], RATES[before]), answer_at(rng, sizes[1], RATES[now], first=10_000)
        odds = one(measure(*cohorts, seed, quick), "sex", "F", EQUALISED_ODDS)
        missed += not odds.change_low <= truth <= odds.change_high
        untrue += not odds.change_low <= 0 <= odds.change_high
        drifted += odds.verdict is Verdict.DRIFT
    assert missed <= binom.ppf(1 - 1e-3, runs, 1 - POLICY.level)
    if before == now:
        assert untrue <= binom.ppf(1 - 1e-3, runs, 1 - POLICY.level)
        assert drifted <= binom.ppf(1 - 1e-3, runs, POLICY.fairness_alpha(WEEK))


def test_a_p_value_is_the_level_at_which_the_interval_reaches_nothing():
    rng = np.random.default_rng(14)
    for gap in measure(sample(rng, 300), sample(rng, 200, first=1000, spoiled=0.3)):
        if gap.p_value is not None and 1e-6 < gap.p_value < 0.99:
            excluded = gap.change_low > 0 or gap.change_high < 0
            assert excluded is (gap.p_value <= 1 - gap.level) or abs(gap.p_value - (1 - gap.level)) < 1e-6


def test_benjamini_and_hochberg_find_at_least_what_holm_finds():
    rng = np.random.default_rng(15)
    sides = sample(rng, 300), sample(rng, 200, first=1000, spoiled=0.6)
    found = {
        name: {
            (gap.attribute, gap.value, gap.metric)
            for gap in measure(*sides, policy=POLICY.model_copy(update={"multiplicity": Multiplicity(name)}))
            if gap.verdict is Verdict.DRIFT
        }
        for name in ("holm", "bh")
    }
    assert found["holm"]
    assert found["holm"] <= found["bh"]
