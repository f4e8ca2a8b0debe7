"""May the challenger be offered for signature? Every rule, every reason; what cannot be judged is refused. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isfinite

from continual.plans import AdaptationRun, RunState
from continual.policies import Treatment
from registry.comparison import Comparison, HeldOutScores, check_metric, compare
from registry.decisions import GateCheck, GateDecision, GatePolicy
from registry.gaps import Gap, compare_gaps

__all__ = [
    "HeldOutScores",
    "decide",
    "judge_calibration",
    "judge_exchange",
    "judge_forgetting",
    "judge_gap",
    "judge_non_inferiority",
    "judge_superiority",
]

NON_INFERIORITY, SUPERIORITY, CALIBRATION = "non-inferiority", "superiority", "calibration"
GAP, FORGETTING, COHORTS, EXCHANGE = "subgroup gap", "forgetting", "cohorts", "exchange"

LOWER_IS_BETTER = ("brier",)
MAY_MEND = {
    Treatment.RECALIBRATE: ("brier",),
    Treatment.CORRECT_PREVALENCE: ("brier",),
    Treatment.MOVE_THRESHOLD: ("sensitivity", "specificity"),
}
"""The figures in which a treatment must be surely better on the new cohort; others: the policy's metric."""


def decide(
    cohorts: Sequence[HeldOutScores], *, run: AdaptationRun, champion_version: str, policy: GatePolicy
) -> GateDecision:
    """Judge a finished run's adapter against the champion on every locked cohort, old and new.

    It passes only if every check passes: no finding surely worse beyond the margin on any old cohort,
    surely better on each new one in what its treatment mends, calibrated as well as before on all, no subgroup left
    further behind, and no more forgotten than allowed. A threshold moved for one kind of error must not cost more of
    the other. Too few patients, or no cohort of a kind, refuses.

    Raises:
        ValueError: the run did not finish, two cohorts have one name, the metric cannot decide, or the run says that it
            mends what its treatment cannot.
    """
    check_metric(policy.metric)
    mended = _mended(run, policy)
    if run.state is not RunState.FINISHED or not run.adapter_sha256:
        raise ValueError(f"{run.run_id} has no adapter to judge: {run.reason or run.state}")
    if len({cohort.name for cohort in cohorts}) != len(cohorts):
        raise ValueError(f"cohorts need different names, got {[cohort.name for cohort in cohorts]}")
    checks = (
        *_check_kinds(cohorts),
        *_check_cohorts(cohorts, policy, mended),
        *_check_exchange(cohorts, policy, run),
        *_tell_unjudged_subgroups(policy),
        judge_forgetting(run, policy),
    )
    return GateDecision(
        model=run.model,
        plan_id=run.plan_id,
        run_id=run.run_id,
        champion_version=champion_version,
        adapter_sha256=run.adapter_sha256,
        cohort_digests=tuple((cohort.name, cohort.digest) for cohort in cohorts),
        promote=all(check.passed for check in checks),
        checks=checks,
        policy=policy,
    )


def is_unproven(decision: GateDecision) -> bool:
    """Tell whether a challenger was refused for want of patients alone: all that was measured lies within the bounds.

    Such a refusal says nothing against it; more held-out patients would decide.
    """
    failed = [check for check in decision.checks if not check.passed]
    return bool(failed) and all(_is_within(check) for check in failed)


def _is_within(check: GateCheck) -> bool:
    """Tell whether the estimate, if there is one, is on the right side of the bound."""
    if check.difference is None:
        return check.name != FORGETTING
    wanted = {
        NON_INFERIORITY: check.difference > -check.margin,
        SUPERIORITY: check.difference > check.margin,
        CALIBRATION: check.difference < check.margin,
    }
    return wanted.get(check.name, False)


def judge_non_inferiority(comparison: Comparison, policy: GatePolicy) -> GateCheck:
    """Pass if a loss of the margin or more is excluded (one-sided at (1 - level) / 2)."""
    passed = comparison.low is not None and comparison.low > -policy.margin
    outcome = (
        f"a loss of {policy.margin:g} is excluded"
        if passed
        else f"a loss of {policy.margin:g} cannot be excluded with {_crowd(comparison)}"
    )
    return _check(NON_INFERIORITY, comparison, policy.margin, passed, outcome)


def judge_superiority(comparison: Comparison, policy: GatePolicy) -> GateCheck:
    """Pass if the gain is surely above the minimum (one-sided at (1 - level) / 2); a Brier score gains by falling."""
    least = comparison.low
    if comparison.metric in LOWER_IS_BETTER:
        least = None if comparison.high is None else -comparison.high
    passed = least is not None and least > policy.minimum_gain
    wanted = f"a gain above {policy.minimum_gain:g}"
    outcome = f"{wanted} is shown" if passed else f"{wanted} is not shown with {_crowd(comparison)}"
    return _check(SUPERIORITY, comparison, policy.minimum_gain, passed, outcome)


def judge_calibration(comparison: Comparison, policy: GatePolicy) -> GateCheck:
    """Pass if a rise of the Brier score by the bound or more is excluded (one-sided at (1 - level) / 2)."""
    bound = policy.maximum_calibration_loss
    passed = comparison.high is not None and comparison.high < bound
    outcome = (
        f"a rise of {bound:g} is excluded"
        if passed
        else f"a rise of {bound:g} cannot be excluded with {_crowd(comparison)}"
    )
    return _check(CALIBRATION, comparison, bound, passed, outcome)


def judge_exchange(comparison: Comparison, policy: GatePolicy) -> GateCheck:
    """Pass if the mean of sensitivity and specificity does not fall by the margin, where a threshold was moved.

    The estimate decides, not its bound: more of one error for less of the other is what was asked for.
    """
    passed = comparison.difference is not None and comparison.difference > -policy.margin
    outcome = f"{'within' if passed else 'above'} the allowed loss of {policy.margin:g}"
    return _check(EXCHANGE, comparison, policy.margin, passed, outcome)


def judge_gap(gap: Gap, policy: GatePolicy) -> GateCheck:
    """Pass if the measured widening of a subgroup's gap stays within the bound.

    The estimate decides, not its bound: with the few patients of a subgroup no widening could ever
    be excluded. The interval is shown.
    """
    bound, where = policy.maximum_gap_increase, f"On {gap.cohort}"
    if gap.widening is None or gap.champion is None or gap.challenger is None or gap.low is None or gap.high is None:
        passed, reason = False, f"{where} the subgroups of {gap.attribute} cannot be judged: {gap.reason}."
    else:
        passed = gap.widening <= bound
        reason = (
            f"{where} the {gap.metric} gap of {gap.attribute} {gap.value} ({gap.patients} patients) goes from "
            f"{gap.champion:.3f} to {gap.challenger:.3f} ({gap.widening:+.3f}, {gap.low:+.3f} to {gap.high:+.3f}): "
            f"{'within' if passed else 'above'} the allowed widening of {bound:g}."
        )
    return GateCheck(
        name=GAP,
        cohort=gap.cohort,
        metric=f"{gap.metric} gap of {gap.attribute}" + (f" {gap.value}" if gap.value else ""),
        champion=gap.champion,
        challenger=gap.challenger,
        difference=gap.widening,
        low=gap.low,
        high=gap.high,
        margin=bound,
        passed=passed,
        reason=reason,
    )


def judge_forgetting(run: AdaptationRun, policy: GatePolicy) -> GateCheck:
    """Pass if the training measured no more forgetting than allowed; unmeasured forgetting is refused."""
    forgotten, bound = run.forgetting, policy.maximum_forgetting
    if forgotten is None or not isfinite(forgotten):
        forgotten, passed = None, False
        reason = "How much was forgotten was not measured, so it cannot be judged."
    else:
        passed = forgotten <= bound
        lost = f"{forgotten:.3f} AUROC was forgotten" if forgotten > 0 else "nothing was forgotten"
        change = "" if forgotten > 0 else f" ({0 - forgotten:+.3f} AUROC)"
        reason = (
            f"Over what was learned before, {lost}{change}: {'within' if passed else 'above'} the allowed {bound:g}."
        )
    return GateCheck(
        name=FORGETTING,
        cohort="",
        metric="auroc",
        champion=None,
        challenger=None,
        difference=forgotten,
        low=None,
        high=None,
        margin=bound,
        passed=passed,
        reason=reason,
    )


def _check_kinds(cohorts: Sequence[HeldOutScores]) -> Iterator[GateCheck]:
    """Refuse when one kind of cohort is missing: without it the question was not asked."""
    asked = {"old": "what was learned before is kept", "new": "the change helps where it should"}
    for kind, question in asked.items():
        if not any(cohort.kind == kind for cohort in cohorts):
            reason = f"There is no {kind} held-out cohort, so it cannot be judged whether {question}."
            yield _check_without_figures(COHORTS, passed=False, reason=reason)


def _tell_unjudged_subgroups(policy: GatePolicy) -> Iterator[GateCheck]:
    """Say in every decision that the policy lets no subgroup be judged: who signs must know it."""
    if policy.subgroup_attributes == ():
        reason = "No subgroup was judged: the gate's policy names no attribute (subgroup_attributes = [])."
        yield _check_without_figures(GAP, passed=True, reason=reason)


def _check_without_figures(name: str, *, passed: bool, reason: str) -> GateCheck:
    return GateCheck(
        name=name,
        cohort="",
        metric="",
        champion=None,
        challenger=None,
        difference=None,
        low=None,
        high=None,
        margin=0.0,
        passed=passed,
        reason=reason,
    )


def _mended(run: AdaptationRun, policy: GatePolicy) -> str:
    """Give the figure in which a run must be surely better."""
    may = MAY_MEND.get(run.treatment, ("",))
    if run.mends not in may:
        raise ValueError(f"{run.run_id}: “{run.treatment}” may mend {' or '.join(may)}, got {run.mends!r}")
    return run.mends or policy.metric


def _check_exchange(cohorts: Sequence[HeldOutScores], policy: GatePolicy, run: AdaptationRun) -> Iterator[GateCheck]:
    if run.treatment is Treatment.MOVE_THRESHOLD:
        for cohort in cohorts:  # the old ones too: who was served well before must not pay for it
            yield judge_exchange(compare(cohort, "balanced_accuracy", policy=policy), policy)


def _check_cohorts(cohorts: Sequence[HeldOutScores], policy: GatePolicy, mended: str) -> Iterator[GateCheck]:
    for cohort in cohorts:
        if cohort.kind == "old":
            for finding in cohort.columns:
                yield judge_non_inferiority(compare(cohort, policy.metric, policy=policy, finding=finding), policy)
        else:
            yield judge_superiority(compare(cohort, mended, policy=policy), policy)
        yield judge_calibration(compare(cohort, "brier", policy=policy), policy)
        judged = cohort.subgroups if policy.subgroup_attributes is None else policy.subgroup_attributes
        for attribute in judged:
            yield from (judge_gap(gap, policy) for gap in compare_gaps(cohort, attribute, policy))


def _check(name: str, comparison: Comparison, margin: float, passed: bool, outcome: str) -> GateCheck:
    where = f"On {comparison.cohort} the {comparison.metric} of {comparison.finding}"
    figures = (comparison.champion, comparison.challenger, comparison.difference, comparison.low, comparison.high)
    if comparison.reason:
        reason = f"{where} cannot be judged: {comparison.reason}."
    else:
        champion, challenger, difference, low, high = (float("nan") if f is None else f for f in figures)
        reason = (
            f"{where} goes from {champion:.3f} to {challenger:.3f} "
            f"({difference:+.3f}, {low:+.3f} to {high:+.3f}): {outcome}."
        )
    return GateCheck(
        name=name,
        cohort=comparison.cohort,
        metric=comparison.metric,
        champion=comparison.champion,
        challenger=comparison.challenger,
        difference=comparison.difference,
        low=comparison.low,
        high=comparison.high,
        margin=margin,
        passed=passed,
        reason=reason,
    )


def _crowd(comparison: Comparison) -> str:
    return f"{comparison.patients_with} patients with and {comparison.patients_without} without it"
