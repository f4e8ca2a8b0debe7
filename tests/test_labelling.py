"""Labels asked for and taken in, on a real ward: what readers see, what is kept, what counts, and what is told."""

import csv
import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from continual.label_uses import OpenWorklist
from continual.worklists import Part
from flows.labelling import escape_formula, open_worklists, request_labels, tell_need, write_again
from flows.reading_files import read_worklist_file, sort_readings
from flows.readings import ImportSummary, import_labels
from flows.sources import Row, SourceError
from flows.status import status_of
from flows.ward import StepRefused, Ward, load_role, open_ward
from flows.watching import watch, windows_to_watch
from monitor.cohorts import Prediction, Window
from monitor.results import Source
from monitor.tasks import Task
from registry.entries import KnownStudy, RecordsError
from registry.held_out import PatientRole, roles_of
from registry.settings import FILE_NAME, ModelSettings

pytestmark = [
    # avalanche 0.6 imports a package that says at import that nobody maintains it; nothing of it is used
    pytest.mark.filterwarnings("ignore:JAXopt is no longer maintained:DeprecationWarning"),
    # MLflow's own tables use a loader strategy that SQLAlchemy 2.1 deprecates
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning"),
]

AT = datetime(2026, 3, 3, 9, tzinfo=UTC)
WEEK = Window(start=datetime(2026, 2, 23, tzinfo=UTC), end=datetime(2026, 3, 2, tzinfo=UTC))
BINARY, FINDINGS = ModelSettings(), ModelSettings(task=Task.MULTI_LABEL, classes=("a", "b"))
UNTOLD = (
    "\n[adaptation.labels]\nrandom_share = 0.5\nsubgroups = ['site']\nsmallest_quota = 3\nnear_duplicate = 0.9999\n"
)


@pytest.fixture
def waiting(small: Any) -> Any:
    """Give the small ward with its fourth week taken in without any label."""
    with (small.directory / FILE_NAME).open("a", encoding="utf-8") as file:
        file.write(UNTOLD)
    take_in(small, 3)
    return small


def take_in(small: Any, week: int) -> None:
    from flows.ingesting import ingest_export

    path = small.export(week)
    rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
    unlabelled = [{name: value for name, value in row.items() if name != "label"} for row in rows]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(unlabelled[0]))
        writer.writeheader()
        writer.writerows(unlabelled)
    ingest_export(path, model=small.model, ward=small.ward, at=AT)


def truth(study: str) -> str:
    """Tell what stands in the image: every test reads like a reader who is always right."""
    return "yes" if int(study.rsplit("-", 1)[1]) % 3 else "no"


def request(ward: Ward, n: int | None = 24, at: datetime = AT, **more: Any) -> Any:
    options: dict[str, Any] = {"windows": [WEEK], "out": None, "by": ""} | more
    return request_labels(ward, "bright-left", n=n, at=at, **options)


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"))))


def fill(path: Path, *, only: slice = slice(None), name: str = "back.csv", **cells: str) -> Path:
    """Fill some rows of a worklist as a reader would, and save it beside under another name."""
    rows = rows_of(path)
    for row in rows[only]:
        said = {"label": truth(row["study_uid"]), "reader": "Dr. Rahel Roth", "read_at": "2026-03-03T08:30"}
        row.update(said | cells)
    return save(rows, path.parent / name)


def save(rows: list[dict[str, str]], path: Path) -> Path:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(text.getvalue(), encoding="utf-8", newline="")
    return path


def take(ward: Ward, path: Path, at: datetime = AT) -> ImportSummary:
    return import_labels(path, model="bright-left", ward=ward, at=at)


def parts(summary: ImportSummary) -> tuple[int, int, int, int, int]:
    return summary.accepted, summary.duplicate, summary.conflict, summary.empty, summary.quarantined


# ---- what is asked for


def test_readers_see_the_study_and_its_image_and_nothing_that_sways_them(waiting: Any) -> None:
    done = request(waiting.ward)
    rows = rows_of(done.path)
    assert list(rows[0]) == ["study_uid", "image", "label", "reader", "read_at", "comment"]
    assert all(row["image"] == f"images/{row['study_uid'].removeprefix('study-')}.png" for row in rows)
    assert all((waiting.directory / row["image"]).is_file() for row in rows)
    assert all(not row[name] for row in rows for name in ("label", "reader", "read_at", "comment"))
    (worklist,) = waiting.ward.records.worklists("bright-left")
    assert [row["study_uid"] for row in rows] == [item.study_uid for item in worklist.items]
    assert (done.random, done.chosen, done.studies) == (12, 12, 24)
    assert sum(count or 0 for count in done.subgroups.values()) == 12


def test_the_random_part_is_of_others_and_the_chosen_part_of_learning_patients(waiting: Any) -> None:
    ward = waiting.ward
    request(ward)
    (worklist,) = ward.records.worklists("bright-left")
    cohort = ward.records.load_cohort("bright-left", window=WEEK)
    roles = dict(zip(cohort.study_uid, roles_of(cohort.patient_key, ward.settings.roles), strict=True))
    assert {roles[study] for study in worklist.studies(Part.CHOSEN)} == {PatientRole.LEARNING}
    assert PatientRole.LEARNING not in {roles[study] for study in worklist.studies(Part.RANDOM)}
    frame = sum(role != PatientRole.LEARNING for role in roles.values())
    assert worklist.frame == frame
    assert {item.probability for item in worklist.items} == {None, 12 / frame}


def test_a_request_is_a_row_and_an_event_with_a_reason_for_each_study(waiting: Any) -> None:
    ward = waiting.ward
    done = request(ward, by="emma.engineer")
    (worklist,) = ward.records.worklists("bright-left")
    assert worklist.worklist_id == done.worklist_id
    assert all(
        item.reason.startswith(("drawn at random, 12 of", "chosen by both of subgroup")) for item in worklist.items
    )
    (event,) = ward.records.events("bright-left", kind="worklist.requested")
    assert (event.actor, event.subject) == ("emma.engineer", done.worklist_id)
    assert json.loads(event.payload)["random"] == 12
    assert ward.records.verify_events().ok


def test_nobody_is_asked_twice_while_a_worklist_is_open(waiting: Any) -> None:
    ward = waiting.ward
    request(ward)
    request(ward)
    first, second = ward.records.worklists("bright-left")
    assert not first.studies() & second.studies()
    later = request(ward, 80, at=AT + timedelta(days=61))
    assert later.studies > len(first.items)


def test_the_same_request_in_the_same_ward_asks_for_the_same_studies(waiting: Any, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(waiting.directory, tmp_path / "copy"))
    here, there = request(waiting.ward), request(open_ward(copy))
    assert here.worklist_id == there.worklist_id
    assert here.path.read_bytes() == there.path.read_bytes()


def test_more_than_there_is_gives_what_there_is_and_then_refuses(waiting: Any) -> None:
    ward = waiting.ward
    done = request(ward, 500)
    assert done.random + done.chosen == done.studies < 500
    with pytest.raises(StepRefused, match="is labelled or on an open worklist"):
        request(ward)


def test_a_file_that_may_hold_readings_is_never_overwritten(waiting: Any) -> None:
    ward = waiting.ward
    done = request(ward)
    with pytest.raises(ValueError, match="may hold readings; choose another --out"):
        write_again(ward, "bright-left", done.worklist_id, None)
    with pytest.raises(ValueError, match="may hold readings; choose another --out"):
        request(ward, out=done.path)
    assert len(ward.records.worklists("bright-left")) == 1
    take(ward, fill(done.path, only=slice(4)))
    again = write_again(ward, "bright-left", done.worklist_id, waiting.directory / "again.csv")
    assert (again.worklist_id, again.studies) == (done.worklist_id, 20)
    assert [row["study_uid"] for row in rows_of(again.path)] == [row["study_uid"] for row in rows_of(done.path)[4:]]
    with pytest.raises(RecordsError, match="no worklist 'wl-none'"):
        write_again(ward, "bright-left", "wl-none", None)


def test_without_a_plan_windows_must_be_named(waiting: Any) -> None:
    with pytest.raises(StepRefused, match="run `wardround plan`, or name windows with --window"):
        request(waiting.ward, windows=[])
    with pytest.raises(ValueError, match="at least one study"):
        request(waiting.ward, 0)


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@a", "\tx", "'x", "'=x"])
def test_a_cell_is_never_run_as_a_formula_and_comes_back_as_it_was(text: str) -> None:
    assert escape_formula(text) == f"'{text}"
    assert escape_formula("study-1") == "study-1"


# ---- what came back


def test_what_came_back_is_learned_from_and_kept_with_reader_and_time(waiting: Any) -> None:
    ward = waiting.ward
    done = request(ward)
    summary = take(ward, fill(done.path, comment="motion;  artefact"))
    assert parts(summary) == (24, 0, 0, 0, 0)
    readings = ward.records.readings("bright-left")
    assert len(readings) == 24
    assert {(one.reader, one.read_at, one.worklist_id) for one in readings} == {
        ("Dr. Rahel Roth", datetime(2026, 3, 3, 8, 30, tzinfo=UTC), done.worklist_id)
    }
    cohort = load_role(ward, "bright-left", [WEEK], PatientRole.LEARNING)
    assert cohort.labelled.sum() == 12
    told = dict(zip(cohort.study_uid[cohort.labelled], cohort.labels[cohort.labelled, 0], strict=True))
    assert all(label == (truth(str(study)) == "yes") for study, label in told.items())
    assert ward.records.label_arrival("bright-left", WEEK).labelled == 24
    assert open_worklists(ward, "bright-left", at=AT) == ()


def test_the_same_file_again_changes_nothing(waiting: Any) -> None:
    ward = waiting.ward
    path = fill(request(ward).path, read_at="")
    take(ward, path)
    before = waiting.rows()
    summary = take(ward, path, AT + timedelta(days=2))
    assert parts(summary) == (0, 24, 0, 0, 0)
    assert waiting.rows() == before


def test_an_import_that_was_interrupted_ends_as_an_undisturbed_one(waiting: Any) -> None:
    ward = waiting.ward
    path = fill(request(ward).path)
    file = read_worklist_file(path, ward.settings.model(waiting.model))
    batch = ward.records.begin_batch(waiting.model, file.name, file.content_sha256, AT)
    known = ward.records.known_studies(waiting.model, [row.cells["study_uid"] for row in file.rows], batch_id=batch)
    half = [known[row.cells["study_uid"]].answers[0] for row in file.rows[:10]]
    labels = [(int(truth(answer.study_uid) == "yes"),) for answer in half]
    told = [one.model_copy(update={"labels": label}) for one, label in zip(half, labels, strict=True)]
    ward.records.add_predictions(batch, told, AT)  # and here the process was killed
    assert parts(take(waiting.ward, path)) == (24, 0, 0, 0, 0)
    assert parts(take(waiting.ward, path)) == (0, 24, 0, 0, 0)
    (done,) = [one for one in ward.records.batches(waiting.model) if one.source == path.name]
    assert (done.received, done.labelled) == (24, 24)


def test_a_worklist_may_come_back_in_parts(waiting: Any) -> None:
    ward = waiting.ward
    done = request(ward)
    assert parts(take(ward, fill(done.path, only=slice(5), name="1.csv"))) == (5, 0, 0, 19, 0)
    (one,) = open_worklists(ward, "bright-left", at=AT + timedelta(days=4))
    assert isinstance(one, OpenWorklist)
    assert (one.asked, one.returned, one.days) == (24, 5, 4)
    assert parts(take(ward, fill(done.path, only=slice(9), name="2.csv"))) == (4, 5, 0, 15, 0)
    assert parts(take(ward, fill(done.path, name="3.csv"))) == (15, 9, 0, 0, 0)
    assert len(ward.records.readings("bright-left")) == 24


def test_another_answer_is_a_conflict_and_the_first_stands(waiting: Any) -> None:
    ward = waiting.ward
    done = request(ward)
    take(ward, fill(done.path, only=slice(3), name="1.csv"))
    rows = rows_of(fill(done.path, only=slice(3), name="2.csv"))
    rows[0]["label"] = "no" if rows[0]["label"] == "yes" else "yes"
    rows += [dict(rows[3], label="yes", reader="A"), dict(rows[3], label="no", reader="B")]
    rows += [dict(rows[4], label="yes", reader="A"), dict(rows[4], label="YES", reader="B")]
    summary = take(ward, save(rows, waiting.directory / "3.csv"))
    assert parts(summary) == (1, 3, 3, 21, 0)
    assert summary.reasons == {"labelled_differently": 1, "readers_disagree": 2}
    kept = ward.records.quarantined("bright-left")
    assert any("A in line 26, B in line 27" in row.detail for row in kept)
    assert sum(one.study_uid == rows[4]["study_uid"] for one in ward.records.readings("bright-left")) == 2
    cohort = ward.records.load_cohort("bright-left", window=WEEK)
    assert np.isnan(cohort.labels[cohort.study_uid == rows[3]["study_uid"]]).all()


def test_rows_that_cannot_be_used_are_kept_with_their_reason(waiting: Any) -> None:
    ward = waiting.ward
    rows = rows_of(request(ward).path)[:6]
    cohort = ward.records.load_cohort("bright-left", window=WEEK)
    (worklist,) = ward.records.worklists("bright-left")
    other = next(str(study) for study in cohort.study_uid if study not in worklist.studies())
    for row, cells in zip(
        rows,
        [
            {"study_uid": "1.23E+19", "label": "yes"},
            {"study_uid": other, "label": "yes"},
            {"label": "maybe"},
            {"label": "no", "read_at": "04.05.26"},
            {"label": "no", "read_at": "2031-01-01"},
            {"study_uid": " ", "label": "no"},
        ],
        strict=True,
    ):
        row.update(cells)
    summary = take(ward, save(rows, waiting.directory / "back.csv"))
    assert parts(summary) == (0, 0, 0, 0, 6)
    assert summary.reasons == {
        "bad_time": 2,
        "missing_value": 1,
        "not_asked": 1,
        "unknown_class": 1,
        "unknown_study": 1,
    }
    assert len(ward.records.quarantined("bright-left")) == 6
    assert ward.records.readings("bright-left") == []


# ---- files as spreadsheets write them

PLAIN = "study_uid,image,label,reader,read_at,comment\ns1,a.png,yes,Rahel,,\ns2,b.png,,,,\n"


@pytest.mark.parametrize(
    "content",
    [
        PLAIN.encode(),
        PLAIN.encode("utf-8-sig"),
        PLAIN.replace("\n", "\r\n").encode(),
        PLAIN.replace(",", ";").replace("\n", "\r\n").encode("cp1252"),
        ("sep=;\r\n" + PLAIN.replace(",", ";").replace("\n", "\r\n")).encode(),
        PLAIN.replace(",", "\t").encode("utf-16"),
        PLAIN.replace("study_uid", " Study_UID ").replace("label", "LABEL").encode(),
        PLAIN.replace("s2,b.png,,,,", "s2,b.png").encode(),
        PLAIN.replace("s2,b.png,,,,", "s2,b.png,,,,,,").encode(),
        PLAIN.rstrip().encode(),
    ],
)
def test_a_worklist_is_read_however_a_spreadsheet_saved_it(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    file = read_worklist_file(tmp_path / "a.csv", BINARY)
    assert [(row.cells["study_uid"], row.cells["label"], row.problem) for row in file.rows] == [
        ("s1", "yes", ""),
        ("s2", "", ""),
    ]


def test_letters_of_the_western_code_page_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(PLAIN.replace("Rahel", "Müller").encode("cp1252"))
    assert read_worklist_file(tmp_path / "a.csv", BINARY).rows[0].cells["reader"] == "Müller"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; save the worklist again"),
        (b"PK\x03\x04rest", "is an Excel workbook; save it as CSV"),
        (b"study_uid,label\x00\n", "no text that can be read"),
        (b"who,label\ns1,yes\n", "no column study_uid"),
        (b"study_uid,reader\ns1,me\n", "no column label; keep the header"),
        (b"study_uid,label,label\ns1,yes,no\n", "column 'label' stands there twice"),
        (b'study_uid,label\ns1,"yes\n', "a quotation mark is probably not closed"),
    ],
)
def test_a_broken_file_is_one_clear_error(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(SourceError, match=message):
        read_worklist_file(tmp_path / "a.csv", BINARY)
    with pytest.raises(SourceError, match="does not exist"):
        read_worklist_file(tmp_path / "b.csv", BINARY)


answers = st.sampled_from(["", "0", "1", "TRUE", "maybe"])
reader_rows = st.lists(st.tuples(st.sampled_from(["s0", "s1", "s2", "s3", "t", ""]), answers, answers), max_size=12)


@settings(max_examples=150)
@given(rows=reader_rows, stored=st.lists(st.sampled_from([(), (1, None), (0, 1)]), min_size=4, max_size=4))
def test_every_row_is_in_one_place_and_no_label_contradicts_another(rows: Any, stored: Any) -> None:
    answer = Prediction(model="m", study_uid="s", patient_key="p", produced_at=AT, scores=(0.5, 0.5), labels=())
    known = {
        f"s{i}": KnownStudy(answers=(answer,), labels=labels, worklist_id="" if i == 3 else "wl-1")
        for i, labels in enumerate(stored)
    }
    cells = [Row(line=i, cells={"study_uid": s, "label_a": a, "label_b": b}) for i, (s, a, b) in enumerate(rows)]
    done = sort_readings(cells, known, FINDINGS, AT)
    lines = [one.row.line for one in (*done.accepted, *done.duplicate)]
    lines += [one.line for one in (*done.conflict, *done.quarantined)]
    empty = [i for i, (_, a, b) in enumerate(rows) if not a and not b]
    assert done.empty == len(empty)
    assert sorted(lines) == sorted(set(range(len(rows))) - set(empty))
    truths: dict[str, list[int | None]] = {study: list(one.labels or (None, None)) for study, one in known.items()}
    for one in sorted([*done.accepted, *done.duplicate], key=lambda one: one.row.line):
        for place, label in enumerate(one.labels):
            if label is not None:
                assert truths[one.study_uid][place] in (None, label)
                truths[one.study_uid][place] = label
    assert not {one.study_uid for one in done.accepted} & {"s3", "t", ""}


# ---- what labels are used for


def test_a_window_is_measured_by_those_nobody_could_choose_and_becomes_due_once(waiting: Any) -> None:
    ward = waiting.ward
    watch(ward, "bright-left", WEEK, at=AT)
    assert WEEK not in windows_to_watch(ward, "bright-left", until=WEEK.end)
    done = request(ward, 46)
    take(ward, fill(done.path))
    assert WEEK in windows_to_watch(ward, "bright-left", until=WEEK.end)
    report = watch(ward, "bright-left", WEEK, at=AT)
    assert WEEK not in windows_to_watch(ward, "bright-left", until=WEEK.end)
    assert (report.n_labels, report.n_labelled) == (done.random + done.chosen, done.random)
    realised = next(h for h in report.harms if h.source is Source.REALISED and h.metric == "accuracy")
    assert realised.n in (None, done.random)


def test_the_status_says_what_is_missing_and_how_old_worklists_are(treated: Any) -> None:
    ward = treated.ward
    assert tell_need(ward, treated.model, at=AT) == ""  # the windows are all labelled
    with (treated.directory / FILE_NAME).open(encoding="utf-8") as file:
        text = file.read().replace("minimum_labels = 20", "minimum_labels = 400")
    (treated.directory / FILE_NAME).write_text(text, encoding="utf-8")
    ward = treated.ward
    state = status_of(ward, at=AT)[treated.model]
    assert " of 400 labels to learn from are there; request " in state["labels_needed"]
    assert state["worklists"] == []


def test_open_worklists_stand_in_the_status(waiting: Any) -> None:
    ward = waiting.ward
    done = request(ward)
    take(ward, fill(done.path, only=slice(6)))
    (told,) = status_of(ward, at=AT + timedelta(days=9))[waiting.model]["worklists"]
    assert (told["worklist_id"], told["since"], told["days"]) == (done.worklist_id, "2026-03-03", 9)
    assert (told["asked"], told["returned"], told["return_rate"]) == (24, 6, 0.25)


def test_a_small_subgroup_of_a_worklist_is_not_counted(waiting: Any) -> None:
    text = (waiting.directory / FILE_NAME).read_text(encoding="utf-8").replace("['site']", "['kind']")
    (waiting.directory / FILE_NAME).write_text(text, encoding="utf-8")
    done = request(waiting.ward)
    assert set(done.subgroups) == {"kind green", "kind red"}
    assert set(done.subgroups.values()) == {None}  # one is small, and the other would give it away
