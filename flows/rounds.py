"""One round of a model, as plain functions or as a Prefect flow of the same functions."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from prefect import flow, task
from prefect import serve as prefect_serve
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.deployments.runner import RunnerDeployment

from continual.plans import AdaptationPlan, AdaptationRun, RunState, Treatment
from flows.ingesting import ingest_export
from flows.treating import judge, propose, treat
from flows.ward import Ward, open_ward
from flows.watching import watch, windows_to_watch
from monitor.cohorts import Window
from monitor.results import WindowReport
from registry.decisions import GateDecision
from registry.entries import BatchSummary

T = TypeVar("T")
log = logging.getLogger("wardround.rounds")
AUTOMATIC_PROPOSER = "wardround"


class Step(Protocol):
    """How one named piece of work is done: directly, or as a Prefect task."""

    def __call__(self, name: str, work: Callable[[], T]) -> T:
        """Do the work and return its result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundOrder:
    """What a round shall do: ingest these exports, watch these windows, propose in this name."""

    model: str
    exports: tuple[Path, ...] = ()
    windows: tuple[Window, ...] = ()
    proposer: str = AUTOMATIC_PROPOSER


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundOutcome:
    """What one round did; an empty part was not due."""

    batches: tuple[BatchSummary, ...] = ()
    reports: tuple[WindowReport, ...] = ()
    plan: AdaptationPlan | None = None
    runs: tuple[AdaptationRun, ...] = ()
    decisions: tuple[GateDecision, ...] = ()


def do_directly(name: str, work: Callable[[], T]) -> T:
    """Do a step without Prefect."""
    return work()


def do_as_task(name: str, work: Callable[[], T]) -> T:
    """Do a step as a Prefect task, so that its state and time stand on Prefect's own pages.

    Results are never persisted and never cached: our records are the truth, and Prefect would pickle.
    """
    run = task(name=name, persist_result=False, cache_policy=NO_CACHE)(work)
    return run()


def run_round(ward: Ward, order: RoundOrder, *, at: datetime, step: Step = do_directly) -> RoundOutcome:
    """Ingest, watch, and where the policy says so plan, adapt and gate. Never promote: a person signs that."""
    model = order.model
    batches = tuple(
        step(f"ingest {path.name}", partial(ingest_export, path, model=model, ward=ward, at=at))
        for path in order.exports
    )
    reports = tuple(step(f"watch {window.key}", partial(watch, ward, model, window, at=at)) for window in order.windows)
    plan = None
    if reports and ward.records.champion(model) is not None:
        plan = step("plan", partial(propose, ward, model, by=order.proposer, at=at))
    if plan is None or plan.treatment is not Treatment.UPDATE_ADAPTER:
        return RoundOutcome(batches=batches, reports=reports, plan=plan)
    runs = tuple(
        step(f"adapt with {strategy}", partial(treat, ward, plan, strategy, at=at)) for strategy in plan.strategies
    )
    finished = [run for run in runs if run.state is RunState.FINISHED]
    decisions = tuple(step(f"gate {run.strategy}", partial(judge, ward, run, at=at)) for run in finished)
    return RoundOutcome(batches=batches, reports=reports, plan=plan, runs=runs, decisions=decisions)


@flow(name="wardround-round", flow_run_name="{model}", persist_result=False, validate_parameters=False)
def round_flow(
    directory: str,
    model: str,
    exports: list[str] | None = None,
    windows: list[str] | None = None,
    at: str | None = None,
    proposer: str = AUTOMATIC_PROPOSER,
) -> dict[str, object]:
    """Run one round; without ``windows`` every complete one not yet watched, without ``exports`` the inbox."""
    moment = datetime.fromisoformat(at) if at else datetime.now(UTC)
    ward = open_ward(Path(directory))
    order = RoundOrder(
        model=model,
        exports=tuple(Path(p) for p in exports) if exports is not None else inbox_of(ward, model),
        windows=tuple(map(Window.from_key, windows)) if windows is not None else (),
        proposer=proposer,
    )
    outcome = run_round(ward, order, at=moment, step=do_as_task)
    if windows is None:
        due = RoundOrder(model=model, windows=tuple(windows_to_watch(ward, model, until=moment)), proposer=proposer)
        outcome = run_round(ward, due, at=moment, step=do_as_task)
    create_markdown_artifact(_tell(outcome), key="round", description=f"Round of {model}")
    return {"model": model, "verdicts": {r.window.key: r.verdict.value for r in outcome.reports}}


def run_as_flow(directory: Path, order: RoundOrder, *, at: datetime) -> None:
    """Run one round as a Prefect flow run; a temporary server starts by itself where none is configured."""
    round_flow(
        str(directory),
        order.model,
        exports=[str(path) for path in order.exports],
        windows=[window.key for window in order.windows],
        at=at.isoformat(),
        proposer=order.proposer,
    )


def inbox_of(ward: Ward, model: str) -> tuple[Path, ...]:
    """List the exports that wait in DIRECTORY/inbox/MODEL, by name; half-written ``.partial`` files are left alone."""
    folder = ward.settings.directory / "inbox" / model
    return tuple(sorted(path for path in folder.glob("*") if path.suffix in {".csv", ".parquet", ".jsonl"}))


def serve(directory: Path) -> None:
    """Serve one scheduled deployment per model until interrupted; each runs ``round_flow`` on the model's cron line."""
    ward = open_ward(directory)
    deployments = [
        round_flow.to_deployment(
            name=f"round-{model}",
            cron=settings.schedule,
            parameters={"directory": str(ward.settings.directory), "model": model},
            description=f"Ingest, watch and, where due, plan, adapt and gate {model}. A person signs what goes live.",
        )
        for model, settings in ward.settings.models.items()
    ]
    prefect_serve(*(deployment for deployment in deployments if isinstance(deployment, RunnerDeployment)))


def _tell(outcome: RoundOutcome) -> str:
    lines = [f"- {r.window.key}: **{r.verdict}**" for r in outcome.reports] or ["- no window was due"]
    lines += [f"- {run.strategy}: {run.state.value.lower()}" for run in outcome.runs]
    lines += [f"- {d.run_id}: {'may be signed' if d.promote else 'refused'}" for d in outcome.decisions]
    return "\n".join(lines)
