"""The paired comparison is exact in structure, knows that patients are the unit, and keeps its error rate."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import binomtest, norm
from sklearn.metrics import brier_score_loss, roc_auc_score

from monitor.paired import bound_change
from monitor.tasks import Task
from registry.comparison import HeldOutScores, check_metric, compare, draw_counts, measure_both
from registry.decisions import GatePolicy

POLICY = GatePolicy(resamples=400)


def draw(
    generator: np.random.Generator,
    *,
    patients: int = 60,
    studies: int = 1,
    champion: float = 0.9,
    challenger: float = 0.9,
    shared: float = 0.8,
    alike: float = 0.5,
) -> HeldOutScores:
    """Draw binormal scores of two models with true AUROCs, correlated between models and within a patient."""
    truth = np.repeat(np.arange(patients) < 0.4 * patients, studies).astype(float)
    keys = np.repeat([f"p{i:04d}" for i in range(patients)], studies)

    def noise() -> np.ndarray:
        own, each = generator.standard_normal(patients).repeat(studies), generator.standard_normal(patients * studies)
        return np.sqrt(alike) * own + np.sqrt(1 - alike) * each

    common = np.sqrt(shared) * noise()
    both = []
    for area in (champion, challenger):
        distance = np.sqrt(2) * norm.ppf(area)
        both.append(expit(common + np.sqrt(1 - shared) * noise() + distance * (truth - 0.5))[:, None])
    return HeldOutScores(
        name="old cohort",
        kind="old",
        digest="d" * 64,
        labels=truth[:, None],
        champion=both[0],
        challenger=both[1],
        patients=keys,
        findings=("tumour",),
    )


@pytest.fixture
def scores() -> HeldOutScores:
    return draw(np.random.default_rng(8), patients=60, studies=3, champion=0.8, challenger=0.9)


def test_figures_are_those_of_scikit_learn(scores):
    labels = scores.labels[:, 0]
    for metric, truth in (("auroc", roc_auc_score), ("brier", brier_score_loss)):
        found = compare(scores, metric, policy=POLICY)
        assert found.champion == pytest.approx(truth(labels, scores.champion[:, 0]))
        assert found.challenger == pytest.approx(truth(labels, scores.challenger[:, 0]))
        assert found.difference == pytest.approx(found.challenger - found.champion)
        assert found.low < found.difference < found.high
    sensitivity = compare(scores, "sensitivity", policy=POLICY)
    assert sensitivity.champion == pytest.approx((scores.champion[labels == 1, 0] >= 0.5).mean())
    assert (sensitivity.patients, sensitivity.patients_with, sensitivity.patients_without) == (60, 24, 36)


def test_both_models_are_measured_on_the_same_resampled_patients(scores):
    """Each resample, written out as rows, gives scikit-learn's figure for both models."""
    counts = draw_counts(scores, POLICY)
    assert (counts.sum(axis=1) == 60).all()
    paired = measure_both(scores, "auroc", np.ones(180, dtype=bool), counts)
    index = np.unique(scores.patients, return_inverse=True)[1]
    for resample in (0, 7, 399):
        rows = np.repeat(np.arange(180), counts[resample][index].astype(int))
        labels = scores.labels[rows, 0]
        assert paired.champion.replicates[resample] == pytest.approx(roc_auc_score(labels, scores.champion[rows, 0]))
        assert paired.challenger.replicates[resample] == pytest.approx(
            roc_auc_score(labels, scores.challenger[rows, 0])
        )


def test_the_interval_is_that_of_two_figures_that_vary_together(scores):
    """``bound_change`` is held to its coverage where models differ in test_paired."""
    paired = measure_both(scores, "auroc", np.ones(180, dtype=bool), draw_counts(scores, POLICY))
    low, high = bound_change(paired.champion, paired.challenger, POLICY.level)
    found = compare(scores, "auroc", policy=POLICY)
    assert (found.low, found.high) == (low, high)
    assert low < found.difference < high


def test_models_that_agree_differ_by_exactly_nothing(scores):
    same = replace(scores, challenger=scores.champion)
    for metric in ("auroc", "brier", "sensitivity"):
        found = compare(same, metric, policy=POLICY)
        assert (found.difference, found.low, found.high) == (
            0,
            pytest.approx(0, abs=1e-12),
            pytest.approx(0, abs=1e-12),
        )


def test_perfect_on_few_patients_is_not_certain():
    perfect = np.linspace(0, 1, 40).round()[:, None]
    scores = draw(np.random.default_rng(1), patients=40)
    scores = replace(scores, labels=perfect, champion=perfect, challenger=perfect)
    found = compare(scores, "auroc", policy=POLICY)
    assert found.difference == 0
    assert found.low < -0.05
    assert found.high > 0.05


def test_copies_of_a_patients_studies_add_nothing(scores):
    copied = replace(
        scores,
        **{name: np.repeat(getattr(scores, name), 4, axis=0) for name in ("labels", "champion", "challenger")},
        patients=scores.patients.repeat(4),
    )
    once, four_times = (compare(one, "auroc", policy=POLICY) for one in (scores, copied))
    assert (four_times.low, four_times.high) == (pytest.approx(once.low), pytest.approx(once.high))
    as_if_new = replace(copied, patients=np.arange(len(copied.labels)).astype(str))
    wrong = compare(as_if_new, "auroc", policy=POLICY)
    assert wrong.high - wrong.low < 0.7 * (once.high - once.low)


def test_order_of_studies_does_not_matter_and_the_same_look_is_the_same(scores):
    shuffled = np.random.default_rng(2).permutation(180)
    other = replace(
        scores,
        **{name: getattr(scores, name)[shuffled] for name in ("labels", "champion", "challenger", "patients")},
    )
    first, second = (compare(one, "auroc", policy=POLICY) for one in (scores, other))
    assert first == compare(scores, "auroc", policy=POLICY)
    assert second.low == pytest.approx(first.low)
    assert compare(scores, "auroc", policy=POLICY.model_copy(update={"seed": 1})).low != first.low


def test_pairing_pays(scores):
    """Two models that share most of their noise are told apart by fewer patients than two that share none."""
    generator = np.random.default_rng(4)
    widths = []
    for shared in (0.95, 0.0):
        found = compare(draw(generator, patients=200, shared=shared), "auroc", policy=POLICY)
        widths.append(found.high - found.low)
    assert widths[0] < 0.5 * widths[1]


@pytest.mark.parametrize(("patients", "studies"), [(19, 3), (24, 3)])
def test_too_few_patients_give_no_figure_but_the_n(patients, studies):
    found = compare(draw(np.random.default_rng(1), patients=patients, studies=studies), "auroc", policy=POLICY)
    if patients == 19:
        assert found.difference is None
        assert found.reason.startswith("19 patients, 8 with and 11 without")
    else:
        assert (found.reason, found.patients_with) == ("", 10)


def test_several_findings_are_averaged_and_the_scarcest_counts():
    generator = np.random.default_rng(5)
    parts = [draw(generator, patients=60, champion=0.8), draw(generator, patients=60, champion=0.95)]
    joined = replace(
        parts[0],
        **{name: np.hstack([getattr(p, name) for p in parts]) for name in ("labels", "champion", "challenger")},
        findings=("oedema", "mass"),
        task=Task.MULTI_LABEL,
    )
    mean = compare(joined, "auroc", policy=POLICY)
    each = [compare(joined, "auroc", policy=POLICY, finding=finding) for finding in joined.columns]
    assert mean.difference == pytest.approx(np.mean([one.difference for one in each]))
    both = measure_both(joined, "auroc", np.ones(60, dtype=bool), draw_counts(joined, POLICY))
    assert both.champion.spread == pytest.approx(both.champion.replicates.std(ddof=1))
    assert each[0] == replace(compare(parts[0], "auroc", policy=POLICY), finding="oedema")
    rare = replace(joined, labels=joined.labels * np.array([1, 0]) + np.eye(60, 2, -2) * np.array([0, 1]))
    assert "1 with and 36 without" in compare(rare, "auroc", policy=POLICY).reason


def test_multi_class_says_the_most_probable_class():
    generator = np.random.default_rng(6)
    truth = np.arange(90) % 3
    scores = generator.dirichlet((1, 1, 1), 90) * 0.4 + 0.6 * np.eye(3)[(truth + (np.arange(90) % 5 == 0)) % 3]
    held_out = replace(
        draw(generator, patients=90),
        labels=np.eye(3)[truth],
        champion=scores,
        challenger=scores,
        findings=("a", "b", "c"),
        task=Task.MULTI_CLASS,
    )
    found = compare(held_out, "sensitivity", policy=POLICY, finding="a")
    assert found.champion == pytest.approx((scores.argmax(axis=1) == 0)[truth == 0].mean())


@pytest.mark.parametrize(
    "broken",
    [
        {"kind": "middle-aged"},
        {"labels": np.full((60, 1), np.nan)},
        {"labels": np.zeros(60)},
        {"champion": np.full((60, 1), 1.5)},
        {"challenger": np.full((60, 1), np.nan)},
        {"challenger": np.zeros((60, 2))},
        {"patients": np.array(["p"])},
        {"subgroups": {"sex": np.array(["F"])}},
        {"findings": ("a", "b")},
    ],
)
def test_broken_scores_are_refused(broken):
    with pytest.raises(ValueError, match=r"cohort is one|must|need as many"):
        replace(draw(np.random.default_rng(1)), **broken)


def test_only_metrics_where_more_is_better_decide():
    check_metric("auroc")
    with pytest.raises(ValueError, match=r"auroc, .* got 'brier'"):
        check_metric("brier")


@given(st.integers(0, 2**32 - 1))
def test_difference_stays_inside_what_is_possible(seed):
    found = compare(draw(np.random.default_rng(seed), patients=30), "auroc", policy=GatePolicy(resamples=100))
    assert -1 <= found.low <= found.difference <= found.high <= 1


def false_passes(trials: int, **world: float) -> int:
    """Count how often a challenger whose true loss is the whole margin passes for non-inferior."""
    generator, policy = np.random.default_rng(17), GatePolicy(resamples=200, margin=0.02)
    found = (compare(draw(generator, **world), "auroc", policy=policy) for _ in range(trials))
    return sum(one.low > -policy.margin for one in found)


@pytest.mark.parametrize("champion", [0.85, 0.97])
def test_non_inferiority_errs_at_the_margin_as_rarely_as_promised(champion):
    world = {"patients": 60, "studies": 3, "champion": champion, "challenger": champion - 0.02}
    assert binomtest(false_passes(200, **world), 200, 0.025, alternative="greater").pvalue > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("shared", [0.8, 0.97])
@pytest.mark.parametrize(
    ("patients", "studies", "champion"),
    [(40, 1, 0.85), (100, 4, 0.85), (40, 1, 0.97), (100, 2, 0.97), (300, 1, 0.97), (100, 1, 0.995)],
)
def test_non_inferiority_errs_at_the_margin_as_rarely_as_promised_over_2000_trials(patients, studies, champion, shared):
    world = {"patients": patients, "studies": studies, "champion": champion, "challenger": champion - 0.02}
    passes = false_passes(2000, shared=shared, **world)
    # 2.5 % nominal; 3.2 % is the requirement's upper end (2.5 ± 0.7 at 2,000 trials)
    assert binomtest(passes, 2000, 0.032, alternative="greater").pvalue > 0.01


@pytest.mark.parametrize(("champion", "shared"), [(0.9, 0.97), (0.97, 0.9)])
def test_an_equal_challenger_passes_when_there_are_patients_enough(champion, shared):
    passes = false_passes(60, patients=400, champion=champion, challenger=champion, shared=shared)
    assert binomtest(passes, 60, 0.8, alternative="less").pvalue > 0.01


def test_superiority_is_not_claimed_of_equals_but_found_of_the_better():
    generator, policy = np.random.default_rng(3), GatePolicy(resamples=200)

    def claims(gain: float) -> int:
        drawn = (draw(generator, patients=100, champion=0.8, challenger=0.8 + gain) for _ in range(120))
        return sum(compare(one, "auroc", policy=policy).low > 0 for one in drawn)

    assert binomtest(claims(0.0), 120, 0.025, alternative="greater").pvalue > 0.01
    assert claims(0.12) > 100
