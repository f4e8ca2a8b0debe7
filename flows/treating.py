"""Plan, adapt, gate: from drifted windows to a decision that a person can sign."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from continual.adapter_card import Reads
from continual.adapter_files import SUFFIX
from continual.adapters import Adapter
from continual.adapting import AdaptationInterrupted, Experience, adapt, not_begun
from continual.feature_store import FeaturesMissing
from continual.kept import KeptAndLost
from continual.limits import RunStopped
from continual.memory_store import Memory
from continual.planning import find_drifted, plan_adaptation
from continual.plans import AdaptationPlan, AdaptationRun, RunState
from continual.policies import Treatment
from continual.retention import StageScores, measure_kept
from continual.treatments import Order, take_step
from flows.benches import bench_of, gather, labelled_with_images, remembered, told_prevalence, tried_steps
from flows.remembering import experience_of, keep_memory, name_of
from flows.unfinished import checkpoint_of, forget_checkpoints
from flows.ward import (
    StepRefused,
    Ward,
    adapter_of,
    backbone_of,
    learned_windows,
    load_role,
    score_with,
    shown_reports,
    version_in,
)
from monitor.cohorts import Cohort, Window, cut_at_median
from registry.decisions import GateDecision
from registry.entries import ChampionRecord
from registry.gate import HeldOutScores, decide
from registry.held_out import HeldOutCohort, PatientRole, check_disjoint, lock_cohort, verify_lock


def propose(ward: Ward, model: str, *, by: str, at: datetime) -> AdaptationPlan | None:
    """Turn the reports since the last change of champion into a plan, and keep it; None: nothing to do.

    Who proposed the same first stays its proposer: nothing is made, or offered for signature, twice.
    """
    champion = ward.records.champion(model)
    if champion is None:
        raise StepRefused(
            f"{model} has no champion yet; install the live adapter with `wardround promote --first FILE --by NAME`"
        )
    # a plan is read by many: what it rests on and quotes may leave, and no figure of a few patients decides
    reports = [r for r in shown_reports(ward, model) if version_in(ward, model, r.window) == champion.version]
    plan = plan_adaptation(
        reports,
        model=model,
        champion_version=champion.version,
        policy=ward.settings.adaptation,
        at_hand=gather(ward, champion, find_drifted(reports), at=at),
        proposed_by=by,
    )
    if plan is None:
        return None
    known = next(
        (other for other in ward.records.plans(model) if replace(other, proposed_by=by).plan_id == plan.plan_id), plan
    )
    ward.records.save_plan(known, at)
    return known


def treat(ward: Ward, plan: AdaptationPlan, strategy: str = "", *, at: datetime) -> AdaptationRun:
    """Make an adapter from the champion's as the plan's treatment says, and keep the run.

    A ``strategy`` is for treatments that train one. A run that finished stands and is not made again, unless its
    adapter's file was lost. One that was cut short, by a crash, a limit or a person, goes on after its last whole
    epoch and ends in the same adapter.
    """
    if plan.treatment not in STEPS:
        raise StepRefused(f"{plan.plan_id} says “{plan.treatment}”: there is nothing to train")
    champion = ward.records.champion(plan.model)
    if champion is None or champion.version != plan.champion_version:
        raise StepRefused(f"{plan.plan_id} was made for version {plan.champion_version}, which is not live; plan again")
    if bool(strategy) != bool(plan.strategies):
        asked = f"takes one of the strategies {', '.join(plan.strategies)}" if plan.strategies else "takes no strategy"
        raise StepRefused(f"{plan.plan_id} says “{plan.treatment}”, which {asked}")
    if (known := _finished_run(ward, plan, strategy)) is not None:
        forget_checkpoints(ward, plan, strategy)
        return known
    try:
        run = _make(ward, plan, champion, strategy, at)
    except AdaptationInterrupted as stop:
        ward.records.save_run(stop.run, at)
        raise
    ward.records.save_run(run, at)
    if run.state is not RunState.STOPPED:
        forget_checkpoints(ward, plan, strategy)
    return run


@dataclass(frozen=True, slots=True, kw_only=True)
class _Past:
    """What a step starts from: the live adapter and what it remembers; and the studies that are new to it."""

    champion: ChampionRecord
    start: Adapter
    memory: Memory
    new: Cohort


def _make(ward: Ward, plan: AdaptationPlan, champion: ChampionRecord, strategy: str, at: datetime) -> AdaptationRun:
    start, stages = adapter_of(ward, plan.model, champion.adapter_sha256), stages_of(ward, plan)
    try:
        memory = remembered(ward, champion, at=at)
        new = labelled_with_images(ward, plan.model, plan.windows, PatientRole.LEARNING)
        past = _Past(champion=champion, start=start, memory=memory, new=new)
        made, run = STEPS[plan.treatment](ward, plan, past, strategy)
    except (FeaturesMissing, RunStopped) as error:
        policy, names = ward.settings.adaptation, tuple(map(name_of, stages))
        return not_begun(start, plan, strategy=strategy, policy=policy, stages=names, why=str(error))
    if run.state is RunState.FINISHED:
        run = keep_memory(ward, run, made, memory, new, at=at)
        run = replace(run, kept=measure_against_champion(ward, plan, run.adapter_sha256, champion=champion))
    return replace(run, backbone=backbone_of(ward, plan.model).card)


def _train(ward: Ward, plan: AdaptationPlan, past: _Past, strategy: str) -> tuple[Adapter, AdaptationRun]:
    """Update the adapter: train its blocks further with a strategy, from outputs without calibration."""
    start, names = past.start, [name_of(windows) for windows in stages_of(ward, plan)]
    new = experience_of(ward, plan.model, names[-1], past.new, start.card.reads)
    return adapt(
        start=replace(start, outputs=start.outputs.after_training()),
        stream=[*map(past.memory.experience, names[:-1]), new],
        evaluation=_evaluation(ward, plan, start.card.reads),
        learned=len(names) - 1,
        strategy=strategy,
        policy=ward.settings.adaptation,
        plan_id=plan.plan_id,
        model=plan.model,
        directory=ward.adapters,
        progress=ward.progress,
        checkpoint=checkpoint_of(ward, plan, strategy),
    )


def _take_step(ward: Ward, plan: AdaptationPlan, past: _Past, strategy: str) -> tuple[Adapter, AdaptationRun]:
    """Change the outputs or the head, with no block trained."""
    report = ward.records.report(plan.model, plan.windows[-1])
    told = told_prevalence(report.prevalences) if report is not None else None
    bench = bench_of(ward, past.champion, plan.windows, past.memory, told=told)
    if bench is None:
        raise StepRefused("these studies came without images, so nothing can be made; ingest an image column")
    order = Order(
        treatment=plan.treatment,
        plan_id=plan.plan_id,
        model=plan.model,
        start=past.start,
        stages=tuple(map(name_of, stages_of(ward, plan))),
        evaluation=_evaluation(ward, plan, past.start.card.reads),
        directory=ward.adapters,
    )
    return take_step(order, bench)


def _evaluation(ward: Ward, plan: AdaptationPlan, reads: Reads) -> list[Experience]:
    """Give studies of reference patients of every stage, on which what was kept and lost is measured."""
    return [
        experience_of(
            ward,
            plan.model,
            name_of(windows),
            labelled_with_images(ward, plan.model, windows, PatientRole.REFERENCE),
            reads,
        )
        for windows in stages_of(ward, plan)
    ]


STEPS: Mapping[Treatment, Callable[[Ward, AdaptationPlan, _Past, str], tuple[Adapter, AdaptationRun]]] = {
    Treatment.RECALIBRATE: _take_step,
    Treatment.CORRECT_PREVALENCE: _take_step,
    Treatment.MOVE_THRESHOLD: _take_step,
    Treatment.REFIT_HEAD: _take_step,
    Treatment.UPDATE_ADAPTER: _train,
}
"""What makes the adapter of each treatment; the others make none."""


def may_climb(ward: Ward, plan: AdaptationPlan) -> bool:
    """Tell whether all that was made for a plan was refused or failed, so that the next step is due."""
    champion = ward.records.champion(plan.model)
    return champion is not None and plan.treatment in tried_steps(ward, champion, plan.windows)


def measure_against_champion(
    ward: Ward, plan: AdaptationPlan, adapter_sha256: str, *, champion: ChampionRecord
) -> KeptAndLost:
    """Measure an adapter against the champion on the reference patients of every stage: what it kept and lost."""

    return measure_treatment(
        ward,
        plan,
        before=lambda cohort: score_with(ward, plan.model, cohort, champion.adapter_sha256),
        after=lambda cohort: score_with(ward, plan.model, cohort, adapter_sha256),
    )


def measure_treatment(
    ward: Ward, plan: AdaptationPlan, *, before: Callable[[Cohort], Cohort], after: Callable[[Cohort], Cohort]
) -> KeptAndLost:
    """Measure what any treatment kept and lost, from how the model answers a cohort before and after it.

    Held-out patients are never asked.
    """
    stages = []
    for windows in stages_of(ward, plan):
        cohort = labelled_with_images(ward, plan.model, windows, PatientRole.REFERENCE)
        stages.append(StageScores(name=name_of(windows), models=(before(cohort), after(cohort))))
    policy = ward.settings.drift
    return measure_kept(stages, policy=policy, generator=np.random.default_rng(policy.seed))


def judge(ward: Ward, run: AdaptationRun, *, at: datetime) -> GateDecision:
    """Put a run's adapter before the gate on every locked held-out cohort, and keep the decision."""
    if run.state is not RunState.FINISHED:
        raise StepRefused(f"{run.run_id} did not finish ({run.reason}); there is nothing to judge")
    plan, champion = ward.records.plan(run.plan_id), ward.records.champion(run.model)
    if champion is None or champion.version != plan.champion_version:
        raise StepRefused(f"{run.run_id} was trained from version {plan.champion_version}, which is not live any more")
    stages = stages_of(ward, plan)
    kinds = ["old"] * (len(stages) - 1) + ["new"]
    cohorts = [_look(ward, run, champion, stage, at) for stage in zip(stages, kinds, strict=True)]
    decision = decide(cohorts, run=run, champion_version=champion.version, policy=ward.settings.gate)
    ward.records.save_decision(decision, at)
    return decision


def choose(decisions: Sequence[GateDecision], runs: Sequence[AdaptationRun]) -> GateDecision | None:
    """Recommend, among what passed, the run that is best over all experiences; of equals, the one that forgets less."""
    by_id = {run.run_id: run for run in runs}
    passed = [decision for decision in decisions if decision.promote]

    def merit(decision: GateDecision) -> tuple[float, float]:
        run = by_id[decision.run_id]
        figures = [figure for figure in run.matrix[-1] if figure is not None]
        return (float(np.mean(figures)) if figures else 0.0, -(run.forgetting or 0.0))

    return max(passed, key=merit, default=None)


def stages_of(ward: Ward, plan: AdaptationPlan) -> list[tuple[Window, ...]]:
    """List the windows of everything learned so far, oldest first, and the plan's windows last."""
    return [*learned_windows(ward, plan.model), plan.windows]


def _finished_run(ward: Ward, plan: AdaptationPlan, strategy: str) -> AdaptationRun | None:
    identity = (plan.plan_id, strategy, ward.settings.adaptation.recipe)
    for run in ward.records.runs(plan.model):
        if (run.plan_id, run.strategy, run.recipe) == identity and run.state is RunState.FINISHED:
            return run if (ward.adapters / f"{run.adapter_sha256}{SUFFIX}").is_file() else None
    return None


def _subgroups(cohort: Cohort, attributes: tuple[str, ...] | None) -> dict[str, NDArray[np.str_]]:
    """Give the columns whose gaps the gate judges; a numeric attribute is cut at its median."""
    names = tuple(cohort.attributes) if attributes is None else attributes
    return {name: cut_at_median(cohort.attributes[name]) for name in names if name in cohort.attributes}


def _look(
    ward: Ward, run: AdaptationRun, champion: ChampionRecord, stage: tuple[tuple[Window, ...], str], at: datetime
) -> HeldOutScores:
    windows, kind = stage
    cohort = labelled_with_images(ward, run.model, windows, PatientRole.HELD_OUT)
    lock = _lock(ward, run.model, cohort, name_of(windows), kind, at)
    locked_studies = {json.loads(line)[0] for line in lock.manifest}
    cohort = cohort.select(np.isin(cohort.study_uid, list(locked_studies)))  # later arrivals are not part of the lock
    verify_lock(lock, cohort)
    learned = [
        load_role(ward, run.model, part, PatientRole.LEARNING)
        for part in stages_of(ward, ward.records.plan(run.plan_id))
    ]
    check_disjoint(cohort.patient_key, np.concatenate([part.patient_key for part in learned]))
    ward.records.look_at_held_out(run.model, lock.name, lock.digest, run.run_id, at)
    answered = [score_with(ward, run.model, cohort, sha256) for sha256 in (champion.adapter_sha256, run.adapter_sha256)]
    return HeldOutScores(
        name=lock.name,
        kind=kind,
        digest=lock.digest,
        labels=cohort.binary_labels(),
        champion=answered[0].scores,
        challenger=answered[1].scores,
        champion_thresholds=answered[0].thresholds,
        challenger_thresholds=answered[1].thresholds,
        same_network=run.treatment.keeps_network,
        patients=cohort.patient_key,
        subgroups=_subgroups(cohort, ward.settings.gate.subgroup_attributes),
        findings=cohort.findings,
        task=cohort.task,
    )


def _lock(ward: Ward, model: str, cohort: Cohort, name: str, kind: str, at: datetime) -> HeldOutCohort:
    locked = next((lock for lock in ward.records.held_out(model) if lock.name == name), None)
    if locked is None:
        locked = lock_cohort(cohort, name=name, kind=kind)
        ward.records.lock_held_out(model, locked, at)
    return locked
