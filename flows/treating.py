"""Plan, adapt, gate: from drifted windows to a decision that a person can sign."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from continual.adapters import SUFFIX
from continual.adapting import Experience, adapt
from continual.kept import KeptAndLost
from continual.planning import plan_adaptation
from continual.plans import AdaptationPlan, AdaptationRun, RunState, Treatment
from continual.retention import StageScores, measure_kept
from flows.ward import (
    StepRefused,
    Ward,
    adapter_of,
    load_role,
    score_with,
    shown_reports,
    tokens_of,
    version_in,
    windows_of,
)
from monitor.cohorts import Cohort, Window
from registry.decisions import GateDecision
from registry.entries import ChampionRecord
from registry.gate import HeldOutScores, decide
from registry.held_out import HeldOutCohort, PatientRole, check_disjoint, lock_cohort, verify_lock
from registry.promotion import lineage


def propose(ward: Ward, model: str, *, by: str, at: datetime) -> AdaptationPlan | None:
    """Turn the reports since the last change of champion into a plan, and keep it; None: nothing to do.

    Who proposed the same first stays its proposer: nothing is trained, or offered for signature, twice.
    """
    champion = ward.records.champion(model)
    if champion is None:
        raise StepRefused(
            f"{model} has no champion yet; install the live adapter with `wardround promote --first FILE --by NAME`"
        )
    # a plan is read by many: what it rests on and quotes may leave, and no figure of a few patients decides
    reports = [r for r in shown_reports(ward, model) if version_in(ward, model, r.window) == champion.version]
    drifted = [report.window for report in reports]
    labelled = int(load_role(ward, model, drifted, PatientRole.LEARNING).labelled.sum()) if drifted else 0
    plan = plan_adaptation(
        reports,
        model=model,
        champion_version=champion.version,
        policy=ward.settings.adaptation,
        labelled=labelled,
        proposed_by=by,
    )
    if plan is None:
        return None
    known = next(
        (other for other in ward.records.plans(model) if replace(other, proposed_by=by).plan_id == plan.plan_id), plan
    )
    ward.records.save_plan(known, at)
    return known


def treat(ward: Ward, plan: AdaptationPlan, strategy: str, *, at: datetime) -> AdaptationRun:
    """Train the champion's adapter further with one strategy on the plan's windows, and keep the run.

    A run that finished stands and is not trained again, unless its adapter's file was lost.
    """
    if plan.treatment is not Treatment.UPDATE_ADAPTER:
        raise StepRefused(f"{plan.plan_id} says “{plan.treatment}”: there is nothing to train")
    champion = ward.records.champion(plan.model)
    if champion is None or champion.version != plan.champion_version:
        raise StepRefused(f"{plan.plan_id} was made for version {plan.champion_version}, which is not live; plan again")
    if (known := _finished_run(ward, plan, strategy)) is not None:
        return known
    stages = stages_of(ward, plan)
    _, run = adapt(
        start=adapter_of(ward, plan.model, champion.adapter_sha256),
        stream=[_experience(ward, plan.model, windows, PatientRole.LEARNING) for windows in stages],
        evaluation=[_experience(ward, plan.model, windows, PatientRole.REFERENCE) for windows in stages],
        learned=len(stages) - 1,
        strategy=strategy,
        policy=ward.settings.adaptation,
        plan_id=plan.plan_id,
        model=plan.model,
        directory=ward.adapters,
        progress=ward.progress,
    )
    if run.state is RunState.FINISHED:
        run = replace(run, kept=measure_against_champion(ward, plan, run.adapter_sha256, champion=champion))
    ward.records.save_run(run, at)
    return run


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
        cohort = _labelled_with_images(ward, plan.model, windows, PatientRole.REFERENCE)
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
    moves = ward.records.champion_history(plan.model)
    return [*(windows_of(ward, plan.model, move.version) for move in lineage(moves)), plan.windows]


def name_of(windows: Sequence[Window]) -> str:
    """Name a stage by its span of days: 2026-01-05/2026-03-30."""
    return Window(start=windows[0].start, end=windows[-1].end).key


def _finished_run(ward: Ward, plan: AdaptationPlan, strategy: str) -> AdaptationRun | None:
    identity = (plan.plan_id, strategy, ward.settings.adaptation.recipe)
    for run in ward.records.runs(plan.model):
        if (run.plan_id, run.strategy, run.recipe) == identity and run.state is RunState.FINISHED:
            return run if (ward.adapters / f"{run.adapter_sha256}{SUFFIX}").is_file() else None
    return None


def _experience(ward: Ward, model: str, windows: Sequence[Window], role: PatientRole) -> Experience:
    cohort = _labelled_with_images(ward, model, windows, role)
    return Experience(
        name=name_of(windows),
        tokens=tokens_of(ward, model, cohort),
        labels=cohort.labels,
        patient_key=cohort.patient_key,
    )


def _labelled_with_images(ward: Ward, model: str, windows: Sequence[Window], role: PatientRole) -> Cohort:
    cohort = load_role(ward, model, windows, role)
    return cohort.select(cohort.labelled if cohort.images is None else cohort.labelled & (cohort.images != ""))


def _subgroups(cohort: Cohort, attributes: tuple[str, ...] | None) -> dict[str, NDArray[np.str_]]:
    """Give the columns whose gaps the gate judges; a numeric attribute is cut at its median."""
    columns: dict[str, NDArray[np.str_]] = {}
    for name in tuple(cohort.attributes) if attributes is None else attributes:
        if name not in cohort.attributes:
            continue
        column = cohort.attributes[name]
        if column.dtype.kind == "f":
            cut = float(np.nanmedian(column)) if np.isfinite(column).any() else 0.0
            column = np.where(np.isnan(column), "missing", np.where(column <= cut, f"≤ {cut:g}", f"> {cut:g}"))
        columns[name] = column.astype(np.str_)
    return columns


def _look(
    ward: Ward, run: AdaptationRun, champion: ChampionRecord, stage: tuple[tuple[Window, ...], str], at: datetime
) -> HeldOutScores:
    windows, kind = stage
    cohort = _labelled_with_images(ward, run.model, windows, PatientRole.HELD_OUT)
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
    return HeldOutScores(
        name=lock.name,
        kind=kind,
        digest=lock.digest,
        labels=cohort.binary_labels(),
        champion=score_with(ward, run.model, cohort, champion.adapter_sha256).scores,
        challenger=score_with(ward, run.model, cohort, run.adapter_sha256).scores,
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
