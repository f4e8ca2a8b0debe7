"""Judge each step of the ladder: is it expected to bring harm inside the policy, and if not, why in one sentence. Pure.

A harm is outside the policy where it is larger than ``tolerated_loss`` and beyond chance. A step is enough where it
leaves none outside and is shown to mend what it is for. Where a step was measured the measurement decides; elsewhere
what it can mend at all, and the kind of drift.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from continual.label_uses import OpenWorklist, missing_labels, tell_missing
from continual.plans import Expectation, ExpectedHarm, RungVerdict
from continual.policies import AdaptationPolicy, Treatment
from monitor.results import DriftKind

OUTPUT_STEPS = (Treatment.RECALIBRATE, Treatment.CORRECT_PREVALENCE, Treatment.MOVE_THRESHOLD)
CAN_MEND = {
    Treatment.RECALIBRATE: ("calibration",),
    Treatment.CORRECT_PREVALENCE: ("calibration",),
    Treatment.MOVE_THRESHOLD: ("calibration", "sensitivity", "specificity", "accuracy"),
}
"""Figures that a step can change; a new head and an updated adapter can change all."""

LOOKS = (DriftKind.APPEARANCE, DriftKind.ACQUISITION)

UNPROVEN = (
    "what was made is within every bound as measured, but the gate could not prove it with so few held-out patients; "
    "have more of them read with `wardround labels request`"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AtHand:
    """What a plan is made with beside the reports.

    ``labelled`` counts the labelled studies of learning patients in the drifted windows. ``expectations`` are what was
    measured on them, watching longer first; ``ceiling`` what a free linear head on the embeddings leaves lost;
    ``shifted`` what a prevalence that moved costs, foreseen without labels. ``tried`` steps were refused for these
    windows since the champion's last move; ``unproven``: one of them for want of held-out patients alone. ``waiting``
    are worklists that have not come back.
    """

    labelled: int
    expectations: tuple[Expectation, ...] = ()
    ceiling: tuple[ExpectedHarm, ...] = ()
    shifted: tuple[ExpectedHarm, ...] = ()
    tried: tuple[Treatment, ...] = ()
    unproven: bool = False
    waiting: tuple[OpenWorklist, ...] = ()

    def expectation(self, treatment: Treatment) -> Expectation | None:
        """Look up what was measured of a step."""
        return next((found for found in self.expectations if found.treatment is treatment), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Climb:
    """The steps looked at, from the lowest to the one that is taken; ``lacking`` says why none can be taken now."""

    verdicts: tuple[RungVerdict, ...]
    taken: Treatment
    lacking: str = ""


def is_outside(harm: ExpectedHarm, policy: AdaptationPolicy) -> bool:
    """Tell whether a harm is larger than the policy bears, and beyond chance."""
    bound = policy.tolerated_loss.get(harm.metric)
    return bound is not None and harm.sure and harm.loss > bound


def climb(
    known: Sequence[ExpectedHarm], kinds: Sequence[DriftKind], at_hand: AtHand, policy: AdaptationPolicy
) -> Climb:
    """Go up the ladder to the lowest step that is enough.

    ``known`` are the harms outside the policy that the reports tell, ``kinds`` the kinds of drift. The first step,
    watching longer, is enough where neither they nor a measurement show a harm outside.
    """
    now = _harms_now(known, at_hand, policy)
    if not now:
        told = "no loss of performance is sure and larger than the policy bears, so that a change could only risk "
        verdict = RungVerdict(treatment=Treatment.WATCH_LONGER, enough=True, sentence=f"{told}what works")
        return Climb(verdicts=(verdict,), taken=Treatment.WATCH_LONGER)
    told = f"the drift persists and patients lose by it: {tell_worst(now, policy)}"
    verdicts = [RungVerdict(treatment=Treatment.WATCH_LONGER, enough=False, sentence=told, remaining=tuple(now))]
    for treatment in (*OUTPUT_STEPS, Treatment.REFIT_HEAD, Treatment.UPDATE_ADAPTER):
        verdicts.append(_judge(treatment, now, kinds, at_hand, policy))
        if verdicts[-1].enough:
            return _within_budget(verdicts, policy)
    needed = policy.labels_for(Treatment.UPDATE_ADAPTER)
    if at_hand.labelled < needed and Treatment.UPDATE_ADAPTER not in at_hand.tried:
        lacking = tell_missing(missing_labels(at_hand.labelled, needed, at_hand.waiting), policy.labels)
        return Climb(verdicts=tuple(verdicts), taken=Treatment.WATCH_LONGER, lacking=lacking)
    if at_hand.unproven:
        return Climb(verdicts=tuple(verdicts), taken=Treatment.WATCH_LONGER, lacking=UNPROVEN)
    told = "people look for a model or a backbone that sees the difference; nothing is trained"
    verdicts.append(RungVerdict(treatment=Treatment.NEW_BACKBONE, enough=True, sentence=told))
    return _within_budget(verdicts, policy)


def tell_harm(harm: ExpectedHarm, policy: AdaptationPolicy) -> str:
    """Say a harm with its interval and what is borne."""
    what = f"{harm.metric} of {harm.finding}" if harm.finding else harm.metric
    lost = f"{harm.loss:.3f} ({harm.low:.3f} to {harm.high:.3f})"
    bound = policy.tolerated_loss.get(harm.metric, 0.0)
    if harm.metric == "calibration":
        return f"Brier score of {lost} given away by miscalibration for {harm.finding}, {bound:g} is borne"
    return f"{what} lower by {lost}, {bound:g} is borne"


def tell_worst(harms: Sequence[ExpectedHarm], policy: AdaptationPolicy) -> str:
    """Say the harm that lies farthest outside."""
    worst = max(harms, key=lambda harm: harm.loss / policy.tolerated_loss.get(harm.metric, 1.0))
    return tell_harm(worst, policy)


def _harms_now(known: Sequence[ExpectedHarm], at_hand: AtHand, policy: AdaptationPolicy) -> list[ExpectedHarm]:
    """Give each harm outside the policy once: from the reports, else as measured, else as foreseen."""
    measured = at_hand.expectation(Treatment.WATCH_LONGER)
    found = {(harm.metric, harm.finding): harm for harm in known}
    for harm in (*(measured.harms if measured else at_hand.shifted),):
        if is_outside(harm, policy):
            found.setdefault((harm.metric, harm.finding), harm)
    return list(found.values())


def _judge(
    treatment: Treatment,
    now: Sequence[ExpectedHarm],
    kinds: Sequence[DriftKind],
    at_hand: AtHand,
    policy: AdaptationPolicy,
) -> RungVerdict:
    if treatment in at_hand.tried:
        return _no(treatment, "it was tried for these windows and refused")
    beyond = [harm for harm in now if harm.metric not in CAN_MEND.get(treatment, (harm.metric,))]
    if beyond:
        why = "who ranks above whom stays" if treatment is Treatment.MOVE_THRESHOLD else "every answer stays as it is"
        return _no(treatment, f"{why}, and with it the {tell_worst(beyond, policy)}", beyond)
    if treatment is Treatment.UPDATE_ADAPTER:
        return _judge_update(at_hand, policy)
    if treatment is Treatment.CORRECT_PREVALENCE and at_hand.shifted:
        return _yes(treatment, "the scores tell, without labels, how frequent the finding has become")
    needed = policy.labels_for(treatment)
    if at_hand.labelled < needed:
        return _no(treatment, _tell_short(at_hand.labelled, needed))
    measured = at_hand.expectation(treatment)
    return _judge_by_rule(treatment, kinds) if measured is None else _judge_measured(measured, at_hand, policy)


def _judge_measured(found: Expectation, at_hand: AtHand, policy: AdaptationPolicy) -> RungVerdict:
    if found.reason:
        return _no(found.treatment, f"it cannot be fitted: {found.reason}")
    left = [harm for harm in found.harms if is_outside(harm, policy)]
    if left:
        return _no(
            found.treatment,
            f"tried on {at_hand.labelled} labelled studies it leaves the {tell_worst(left, policy)}",
            found.harms,
        )
    gained = f"{found.gain or 0:+.3f} ({found.gain_low or 0:+.3f} to {found.gain_high or 0:+.3f})"
    what = f"in {found.mends}, tried on {at_hand.labelled} labelled studies"
    if (found.gain_low or 0) <= 0:
        return _no(found.treatment, f"it is not shown to help: {gained} {what}", found.harms)
    return _yes(found.treatment, f"it is expected to bring every loss inside the policy, {gained} {what}", found.harms)


def _judge_by_rule(treatment: Treatment, kinds: Sequence[DriftKind]) -> RungVerdict:
    """Judge a step that could not be measured by what changed."""
    if treatment is Treatment.CORRECT_PREVALENCE:
        return _no(treatment, "no change of how frequent a finding is was found beyond chance")
    looks = [kind.value for kind in LOOKS if kind in kinds]
    if treatment is Treatment.REFIT_HEAD and looks:
        changed = " and ".join(looks)
        return _no(treatment, f"{changed} changed, so that what enters the head has changed too")
    return _yes(treatment, "by what changed and what was lost it is expected to be enough; it could not be tried")


def _judge_update(at_hand: AtHand, policy: AdaptationPolicy) -> RungVerdict:
    step, needed = Treatment.UPDATE_ADAPTER, policy.labels_for(Treatment.UPDATE_ADAPTER)
    if at_hand.labelled < needed:
        return _no(step, f"{at_hand.labelled} labelled studies to learn from are too few, {needed} are asked for")
    bound = policy.tolerated_loss.get("auroc", 0.0) + policy.headroom
    blind = [harm for harm in at_hand.ceiling if harm.sure and harm.low > bound]
    if blind:
        told = f"a free linear head on the backbone's embeddings leaves the {tell_worst(blind, policy)}: training the "
        return _no(step, f"{told}last blocks is not expected to add more than {policy.headroom:g}", blind)
    return _yes(step, "no smaller step is expected to be enough")


def _within_budget(verdicts: Sequence[RungVerdict], policy: AdaptationPolicy) -> Climb:
    taken = verdicts[-1].treatment
    if taken.rung <= policy.highest.rung:
        return Climb(verdicts=tuple(verdicts), taken=taken)
    lacking = f"“{taken}” would be needed, and the policy goes no higher than “{policy.highest}”"
    return Climb(verdicts=tuple(verdicts), taken=Treatment.WATCH_LONGER, lacking=lacking)


def _tell_short(labelled: int, needed: int) -> str:
    return f"{labelled} labelled studies are too few, {needed} are needed"


def _yes(treatment: Treatment, sentence: str, remaining: Sequence[ExpectedHarm] = ()) -> RungVerdict:
    return RungVerdict(treatment=treatment, enough=True, sentence=sentence, remaining=tuple(remaining))


def _no(treatment: Treatment, sentence: str, remaining: Sequence[ExpectedHarm] = ()) -> RungVerdict:
    return RungVerdict(treatment=treatment, enough=False, sentence=sentence, remaining=tuple(remaining))
