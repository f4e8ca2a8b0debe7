"""Exports become predictions or quarantined rows; what cannot be read at all is one clear error."""

import json
import os
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flows import sources
from flows.checking import check_row, locate_image
from flows.sources import Reason, Row, RowRefused, SourceError, find_image, open_export
from monitor.cohorts import Prediction
from monitor.tasks import Task
from registry.settings import ModelSettings

BINARY = ModelSettings(classes=("no", "yes"), attributes=("site", "age"), numeric_attributes=("age",))
MULTI_CLASS = ModelSettings(task=Task.MULTI_CLASS, classes=("none", "benign", "malignant"))
MULTI_LABEL = ModelSettings(task=Task.MULTI_LABEL, classes=("effusion", "oedema"))
GOOD = {
    "study_uid": "s1",
    "patient_key": "p1",
    "produced_at": "2026-03-30T08:15:00+02:00",
    "score": "0.7",
    "label": "yes",
    "site": "A",
    "age": "63",
}


def check(settings: ModelSettings = BINARY, *, drop: str = "", **changed: object) -> Prediction:
    cells = {name: value for name, value in (GOOD | changed).items() if name != drop}
    return check_row(Row(line=2, cells=cells), model="m", settings=settings)


def refused(settings: ModelSettings = BINARY, **changed: object) -> Reason:
    with pytest.raises(RowRefused) as caught:
        check(settings, **changed)
    assert caught.value.detail
    return caught.value.reason


def read(path: Path, settings: ModelSettings = BINARY) -> list[Row]:
    return [row for chunk in open_export(path, settings).chunks(2) for row in chunk]


# ---- one row


def test_a_good_row_is_a_prediction_in_canonical_form() -> None:
    assert check(image=" scans/a.png ", model_version="3") == Prediction(
        model="m",
        model_version="3",
        study_uid="s1",
        patient_key="p1",
        produced_at=datetime(2026, 3, 30, 6, 15, tzinfo=UTC),
        scores=(0.7,),
        labels=(1,),
        attributes={"site": "A", "age": 63.0},
        image="scans/a.png",
    )


@pytest.mark.parametrize("value", ["nan", "NaN", "inf", "-Infinity", "1e999", float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_refused(value: object) -> None:
    assert refused(score=value) is Reason.NOT_FINITE_SCORE


@pytest.mark.parametrize("value", ["1.0001", "-0.01", "87", 2])
def test_a_score_outside_zero_to_one_is_refused(value: object) -> None:
    assert refused(score=value) is Reason.SCORE_OUT_OF_RANGE


@pytest.mark.parametrize("value", ["0,7", "high", "1_0", True, [0.5], b"0.5", "9" * 400 + "x"])
def test_a_score_that_is_no_number_is_refused(value: object) -> None:
    assert refused(score=value) is Reason.BAD_ROW


@pytest.mark.parametrize("value", ["0", "1", 0, 1.0, "1e-3", " .5 "])
def test_scores_at_the_edges_and_in_every_spelling_are_taken(value: object) -> None:
    assert check(score=value).scores == (float(str(value)),)


@pytest.mark.parametrize("value", ["2026-03-30T08:15:00", "2026-03-30", datetime(2026, 3, 30)])
def test_a_time_without_offset_is_refused_because_nobody_knows_when_it_was(value: object) -> None:
    assert refused(produced_at=value) is Reason.NAIVE_TIME


@pytest.mark.parametrize(
    "value", ["30.03.2026 08:15", "yesterday", "2026-02-30T00:00:00Z", 1774858500, "0001-01-01T00:00:00+05:00"]
)
def test_what_is_no_time_is_refused(value: object) -> None:
    assert refused(produced_at=value) is Reason.BAD_TIME


@pytest.mark.parametrize(
    "value",
    [
        "2026-03-30T06:15:00Z",
        "2026-03-30T15:15:00+09:00",
        "2026-03-30T02:45:00-03:30",
        datetime(2026, 3, 30, 11, 45, tzinfo=timezone(timedelta(hours=5, minutes=30))),
        pd.Timestamp("2026-03-30T06:15:00.000000999Z"),
    ],
)
def test_every_offset_becomes_the_same_utc_moment(value: object) -> None:
    moment = check(produced_at=value).produced_at
    assert moment == datetime(2026, 3, 30, 6, 15, tzinfo=UTC)
    assert type(moment) is datetime
    assert moment.tzinfo is UTC


@pytest.mark.parametrize("name", ["study_uid", "patient_key", "produced_at", "score"])
@pytest.mark.parametrize("value", ["", "   ", None])
def test_a_required_value_that_is_empty_is_refused(name: str, value: object) -> None:
    assert refused(**{name: value}) is Reason.MISSING_VALUE
    assert refused(drop=name) is Reason.MISSING_VALUE


def test_a_label_of_no_known_class_is_refused_and_the_classes_are_named() -> None:
    with pytest.raises(RowRefused, match="'maybe' is none of no, yes") as caught:
        check(label="maybe")
    assert caught.value.reason is Reason.UNKNOWN_CLASS
    assert refused(label="YES") is Reason.UNKNOWN_CLASS


@pytest.mark.parametrize("value", ["", None, float("nan"), " "])
def test_a_label_that_is_empty_is_not_known_yet(value: object) -> None:
    assert check(label=value).labels == (None,)
    assert check(drop="label").labels == (None,)


def test_attributes_are_kept_by_type_and_empty_ones_are_missing() -> None:
    assert check(site=" B ", age=41).attributes == {"site": "B", "age": 41.0}
    assert check(site="", age="nan").attributes == {"site": None, "age": None}
    assert check(site=float("nan"), age=None).attributes == {"site": None, "age": None}
    assert check(drop="site", age="").attributes == {"site": None, "age": None}
    assert refused(age="sixty") is Reason.BAD_ROW
    assert refused(age="inf") is Reason.BAD_ROW


@pytest.mark.parametrize(
    "value", ["x" * 257, "a\x00b", "two\nlines", b"\xff".decode(errors="surrogateescape"), ["s"], {}]
)
def test_a_key_that_is_no_plain_short_text_is_refused(value: object) -> None:
    assert refused(study_uid=value) is Reason.BAD_ROW


def test_number_keys_keep_every_digit() -> None:
    assert check(study_uid=123456789012.0).study_uid == "123456789012"
    assert check(study_uid=7).study_uid == "7"


def test_multi_class_scores_must_sum_to_one() -> None:
    good = {"score_none": "0.2", "score_benign": "0.5", "score_malignant": "0.3", "label": "malignant"}
    prediction = check(MULTI_CLASS, **good)
    assert prediction.scores == (0.2, 0.5, 0.3)
    assert prediction.labels == (2,)
    assert check(MULTI_CLASS, **good | {"score_none": "0.21"}).scores[0] == 0.21
    assert refused(MULTI_CLASS, **good | {"score_none": "0.5"}) is Reason.SCORES_SUM
    assert refused(MULTI_CLASS, **good | {"label": "cyst"}) is Reason.UNKNOWN_CLASS


def test_multi_label_scores_stand_alone_and_each_label_may_be_unknown() -> None:
    good = {"score_effusion": 0.9, "score_oedema": 0.8, "label_effusion": 1.0, "label_oedema": None}
    prediction = check(MULTI_LABEL, **good)
    assert prediction.scores == (0.9, 0.8)
    assert prediction.labels == (1, None)
    assert check(MULTI_LABEL, **good | {"label_effusion": "0", "label_oedema": True}).labels == (0, 1)
    assert refused(MULTI_LABEL, **good | {"label_oedema": "2"}) is Reason.UNKNOWN_CLASS
    assert refused(MULTI_LABEL, **good | {"score_oedema": "nan"}) is Reason.NOT_FINITE_SCORE


@settings(suppress_health_check=[HealthCheck.too_slow])  # the first draw loads tables
@given(
    st.dictionaries(
        st.sampled_from([*GOOD, "image", "model_version"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.lists(st.integers()),
    )
)
def test_whatever_the_cells_hold_a_row_is_a_prediction_or_has_a_reason(changed: dict[str, object]) -> None:
    try:
        prediction = check(**changed)
    except RowRefused as error:
        assert error.reason in Reason  # noqa: PT017
    else:
        assert all(0 <= score <= 1 for score in prediction.scores)
        json.dumps(prediction.model_dump(mode="json"), allow_nan=False).encode("utf-8")
    json.loads(Row(line=1, cells={"a": 1}).content)
    assert len(Row(line=1, cells=changed).content) <= sources.CONTENT_LENGTH


# ---- images


def test_an_image_is_found_under_a_root_and_its_content_is_named(tmp_path: Path) -> None:
    export, images = tmp_path / "exports", tmp_path / "images"
    (export / "sub").mkdir(parents=True)
    images.mkdir()
    (export / "sub" / "a.png").write_bytes(b"abc")
    (images / "b.png").write_bytes(b"abc")
    roots = (export, images)
    assert find_image("sub/a.png", roots) == export / "sub" / "a.png"
    assert find_image("b.png", roots) == images / "b.png"
    assert find_image("../images/b.png", roots) == images / "b.png"
    prediction, path = locate_image(check(image="b.png"), roots)
    assert path == images / "b.png"
    assert prediction.image_sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize(
    "reference",
    [
        "/etc/hostname",
        "../secret",
        "a/../../secret",
        "C:/x.png",
        "..\\secret",
        "link",
        "folder/secret",
        "a\x00b",
        "//host/x",
    ],
)
def test_no_path_leads_out_of_the_roots(tmp_path: Path, reference: str) -> None:
    root = tmp_path / "exports"
    root.mkdir()
    (tmp_path / "secret").write_text("x")
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "folder").symlink_to(tmp_path, target_is_directory=True)
    for roots in ((root,), (root, tmp_path / "ward")):
        with pytest.raises(RowRefused) as caught:
            find_image(reference, roots)
        assert caught.value.reason is Reason.PATH_OUTSIDE


@pytest.mark.parametrize("reference", ["none.png", "pipe", "sub", "circle", "n" * 300, "."])
def test_what_is_no_regular_file_is_a_missing_image(tmp_path: Path, reference: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "sub").mkdir()
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(RowRefused) as caught:
        find_image(reference, (tmp_path,))
    assert caught.value.reason is Reason.IMAGE_MISSING


# ---- whole files


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    frame = pd.DataFrame(rows)
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        frame.to_parquet(path)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_the_three_formats_say_the_same(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"export{suffix}", [GOOD | {"study_uid": f"s{i}", "age": 60.5 + i} for i in range(5)])
    export = open_export(path, BINARY)
    assert export.rows == 5
    assert set(export.columns) == set(GOOD)
    chunks = list(export.chunks(2))
    assert [len(chunk) for chunk in chunks] == [2, 2, 1]
    rows = [row for chunk in chunks for row in chunk]
    assert [check_row(row, model="m", settings=BINARY) for row in rows] == [
        check(study_uid=f"s{i}", age=60.5 + i) for i in range(5)
    ]
    first = 2 if suffix == ".csv" else 1
    assert [row.line for row in rows] == list(range(first, first + 5))


def test_parquet_times_keep_their_zone_and_naive_ones_are_refused(tmp_path: Path) -> None:
    moment = datetime(2026, 3, 30, 6, 15, tzinfo=UTC)
    for unit in ("s", "ms", "us", "ns"):
        table = pa.Table.from_pylist([GOOD | {"produced_at": None}]).drop_columns(["produced_at"])
        aware = table.append_column("produced_at", pa.array([moment], pa.timestamp(unit, tz="Europe/Berlin")))
        pq.write_table(aware, tmp_path / "aware.parquet")
        (row,) = read(tmp_path / "aware.parquet")
        assert check_row(row, model="m", settings=BINARY).produced_at == moment
        naive = table.append_column("produced_at", pa.array([moment.replace(tzinfo=None)], pa.timestamp(unit)))
        pq.write_table(naive, tmp_path / "naive.parquet")
        (row,) = read(tmp_path / "naive.parquet")
        with pytest.raises(RowRefused) as caught:
            check_row(row, model="m", settings=BINARY)
        assert caught.value.reason is Reason.NAIVE_TIME


def test_csv_from_other_programs_is_understood(tmp_path: Path) -> None:
    path = tmp_path / "export.csv"
    text = 'study_uid,patient_key,produced_at,score,site\r\n"s,1",p1,2026-03-30T06:15:00Z,0.5,"Zürich\r\nsüd"\r\n\r\n'
    path.write_bytes(b"\xef\xbb\xbf" + (text + "s2,p2,2026-03-30T06:15:00Z,0.5,B\r\n").encode())
    first, second = read(path)
    assert (first.line, second.line) == (2, 5)
    assert first.cells["study_uid"] == "s,1"
    assert first.cells["site"] == "Zürich\r\nsüd"
    assert second.cells["site"] == "B"


def test_a_ragged_or_undecodable_csv_row_costs_one_row(tmp_path: Path) -> None:
    path = tmp_path / "export.csv"
    header = b"study_uid,patient_key,produced_at,score,site\n"
    path.write_bytes(
        header + b"s1,p1\ns2,p2,t,0.5,A,B\ns3,p3,2026-03-30T06:15:00Z,0.5,Z\xfcrich\ns4,p4,2026-03-30T06:15:00Z,0.5,A\n"
    )
    short, long, latin, good = read(path)
    assert short.problem == "has 2 cells, the header has 5"
    assert "'B'" not in long.problem
    assert '"B"' in long.content
    for row in (short, long, latin):
        with pytest.raises(RowRefused) as caught:
            check_row(row, model="m", settings=BINARY)
        assert caught.value.reason is Reason.BAD_ROW
        row.content.encode("utf-8")
    assert check_row(good, model="m", settings=BINARY).study_uid == "s4"


@pytest.mark.parametrize("line", ["{", "[1, 2]", "7", '{"score": 1, "score": 0}', "[" * 100_000, "9" * 5000, "\x00"])
def test_a_broken_json_line_costs_one_row(tmp_path: Path, line: str) -> None:
    path = tmp_path / "export.jsonl"
    path.write_text(f"{line}\n\n{json.dumps(GOOD)}\n")
    bad, good = read(path)
    with pytest.raises(RowRefused) as caught:
        check_row(bad, model="m", settings=BINARY)
    assert caught.value.reason is Reason.BAD_ROW
    assert (bad.line, good.line) == (1, 3)
    assert len(bad.content) <= sources.CONTENT_LENGTH


def test_a_json_nan_is_a_score_that_is_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "export.jsonl"
    path.write_text(json.dumps(GOOD | {"score": float("nan")}))
    (row,) = read(path)
    with pytest.raises(RowRefused) as caught:
        check_row(row, model="m", settings=BINARY)
    assert caught.value.reason is Reason.NOT_FINITE_SCORE


HEADER = "study_uid,patient_key,produced_at,score\n"
BROKEN: dict[str, tuple[str, bytes, str]] = {
    "empty": ("e.csv", b"", "is empty"),
    "header only": ("e.csv", HEADER.encode(), "has no rows"),
    "no score": ("e.csv", b"study_uid,patient_key,produced_at\n1,2,3\n", r"line 1: no column score .*there: study_uid"),
    "semicolons": ("e.csv", HEADER.replace(",", ";").encode() + b"1;2;3;4\n", "no column study_uid"),
    "UTF-16": ("e.csv", (HEADER + "1,2,3,4\n").encode("utf-16"), "in UTF-8"),
    "column twice": ("e.csv", b"score,study_uid,score\n1,2,3\n", "line 1: column 'score' stands there twice"),
    "open quote": ("e.csv", HEADER.encode() + b'1,2,3,4\n"5,6,7,8\n', r"line 3: .*not closed"),
    "spreadsheet": ("e.xlsx", b"PK\x03\x04", "save it as .csv, .parquet or .jsonl"),
    "no suffix": ("export", b"x", "save it as"),
    "no Parquet": ("e.parquet", b"PAR1 not really", "row 1: not a readable Parquet file"),
    "JSON array": ("e.jsonl", b'[\n{"score": 1},\n]\n', "line 1: is not a JSON object"),
    "JSON without score": ("e.jsonl", b'{"study_uid": "a"}\n', "no column patient_key, produced_at, score"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_cannot_be_read_is_one_clear_error(tmp_path: Path, case: str) -> None:
    name, content, message = BROKEN[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=message) as caught:
        open_export(tmp_path / name, BINARY)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist; check the name"):
        open_export(tmp_path / "none.csv", BINARY)
    with pytest.raises(SourceError, match="is not a file"):
        open_export(tmp_path, BINARY)


def test_a_truncated_parquet_file_is_an_error_before_any_row_is_taken(tmp_path: Path) -> None:
    path = write(tmp_path / "e.parquet", [GOOD | {"study_uid": f"s{i}"} for i in range(1000)])
    whole = path.read_bytes()
    for cut in (10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(SourceError, match="not a readable Parquet file"):
            open_export(path, BINARY)
    damaged = bytearray(whole)
    damaged[100:160] = bytes(60)
    path.write_bytes(bytes(damaged))
    with pytest.raises(SourceError, match="not a readable Parquet file"):
        open_export(path, BINARY)


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "e.csv", [GOOD, GOOD])
    chunks = open_export(path, BINARY).chunks(1)
    next(chunks)
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(SourceError, match="changed while it was read"):
        list(chunks)


def test_columns_that_a_task_needs_are_named_in_the_error(tmp_path: Path) -> None:
    path = write(tmp_path / "e.csv", [GOOD])
    with pytest.raises(SourceError, match=r"needs .*score_none, score_benign, score_malignant"):
        open_export(path, MULTI_CLASS)
    with pytest.raises(SourceError, match="no column score_effusion, score_oedema"):
        open_export(path, MULTI_LABEL)


def test_the_published_columns_are_the_ones_that_are_read() -> None:
    text = sources.__doc__ or ""
    for name in (*sources.KEYS, *sources.OPTIONAL, "score", "score_CLASS", "label", "label_CLASS"):
        assert f"\n    {name} " in text
    assert sources.known_columns(MULTI_LABEL) == {
        *sources.KEYS, *sources.OPTIONAL, "score_effusion", "score_oedema", "label_effusion", "label_oedema",
    }  # fmt: skip
