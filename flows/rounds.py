"""One round of a model, as plain functions or as a Prefect flow of the same functions."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar
from urllib.request import urlopen

from prefect import flow, task
from prefect import serve as prefect_serve
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.deployments.runner import RunnerDeployment
from prefect.settings import PREFECT_API_URL, temporary_settings

from continual.plans import AdaptationPlan, AdaptationRun, RunState
from flows.between import follow
from flows.ingesting import ingest_export
from flows.remembering import sweep_memories
from flows.treating import judge, may_climb, propose, treat
from flows.ward import StepRefused, Ward, open_ward
from flows.watching import watch, windows_to_watch
from monitor.cohorts import Window
from monitor.online import StreamReport
from monitor.results import WindowReport
from registry.decisions import GateDecision
from registry.entries import BatchSummary

T = TypeVar("T")
log = logging.getLogger("wardround.rounds")
AUTOMATIC_PROPOSER = "wardround"
SERVER_START_SECONDS = 120


class Step(Protocol):
    """How one named piece of work is done: directly, or as a Prefect task."""

    def __call__(self, name: str, work: Callable[[], T]) -> T:
        """Do the work and return its result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundOrder:
    """What a round shall do: ingest these exports, watch these windows, propose in this name.

    ``windows`` None means every one that is due once the exports are in; none at all means an intake only.
    """

    model: str
    exports: tuple[Path, ...] = ()
    windows: tuple[Window, ...] | None = ()
    proposer: str = AUTOMATIC_PROPOSER


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundOutcome:
    """What one round did; an empty part was not due."""

    batches: tuple[BatchSummary, ...] = ()
    reports: tuple[WindowReport, ...] = ()
    streams: tuple[StreamReport, ...] = ()
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
    """Ingest, watch, and where the policy says so follow, plan, adapt and gate. Never promote: a person signs that.

    A round that was killed is finished by the next one; what was watched, trained or judged already stands.
    """
    model = order.model
    sweep_memories(ward, model, at=at)
    batches = tuple(
        step(f"ingest {path.name}", partial(ingest_export, path, model=model, ward=ward, at=at))
        for path in order.exports
    )
    windows = windows_to_watch(ward, model, until=at) if order.windows is None else order.windows
    reports = tuple(step(f"watch {window.key}", partial(watch, ward, model, window, at=at)) for window in windows)
    streams: tuple[StreamReport, ...] = ()
    if order.windows is None and ward.settings.drift.online_tests:
        streams = step("follow", partial(follow, ward, model, at=at))
    treated = RoundOutcome()
    if order.windows != () and ward.records.champion(model) is not None:
        treated = _treat(ward, order, at=at, step=step)
    return replace(treated, batches=batches, reports=reports, streams=streams)


def _treat(ward: Ward, order: RoundOrder, *, at: datetime, step: Step) -> RoundOutcome:
    """Plan, make and judge; where the gate refuses all of a step, go on to the next one of the ladder."""
    model = order.model
    runs: list[AdaptationRun] = []
    decisions: list[GateDecision] = []
    while True:
        plan = step("plan", partial(propose, ward, model, by=order.proposer, at=at))
        if plan is None or not plan.treatment.makes_an_adapter:
            break
        made = [
            step(f"adapt with {name or plan.treatment}", partial(treat, ward, plan, name, at=at))
            for name in plan.strategies or ("",)
        ]
        judged = {d.run_id: d for d in ward.records.decisions(model) if d.policy == ward.settings.gate}
        found = [
            judged.get(run.run_id) or step(f"gate {run.name}", partial(judge, ward, run, at=at))
            for run in made
            if run.state is RunState.FINISHED
        ]
        runs, decisions = [*runs, *made], [*decisions, *found]
        if not may_climb(ward, plan):
            break
    return RoundOutcome(plan=plan, runs=tuple(runs), decisions=tuple(decisions))


@flow(name="wardround-round", flow_run_name="{model}", persist_result=False, validate_parameters=False)
def round_flow(
    directory: str,
    model: str,
    exports: list[str] | None = None,
    windows: list[str] | None = None,
    at: str | None = None,
    proposer: str = AUTOMATIC_PROPOSER,
) -> dict[str, object]:
    """Run one round; without ``windows`` every one that is due, without ``exports`` the inbox."""
    moment = datetime.fromisoformat(at) if at else datetime.now(UTC)
    ward = open_ward(Path(directory))
    order = RoundOrder(
        model=model,
        exports=tuple(Path(p) for p in exports) if exports is not None else inbox_of(ward, model),
        windows=tuple(map(Window.from_key, windows)) if windows is not None else None,
        proposer=proposer,
    )
    outcome = run_round(ward, order, at=moment, step=do_as_task)
    create_markdown_artifact(_tell(outcome), key="round", description=f"Round of {model}")
    return {"model": model, "verdicts": {r.window.key: r.verdict.value for r in outcome.reports}}


def run_as_flow(directory: Path, order: RoundOrder, *, at: datetime) -> None:
    """Run one round as a Prefect flow run; a temporary server starts by itself where none is configured."""
    round_flow(
        str(directory),
        order.model,
        exports=[str(path) for path in order.exports],
        windows=None if order.windows is None else [window.key for window in order.windows],
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
    # Prefect hears a SIGTERM only once its runner has started; before that one would leave the server running
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt), _scheduling_server(ward.settings.directory / "prefect"):
        prefect_serve(*deployments_of(ward))


def deployments_of(ward: Ward) -> list[RunnerDeployment]:
    """Describe one deployment per model, on the model's cron line."""
    deployments = [
        round_flow.to_deployment(
            name=f"round-{model}",
            cron=settings.schedule,
            parameters={"directory": str(ward.settings.directory), "model": model},
            description=f"Ingest, watch and, where due, plan, adapt and gate {model}. A person signs what goes live.",
        )
        for model, settings in ward.settings.models.items()
    ]
    return [deployment for deployment in deployments if isinstance(deployment, RunnerDeployment)]


@contextmanager
def _scheduling_server(home: Path) -> Iterator[None]:
    """Use the configured Prefect server, or start one here: the temporary one that Prefect starts never schedules."""
    if PREFECT_API_URL.value():
        yield
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    # a session of its own: Ctrl-C must reach the rounds first, which then say goodbye to the server
    server = subprocess.Popen(
        command,
        env={"PREFECT_HOME": str(home), "PREFECT_SERVER_UI_ENABLED": "false", **os.environ, "PREFECT_API_URL": url},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _wait_until_healthy(server, url)
        with temporary_settings({PREFECT_API_URL: url}):
            yield
    finally:
        server.terminate()
        server.wait()


def _wait_until_healthy(server: subprocess.Popen[bytes], url: str) -> None:
    give_up = time.monotonic() + SERVER_START_SECONDS
    while server.poll() is None and time.monotonic() < give_up:
        try:
            with urlopen(f"{url}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise StepRefused("the Prefect server did not start; its words are above, or set PREFECT_API_URL to one that runs")


def _tell(outcome: RoundOutcome) -> str:
    lines = [f"- {r.window.key}: **{r.verdict}**" for r in outcome.reports] or ["- no window was due"]
    lines += [f"- {stream.reason}" for stream in outcome.streams if stream.since is not None]
    lines += [f"- {run.name}: {run.state.value.lower()}" for run in outcome.runs]
    lines += [f"- {d.run_id}: {'may be signed' if d.promote else 'refused'}" for d in outcome.decisions]
    return "\n".join(lines)
