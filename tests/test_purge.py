"""A patient is removed everywhere, provably, by a recorded deed that may be killed at any moment."""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from continual.feature_store import FeatureStore
from continual.memory_store import read_manifest
from flows.command_line import application
from flows.ingesting import ingest_export
from flows.labelling import request_labels, write_again
from flows.purging import foresee, purge_patient
from flows.reading_files import without_rows
from flows.readings import import_labels
from flows.remembering import in_force, memories_in
from flows.sources import Reason
from flows.treating import judge, treat
from flows.ward import StepRefused
from monitor.cohorts import Window
from registry.entries import RecordsError
from registry.held_out import PatientRole, roles_of
from registry.reading_room import open_worklist
from registry.settings import FILE_NAME

pytestmark = [
    pytest.mark.filterwarnings("ignore:JAXopt is no longer maintained:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning"),
]
AT = datetime(2026, 3, 4, tzinfo=UTC)
OFFICER = "quinn.quality"
HOSPITALS_OWN = ("exports", "images")
ROWS = (
    "predictions",
    "labels",
    "quarantine",
    "reports",
    "held_out",
    "memories",
    "drift_results",
    "alarms",
    "worklists",
    "readings",
)


def patients_of(treated: Any, role: PatientRole, week: int) -> list[str]:
    """Name the patients of a role in a week whose key or study is no part of another's.

    SQLite puts a time, "2026-…", right behind a study: study-4-1 and it would read as study-4-12.
    """
    cohort = treated.ward.records.load_cohort(treated.model, window=treated.weeks[week])
    keys = cohort.patient_key[roles_of(cohort.patient_key, treated.ward.settings.roles) == role]
    return [str(key) for key in keys if len(key) == len("patient-4-39") and key[-1] != "2"]


def learned_patient(treated: Any) -> str:
    """Name somebody who stands in the memory of a run."""
    version = in_force(treated.ward, treated.model)[-1]
    there = read_manifest(memories_in(treated.ward), version.sha256).patients
    return next(patient for patient in patients_of(treated, PatientRole.LEARNING, 3) if patient in there)


def purge(treated: Any, patient: str, **more: Any) -> Any:
    given = {"actor": OFFICER, "reason": "asked on paper", "at": AT} | more
    return purge_patient(treated.ward, patient, **given)


def traces(directory: Path, needles: list[bytes]) -> list[str]:
    """Name every file but the hospital's own that holds one of some bytes."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    return [
        str(path.relative_to(directory))
        for path in files
        if path.relative_to(directory).parts[0] not in HOSPITALS_OWN
        and any(needle in path.read_bytes() or needle in str(path).encode() for needle in needles)
    ]


def needles_of(treated: Any, patient: str) -> list[bytes]:
    """Give every run of bytes that only this patient's data have: names, image hashes, embeddings, tokens."""
    subject = treated.ward.records.subject_of(patient)
    store = treated.ward.features_of(treated.model)
    images = sorted(subject.own_images)
    rows = [*store.embeddings(images), *store.tokens(images), *store.statistics(images)]
    return [name.encode() for name in subject.names] + [row.tobytes() for row in rows]


def ingest_again(treated: Any, frame: pd.DataFrame, name: str = "again.csv") -> Any:
    path = treated.directory / "exports" / name
    frame.to_csv(path, index=False)
    return ingest_export(path, model=treated.model, ward=treated.ward, at=AT)


def show_in_a_report(treated: Any, study: str) -> None:
    """Let a stored report show a study as an example and as a neighbour, as a drifted window does by chance."""
    report = treated.ward.records.reports(treated.model)[-1]
    example = report.examples[0]
    mine = replace(example, study_uid=study)
    near = replace(example, neighbours=(study, *example.neighbours[1:]))
    treated.ward.records.save_report(replace(report, examples=(mine, near, *report.examples[1:])), AT)


def read_a_worklist(treated: Any, patient: str) -> str:
    """Ask for labels of a week without any; some come back, the patient's among them, in a file that a reader saved.

    Returns: the worklist's name.
    """
    week = Window(start=treated.weeks[3].end, end=treated.weeks[3].end + timedelta(days=7))
    frame = pd.read_csv(treated.export(3)).drop(columns="label")
    later = pd.to_datetime(frame["produced_at"]) + timedelta(days=7)
    told = {"produced_at": [moment.isoformat() for moment in later], "study_uid": frame["study_uid"] + "-later"}
    # an image like one that was read already would not be chosen
    (mine,) = frame.index[frame["patient_key"] == patient]
    with Image.open(treated.directory / frame["image"][mine]) as image:
        image.transpose(Image.Transpose.ROTATE_90).save(treated.directory / "images" / "later.png")
    frame.loc[mine, "image"] = "images/later.png"
    ingest_again(treated, frame.assign(**told), "unlabelled.csv")
    with (treated.directory / FILE_NAME).open("a", encoding="utf-8") as file:
        file.write("\n[adaptation.labels]\nnear_duplicate = 0.99999\n")
    ward = treated.ward
    done = request_labels(ward, treated.model, n=80, windows=[week], out=None, by=OFFICER, at=AT)
    rows = pd.read_csv(done.path, dtype=str, keep_default_na=False)
    mine = rows["study_uid"].isin(ward.records.subject_of(patient).studies)
    assert mine.sum() == 1
    read = mine | (rows.index % 2 == 0)
    rows.loc[read, ["label", "reader", "comment"]] = ["yes", "Dr. Rahel Roth", "first line\nsecond line"]
    back = done.path.with_name("back.csv")
    rows.to_csv(back, index=False, sep=";", encoding="utf-16")
    summary = import_labels(back, model=treated.model, ward=ward, at=AT)
    assert (summary.accepted, summary.empty) == (read.sum(), len(rows) - read.sum())
    return str(done.worklist_id)


def test_a_patient_leaves_worklists_and_readings_and_the_worklist_stays(treated: Any) -> None:
    patient, ward = learned_patient(treated), treated.ward
    name = read_a_worklist(treated, patient)
    folder = treated.directory / "worklists"
    subject, before = ward.records.subject_of(patient), ward.records.readings(treated.model)
    (asked,) = ward.records.worklists(treated.model)
    needles = [text.encode(code) for text in subject.names for code in ("utf-8", "utf-16-le")]
    assert len([path for path in traces(treated.directory, needles) if path.startswith("worklists/")]) == 2
    (folder / ".wl.csv.1.partial").write_bytes(needles[0])
    removed = purge(treated, patient).removed
    assert (removed["worklist files"], removed["worklists"], removed["readings"]) == (2, 1, 1)
    assert traces(treated.directory, needles) == []
    (left,) = ward.records.worklists(treated.model)
    assert (
        open_worklist([left], name)
        == left
        == replace(asked, items=tuple(item for item in asked.items if item.study_uid not in subject.studies))
    )
    assert len(left.items) == len(asked.items) - 1
    assert ward.records.readings(treated.model) == [one for one in before if one.study_uid not in subject.studies]
    again = write_again(ward, treated.model, name, folder / "again.csv")
    assert again.studies == len(left.items) - len(before) + 1
    summary = import_labels(folder / "back.csv", model=treated.model, ward=ward, at=AT)
    assert (summary.accepted, summary.duplicate, summary.quarantined) == (0, len(before) - 1, 0)
    assert ward.records.verify_events().ok


def test_a_copy_of_a_worklist_that_comes_back_after_the_removal_leaves_no_trace(treated: Any, tmp_path: Path) -> None:
    patient, ward = learned_patient(treated), treated.ward
    read_a_worklist(treated, patient)
    copy = shutil.copy(treated.directory / "worklists" / "back.csv", tmp_path / "copy.csv")
    needles = [text.encode() for text in ward.records.subject_of(patient).names]
    purge(treated, patient)
    summary = import_labels(Path(copy), model=treated.model, ward=ward, at=AT)
    assert (summary.accepted, summary.quarantined) == (0, 1)
    assert ward.records.quarantined(treated.model)[-1].reason == Reason.UNKNOWN_STUDY
    assert traces(treated.directory, needles) == []


@pytest.mark.parametrize("code", ["utf-8", "utf-8-sig", "utf-16-le", "utf-16-be", "latin-1"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_only_the_rows_of_the_patient_leave_a_file_and_the_rest_stays_to_the_byte(
    code: str, end: str, mark: str
) -> None:
    start = "\ufeff" if code.startswith("utf-16") else ""
    rows = [
        ["study_uid", "label", "comment"],
        ["study-12", "yes", f'"Müller{end}says ""no"" {mark}{end}twice"'],
        ["study-1", "no", f'"one{end}two"'],
        ["study-3", "no", 'a 5" scan'],
        ["study-4", "", "the same as study-1"],
    ]
    lines = [mark.join(row) + end for row in rows]
    content = (start + "".join(lines)).encode(code)
    left, gone = without_rows(content, re.compile(r"(?<!\w)study-1(?!\w)"))
    assert gone == 2
    assert left == (start + "".join([*lines[:2], lines[3]])).encode(code)
    assert without_rows(content, re.compile("nobody")) == (content, 0)


def test_no_byte_of_a_patient_is_left_but_in_the_hospitals_own_files(treated: Any) -> None:
    patient, other = learned_patient(treated), patients_of(treated, PatientRole.HELD_OUT, 3)[0]
    week = pd.read_csv(treated.export(3))
    mine = week[week["patient_key"] == patient]
    ingest_again(treated, mine.assign(score=2))  # out of range: quarantined with all it says
    ingest_again(treated, mine.assign(score=0.123), "conflict.csv")
    show_in_a_report(treated, str(mine["study_uid"].iloc[0]))
    read_a_worklist(treated, patient)
    needles = needles_of(treated, patient) + needles_of(treated, other)
    (treated.directory / "memories" / ".x.arrow.1.partial").write_bytes(needles[-1])
    before = traces(treated.directory, needles)
    assert {Path(path).parts[0] for path in before} >= {"wardround.db", "features", "memories", "worklists"}
    done = purge(treated, patient)
    assert done.removed == {
        "memories": done.removed["memories"],
        "features": 2,
        "references": 1,
        "labels": 2,
        "predictions": 2,
        "quarantine": 2,
        "reports": 1,
        "readings": 1,
        "worklists": 1,
        "worklist files": 2,
    }
    assert set(done.images) == {*mine["image"], "images/later.png"}
    assert "exports/week-3.csv" in done.remaining
    assert (done.still_ours, done.events, done.before) == ((), (), False)
    assert purge(treated, other).removed["held_out"] == 1
    assert traces(treated.directory, needles) == []
    assert treated.ward.records.verify_events().ok
    report = treated.ward.records.reports(treated.model)[-1]
    assert report.examples
    assert len(report.examples[0].neighbours) == len(report.examples[0].distances) == 2
    memories = [version.sha256 for version in in_force(treated.ward, treated.model)]
    assert all(patient not in read_manifest(memories_in(treated.ward), name).patients for name in memories)


def test_everybody_who_learned_from_the_patient_is_named_with_what_to_do(treated: Any) -> None:
    patient = learned_patient(treated)
    _, learners, known = foresee(treated.ward, patient)
    done = purge(treated, patient)
    runs = [run.run_id for run in treated.ward.records.runs(treated.model)]
    assert [learner.run_id for learner in learners] == [learner.run_id for learner in done.learners] == runs
    assert known is None
    assert all((one.version, one.live, one.kind) == ("", False, "lora") for one in done.learners)
    cohort = treated.ward.records.load_cohort(treated.model)
    roles = roles_of(cohort.patient_key, treated.ward.settings.roles)
    first, *others = foresee(treated.ward, str(cohort.patient_key[roles == PatientRole.LEARNING][0]))[1]
    assert (first.run_id, first.version, first.live) == ("", "1", True)
    assert "roll back" in first.offer
    assert [learner.run_id for learner in others] == runs
    held_out = patients_of(treated, PatientRole.HELD_OUT, 3)[0]
    assert foresee(treated.ward, held_out)[1] == ()


def test_the_event_names_nobody_and_everything_is_told_once(treated: Any) -> None:
    patient = learned_patient(treated)
    done = purge(treated, patient)
    kinds = [event.kind for event in treated.ward.records.events()][-8:]
    assert kinds.count("patient.purge_begun") == kinds.count("patient.purged") == 1
    (event,) = treated.ward.records.events(kind="patient.purged")
    assert event.actor == OFFICER
    assert event.subject == done.patient_hmac[:16]
    assert json.loads(event.payload)["removed"]["predictions"] == 1
    count = len(treated.ward.records.events())
    again = purge(treated, patient, at=AT + timedelta(days=1))
    assert (again.before, again.removed) == (True, {})
    assert [learner.run_id for learner in again.learners] == [learner.run_id for learner in done.learners]
    assert len(treated.ward.records.events()) == count


def test_a_reason_that_names_the_patient_and_a_patient_nobody_knows_are_refused(treated: Any) -> None:
    patient = learned_patient(treated)
    with pytest.raises(RecordsError, match="write one that does not name the patient"):
        purge(treated, patient, reason=f"{patient} asked")
    with pytest.raises(StepRefused, match="no study of such a patient is stored here"):
        purge(treated, "patient-4")
    assert treated.ward.records.purges() == []


def test_a_later_export_does_not_bring_the_patient_back(treated: Any) -> None:
    patient = learned_patient(treated)
    study = treated.ward.records.subject_of(patient).studies
    needles = needles_of(treated, patient)
    purge(treated, patient)
    summary = ingest_export(treated.export(3), model=treated.model, ward=treated.ward, at=AT)
    assert (summary.quarantined, summary.accepted, summary.duplicate) == (1, 0, 79)
    row = treated.ward.records.quarantined(treated.model)[-1]
    assert (row.reason, row.content) == (Reason.PURGED_PATIENT, "")
    week = pd.read_csv(treated.export(3))
    mine = week[week["patient_key"] == patient]
    assert ingest_again(treated, mine.assign(score=7)).quarantined == 1  # bad twice over, and still nothing is kept
    broken = treated.directory / "exports" / "broken.csv"
    broken.write_text(mine.to_csv(index=False).rstrip("\n") + ",one,cell,too,many\n", encoding="utf-8")
    assert ingest_export(broken, model=treated.model, ward=treated.ward, at=AT).quarantined == 1
    assert not study & set(treated.ward.records.load_cohort(treated.model).study_uid)
    assert traces(treated.directory, needles) == []


def test_the_gate_goes_on_judging_on_cohorts_that_were_locked_anew(treated: Any) -> None:
    ward, patient = treated.ward, patients_of(treated, PatientRole.HELD_OUT, 3)[0]
    run = next(run for run in ward.records.runs(treated.model) if run.strategy == "replay")
    before = {lock.name: lock for lock in ward.records.held_out(treated.model)}
    done = purge(treated, patient)
    assert run.run_id in done.rejudge
    after = {lock.name: lock for lock in ward.records.held_out(treated.model)}
    (changed,) = [name for name in before if before[name].digest != after[name].digest]
    assert before.keys() == after.keys()
    assert before[changed].patients - after[changed].patients == {patient}
    (event,) = ward.records.events(kind="held_out.relocked")
    assert (event.actor, event.subject) == (OFFICER, changed)
    told = json.loads(event.payload)
    assert (told["before"], told["after"]) == (before[changed].digest, after[changed].digest)
    decision = judge(ward, run, at=AT)
    assert dict(decision.cohort_digests)[changed] == after[changed].digest
    assert decision.promote


def test_an_adaptation_after_the_removal_learns_without_the_patient(treated: Any) -> None:
    patient = learned_patient(treated)
    purge(treated, patient)
    plan = replace(treated.ward.records.plans(treated.model)[-1], evidence=())
    run = treat(treated.ward, plan, "naive", at=AT)
    kept = read_manifest(memories_in(treated.ward), run.memory_sha256)
    assert patient not in kept.patients
    assert run.n_learned == treated.ward.records.runs(treated.model)[0].n_learned - 1


def test_an_image_that_two_patients_share_keeps_its_features(treated: Any) -> None:
    patient, other = patients_of(treated, PatientRole.LEARNING, 3)[:2]
    week = pd.read_csv(treated.export(3))
    mine, image = week[week["patient_key"] == patient], week[week["patient_key"] == other]["image"].iloc[0]
    ingest_again(treated, mine.assign(study_uid="second", image=image))
    (shared,) = treated.ward.records.subject_of(other).images
    assert treated.ward.records.subject_of(patient).own_images == treated.ward.records.subject_of(patient).images - {
        shared
    }
    assert purge(treated, patient).removed["features"] == 1
    assert treated.ward.features_of(treated.model).missing([shared]) == []


def test_nothing_else_may_delete_what_is_append_only(treated: Any) -> None:
    read_a_worklist(treated, learned_patient(treated))
    with closing(sqlite3.connect(treated.directory / "wardround.db", isolation_level=None)) as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        for statement in (
            "DELETE FROM labels",
            "UPDATE reports SET content = ''",
            "UPDATE held_out SET manifest = '[]'",
            "DELETE FROM held_out",
            "DELETE FROM reports",
            "UPDATE worklists SET content = ''",
            "DELETE FROM worklists",
            "UPDATE readings SET comment = ''",
            "DELETE FROM readings",
        ):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                connection.execute(statement)
        with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
            connection.execute("INSERT INTO removing (ends) VALUES ('never')")
        connection.execute("BEGIN")
        connection.execute("INSERT INTO removing (ends) VALUES ('with this transaction')")
        for statement in (
            "UPDATE held_out SET name = 'x'",
            "UPDATE reports SET verdict = 'x'",
            "DELETE FROM reports",
            "UPDATE worklists SET model = 'x'",
            "DELETE FROM worklists",
            "UPDATE readings SET comment = 'x'",
        ):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                connection.execute(statement)
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute("UPDATE events SET payload = '{}'")
        with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
            connection.execute("COMMIT")
        connection.execute("ROLLBACK")


def test_tombstones_without_their_key_let_nobody_in(treated: Any) -> None:
    purge(treated, learned_patient(treated))
    with closing(sqlite3.connect(treated.directory / "wardround.db")) as connection, connection:
        connection.execute("DELETE FROM meta WHERE key = 'purge_key'")
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute("DELETE FROM purges")
    with pytest.raises(RecordsError, match="the key by which removed patients are recognised is gone"):
        ingest_again(treated, pd.read_csv(treated.export(3)).head(1).assign(study_uid="new"))


def test_forgetting_images_leaves_the_others_bit_by_bit(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    generator = np.random.default_rng(0)
    for names in (["a", "b"], ["c"], ["d", "e"]):
        n = len(names)
        shapes = [(n, 4), (n, 3, 4), (n, 2)]
        parts = [generator.normal(size=shape) for shape in shapes]
        store.put(names, parts[0].astype(np.float32), parts[1].astype(np.float16), parts[2].astype(np.float32))
    before = store.tokens(["a", "d", "e"])
    assert store.forget(["b", "c", "x"]) == 2
    for reader in (store, FeatureStore(tmp_path)):
        assert reader.missing(["a", "b", "c", "d", "e"]) == ["b", "c"]
        assert np.array_equal(reader.tokens(["a", "d", "e"]), before)
    assert store.forget(["b", "c"]) == 0
    assert len(list(tmp_path.iterdir())) == 2


def test_the_commands_ask_first_and_show_what_there_is(treated: Any) -> None:
    patient, folder = learned_patient(treated), str(treated.directory)
    runner = CliRunner()
    command = ["memory", "purge", "--patient", patient, "--by", OFFICER, "--dir", folder]
    refused = runner.invoke(application, command, input="n\n")
    assert refused.exit_code == 1
    assert treated.ward.records.purges() == []
    stranger = runner.invoke(
        application, ["memory", "purge", "--patient", patient, "--by", "x", "--yes", "--dir", folder]
    )
    assert stranger.exit_code == 2
    done = runner.invoke(application, [*command, "--yes", "--json"])
    assert done.exit_code == 0
    told = json.loads(done.stdout)
    assert told["removed"]["predictions"] == 1
    assert [learner["version"] for learner in told["learners"]] == ["", ""]
    shown = runner.invoke(application, ["memory", "show", "--dir", folder, "--json"])
    first = json.loads(shown.stdout)[0]
    assert {"strata", "stages", "versions", "bytes", "sha256"} <= first.keys()
    assert patient not in shown.stdout


# ---- killed


DRIVER = """
import os, signal, sys
from datetime import UTC, datetime
from pathlib import Path
from flows.purging import purge_patient
from flows.ward import open_ward

OURS = ("flows/purging", "flows/remembering", "registry/", "continual/memory", "continual/feature", "continual/files")

def run(home, patient, stop):
    calls = 0
    def count(frame, event, argument):
        nonlocal calls
        if event in ("call", "return") and any(name in frame.f_code.co_filename for name in OURS):
            calls += 1
            if calls == stop:
                os.kill(os.getpid(), signal.SIGKILL)
    ward = open_ward(Path(home))
    sys.setprofile(count)
    purge_patient(ward, patient, actor="quinn.quality", reason="asked", at=datetime(2026, 3, 4, tzinfo=UTC))
    sys.setprofile(None)
    return calls

def forked(home, patient, stop):
    child = os.fork()
    if not child:
        os.write(writer, str(run(home, patient, stop)).encode())
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

patient, whole, *homes = sys.argv[1:]
reader, writer = os.pipe()
assert forked(whole, patient, 0) == 0
total = int(os.read(reader, 20))
for number, home in enumerate(homes, start=1):
    stop = max(1, total * number // (len(homes) + 1))
    assert forked(home, patient, stop) == -signal.SIGKILL, stop
    assert forked(home, patient, 0) == 0
print("done", flush=True)
"""


def state_of(home: Path) -> dict[str, Any]:
    """Give all that a removal touches, but for the secret and what is counted or timed."""
    with closing(sqlite3.connect(home / "wardround.db")) as connection:
        tables = {name: connection.execute(f"SELECT * FROM {name}").fetchall() for name in ROWS}
        tables["purges"] = connection.execute("SELECT state, actor, reason, adapters FROM purges").fetchall()
        kinds = connection.execute("SELECT DISTINCT kind, actor, model FROM events ORDER BY kind").fetchall()
        assert connection.execute("SELECT COUNT(*) FROM events WHERE kind = 'patient.purged'").fetchone() == (1,)
    folders = ("features", "memories", "references", "reports", "worklists")
    files = sorted(
        str(path.relative_to(home)) for name in folders for path in (home / name).rglob("*") if path.is_file()
    )
    return tables | {"kinds": kinds, "files": files}


@pytest.mark.fault
@pytest.mark.timeout(600)  # 21 removals under a profiler, after a ward was built
def test_a_removal_killed_at_any_moment_is_gone_on_with_to_the_same_end(treated: Any, tmp_path: Path) -> None:
    from flows.ward import open_ward

    patient = learned_patient(treated)
    show_in_a_report(treated, sorted(treated.ward.records.subject_of(patient).studies)[0])
    read_a_worklist(treated, patient)
    needles = needles_of(treated, patient)
    homes = [Path(shutil.copytree(treated.directory, tmp_path / f"ward-{number}")) for number in range(11)]
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, patient, *map(str, homes)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[1],
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "done"
    expected = state_of(homes[0])
    for home in homes:
        assert state_of(home) == expected, home
        assert traces(home, needles) == []
        assert open_ward(home).records.verify_events().ok
