"""The demo, in its fast form, as a new user runs it: rows that fit each other, one folder, and no harm from a kill."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from continual.policies import Treatment
from flows.demo import ENGINEER, MODEL, OFFICER
from flows.demo_data import FAST
from flows.ward import open_ward

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
COMMAND = [sys.executable, "-c", "from flows.command_line import main; main()"]


@dataclass(frozen=True)
class Lived:
    """A demo that was lived through, in a world of its own."""

    world: Path

    @property
    def directory(self) -> Path:
        return self.world / "ward"

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        home = self.world / "home"
        home.mkdir(parents=True, exist_ok=True)
        return subprocess.Popen(
            [*COMMAND, *arguments, "--dir", str(self.directory)],
            env={**os.environ, "HOME": str(home), "COLUMNS": "80"},
            cwd=home,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> tuple[int, str, str]:
        process = self.start(*arguments)
        out, error = process.communicate(timeout=800)
        return process.returncode, out, error

    def status(self) -> dict[str, Any]:
        code, out, _ = self.run("status", "--json")
        assert code == 0
        state: dict[str, Any] = json.loads(out)[MODEL]
        return state


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Lived:
    lived = Lived(tmp_path_factory.mktemp("demo"))
    code, out, error = lived.run("demo", "--fast", "--no-prefect")
    assert code == 0, error
    assert error == ""
    assert "Look further" in out
    return lived


@pytest.fixture(scope="module")
def state(lived: Lived) -> dict[str, Any]:
    return lived.status()


def test_the_first_source_is_quiet_and_the_second_is_seen_at_once(state: dict[str, Any]) -> None:
    windows = {window["window"]: window for window in state["windows"]}
    assert list(windows) == [window.key for window in FAST.windows]
    verdicts = [window["verdict"] for window in state["windows"]]
    assert verdicts[: FAST.quiet_weeks] == ["NO_DRIFT"] * FAST.quiet_weeks
    assert verdicts[FAST.quiet_weeks] == "DRIFT"
    assert any("native_px" in result for result in state["windows"][FAST.quiet_weeks]["drifted"])


def test_every_step_that_was_taken_was_measured_on_both_sources_and_judged(state: dict[str, Any]) -> None:
    """Which step that is, the data say; each lower one has its verdict, and an update tries every strategy."""
    treatments = list(Treatment)
    treated = {run["plan_id"] for run in state["runs"]}
    plans = [plan for plan in state["plans"] if plan["plan_id"] in treated]
    assert plans
    for plan in plans:
        told = [verdict["treatment"] for verdict in plan["rungs"]]
        assert told == treatments[: treatments.index(plan["treatment"]) + 1]
        runs = [run for run in state["runs"] if run["plan_id"] == plan["plan_id"]]
        assert [run["strategy"] for run in runs] == (list(plan["strategies"]) or [""])
    runs = [run for run in state["runs"] if run["state"] == "FINISHED"]
    for run in runs:
        before, after = run["matrix"][-2:]
        assert run["forgetting"] == pytest.approx(before[0] - after[0])
        assert run["backward_transfer"] == pytest.approx(after[0] - before[0])
    judged = {decision["run_id"]: decision for decision in state["decisions"]}
    assert {run["run_id"] for run in runs} <= set(judged)
    for decision in judged.values():
        assert decision["promote"] == all(check["passed"] for check in decision["checks"])
        assert len(decision["reasons"]) == len(decision["checks"])


def test_whoever_is_champion_was_allowed_and_signed_by_another_person(lived: Lived, state: dict[str, Any]) -> None:
    allowed = {d["decision_id"]: d for d in state["decisions"] if d["promote"]}
    moves = state["champion_history"]
    assert [move["kind"] for move in moves] == ["first"] + ["promote"] * (len(moves) - 1)
    assert bool(allowed) == (len(moves) > 1)
    proposers = {plan["plan_id"]: plan["proposed_by"] for plan in state["plans"]}
    for move in moves[1:]:
        decision = allowed[move["decision_id"]]
        (signature,) = [s for s in state["signatures"] if s["decision_id"] == move["decision_id"]]
        assert (signature["user"], proposers[decision["plan_id"]]) == (OFFICER, ENGINEER)
        assert (signature["digest"], decision["adapter_sha256"]) == (decision["digest"], move["adapter_sha256"])
    ward = open_ward(lived.directory)
    alias = ward.versions.champion(MODEL)
    assert alias == ward.versions.find(MODEL, state["champion"]["adapter_sha256"])


def test_after_a_promotion_the_windows_are_compared_with_the_new_reference(lived: Lived, state: dict[str, Any]) -> None:
    if len(state["champion_history"]) == 1:
        pytest.skip("the gate let nothing through on this machine, so there is no new reference")
    records = open_ward(lived.directory).records
    last = records.report(MODEL, FAST.windows[-1])
    assert last is not None
    live = [move for move in records.champion_history(MODEL) if move.since <= last.window.middle]
    assert last.evaluations[0].model_version == live[-1].version


def test_the_record_holds_and_the_doctor_finds_nothing(lived: Lived) -> None:
    code, out, _ = lived.run("audit", "verify")
    assert (code, "events hold" in out) == (0, True)
    code, out, _ = lived.run("doctor", "--json")
    assert [finding["name"] for finding in json.loads(out) if not finding["ok"]] == []
    assert code == 0


def test_it_writes_in_its_folder_and_nowhere_else(lived: Lived) -> None:
    assert list((lived.world / "home").rglob("*")) == []
    assert {path.name for path in lived.world.iterdir()} == {"home", "ward"}


def test_a_second_run_adds_nothing_and_the_other_form_says_what_to_do(lived: Lived, state: dict[str, Any]) -> None:
    events = len(open_ward(lived.directory).records.events())
    code, _, error = lived.run("demo", "--fast", "--no-prefect")
    assert (code, error) == (0, "")
    assert lived.status() == state
    assert len(open_ward(lived.directory).records.events()) == events
    code, _, error = lived.run("demo", "--no-prefect")
    assert code == 2
    assert error.startswith("Error:")
    assert error.count("\n") == 1
    assert "choose another --dir" in error


@pytest.mark.fault
def test_killed_and_started_again_it_tells_the_same_story(tmp_path: Path, state: dict[str, Any]) -> None:
    killed, line = Lived(tmp_path), "Training (replay)"
    process = killed.start("demo", "--fast", "--no-prefect")
    assert process.stdout is not None
    seen = [told for told in iter(process.stdout.readline, "") if _kill_at(line, told, process)]
    process.communicate()
    assert seen, f"{line!r} was never told, so nothing was killed"
    assert process.returncode == -signal.SIGKILL
    code, _, error = killed.run("demo", "--fast", "--no-prefect")
    assert (code, error) == (0, "")
    assert _without_seconds(killed.status()) == _without_seconds(state)
    assert open_ward(killed.directory).records.verify_events().ok


def _kill_at(line: str, told: str, process: "subprocess.Popen[str]") -> bool:
    if line not in told:
        return False
    process.send_signal(signal.SIGKILL)
    return True


def _without_seconds(state: dict[str, Any]) -> dict[str, Any]:
    return {**state, "runs": [{**run, "seconds": None} for run in state["runs"]]}
