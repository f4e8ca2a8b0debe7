"""The gate refuses what is worse, what is unproved and what cannot be judged, and says why in sentences."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from continual.plans import AdaptationRun, RunState
from continual.policies import Treatment
from registry.comparison import Comparison, HeldOutScores
from registry.decisions import GateCheck, GateDecision, GatePolicy
from registry.gaps import Gap, compare_gaps, group_values
from registry.gate import (
    decide,
    is_unproven,
    judge_calibration,
    judge_exchange,
    judge_forgetting,
    judge_gap,
    judge_non_inferiority,
    judge_superiority,
)

POLICY = GatePolicy(resamples=200, margin=0.05)


def run_of(**changes) -> AdaptationRun:
    run = AdaptationRun(
        plan_id="plan-1",
        model="tumour",
        strategy="replay",
        adapter="lora",
        state=RunState.FINISHED,
        reason="",
        seed=0,
        recipe="abc123",
        backbone_sha256="b" * 64,
        adapter_sha256="a" * 64,
        trainable_parameters=100,
        experiences=("old", "new"),
        matrix=((0.9, 0.7), (0.89, 0.9)),
        forgetting=0.01,
        backward_transfer=-0.01,
        forward_transfer=0.2,
        losses=(0.5,),
        memory_studies=10,
        n_learned=100,
        seconds=1.0,
    )
    return replace(run, **changes)


def cohort_of(kind: str, *, seed: int = 1, patients: int = 200, champion: float = 1.5, gain: float = 0.0):
    """Draw a cohort where the challenger's separation is the champion's plus ``gain`` (1.5 is an AUROC of 0.86)."""
    generator = np.random.default_rng(seed)
    truth = (np.arange(patients) % 5 < 2).astype(float)
    noise = generator.standard_normal(patients)
    own = 0.1 * generator.standard_normal(patients)
    scores = [
        1 / (1 + np.exp(-(noise + side + d * (truth - 0.5)))) for side, d in ((0, champion), (own, champion + gain))
    ]
    return HeldOutScores(
        name=f"{kind} cohort",
        kind=kind,
        digest=kind * 10,
        labels=truth[:, None],
        champion=scores[0][:, None],
        challenger=scores[1][:, None],
        patients=np.array([f"p{i:04d}" for i in range(patients)]),
        findings=("tumour",),
    )


def judge(*cohorts: HeldOutScores, run: AdaptationRun | None = None, policy: GatePolicy = POLICY) -> GateDecision:
    cohorts = cohorts or (cohort_of("old"), cohort_of("new", gain=1.0))
    return decide(cohorts, run=run or run_of(), champion_version="1", policy=policy)


def failed(decision: GateDecision) -> list[GateCheck]:
    return [check for check in decision.checks if not check.passed]


def test_better_on_the_new_and_no_worse_on_the_old_passes_with_every_reason():
    decision = judge()
    assert decision.promote
    assert [check.name for check in decision.checks] == [
        "non-inferiority",
        "calibration",
        "superiority",
        "calibration",
        "forgetting",
    ]
    assert decision.cohort_digests == (("old cohort", "old" * 10), ("new cohort", "new" * 10))
    assert (decision.plan_id, decision.champion_version, decision.adapter_sha256) == ("plan-1", "1", "a" * 64)
    first = decision.checks[0]
    assert decision.reasons[0] == (
        f"On old cohort the auroc of tumour goes from {first.champion:.3f} to {first.challenger:.3f} "
        f"({first.difference:+.3f}, {first.low:+.3f} to {first.high:+.3f}): a loss of 0.05 is excluded."
    )
    assert decision.digest == judge().digest


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ({"gain": -1.0}, {"gain": 1.0}, {"non-inferiority", "calibration"}),
        ({}, {"gain": 0.0}, {"superiority"}),
        ({}, {"gain": -1.5}, {"superiority", "calibration"}),
        ({"gain": -2.0}, {"gain": 0.0}, {"non-inferiority", "calibration", "superiority"}),
    ],
)
def test_each_harm_is_refused_by_its_own_check(old, new, names):
    decision = judge(cohort_of("old", **old), cohort_of("new", **new))
    assert not decision.promote
    assert {check.name for check in failed(decision)} == names
    assert all(
        "cannot be excluded with 80 patients with" in c.reason or "not shown" in c.reason for c in failed(decision)
    )


def test_scores_that_rank_well_but_lie_about_probability_are_refused():
    old = cohort_of("old")
    decision = judge(replace(old, challenger=old.champion**6), cohort_of("new", gain=1.0))
    assert [(check.name, check.cohort) for check in failed(decision)] == [("calibration", "old cohort")]


def test_too_few_patients_refuse_with_the_n():
    decision = judge(cohort_of("old", patients=20), cohort_of("new", gain=1.0))
    assert "cannot be judged: 20 patients, 8 with and 12 without" in failed(decision)[0].reason
    assert failed(decision)[0].difference is None


def test_one_class_refuses():
    old = cohort_of("old")
    decision = judge(replace(old, labels=np.zeros_like(old.labels)), cohort_of("new", gain=1.0))
    assert "0 with and 200 without" in failed(decision)[0].reason


@pytest.mark.parametrize(("given", "missing"), [("old", "new"), ("new", "old")])
def test_a_missing_kind_of_cohort_refuses(given, missing):
    decision = judge(cohort_of(given, gain=1.0))
    assert not decision.promote
    assert f"There is no {missing} held-out cohort" in decision.reasons[0]


def test_every_old_cohort_counts():
    cohorts = [replace(cohort_of("old", seed=i, gain=-1.0 * (i == 2)), name=f"old {i}") for i in range(3)]
    decision = judge(*cohorts, cohort_of("new", gain=1.0))
    assert {check.cohort for check in failed(decision)} == {"old 2"}


def test_every_finding_counts():
    old, worse = cohort_of("old"), cohort_of("old", seed=2, gain=-1.0)
    both = replace(
        old,
        **{n: np.hstack([getattr(old, n), getattr(worse, n)]) for n in ("labels", "champion", "challenger")},
        findings=("oedema", "mass"),
    )
    refused = [check.reason for check in failed(judge(both, cohort_of("new", gain=1.0))) if check.metric == "auroc"]
    assert len(refused) == 1
    assert refused[0].startswith("On old cohort the auroc of mass")


def test_forgetting_is_bounded_and_must_be_measured():
    assert judge(run=run_of(forgetting=0.02)).promote
    for forgetting in (0.021, None, float("nan")):
        decision = judge(run=run_of(forgetting=forgetting))
        assert [check.name for check in failed(decision)] == ["forgetting"]
    assert "not measured" in decision.reasons[-1]
    assert decision.digest


def test_what_cannot_be_asked_is_an_error():
    with pytest.raises(ValueError, match="no adapter to judge: loss was NaN"):
        judge(run=run_of(state=RunState.FAILED, reason="loss was NaN"))
    with pytest.raises(ValueError, match="different names"):
        judge(cohort_of("old"), cohort_of("old"))
    with pytest.raises(ValueError, match="the gate decides by"):
        judge(policy=POLICY.model_copy(update={"metric": "brier"}))


def with_sexes(cohort: HeldOutScores, sexes: np.ndarray) -> HeldOutScores:
    return replace(cohort, subgroups={"sex": sexes})


def test_a_subgroup_left_behind_is_refused():
    """The challenger is better over all and no better than chance for one sex."""
    generator = np.random.default_rng(1)
    new = cohort_of("new", patients=400, champion=1.0, gain=3.0)
    sexes = np.where(np.arange(400) % 3 == 0, "F", "M")
    noise = generator.random((400, 1))
    harmed = with_sexes(replace(new, challenger=np.where(sexes[:, None] == "F", noise, new.challenger)), sexes)
    decision = judge(cohort_of("old"), harmed)
    gap = next(check for check in decision.checks if check.name == "subgroup gap")
    assert not gap.passed
    assert gap.difference == pytest.approx(gap.challenger - gap.champion)
    assert gap.difference > 0.05
    assert "gap of sex F (134 patients) goes from" in gap.reason
    fair = next(c for c in judge(cohort_of("old"), with_sexes(new, sexes)).checks if c.name == "subgroup gap")
    assert fair.passed


def test_gap_is_the_distance_between_the_groups_figures():
    sexes = np.where(np.arange(200) % 3 == 0, "F", "M")
    cohort = with_sexes(cohort_of("old", gain=0.3), sexes)
    (gap,) = compare_gaps(cohort, "sex", POLICY)
    for side, found in (("champion", gap.champion), ("challenger", gap.challenger)):
        areas = [roc_auc_score(cohort.labels[sexes == s, 0], getattr(cohort, side)[sexes == s, 0]) for s in "FM"]
        assert found == pytest.approx(abs(areas[0] - areas[1]))


def test_rare_values_are_judged_together_and_nobody_is_left_out():
    cohort = cohort_of("old")
    sites = np.array(["A"] * 80 + ["B"] * 70 + ["C"] * 15 + ["D"] * 15 + ["E"] * 20)
    groups = group_values(cohort, sites, POLICY)
    assert set(groups) == {"A", "B", "others (C, D, E)"}
    assert np.sum(list(groups.values()), axis=0).tolist() == [1] * 200
    few = np.array(["A"] * 120 + ["B"] * 75 + ["C"] * 5)
    assert {name: int(rows.sum()) for name, rows in group_values(cohort, few, POLICY).items()} == {
        "A": 120,
        "B with C": 80,
    }


def test_an_attribute_that_cannot_be_judged_refuses_without_a_small_count_and_one_value_asks_nothing():
    rare = with_sexes(cohort_of("old"), np.array(["F"] * 5 + ["M"] * 195))
    decision = judge(rare, cohort_of("new", gain=1.0))
    (check,) = failed(decision)
    assert check.reason == (
        "On old cohort the subgroups of sex cannot be judged: F has too few patients; "
        "needed are 20, and 10 with and without the finding."
    )
    assert judge(with_sexes(cohort_of("old"), np.full(200, "M")), cohort_of("new", gain=1.0)).promote


def test_the_policy_says_which_attributes_are_judged_and_misses_none_of_them():
    rare = replace(cohort_of("old"), subgroups={"sex": np.array(["F"] * 5 + ["M"] * 195), "site": np.full(200, "A")})
    new = replace(cohort_of("new", gain=1.0), subgroups={"site": np.full(200, "A")})
    assert not judge(rare, new).promote
    assert judge(rare, new, policy=POLICY.model_copy(update={"subgroup_attributes": ("site",)})).promote
    asked = judge(rare, new, policy=POLICY.model_copy(update={"subgroup_attributes": ("site", "age")}))
    assert "the subgroups of age cannot be judged: the cohort has no such attribute." in failed(asked)[0].reason


def test_a_policy_that_names_no_subgroup_says_so_in_the_decision():
    cohorts = [
        with_sexes(cohort_of(kind, gain=gain), np.array(["F", "M"] * 100))
        for kind, gain in (("old", 0.0), ("new", 1.0))
    ]
    decision = judge(*cohorts, policy=POLICY.model_copy(update={"subgroup_attributes": ()}))
    (told,) = [check for check in decision.checks if check.name == "subgroup gap"]
    assert decision.promote
    assert (told.passed, told.difference) == (True, None)
    assert "No subgroup was judged" in told.reason


figures = st.floats(-1, 1, allow_nan=False)
share = st.floats(0.001, 0.5)


def comparison_of(low: float, high: float) -> Comparison:
    return Comparison(
        cohort="c",
        metric="auroc",
        finding="f",
        champion=0.5,
        challenger=0.5,
        difference=(low + high) / 2,
        low=low,
        high=high,
        patients=100,
        patients_with=50,
        patients_without=50,
    )


@given(low=figures, high=figures, better=st.floats(0, 1), margin=share, slack=st.floats(0, 0.5))
def test_better_figures_and_wider_margins_never_turn_a_pass_into_a_refusal(low, high, better, margin, slack):
    strict = GatePolicy(
        margin=margin,
        minimum_gain=margin,
        maximum_calibration_loss=margin,
        maximum_gap_increase=margin,
        maximum_forgetting=margin,
    )
    loose = GatePolicy(
        margin=margin + slack,
        minimum_gain=max(margin - slack, 0),
        maximum_calibration_loss=margin + slack,
        maximum_gap_increase=margin + slack,
        maximum_forgetting=margin + slack,
    )

    def gap_of(widening: float) -> Gap:
        told = {"cohort": "c", "metric": "auroc", "attribute": "sex", "value": "F", "patients": 50}
        return Gap(**told, champion=0.1, challenger=0.1 + widening, widening=widening, low=low, high=high)

    for rule, worse, improved in (
        (judge_non_inferiority, comparison_of(low, high), comparison_of(low + better, high + better)),
        (judge_superiority, comparison_of(low, high), comparison_of(low + better, high + better)),
        (judge_calibration, comparison_of(low, high), comparison_of(low - better, high - better)),
        (judge_gap, gap_of(low), gap_of(low - better)),
        (judge_forgetting, run_of(forgetting=low), run_of(forgetting=low - better)),
    ):
        for policy in (strict, loose):
            assert rule(improved, policy).passed >= rule(worse, policy).passed
        for figure in (worse, improved):
            assert rule(figure, loose).passed >= rule(figure, strict).passed


@given(seed=st.integers(0, 10_000), gain=st.floats(-1, 2), slack=st.floats(0, 0.2), forgetting=st.floats(-0.1, 0.1))
def test_a_decision_is_monotone_in_the_policy_and_complete(seed, gain, slack, forgetting):
    sexes = np.where(np.arange(100) % 2 == 0, "F", "M")
    cohorts = (
        with_sexes(cohort_of("old", seed=seed, patients=100, gain=gain / 4), sexes),
        cohort_of("new", seed=seed + 1, patients=100, gain=gain),
    )
    base = GatePolicy(resamples=100)
    widened = {
        name: getattr(base, name) + slack
        for name in ("margin", "maximum_forgetting", "maximum_calibration_loss", "maximum_gap_increase")
    }
    run = run_of(forgetting=forgetting)
    strict = judge(*cohorts, run=run, policy=base)
    loose = judge(*cohorts, run=run, policy=base.model_copy(update=widened))
    assert loose.promote >= strict.promote
    assert [check.name for check in loose.checks] == [check.name for check in strict.checks]
    for before, after in zip(strict.checks, loose.checks, strict=True):
        assert after.passed >= before.passed
        assert (after.low, after.high) == (before.low, before.high)
    assert strict.promote == all(check.passed for check in strict.checks)
    assert all(reason.endswith(".") and "nan" not in reason for reason in strict.reasons)


@given(keep=st.integers(0, 60))
def test_without_patients_enough_the_gate_refuses_and_says_how_many_there_were(keep):
    cohort = cohort_of("old", patients=60)
    columns = {name: getattr(cohort, name)[:keep] for name in ("labels", "champion", "challenger", "patients")}
    decision = judge(replace(cohort, **columns), cohort_of("new", gain=1.0))
    with_it = int(columns["labels"].sum())
    enough = keep >= 20 and min(with_it, keep - with_it) >= 10
    shortage = f"cannot be judged: {keep} patients, {with_it} with and {keep - with_it} without"
    assert (shortage in decision.reasons[0]) is not enough
    assert enough or not decision.promote


# ---- what a treatment mends


def test_a_treatment_is_asked_for_a_gain_in_what_it_mends_and_in_nothing_else():
    cohorts = cohort_of("old", patients=100), cohort_of("new", seed=1, patients=100, gain=1.0)
    sure = tuple(replace(c, challenger=np.clip(c.champion * 0.9, 0, 1), same_network=True) for c in cohorts)
    decision = judge(*sure, run=run_of(treatment=Treatment.RECALIBRATE, mends="brier", forgetting=0.0))
    by_name = {check.name: check for check in decision.checks}
    assert by_name["superiority"].metric == "brier"
    kept = by_name["non-inferiority"]
    assert (kept.difference, kept.low, kept.high, kept.passed) == (0, 0, 0, True)
    moved = judge(*sure, run=run_of(treatment=Treatment.MOVE_THRESHOLD, mends="sensitivity", forgetting=0.0))
    exchanged = [check.metric for check in moved.checks if check.name == "exchange"]
    assert exchanged == ["balanced_accuracy"] * 2  # on the old cohort and the new one
    for treatment, mends in ((Treatment.RECALIBRATE, "auroc"), (Treatment.UPDATE_ADAPTER, "brier")):
        with pytest.raises(ValueError, match="may mend"):
            judge(*sure, run=run_of(treatment=treatment, mends=mends))


@given(low=st.floats(-0.3, 0.3), width=st.floats(0, 0.2), better=st.floats(0, 0.2))
def test_a_brier_score_gains_by_falling_and_the_rule_is_monotone(low, width, better):
    def brier(shift: float) -> Comparison:
        return replace(comparison_of(low - shift, low + width - shift), metric="brier")

    worse, improved = (judge_superiority(brier(shift), POLICY) for shift in (0.0, better))
    assert worse.passed == (low + width < 0)
    assert improved.passed >= worse.passed
    exchanged = [judge_exchange(comparison_of(low + shift, low + shift), POLICY) for shift in (0.0, better)]
    assert exchanged[1].passed >= exchanged[0].passed


def test_a_refusal_for_want_of_patients_is_told_from_one_for_harm():
    """The same challenger is refused with few patients and passes with many: that refusal says nothing against it."""
    few = judge(cohort_of("old", patients=30, gain=0.05), cohort_of("new", seed=2, patients=30, gain=0.2))
    assert not few.promote
    assert is_unproven(few)
    worse = judge(cohort_of("old", gain=-0.9), cohort_of("new", seed=2, gain=0.9))
    assert not worse.promote
    assert not is_unproven(worse)
    passed = judge(cohort_of("old", gain=0.1), cohort_of("new", seed=2, gain=0.9))
    assert passed.promote
    assert not is_unproven(passed)
    assert not is_unproven(judge(cohort_of("old"), cohort_of("new", seed=2, gain=0.9), run=run_of(forgetting=0.5)))
