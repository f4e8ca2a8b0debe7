"""Exports taken in: idempotent, resumable, nothing lost, bad rows kept with their reason."""

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from continual.images import UnreadableImage
from flows.features import load_features
from flows.ingesting import embed_images, ingest_export
from flows.progress import current_progress
from flows.sources import SourceError
from flows.ward import Ward, open_ward
from monitor.cohorts import Window
from monitor.image_statistics import STATISTICS
from registry.entries import BatchSummary
from registry.settings import SettingsError

AT = datetime(2026, 4, 6, tzinfo=UTC)
START = datetime(2026, 3, 30, 8, tzinfo=UTC)
TASKS = {
    "binary": ("binary", ["no", "yes"]),
    "multi-class": ("multi-class", ["none", "benign", "malignant"]),
    "multi-label": ("multi-label", ["effusion", "oedema"]),
}
SETTINGS = """
[models.m]
task = "{task}"
classes = {classes}
attributes = ["site", "age"]
numeric_attributes = ["age"]
[models.m.backbone]
name = "vit_tiny_patch16_224"
source = "random"
image_size = 28
"""


@pytest.fixture
def ward(tmp_path: Path) -> Ward:
    return ward_in(tmp_path / "ward")


def ward_in(directory: Path, kind: str = "binary") -> Ward:
    task, classes = TASKS[kind]
    directory.mkdir(exist_ok=True)
    (directory / "wardround.toml").write_text(SETTINGS.format(task=task, classes=json.dumps(classes)))
    return open_ward(directory)


def rows_of(n: int, **columns: list[object]) -> pd.DataFrame:
    plain: dict[str, list[Any]] = {
        "study_uid": [f"s{i}" for i in range(n)],
        "patient_key": [f"p{i // 2}" for i in range(n)],
        "produced_at": [(START + timedelta(minutes=i)).isoformat() for i in range(n)],
        "score": [round(0.1 + 0.8 * i / n, 3) for i in range(n)],
        "label": [("no", "yes", "")[i % 3] for i in range(n)],
        "site": [("A", "B")[i % 2] for i in range(n)],
        "age": [40 + i for i in range(n)],
    }
    return pd.DataFrame(plain | columns)


def write_images(folder: Path, n: int) -> list[object]:
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(1)
    for i in range(n):
        pixels = generator.integers(0, 255, (24, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.{('png', 'jpg')[i % 2]}")
    return [f"images/{i}.{('png', 'jpg')[i % 2]}" for i in range(n)]


def save(frame: pd.DataFrame, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(path, index=False)
    return path


def ingest(ward: Ward, path: Path) -> BatchSummary:
    summary = ingest_export(path, model="m", ward=ward, at=AT)
    assert summary.labelled == 0
    assert summary.received == summary.accepted + summary.duplicate + summary.conflict + summary.quarantined
    return summary


def counts(summary: BatchSummary) -> tuple[int, int, int, int]:
    return summary.accepted, summary.duplicate, summary.conflict, summary.quarantined


def reasons(ward: Ward) -> list[str]:
    return [row.reason for row in ward.records.quarantined("m")]


def dump(directory: Path) -> dict[str, list[tuple[object, ...]]]:
    """Every row of the tables that ingest writes to."""
    with sqlite3.connect(directory / "wardround.db") as connection:
        tables = ("batches", "predictions", "labels", "quarantine", "events")
        found = {table: connection.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall() for table in tables}
    connection.close()
    return found


# ---- good exports


def test_an_export_becomes_predictions_and_a_cohort(ward: Ward, tmp_path: Path) -> None:
    assert counts(ingest(ward, save(rows_of(10), tmp_path / "week.csv"))) == (10, 0, 0, 0)
    cohort = ward.records.load_cohort("m")
    assert cohort.study_uid.tolist() == [f"s{i}" for i in range(10)]
    assert cohort.scores[:, 0].tolist() == rows_of(10)["score"].tolist()
    np.testing.assert_array_equal(cohort.labels[:3, 0], [0, 1, np.nan])
    assert cohort.attributes["site"].tolist() == ["A", "B"] * 5
    assert cohort.attributes["age"].tolist() == [40.0 + i for i in range(10)]
    assert cohort.images is None
    assert load_features(cohort, ward.features_of("m")).embeddings is None


def test_multi_class_and_multi_label_exports_keep_every_score_and_label(tmp_path: Path) -> None:
    ward = ward_in(tmp_path / "classes", "multi-class")
    frame = rows_of(
        3, score_none=[0.2, 0.1, 0.9], score_benign=[0.5, 0.1, 0.05], score_malignant=[0.3, 0.8, 0.05],
        label=["benign", "malignant", ""],
    )  # fmt: skip
    assert counts(ingest(ward, save(frame, tmp_path / "a.csv"))) == (3, 0, 0, 0)
    cohort = ward.records.load_cohort("m")
    assert cohort.scores.tolist() == [[0.2, 0.5, 0.3], [0.1, 0.1, 0.8], [0.9, 0.05, 0.05]]
    np.testing.assert_array_equal(cohort.labels, [[1], [2], [np.nan]])

    ward = ward_in(tmp_path / "findings", "multi-label")
    frame = rows_of(
        3, score_effusion=[0.9, 0.1, 0.5], score_oedema=[0.9, 0.8, 0.5],
        label_effusion=[1, 0, None], label_oedema=[1, None, 0],
    )  # fmt: skip
    assert counts(ingest(ward, save(frame, tmp_path / "b.csv"))) == (3, 0, 0, 0)
    cohort = ward.records.load_cohort("m")
    assert cohort.scores.tolist() == [[0.9, 0.9], [0.1, 0.8], [0.5, 0.5]]
    np.testing.assert_array_equal(cohort.labels, [[1, 1], [0, np.nan], [np.nan, 0]])


def test_images_of_every_kind_are_embedded_once_and_attached(ward: Ward, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 4)
    for name in ("CT_small.dcm", "MR_small.dcm"):
        shutil.copy(str(get_testdata_file(name)), tmp_path / "images" / name)
        images.append(f"images/{name}")
    images.append(images[0])
    path = save(rows_of(7, image=images), tmp_path / "week.csv")
    assert counts(ingest(ward, path)) == (7, 0, 0, 0)
    cohort = load_features(ward.records.load_cohort("m"), ward.features_of("m"))
    assert cohort.embeddings is not None
    assert len(np.unique(cohort.embeddings, axis=0)) == 6
    np.testing.assert_array_equal(cohort.embeddings[0], cohort.embeddings[6])
    assert list(cohort.image_statistics) == list(STATISTICS)
    assert {*cohort.image_statistics["native width"][4:6]} == {128, 64}  # CT_small and MR_small, before any resizing
    stored = sorted(file.name for file in ward.features_of("m").directory.iterdir())
    ingest(ward, save(rows_of(7, image=images, study_uid=[f"t{i}" for i in range(7)]), tmp_path / "again.csv"))
    assert sorted(file.name for file in ward.features_of("m").directory.iterdir()) == stored


def test_an_images_folder_of_the_ward_serves_exports_from_anywhere(ward: Ward, tmp_path: Path) -> None:
    images = write_images(ward.settings.directory / "images", 2)
    path = save(rows_of(2, image=images), tmp_path / "elsewhere" / "week.csv")
    assert counts(ingest(ward, path)) == (2, 0, 0, 0)


def test_embedding_images_without_an_export_fills_the_same_store(ward: Ward, tmp_path: Path) -> None:
    paths = [tmp_path / str(name) for name in write_images(tmp_path / "images", 3)]
    hashes = embed_images(paths, ward=ward, model="m")
    assert ward.features_of("m").tokens(hashes).shape[0] == 3
    paths[0].write_bytes(b"no image")
    with pytest.raises(UnreadableImage, match="neither PNG, JPEG nor DICOM"):
        embed_images(paths, ward=ward, model="m")


def test_progress_counts_rows_to_the_end(ward: Ward, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    path = save(rows_of(3, image=write_images(tmp_path / "images", 3)), tmp_path / "week.csv")
    token = current_progress.set(lambda what, done, total: told.append((what, done, total)))
    ingest(ward, path)
    current_progress.reset(token)
    assert told == [("Reading week.csv", 3, 3), ("Reading week.csv", 3, 3)]


# ---- the same again


def test_the_same_export_twice_changes_nothing(ward: Ward, tmp_path: Path) -> None:
    frame = rows_of(6, image=write_images(tmp_path / "images", 6))
    frame.loc[2, "score"] = 1.5
    frame.loc[5, ["study_uid", "produced_at"]] = frame.loc[0, ["study_uid", "produced_at"]]
    path = save(frame, tmp_path / "week.csv")
    assert counts(ingest(ward, path)) == (4, 0, 1, 1)
    before = dump(ward.settings.directory)
    assert counts(ingest(ward, path)) == (0, 4, 1, 1)
    assert counts(ingest(open_ward(ward.settings.directory), path)) == (0, 4, 1, 1)
    assert dump(ward.settings.directory) == before


def test_the_same_rows_in_another_order_format_and_zone_are_known(ward: Ward, tmp_path: Path) -> None:
    frame = rows_of(8)
    ingest(ward, save(frame, tmp_path / "week.csv"))
    predictions = dump(ward.settings.directory)["predictions"]
    zone = pd.to_datetime(frame["produced_at"]).dt.tz_convert("Asia/Tokyo")
    frame.assign(produced_at=zone).iloc[::-1].to_parquet(tmp_path / "week.parquet")
    assert counts(ingest(ward, tmp_path / "week.parquet")) == (0, 8, 0, 0)
    frame.assign(produced_at=[moment.isoformat() for moment in zone]).to_json(
        tmp_path / "week.jsonl", orient="records", lines=True
    )
    assert counts(ingest(ward, tmp_path / "week.jsonl")) == (0, 8, 0, 0)
    assert dump(ward.settings.directory)["predictions"] == predictions


def test_a_known_key_with_other_content_is_a_conflict_and_the_first_is_kept(ward: Ward, tmp_path: Path) -> None:
    ingest(ward, save(rows_of(4), tmp_path / "week.csv"))
    changed = rows_of(4)
    changed.loc[1, "score"] = 0.99
    changed.loc[2, "patient_key"] = "somebody else"
    assert counts(ingest(ward, save(changed, tmp_path / "changed.csv"))) == (0, 2, 2, 0)
    assert reasons(ward) == ["key_conflict", "key_conflict"]
    assert ward.records.load_cohort("m").scores[1, 0] == rows_of(4)["score"][1]
    assert ward.records.load_cohort("m").patient_key[2] == "p1"


def test_a_corrected_export_adds_what_was_refused(ward: Ward, tmp_path: Path) -> None:
    frame = rows_of(4)
    bad = frame.assign(score=["0.1", "high", "0.3", "0.4"])
    assert counts(ingest(ward, save(bad, tmp_path / "week.csv"))) == (3, 0, 0, 1)
    mended = bad.assign(score=["0.1", "0.9", "0.3", "0.4"])
    assert counts(ingest(ward, save(mended, tmp_path / "week.csv"))) == (1, 3, 0, 0)


# ---- bad input


BAD_ROWS: dict[str, tuple[str, object, str]] = {
    "NaN score": ("score", "nan", "not_finite_score"),
    "infinite score": ("score", "inf", "not_finite_score"),
    "score above 1": ("score", "1.2", "score_out_of_range"),
    "score below 0": ("score", "-0.2", "score_out_of_range"),
    "no score": ("score", "", "missing_value"),
    "score in words": ("score", "high", "bad_row"),
    "naive time": ("produced_at", "2026-03-30T08:00:00", "naive_time"),
    "no time": ("produced_at", "Monday", "bad_time"),
    "naive time of truth": ("labelled_at", "2026-03-31T08:00:00", "naive_time"),
    "truth of tomorrow": ("labelled_at", "2026-04-07T08:00:00Z", "bad_time"),
    "unknown class": ("label", "maybe", "unknown_class"),
    "no patient": ("patient_key", "", "missing_value"),
    "no study": ("study_uid", "", "missing_value"),
    "no image": ("image", "", "missing_value"),
    "missing image": ("image", "images/none.png", "image_missing"),
    "folder as image": ("image", "images", "image_missing"),
    "outside": ("image", "../../etc/passwd", "path_outside"),
    "absolute": ("image", "/etc/passwd", "path_outside"),
    "text as image": ("image", "images/text.png", "image_unreadable"),
    "empty image": ("image", "images/empty.png", "image_unreadable"),
    "truncated PNG": ("image", "images/cut.png", "image_unreadable"),
    "truncated DICOM": ("image", "images/cut.dcm", "image_unreadable"),
    "DICOM cut to its preamble": ("image", "images/stub.dcm", "image_unreadable"),
    "DICOM without pixels": ("image", "images/plan.dcm", "image_unreadable"),
}


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with good and broken images."""
    folder = tmp_path_factory.mktemp("hospital")
    write_images(folder / "images", 4)
    images = folder / "images"
    (images / "text.png").write_text("this is no image")
    (images / "empty.png").touch()
    (images / "cut.png").write_bytes((images / "0.png").read_bytes()[:200])
    whole = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
    (images / "cut.dcm").write_bytes(whole[: len(whole) // 2])
    (images / "stub.dcm").write_bytes(whole[:140])
    shutil.copy(str(get_testdata_file("rtplan.dcm")), images / "plan.dcm")
    return folder


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_goes_to_quarantine_and_the_others_are_taken(ward: Ward, hospital: Path, case: str) -> None:
    column, value, reason = BAD_ROWS[case]
    frame = rows_of(4, image=["images/0.png", "images/1.jpg", "images/2.png", "images/3.jpg"]).astype(object)
    frame.loc[1, column] = value
    path = save(frame, hospital / f"{case.replace(' ', '-')}.csv")
    assert counts(ingest(ward, path)) == (3, 0, 0, 1)
    (row,) = ward.records.quarantined("m")
    assert (row.line, row.reason) == (3, reason)
    assert row.detail
    assert json.loads(row.content)[column] == str(value)
    cohort = load_features(ward.records.load_cohort("m"), ward.features_of("m"))
    assert sorted(cohort.study_uid) == ["s0", "s2", "s3"]
    assert cohort.embeddings is not None


def test_all_bad_rows_together_are_all_counted(ward: Ward, hospital: Path) -> None:
    frame = rows_of(len(BAD_ROWS), image=["images/0.png"] * len(BAD_ROWS)).astype(object)
    for i, (column, value, _) in enumerate(BAD_ROWS.values()):
        frame.loc[i, column] = value
    assert counts(ingest(ward, save(frame, hospital / "all.csv"))) == (0, 0, 0, len(BAD_ROWS))
    found = {row.line: row.reason for row in ward.records.quarantined("m")}
    assert [found[line] for line in sorted(found)] == [reason for _, _, reason in BAD_ROWS.values()]


def test_every_dicom_file_that_pydicom_ships_is_embedded_or_quarantined(ward: Ward, tmp_path: Path) -> None:
    files = sorted(Path(str(get_testdata_file("CT_small.dcm"))).parent.glob("*.dcm"))
    assert len(files) > 50
    (tmp_path / "dicom").symlink_to(files[0].parent, target_is_directory=True)
    outside = save(rows_of(1, image=[f"dicom/{files[0].name}"]), tmp_path / "outside.csv")
    assert counts(ingest(ward, outside)) == (0, 0, 0, 1)
    folder = shutil.copytree(files[0].parent, tmp_path / "copies", ignore=shutil.ignore_patterns("*.py"))
    path = save(rows_of(len(files), image=[file.name for file in files]), folder / "week.csv")
    summary = ingest(ward, path)
    assert summary.received == len(files)
    assert summary.accepted > 20
    assert {row.reason for row in ward.records.quarantined("m")} == {"path_outside", "image_unreadable"}
    assert all(row.detail for row in ward.records.quarantined("m"))


def test_a_file_that_cannot_be_read_leaves_no_trace(ward: Ward, tmp_path: Path) -> None:
    good = save(rows_of(2), tmp_path / "good.csv")
    (tmp_path / "broken.csv").write_text(good.read_text() + '"s9,p9\n')
    before = dump(ward.settings.directory)
    for name in ("none.csv", "broken.csv"):
        with pytest.raises(SourceError, match=name):
            ingest(ward, tmp_path / name)
    assert dump(ward.settings.directory) == before
    with pytest.raises(SettingsError, match=r"add a \[models.other\] table"):
        ingest_export(good, model="other", ward=ward, at=AT)


def test_a_constant_embedding_is_told(ward: Ward, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(3):  # other bytes, the same pixels: what broken preprocessing upstream looks like
        Image.new("L", (20 + i, 20)).save(folder / f"{i}.png")
    path = save(rows_of(3, image=[f"images/{i}.png" for i in range(3)]), tmp_path / "week.csv")
    assert counts(ingest(ward, path)) == (3, 0, 0, 0)
    assert "all 3 new images have the same embedding" in caplog.text


def test_columns_that_are_not_used_are_named_once(ward: Ward, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    frame = rows_of(3).rename(columns={"site": "sitte"})
    ingest(ward, save(frame, tmp_path / "week.csv"))
    assert "week.csv: ignored columns sitte" in caplog.text
    assert "week.csv: no column site" in caplog.text
    assert ward.records.load_cohort("m").attributes["site"].tolist() == ["missing"] * 3


def test_studies_without_an_image_are_left_out_beside_others_and_counted(
    ward: Ward, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ingest(ward, save(rows_of(2, image=write_images(tmp_path / "images", 2)), tmp_path / "a.csv"))
    ingest(ward, save(rows_of(3, study_uid=["x", "y", "z"]), tmp_path / "b.csv"))
    window = Window(start=START, end=AT)
    cohort = load_features(ward.records.load_cohort("m", window=window), ward.features_of("m"))
    assert sorted(cohort.study_uid) == ["s0", "s1"]
    assert "3 of 5 studies have no image" in caplog.text


# ---- kill -9


CHILD = """
    import sys
    from datetime import UTC, datetime
    from pathlib import Path
    import flows.ingesting as ingesting
    from flows.progress import current_progress
    from flows.ward import open_ward

    ingesting.IMAGES_A_CHUNK = 10
    current_progress.set(lambda what, done, total: print(done, flush=True))
    ward = open_ward(Path(sys.argv[1]))
    print("ready", flush=True)
    ingesting.ingest_export(Path(sys.argv[2]), model="m", ward=ward, at=datetime(2026, 4, 6, tzinfo=UTC))
    print("finished", flush=True)
"""


def start_ingest(ward: Path, export: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(CHILD), str(ward), str(export)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[1],
    )


def kill_after(process: subprocess.Popen[str], lines: int, delay: float) -> bool:
    """Kill -9 once the process has said so many lines and a moment has passed; tells whether it was still at it."""
    assert process.stdout is not None
    for _ in range(lines):
        process.stdout.readline()
    try:
        process.wait(timeout=delay)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    process.stdout.close()
    return process.returncode == -signal.SIGKILL


@pytest.mark.fault
def test_an_ingest_killed_at_any_moment_continues_to_exactly_the_same_rows(tmp_path: Path) -> None:
    frame = rows_of(60, image=write_images(tmp_path / "images", 60)).astype(object)
    frame.loc[[3, 14, 33], "score"] = ["nan", "2", ""]
    (tmp_path / "images" / "24.png").write_bytes(b"no image")
    frame.loc[41] = frame.loc[40]
    frame.loc[52] = frame.loc[5]
    frame.loc[52, "score"] = 0.123
    export = save(frame, tmp_path / "week.csv")
    undisturbed, killed = ward_in(tmp_path / "undisturbed"), ward_in(tmp_path / "killed")
    process = start_ingest(undisturbed.settings.directory, export)
    assert process.communicate(timeout=120)[0].splitlines()[-1] == "finished"
    wanted = dump(undisturbed.settings.directory)

    moments, kills = random.Random(7), 0
    for said in (1, 2, 3, 5, 8, 11):
        kills += kill_after(start_ingest(killed.settings.directory, export), said, moments.uniform(0, 0.08))
    assert kills >= 4
    with sqlite3.connect(killed.settings.directory / "wardround.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    found = dump(killed.settings.directory)
    assert found["predictions"] == wanted["predictions"][: len(found["predictions"])]

    process = start_ingest(killed.settings.directory, export)
    assert process.communicate(timeout=120)[0].splitlines()[-1] == "finished"
    found = dump(killed.settings.directory)
    for table in ("batches", "predictions", "labels", "quarantine"):
        assert found[table] == wanted[table]
    (summary,) = killed.records.batches("m")
    assert asdict(summary) == asdict(undisturbed.records.batches("m")[0])
    assert counts(summary) == (54, 1, 1, 4)
    assert killed.records.verify_events().ok
    cohort = load_features(killed.records.load_cohort("m"), killed.features_of("m"))
    expected = load_features(undisturbed.records.load_cohort("m"), undisturbed.features_of("m"))
    np.testing.assert_allclose(cohort.embeddings, expected.embeddings, atol=1e-5)


@pytest.mark.fault
def test_two_processes_that_take_in_the_same_export_at_once_share_the_work(tmp_path: Path) -> None:
    export = save(rows_of(60, image=write_images(tmp_path / "images", 60)), tmp_path / "week.csv")
    ward = ward_in(tmp_path / "ward")
    both = [start_ingest(ward.settings.directory, export) for _ in range(2)]
    assert [process.communicate(timeout=120)[0].splitlines()[-1] for process in both] == ["finished"] * 2
    (summary,) = ward.records.batches("m")
    assert counts(summary) == (60, 0, 0, 0)
    assert len(ward.records.load_cohort("m")) == 60
    assert ward.records.verify_events().ok


# ---- an export that was read to its end


def reads(ward: Ward, path: Path) -> tuple[bool, tuple[int, int, int, int]]:
    """Ingest, and say whether rows were read for it."""
    told: list[str] = []
    token = current_progress.set(lambda what, done, total: told.append(what))
    summary = counts(ingest(ward, path))
    current_progress.reset(token)
    return bool(told), summary


def test_what_was_read_to_its_end_is_not_read_again(ward: Ward, tmp_path: Path) -> None:
    path = save(rows_of(6, image=write_images(tmp_path / "images", 6)), tmp_path / "week.csv")
    ingest(ward, path)
    shutil.copy(path, tmp_path / "same.csv")
    assert reads(ward, path) == reads(ward, tmp_path / "same.csv") == (False, (0, 6, 0, 0))
    assert [counts(batch) for batch in ward.records.batches("m")] == [(6, 0, 0, 0)]


def test_features_that_were_lost_are_computed_again(ward: Ward, tmp_path: Path) -> None:
    frame = rows_of(6, image=write_images(tmp_path / "images", 6))
    path, all_known = save(frame, tmp_path / "week.csv"), save(frame[::-1], tmp_path / "again.csv")
    for one in (path, all_known):
        ingest(ward, one)
        shutil.rmtree(ward.features_of("m").directory)
        assert reads(open_ward(ward.settings.directory), one) == (True, (0, 6, 0, 0))
        assert not ward.features_of("m").missing(ward.records.images("m"))


def test_rows_that_were_refused_are_tried_again(ward: Ward, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 3)
    (tmp_path / "images" / "2.png").rename(tmp_path / "late.png")
    path = save(rows_of(3, image=images), tmp_path / "week.csv")
    assert counts(ingest(ward, path)) == (2, 0, 0, 1)
    (tmp_path / "late.png").rename(tmp_path / "images" / "2.png")
    assert reads(ward, path) == (True, (1, 2, 0, 0))


def test_attributes_that_were_added_to_the_settings_are_looked_for(ward: Ward, tmp_path: Path) -> None:
    path = save(rows_of(3, sex=["F", "M", "F"]), tmp_path / "week.csv")
    ingest(ward, path)
    file = ward.settings.directory / "wardround.toml"
    file.write_text(file.read_text().replace('["site", "age"]', '["site", "age", "sex"]'))
    assert reads(open_ward(ward.settings.directory), path) == (True, (0, 0, 3, 0))
