"""The command line: plain help, clean JSON, exit codes for cron, and one line that names the cure."""

import json
import os
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import pytest
import typer
from click.testing import Result
from PIL import Image
from pydicom.data import get_testdata_file
from typer.testing import CliRunner

from flows.command_line import application

pytestmark = [
    # avalanche 0.6 imports a package that says at import that nobody maintains it; nothing of it is used
    pytest.mark.filterwarnings("ignore:JAXopt is no longer maintained:DeprecationWarning"),
    # MLflow's own tables use a loader strategy that SQLAlchemy 2.1 deprecates
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning"),
]

ENGINEER, OFFICER, PASSWORD = "emma.engineer", "quinn.quality", "correct horse battery"
FIXED = {
    *("demo", "init", "doctor", "ingest", "watch", "status", "plan", "adapt", "gate", "approve", "reject"),
    *("promote", "rollback", "audit_verify", "user_add", "serve", "dashboard"),
}


def commands_of(group: click.Group | None = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    for name, command in (group or typer.main.get_command(application)).commands.items():  # type: ignore[union-attr]
        if isinstance(command, click.Group) or hasattr(command, "commands"):
            yield from commands_of(command, (*path, name))
        else:
            yield "_".join((*path, name)), command


COMMANDS = dict(commands_of())


def call(*words: object, password: str = "", code: int | None = 0) -> Result:
    """Run a command; a code that is not the expected one shows what was printed."""
    env = {"WARDROUND_PASSWORD": password or None, "COLUMNS": "80"}
    result = CliRunner().invoke(application, [str(word) for word in words], env=env)
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert code is None or result.exit_code == code, result.output
    return result


def answer(*words: object, code: int = 0, **more: Any) -> Any:
    """Run a command with --json; nothing but JSON may be on stdout."""
    return json.loads(call(*words, "--json", code=code, **more).stdout)


def error(*words: object, code: int = 2, **more: Any) -> str:
    """Run a command that is refused; it says so in one line on stderr and nothing on stdout."""
    result = call(*words, code=code, **more)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    return line.removeprefix("Error: ")


# ---- help


def test_every_fixed_command_is_there() -> None:
    assert set(COMMANDS) >= FIXED


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_the_command_and_every_option(name: str) -> None:
    command = COMMANDS[name]
    assert (command.help or "").strip().partition("\n")[0].endswith(".")
    silent = [parameter.name for parameter in command.params if not getattr(parameter, "help", "")]
    assert not silent
    shown = call(*name.split("_"), "--help").stdout
    assert "Usage:" in shown


def test_without_a_command_the_help_says_where_to_start() -> None:
    result = CliRunner().invoke(application, [])
    assert "wardround demo" in result.output


def test_an_unknown_command_and_a_missing_option_are_user_errors() -> None:
    assert "No such command" in call("cure", code=2).stderr
    assert "--by" in call("plan", code=2).stderr


# ---- a quiet ward of scores alone: the first day


DAY = datetime(2026, 3, 2, tzinfo=UTC)
QUIET_WEEK, EMPTY_WEEK = "2026-03-30/2026-04-06", "2026-04-06/2026-04-13"
SETTINGS = """
[models.m]
attributes = ["site"]
reference = "2026-03-02/2026-03-30"
[models.m.backbone]
name = "tiny"
source = "random"
image_size = 28
[drift]
alibi_detect = false
evidently = false
permutations = 99
resamples = 100
"""


def rows_of(n: int, *, start: datetime = DAY, name: str = "s", **columns: Any) -> pd.DataFrame:
    generator = np.random.default_rng(len(name) + n)
    return pd.DataFrame(
        {
            "study_uid": [f"{name}-{i}" for i in range(n)],
            "patient_key": [f"p-{name}-{i}" for i in range(n)],
            "produced_at": [(start + timedelta(hours=2 * i)).isoformat() for i in range(n)],
            "score": generator.uniform(0, 1, n).round(3),
            "label": [("no", "yes")[i % 2] for i in range(n)],
            "site": "A",
        }
        | columns
    )


def save(frame: pd.DataFrame, path: Path) -> Path:
    frame.to_csv(path, index=False)
    return path


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "wardround.toml").write_text(SETTINGS)
    return tmp_path


def draw(folder: Path, n: int) -> list[str]:
    generator = np.random.default_rng(3)
    for i in range(n):
        Image.fromarray(generator.integers(0, 255, (28, 28), dtype=np.uint8)).save(folder / f"{n}-{i}.png")
    return [f"{n}-{i}.png" for i in range(n)]


def test_init_writes_settings_that_doctor_and_status_accept(tmp_path: Path) -> None:
    assert "Wrote" in call("init", "--dir", tmp_path / "w", "--model", "chest").stdout
    assert all(finding["ok"] for finding in answer("doctor", "--dir", tmp_path / "w"))
    assert answer("status", "--dir", tmp_path / "w")["chest"]["champion"] is None
    assert "exists already" in error("init", "--dir", tmp_path / "w")


def test_ingest_and_watch_answer_in_json_and_in_words(home: Path) -> None:
    history = save(rows_of(100), home / "history.csv")
    assert answer("ingest", history, "--dir", home)["accepted"] == 100
    assert answer("ingest", history, "--dir", home)["duplicate"] == 100
    save(rows_of(40, start=DAY + timedelta(weeks=4), name="w"), home / "week.csv")
    assert "40 accepted" in call("ingest", home / "week.csv", "--dir", home).stdout
    (report,) = answer("watch", "--window", QUIET_WEEK, "--dir", home)
    assert (report["verdict"], report["n"], report["window"]) == ("NO_DRIFT", 40, QUIET_WEEK)
    assert QUIET_WEEK in call("watch", "--window", QUIET_WEEK, "--dir", home).stdout.replace("\n", "")


def test_watch_without_a_window_watches_every_complete_one(tmp_path: Path) -> None:
    monday = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(weeks=6)
    reference = f"{monday.date()}/{(monday + timedelta(weeks=4)).date()}"
    (tmp_path / "wardround.toml").write_text(SETTINGS.replace("2026-03-02/2026-03-30", reference))
    call("ingest", save(rows_of(100, start=monday), tmp_path / "history.csv"), "--dir", tmp_path)
    assert [report["verdict"] for report in answer("watch", "--dir", tmp_path)] == ["NOT_ENOUGH_DATA"] * 2
    assert answer("watch", "--dir", tmp_path) == []
    assert "No complete window" in call("watch", "--dir", tmp_path).stdout


def test_drift_is_exit_code_3(home: Path) -> None:
    call("ingest", save(rows_of(100), home / "history.csv"), "--dir", home)
    drifted = rows_of(60, start=DAY + timedelta(weeks=4), name="w", score=0.97, site="B")
    call("ingest", save(drifted, home / "week.csv"), "--dir", home)
    (report,) = answer("watch", "--window", QUIET_WEEK, "--dir", home, code=3)
    assert report["verdict"] == "DRIFT"


# ---- bad input, from the first day


def _unreadable(folder: Path) -> str:
    (folder / "broken.png").write_bytes(b"\x89PNG no image at all")
    return "broken.png"


def _truncated(folder: Path) -> str:
    path = get_testdata_file("CT_small.dcm")
    assert path
    (folder / "half.dcm").write_bytes(Path(str(path)).read_bytes()[:20_000])
    return "half.dcm"


BAD_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "NaN score": ({"score": "nan"}, "not_finite_score"),
    "score out of range": ({"score": 1.5}, "score_out_of_range"),
    "naive timestamp": ({"produced_at": "2026-03-02T08:00:00"}, "naive_time"),
    "unknown class": ({"label": "maybe"}, "unknown_class"),
    "missing image": ({"image": "nowhere.png"}, "image_missing"),
    "unreadable image": ({"image": _unreadable}, "image_unreadable"),
    "truncated DICOM": ({"image": _truncated}, "image_unreadable"),
    "image outside the folder": ({"image": "../../secret.png"}, "path_outside"),
    "no patient": ({"patient_key": ""}, "missing_value"),
}


@pytest.mark.parametrize("what", BAD_ROWS)
def test_a_bad_row_is_quarantined_with_its_reason_and_the_others_are_taken(home: Path, what: str) -> None:
    cells, reason = BAD_ROWS[what]
    frame = rows_of(3).astype(object)
    if "image" in cells:
        frame["image"] = draw(home, 3)
    for column, value in cells.items():
        frame.loc[1, column] = value(home) if callable(value) else value
    summary = answer("ingest", save(frame, home / "week.csv"), "--dir", home)
    assert (summary["received"], summary["accepted"], summary["quarantined"]) == (3, 2, 1)
    assert _quarantine(home) == [(3, reason)]
    assert answer("status", "--dir", home)["m"]["quarantined"] == 1


def test_the_same_key_with_other_content_is_a_conflict(home: Path) -> None:
    frame = pd.concat([rows_of(3), rows_of(3).iloc[[0]].assign(score=0.123)])
    summary = answer("ingest", save(frame, home / "week.csv"), "--dir", home)
    assert (summary["accepted"], summary["conflict"]) == (3, 1)
    assert _quarantine(home) == [(5, "key_conflict")]


def _quarantine(home: Path) -> list[tuple[int, str]]:
    with closing(sqlite3.connect(home / "wardround.db")) as connection:
        return connection.execute("SELECT line, reason FROM quarantine").fetchall()


def test_an_empty_window_has_not_enough_data(home: Path) -> None:
    call("ingest", save(rows_of(100), home / "history.csv"), "--dir", home)
    (report,) = answer("watch", "--window", EMPTY_WEEK, "--dir", home)
    assert (report["verdict"], report["n"]) == ("NOT_ENOUGH_DATA", 0)
    assert "No study arrived" in report["reason"]


def test_a_window_with_one_class_has_a_verdict_and_no_made_up_auroc(home: Path) -> None:
    call("ingest", save(rows_of(100), home / "history.csv"), "--dir", home)
    week = rows_of(40, start=DAY + timedelta(weeks=4), name="w", label="yes")
    call("ingest", save(week, home / "week.csv"), "--dir", home)
    (report,) = answer("watch", "--window", QUIET_WEEK, "--dir", home, code=3)  # all are ill now: the case mix drifted
    assert report["n_labelled"] == 40
    (realised,) = [h for h in report["harms"] if h["metric"] == "auroc" and h["source"] == "realised"]
    assert (realised["current"], realised["loss"]) == (None, None)
    assert realised["reason"]


@pytest.mark.parametrize(
    ("history", "code", "verdict", "told"),
    [
        ("varied", 3, "DRIFT", "is preprocessing upstream broken?"),
        ("constant", 0, "NOT_ENOUGH_DATA", "nothing varies: every value is the same"),
    ],
)
def test_a_constant_embedding_gets_a_verdict_that_says_so(
    home: Path, history: str, code: int, verdict: str, told: str
) -> None:
    """As when preprocessing upstream makes the same picture of everything."""
    (same,) = draw(home, 1)
    before = rows_of(60, image=same if history == "constant" else draw(home, 60))
    week = rows_of(40, start=DAY + timedelta(weeks=4), name="w", image=same)
    call("ingest", save(before, home / "history.csv"), "--dir", home)
    call("ingest", save(week, home / "week.csv"), "--dir", home)
    (report,) = answer("watch", "--window", QUIET_WEEK, "--dir", home, code=code)
    (appearance,) = [result for result in report["results"] if result["feature"] == "embedding"]
    assert appearance["verdict"] == verdict
    assert told in appearance["reason"]
    assert told in report["reason"]


# ---- errors: one line, the cure, no traceback


def test_a_missing_settings_file_names_init(tmp_path: Path) -> None:
    for words in (["status"], ["ingest", "x.csv"], ["watch"], ["audit", "verify"], ["serve"], ["dashboard"]):
        assert "run `wardround init" in error(*words, "--dir", tmp_path / "a folder that is not there" / ("x" * 90))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[models.m\n", "is not valid TOML"),
        ("[drift]\nalhpa = 0.01\n", "drift.alhpa"),
        ("[drift]\nfalse_alarms_per_year = -2\nlevel = 7\n", "drift.level"),
        ('[models.m]\nreference = "spring"\n', "write its first day and the day after it"),
    ],
)
def test_settings_that_cannot_be_used_are_one_line(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "wardround.toml").write_text(content)
    assert told in error("status", "--dir", tmp_path)
    assert told in error("doctor", "--dir", tmp_path)


def test_an_export_that_cannot_be_read_is_one_line(home: Path) -> None:
    assert "does not exist; check the name" in error("ingest", home / "none.csv", "--dir", home)
    (home / "empty.csv").touch()
    assert "is empty; export it again" in error("ingest", home / "empty.csv", "--dir", home)
    no_score = save(rows_of(3).drop(columns="score"), home / "no-score.csv")
    assert "no column score" in error("ingest", no_score, "--dir", home)
    (home / "torn.parquet").write_bytes(b"PAR1 and nothing more")
    assert "export it again" in error("ingest", home / "torn.parquet", "--dir", home)


def test_an_unknown_model_and_a_choice_of_models_name_those_that_there_are(home: Path) -> None:
    assert "no model 'x' in wardround.toml (there: m)" in error("watch", "--model", "x", "--dir", home)
    (home / "wardround.toml").write_text(SETTINGS + "[models.n]\n")
    assert "several models (m, n); name one with --model" in error("watch", "--dir", home)


def test_a_bad_window_and_a_model_without_history_are_one_line(home: Path) -> None:
    for window in ("spring", "2026-04-06/2026-03-30", "2026-03-30"):
        assert "as 2026-03-30/2026-04-06" in error("watch", "--window", window, "--dir", home)
    assert "ingest an export of it first" in error("watch", "--window", QUIET_WEEK, "--dir", home)


def test_a_database_of_another_version_is_one_line(home: Path) -> None:
    call("status", "--dir", home)
    with closing(sqlite3.connect(home / "wardround.db")) as connection, connection:
        connection.execute("UPDATE meta SET value = '999' WHERE key = 'schema'")
    assert "999" in error("status", "--dir", home)
    finding = next(f for f in answer("doctor", "--dir", home, code=1) if f["name"] == "schema")
    assert not finding["ok"]
    assert finding["cure"]


def test_a_user_has_a_known_role_a_long_password_and_a_name_of_their_own(home: Path) -> None:
    add = ("user", "add", "--dir", home)
    told = error(*add, "ada", "--role", "king", password=PASSWORD)
    assert "choose one of engineer, quality officer, clinician, administrator, auditor" in told
    assert "at least 12 characters" in error(*add, "ada", "--role", "auditor", password="short")
    assert "Added ada, auditor." in call(*add, "ada", "--role", "auditor", password=PASSWORD).stdout
    assert "choose another name" in error(*add, "ada", "--role", "auditor", password=PASSWORD)


def test_a_password_that_is_asked_for_is_asked_twice_and_not_shown(home: Path) -> None:
    words = ["user", "add", "ada", "--role", "clinician", "--dir", str(home)]
    result = CliRunner().invoke(application, words, input=f"{PASSWORD}\n{PASSWORD}\n")
    assert result.exit_code == 0
    assert PASSWORD not in result.output


def test_an_unexpected_failure_writes_the_traceback_to_a_file_and_tells_one_line(tmp_path: Path) -> None:
    code = """
        import sys
        from flows import command_line
        @command_line.application.command("break")
        def break_down() -> None:
            raise ZeroDivisionError("first line\\nsecond line")
        sys.argv = ["wardround", "break"]
        command_line.main()
    """
    env = {**os.environ, "WARDROUND_LOG": str(tmp_path / "error.log")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], check=False, env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: unexpected ZeroDivisionError: first line second line. Send the file")
    assert "Traceback" in (tmp_path / "error.log").read_text()


@pytest.mark.slow
def test_nothing_but_json_is_on_the_real_stdout(home: Path) -> None:
    call("ingest", save(rows_of(100), home / "history.csv"), "--dir", home)
    command = [
        sys.executable,
        "-m",
        "flows.command_line",
        "watch",
        "--window",
        EMPTY_WEEK,
        "--json",
        "--dir",
        str(home),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["verdict"] == "NOT_ENOUGH_DATA"


# ---- the whole way by hand, on a ward with a champion


def test_the_whole_way_by_hand(small: Any) -> None:
    """Ingest, watch, plan, adapt, gate, approve, promote, roll back: each answer names what the next one asks for."""
    here = ("--dir", small.directory)
    for week, window in enumerate(small.weeks):
        assert answer("ingest", small.export(week), *here)["accepted"] == 80
        answer("watch", "--window", window.key, *here, code=3 if week > 1 else 0)
    plan = answer("plan", "--by", ENGINEER, *here)
    assert plan["treatment"] == "update the adapter"
    assert plan["plan_id"] in call("plan", "--by", ENGINEER, *here).stdout
    (run,) = answer("adapt", plan["plan_id"], "--strategy", "replay", *here)
    assert run["state"] == "FINISHED"
    decision = answer("gate", run["run_id"], *here)
    assert decision["promote"]
    promote = ("promote", decision["decision_id"], "--by", OFFICER, *here)
    told = call("approve", decision["decision_id"], "--by", OFFICER, *here, password=PASSWORD).stdout
    assert told.startswith(f"Approved by {OFFICER}")
    assert "version 2" in call(*promote).stdout
    assert "version 2" in call(*promote).stdout
    reason = ("--reason", "The new source reads badly.")
    assert "version 1" in call("rollback", "--by", OFFICER, *reason, *here).stdout
    assert "promoted and rolled back" in error(*promote)
    assert answer("audit", "verify", *here)["ok"]
    history = answer("status", *here)[small.model]["champion_history"]
    assert [(move["version"], move["kind"]) for move in history] == [
        ("1", "first"),
        ("2", "promote"),
        ("1", "rollback"),
    ]


def test_a_refused_gate_is_exit_code_4_with_every_reason(treated: Any) -> None:
    run_id = next(run.run_id for run in treated.ward.records.runs(treated.model) if run.strategy == "naive")
    decision = answer("gate", run_id, "--dir", treated.directory, code=4)
    assert not decision["promote"]
    shown = call("gate", run_id, "--dir", treated.directory, code=4).stdout
    assert "refused" in shown
    assert "FAIL" in shown


def test_steps_that_may_not_be_done_are_one_line(treated: Any) -> None:
    here, records = ("--dir", treated.directory), treated.ward.records
    passed = next(d.decision_id for d in records.decisions(treated.model) if d.promote)
    refused = next(d.decision_id for d in records.decisions(treated.model) if not d.promote)
    for words in (["adapt", "plan-0"], ["gate", "run-0"], ["promote", "gate-0", "--by", OFFICER]):
        assert "`wardround status` lists what there is" in error(*words, *here)
    sign = ("approve", passed, *here)
    assert "`wardround status` lists" in error("approve", "gate-0", "--by", OFFICER, *here, password=PASSWORD)
    assert "enter both again" in error(*sign, "--by", OFFICER, password="not the password")
    assert "enter both again" in error(*sign, "--by", "nobody", password=PASSWORD)
    assert "only a quality officer or a clinician may sign" in error(*sign, "--by", ENGINEER, password=PASSWORD)
    assert "it cannot be approved" in error("approve", refused, "--by", OFFICER, *here, password=PASSWORD)
    assert "nobody has approved" in error("promote", passed, "--by", OFFICER, *here)
    assert "`wardround user add` adds one" in error("promote", passed, "--by", "nobody", *here)
    assert "`wardround user add` adds one" in error("plan", "--by", "nobody", *here)
    assert "no earlier version to go back to" in error("rollback", "--by", OFFICER, "--reason", "x", *here)
    assert "naive" in error("adapt", records.plans(treated.model)[-1].plan_id, "--strategy", "hope", *here)
    told = call("reject", passed, "--by", OFFICER, "--meaning", "Too few women.", *here, password=PASSWORD).stdout
    assert "Rejected by" in told
    assert "was rejected by" in error(*sign, "--by", OFFICER, password=PASSWORD)
    assert "refused" in error("promote", passed, "--by", OFFICER, *here)


def test_adapt_without_a_plan_resumes_or_says_that_there_is_nothing_to_resume(treated: Any) -> None:
    here, plan_id = ("--dir", treated.directory), treated.ward.records.plans(treated.model)[-1].plan_id
    assert "name a plan" in error("adapt", *here)
    assert "leave out --resume" in error("adapt", plan_id, "--anew", "--resume", *here)
    assert answer("adapt", "--resume", *here) == []
    assert "nothing to resume" in call("adapt", "--resume", *here).stderr


@pytest.mark.slow
def test_the_proposer_cannot_sign_even_as_a_quality_officer(small: Any) -> None:
    here = ("--dir", small.directory)
    for week, window in enumerate(small.weeks):
        call("ingest", small.export(week), *here)
        call("watch", "--window", window.key, *here, code=None)
    plan = answer("plan", "--by", OFFICER, *here)
    (run,) = answer("adapt", plan["plan_id"], "--strategy", "replay", *here)
    sign = ("--by", OFFICER, *here)
    decision_id = answer("gate", run["run_id"], *here)["decision_id"]
    assert "proposed this change; another person signs" in error("approve", decision_id, *sign, password=PASSWORD)


def test_a_model_without_a_champion_names_the_first_step(home: Path) -> None:
    call("user", "add", "ada", "--role", "engineer", "--dir", home, password=PASSWORD)
    assert "wardround promote --first FILE" in error("plan", "--by", "ada", "--dir", home)
    lost = home / "lost.safetensors"
    assert "lost.safetensors" in error("promote", "--first", lost, "--by", "ada", "--dir", home)


# ---- the record


def test_one_changed_letter_of_one_event_is_named(treated: Any) -> None:
    here = ("--dir", treated.directory)
    state = answer("audit", "verify", *here)
    assert state["ok"]
    assert f"{state['n']} events hold" in call("audit", "verify", *here).stdout
    with closing(sqlite3.connect(treated.directory / "wardround.db")) as connection, connection:
        connection.execute("DROP TRIGGER events_refuse_update")
        (seq,) = connection.execute("SELECT min(seq) FROM events WHERE payload LIKE '%NO_DRIFT%'").fetchone()
        connection.execute("UPDATE events SET payload = replace(payload, 'NO_DRIFT', 'nO_DRIFT') WHERE seq = ?", [seq])
    broken = answer("audit", "verify", *here, code=1)
    assert (broken["ok"], broken["bad_row"]) == (False, seq)
    assert f"event {seq}" in call("audit", "verify", *here, code=1).stdout
    assert not all(finding["ok"] for finding in answer("doctor", *here, code=1))


@pytest.mark.parametrize("name", ["status", "audit_verify", "doctor"])
def test_what_is_shown_in_words_is_there_in_json_too(treated: Any, name: str) -> None:
    words = (*name.split("_"), "--dir", treated.directory)
    assert call(*words).stdout
    assert answer(*words)
