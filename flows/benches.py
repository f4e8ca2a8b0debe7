"""Set out what the steps of the ladder are tried on: labelled studies as the champion's head sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

import numpy as np

from continual.adapters import Adapter, AdapterRefused
from continual.calibrating import Lesson, NotFitted
from continual.expectations import Bench, expect_ceiling, expect_from_prevalence, expect_steps
from continual.ladder import AtHand, is_outside
from continual.memory_store import Memory
from continual.plans import AdaptationPlan, Expectation, ExpectedHarm, RunState
from continual.policies import Treatment
from continual.treatments import head_of, look_through
from continual.weights import WeightsRefused
from flows.labelling import labels_to_learn_from, open_worklists
from flows.remembering import experience_of, name_of, recall
from flows.ward import Ward, adapter_of, learned_windows, load_role
from monitor.cohorts import Cohort, Window
from monitor.results import PrevalenceShift, WindowReport
from registry.decisions import GateDecision
from registry.entries import ChampionRecord
from registry.gate import is_unproven
from registry.held_out import PatientRole

LEAST_FIT = 0.05
"""P-value of the assumption behind an estimated prevalence below which the estimate is not used."""


def gather(ward: Ward, champion: ChampionRecord, drifted: Sequence[WindowReport], *, at: datetime) -> AtHand:
    """Measure what each step would leave, and list those that were refused for the same windows.

    Nothing is measured before drift has lasted as long as the policy asks for, nor where studies came without images.
    """
    windows, policy = tuple(report.window for report in drifted), ward.settings.adaptation
    if not windows:
        return AtHand(labelled=0)
    known = AtHand(
        labelled=labels_to_learn_from(ward, champion.model, windows),
        tried=tried_steps(ward, champion, windows),
        unproven=_has_unproven(ward, champion, windows),
        waiting=open_worklists(ward, champion.model, at=at),
    )
    if len(windows) < policy.drifted_windows:
        return known
    try:
        memory, told = remembered(ward, champion, at=at), told_prevalence(drifted[-1].prevalences)
        bench = bench_of(ward, champion, windows, memory, told=told)
    except (AdapterRefused, WeightsRefused, NotFitted):
        return known  # nobody here can answer anew: rules decide
    if bench is None:
        return known
    ward.progress("Trying the steps of the ladder", 0, 0)
    expected = expect_steps(bench)
    return replace(
        known,
        expectations=expected,
        ceiling=expect_ceiling(bench) if _needs_more(expected, ward) else (),
        shifted=_foresee_shift(bench, drifted[-1].prevalences),
    )


def bench_of(
    ward: Ward,
    champion: ChampionRecord,
    windows: Sequence[Window],
    memory: Memory,
    *,
    told: tuple[float, ...] | None = None,
) -> Bench | None:
    """Set out the champion, the new studies, what is remembered and the reference; None without images.

    ``told`` is a prevalence that was estimated without labels; it is used where labels are too few for their own.
    """
    model, policy = champion.model, ward.settings.adaptation
    stages = learned_windows(ward, model)
    reference = labelled_with_images(ward, model, stages[-1], PatientRole.REFERENCE)
    new = labelled_with_images(ward, model, windows, PatientRole.LEARNING)
    if not len(reference) or reference.images is None:
        return None
    adapter = adapter_of(ward, model, champion.adapter_sha256)
    learned = (_remembered_of(ward, model, stage, memory) for stage in stages)
    enough = len(new) >= policy.labels_for(Treatment.CORRECT_PREVALENCE)
    return Bench(
        new=_look(ward, model, adapter, new),
        learned=tuple(_look(ward, model, adapter, one) for one in learned if len(one)),
        reference=_look(ward, model, adapter, reference),
        head=head_of(adapter),
        outputs=adapter.outputs,
        policy=policy,
        told=None if enough else told,
    )


def remembered(ward: Ward, champion: ChampionRecord, *, at: datetime) -> Memory:
    """Give what the champion remembers of the stages that it learned; see ``flows.remembering.recall``."""
    model = champion.model

    def stages() -> list[tuple[str, Cohort]]:
        return [
            (name_of(one), labelled_with_images(ward, model, one, PatientRole.LEARNING))
            for one in learned_windows(ward, model)
        ]

    return recall(ward, champion, stages, at=at)


def _remembered_of(ward: Ward, model: str, stage: Sequence[Window], memory: Memory) -> Cohort:
    """Load the studies of a stage that the memory still holds: nothing else of the past is learned from."""
    cohort = labelled_with_images(ward, model, stage, PatientRole.LEARNING)
    kept = [item.study for item in memory.items if item.stage == name_of(stage)]
    return cohort.select(np.isin(cohort.study_uid, kept))


def labelled_with_images(ward: Ward, model: str, windows: Sequence[Window], role: PatientRole) -> Cohort:
    """Load the studies of one role of which every label is known and whose image is there."""
    cohort = load_role(ward, model, windows, role)
    return cohort.select(cohort.labelled if cohort.images is None else cohort.labelled & (cohort.images != ""))


def tried_steps(ward: Ward, champion: ChampionRecord, windows: Sequence[Window]) -> tuple[Treatment, ...]:
    """List the steps of which every adapter for these windows failed, or was refused by the gate or a person.

    What the settings asked for otherwise, another recipe or another gate, does not count.
    """
    found: list[Treatment] = []
    runs, recipe = ward.records.runs(champion.model), ward.settings.adaptation.recipe
    refused = {decision.run_id for decision in _decisions(ward, champion.model) if _is_refused(ward, decision)}
    for plan in _plans_for(ward, champion, windows):
        mine = [run for run in runs if run.plan_id == plan.plan_id and run.recipe == recipe]
        all_made = {run.strategy for run in mine} >= set(plan.strategies or ("",))
        if mine and all_made and all(run.state is RunState.FAILED or run.run_id in refused for run in mine):
            found.append(plan.treatment)
    return tuple(dict.fromkeys(found))


def _has_unproven(ward: Ward, champion: ChampionRecord, windows: Sequence[Window]) -> bool:
    """Tell whether something made for these windows was refused for want of held-out patients alone."""
    mine = {plan.plan_id for plan in _plans_for(ward, champion, windows)}
    return any(decision.plan_id in mine and is_unproven(decision) for decision in _decisions(ward, champion.model))


def _plans_for(ward: Ward, champion: ChampionRecord, windows: Sequence[Window]) -> list[AdaptationPlan]:
    """List the plans that were made for these windows of the live version."""
    wanted = (champion.version, tuple(windows))
    return [plan for plan in ward.records.plans(champion.model) if (plan.champion_version, plan.windows) == wanted]


def _decisions(ward: Ward, model: str) -> list[GateDecision]:
    """List what the gate of the settings in force has decided."""
    return [decision for decision in ward.records.decisions(model) if decision.policy == ward.settings.gate]


def _is_refused(ward: Ward, decision: GateDecision) -> bool:
    signatures = ward.records.signatures(decision.decision_id)
    return not decision.promote or any(not signature.approved for signature in signatures)


def _look(ward: Ward, model: str, adapter: Adapter, cohort: Cohort) -> Lesson:
    experience = experience_of(ward, model, "", cohort, adapter.card.reads)
    embeddings = np.empty((len(cohort), 0)) if cohort.embeddings is None else cohort.embeddings.astype(np.float64)
    return look_through(adapter, experience, embeddings)


def _needs_more(expected: Sequence[Expectation], ward: Ward) -> bool:
    """Tell whether no cheap step brings every loss inside, so that it matters what the backbone sees."""
    policy = ward.settings.adaptation
    return bool(expected) and all(
        any(is_outside(harm, policy) for harm in found.harms) or (found.gain_low or 0) <= 0 for found in expected
    )


def told_prevalence(prevalences: Sequence[PrevalenceShift]) -> tuple[float, ...] | None:
    """Give the estimated prevalences, None where one is refused or its assumption does not hold."""
    if not prevalences or any(one.estimate is None or (one.fits or 0.0) < LEAST_FIT for one in prevalences):
        return None
    return tuple(float(one.estimate or 0.0) for one in prevalences)


def _foresee_shift(bench: Bench, prevalences: Sequence[PrevalenceShift]) -> tuple[ExpectedHarm, ...]:
    if bench.told is None or bench.reference.one_of:
        return ()
    low, high = (np.asarray([getattr(one, end) or 0.0 for one in prevalences]) for end in ("low", "high"))
    return expect_from_prevalence(bench, low, high)
