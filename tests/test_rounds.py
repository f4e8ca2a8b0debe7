"""Rounds: the same rows with and without Prefect, twice, and after a kill; and a schedule that really runs them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.request import Request, urlopen

import pytest
from prefect.flows import load_flow_from_entrypoint
from prefect.testing.utilities import prefect_test_harness

from flows.rounds import RoundOrder, deployments_of, inbox_of, round_flow, run_as_flow, run_round
from flows.ward import open_ward
from flows.watching import windows_to_watch
from monitor.results import Verdict
from registry.settings import SettingsError

pytestmark = [
    # avalanche 0.6 imports a package that says at import that nobody maintains it; nothing of it is used
    pytest.mark.filterwarnings("ignore:JAXopt is no longer maintained:DeprecationWarning"),
    # MLflow's own tables use a loader strategy that SQLAlchemy 2.1 deprecates
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning"),
    # so do the types of Prefect's server
    pytest.mark.filterwarnings("ignore:Type object <class 'prefect:sqlalchemy.exc.SADeprecationWarning"),
]

T = TypeVar("T")
LATER = timedelta(hours=6)


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


def order(small: Any, week: int) -> RoundOrder:
    return RoundOrder(
        model=small.model,
        exports=(small.export(week),),
        windows=(small.weeks[week],),
        proposer="emma.engineer",
    )


def test_rounds_as_prefect_flows_give_the_same_rows(small: Any, treated: Any, prefect_server: None) -> None:
    for week, window in enumerate(small.weeks):
        run_as_flow(small.directory, order(small, week), at=window.end + LATER)
    assert small.rows() == treated.rows()
    assert small.ward.records.verify_events().ok


def test_a_round_ends_in_adapters_that_were_judged_and_promotes_nothing(treated: Any) -> None:
    records = treated.ward.records
    assert [report.verdict for report in records.reports(treated.model)] == [
        Verdict.NO_DRIFT,
        Verdict.NO_DRIFT,
        Verdict.DRIFT,
        Verdict.DRIFT,
    ]
    judged = {decision.run_id: decision.promote for decision in records.decisions(treated.model)}
    assert {records.run(run_id).strategy: promote for run_id, promote in judged.items()} == {
        "naive": False,
        "replay": True,
    }
    assert records.champion(treated.model).version == "1"


def test_the_same_rounds_again_add_nothing(treated: Any) -> None:
    before = treated.rows()
    treated.live(4)
    assert treated.rows() == before


def test_who_proposes_the_same_later_trains_and_offers_nothing_a_second_time(treated: Any) -> None:
    before = treated.rows()
    outcome = run_round(treated.ward, RoundOrder(model=treated.model, windows=None), at=treated.weeks[-1].end + LATER)
    assert treated.rows() == before
    assert outcome.reports == ()
    assert outcome.plan is not None
    assert outcome.plan.proposed_by == "emma.engineer"
    assert len(outcome.decisions) == 2


def test_a_round_without_windows_is_an_intake_only(small: Any) -> None:
    outcome = run_round(small.ward, RoundOrder(model=small.model, exports=(small.export(0),)), at=small.weeks[0].end)
    assert [batch.accepted for batch in outcome.batches] == [80]
    assert (outcome.reports, outcome.plan) == ((), None)


# ---- which windows are due


def test_windows_are_due_when_complete_and_again_when_studies_arrive_late(small: Any) -> None:
    ward, due = small.ward, RoundOrder(model=small.model, windows=None)
    assert windows_to_watch(ward, small.model, until=small.weeks[0].end - timedelta(seconds=1)) == []
    run_round(ward, RoundOrder(model=small.model, exports=(small.export(0),)), at=small.weeks[0].end)
    first = run_round(ward, due, at=small.weeks[1].end)
    assert [(report.window, report.verdict, report.n) for report in first.reports] == [
        (small.weeks[0], Verdict.NO_DRIFT, 80),
        (small.weeks[1], Verdict.NOT_ENOUGH_DATA, 0),
    ]
    assert run_round(ward, due, at=small.weeks[1].end).reports == ()
    late = RoundOrder(model=small.model, exports=(small.export(1),), windows=None)
    assert [(r.window, r.n) for r in run_round(ward, late, at=small.weeks[1].end).reports] == [(small.weeks[1], 80)]
    assert [r.n for r in ward.records.reports(small.model)] == [80, 80]
    assert run_round(ward, due, at=small.weeks[1].end).reports == ()


def test_without_a_reference_window_nothing_can_be_due(small: Any) -> None:
    path = small.directory / "wardround.toml"
    path.write_text(path.read_text().replace('reference = "2026', '# reference = "2026'))
    with pytest.raises(SettingsError, match="names no reference window; add for example"):
        windows_to_watch(small.ward, small.model, until=small.weeks[0].end)


def test_the_inbox_leaves_half_written_files_alone(small: Any) -> None:
    inbox = small.directory / "inbox" / small.model
    inbox.mkdir(parents=True)
    for name in ("b.csv", "a.jsonl", "c.csv.partial", "notes.txt"):
        (inbox / name).touch()
    assert [path.name for path in inbox_of(small.ward, small.model)] == ["a.jsonl", "b.csv"]


# ---- the schedule


def test_there_is_one_deployment_a_model_on_its_cron_line(small: Any) -> None:
    with (small.directory / "wardround.toml").open("a") as file:
        file.write('[models.other]\nschedule = "30 5 * * *"\n')
    deployments = {deployment.name: deployment for deployment in deployments_of(small.ward)}
    assert set(deployments) == {f"round-{small.model}", "round-other"}
    assert {name: [s.schedule.cron for s in d.schedules] for name, d in deployments.items()} == {
        f"round-{small.model}": ["0 6 * * 1"],
        "round-other": ["30 5 * * *"],
    }
    assert deployments["round-other"].parameters == {"directory": str(small.directory), "model": "other"}


def test_the_flow_of_the_deployment_makes_the_round(small: Any, prefect_server: None) -> None:
    inbox = small.directory / "inbox" / small.model
    inbox.mkdir(parents=True)
    shutil.copy(small.export(0), inbox / "week.csv")
    (deployment,) = deployments_of(small.ward)
    flow = load_flow_from_entrypoint(deployment.entrypoint)
    assert flow.name == round_flow.name
    told = flow(**deployment.parameters, at=small.weeks[0].end.isoformat())
    assert told == {"model": small.model, "verdicts": {small.weeks[0].key: "NO_DRIFT"}}
    assert [report.n for report in small.ward.records.reports(small.model)] == [80]


#: Interrupts are heard even where a shell started the tests in the background, which ignores them.
SERVE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from flows.command_line import main
main()
"""


@contextmanager
def serving(small: Any, folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Serve the ward from another folder on a schedule of every minute; Prefect keeps nothing outside the folder."""
    path = small.directory / "wardround.toml"
    path.write_text(path.read_text().replace("window_days = 7", 'window_days = 280\nschedule = "* * * * *"'))
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    env |= {"PREFECT_HOME": str(folder / "prefect"), "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", SERVE, "serve", "--dir", str(small.directory)]
    with (folder / "serve.log").open("wb") as log:
        served = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log)
        try:
            yield served
        finally:
            served.terminate()
            served.wait(60)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_serve_registers_the_schedule_and_leaves_nothing_running(
    small: Any, tmp_path: Path, end: signal.Signals
) -> None:
    with serving(small, tmp_path) as served:
        deployment = wait_for(served, f"deployments/name/wardround-round/round-{small.model}")
        url = _server_of(served)
        served.send_signal(end)
        code = served.wait(60)
    told = (tmp_path / "serve.log").read_text()
    assert [schedule["schedule"]["cron"] for schedule in deployment["schedules"]] == ["* * * * *"], told
    assert code == 0, told
    with pytest.raises(OSError, match="refused"):
        _ask(f"{url}/health")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_serve_runs_the_rounds_that_are_due(small: Any, tmp_path: Path) -> None:
    with serving(small, tmp_path) as served:
        finished = {"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
        assert wait_for(served, "flow_runs/filter", finished), (tmp_path / "serve.log").read_text()
    (report, *_) = small.ward.records.reports(small.model)
    assert report.window.start == small.weeks[0].start


def wait_for(served: "subprocess.Popen[bytes]", path: str, body: Any = None) -> Any:
    """Ask the server that `wardround serve` started until it has an answer."""
    give_up = time.monotonic() + 400
    while time.monotonic() < give_up and served.poll() is None:
        time.sleep(1)
        with suppress(OSError):
            if (url := _server_of(served)) and (told := _ask(f"{url}/{path}", body)):
                return told
    return {}


def _server_of(served: "subprocess.Popen[bytes]") -> str:
    """Find the address of the server that `wardround serve` started, among its children."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_text().split("\0")
            parent = (folder / "stat").read_text().rsplit(")", 1)[1].split()[1]
        except OSError:
            continue
        if int(parent) == served.pid and "--port" in words:
            return f"http://127.0.0.1:{words[words.index('--port') + 1]}/api"
    return ""


def _ask(url: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urlopen(Request(url, data, {"Content-Type": "application/json"}), timeout=5) as answer:
        return json.load(answer)


# ---- killed


class Killed(BaseException):
    """Stands for a process that dies: nothing of the product catches it."""


def die_before(what: str) -> Callable[[str, Callable[[], T]], T]:
    def step(name: str, work: Callable[[], T]) -> T:
        if name == what:
            raise Killed
        return work()

    return step


@pytest.mark.parametrize(
    "what", ["adapt with replay", *(pytest.param(what, marks=pytest.mark.slow) for what in ("plan", "gate naive"))]
)
def test_a_round_that_died_is_finished_by_the_next_one_though_no_window_is_due(
    small: Any, treated: Any, what: str
) -> None:
    small.live(3)
    last, at = order(small, 3), small.weeks[3].end + LATER
    with pytest.raises(Killed):
        run_round(small.ward, last, at=at, step=die_before(what))
    assert small.rows() != treated.rows()
    assert windows_to_watch(small.ward, small.model, until=at) == []
    run_round(small.ward, RoundOrder(model=small.model, windows=None, proposer="emma.engineer"), at=at)
    assert small.rows() == treated.rows()


@pytest.mark.fault
@pytest.mark.parametrize(
    "where", ["records.finish_batch", "records.save_report", "records.save_run", "records.save_decision"]
)
def test_a_round_that_was_killed_ends_in_the_same_rows_when_it_is_run_again(
    small: Any, treated: Any, where: str
) -> None:
    """Killed just before a result would have been kept; only that the gate looked a second time stays to be seen."""
    small.live(3)
    at = small.weeks[3].end + LATER
    code = f"""
        import os, signal
        from datetime import datetime
        from pathlib import Path
        from flows.rounds import RoundOrder, run_round
        from flows.ward import open_ward
        from monitor.cohorts import Window
        from registry.records import Records
        Records.{where.partition(".")[2]} = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
        order = RoundOrder(
            model={small.model!r},
            exports=(Path({str(small.export(3))!r}),),
            windows=(Window.from_key({small.weeks[3].key!r}),),
            proposer="emma.engineer",
        )
        run_round(open_ward(Path({str(small.directory)!r})), order, at=datetime.fromisoformat({at.isoformat()!r}))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False, timeout=240)
    assert done.returncode == -signal.SIGKILL
    assert small.rows() != treated.rows()
    run_round(open_ward(small.directory), order(small, 3), at=at)
    assert small.ward.records.verify_events().ok
    again, once = _without_looks(small.rows()), _without_looks(treated.rows())
    assert again == once
    looks = {(look.name, look.run_id) for look in small.ward.records.looks(small.model)}
    assert looks == {(look.name, look.run_id) for look in treated.ward.records.looks(small.model)}


def _without_looks(tables: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Leave out how often the gate looked, and the numbers that count those events."""
    events = [{**event, "seq": None} for event in tables["events"] if event["kind"] != "held_out.looked_at"]
    skipped = {"held_out_looks": [], "events": events, "meta": [], "sqlite_sequence": []}
    return {**tables, **skipped}
