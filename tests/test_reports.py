"""Evidently's page of a window: written whole, without anybody's markup, whatever a column is called or lacks."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.cohorts import Cohort
from monitor.reports import MINIMUM_ROWS, POOLED, safe_frames, safe_text, write_report
from monitor.tasks import Task

slow = pytest.mark.slow  # importing Evidently costs seconds
COLUMNS = {Task.BINARY: (1, 1), Task.MULTI_CLASS: (3, 1), Task.MULTI_LABEL: (3, 3)}
QUALITY = "Accuracy"
MIDDLES = (0.25, 0.75)
PAYLOADS = ("<script>alert('ward')</script>", '"><img src=x onerror=alert(1)>', "</script><svg/onload=alert(2)>")


def make_cohort(seed=0, n=30, *, task=Task.BINARY, classes=None, labels=None, attributes=None) -> Cohort:
    rng = np.random.default_rng(seed)
    columns, label_columns = COLUMNS[task]
    scores = rng.random((n, columns))
    if task is Task.MULTI_CLASS:
        scores /= scores.sum(axis=1, keepdims=True)
    return Cohort(
        task=task,
        classes=classes or ("healthy", "tumour") if task is Task.BINARY else classes or ("a", "b", "c"),
        study_uid=np.arange(n).astype(np.str_),
        patient_key=np.arange(n).astype(np.str_),
        times=np.full(n, np.datetime64("2026-01-05", "us")),
        scores=scores,
        labels=rng.integers(0, 2, (n, label_columns)).astype(float) if labels is None else labels,
        attributes={"sex": rng.choice(["F", "M"], n), "age": rng.normal(60, 10, n)}
        if attributes is None
        else attributes,
    )


def page(reference: Cohort, current: Cohort, path: Path) -> str:
    assert write_report(reference, current, path, smallest=5) == path
    assert [file.name for file in path.parent.iterdir()] == [path.name], "no part of a file is left"
    return path.read_text(encoding="utf-8")


@slow
def test_a_page_is_written_whole_and_over_an_older_one(tmp_path):
    path = tmp_path / "reports" / "model" / "week.html"
    path.parent.mkdir(parents=True)
    path.write_text("older", encoding="utf-8")
    html = page(make_cohort(), make_cohort(1), path)
    assert "older" not in html[:100]
    assert html.rstrip().endswith("</html>")
    for name in ("score tumour", "sex", "age"):
        assert name in html


def test_too_few_studies_write_nothing(tmp_path):
    few, many = make_cohort(n=MINIMUM_ROWS - 1), make_cohort()
    for sides in ((few, many), (many, few), (many, make_cohort(n=0))):
        assert write_report(*sides, tmp_path / "reports" / "week.html", smallest=2) is None
    assert not list(tmp_path.iterdir())


@slow
def test_the_fewest_studies_that_are_allowed_are_enough(tmp_path):
    page(make_cohort(n=MINIMUM_ROWS), make_cohort(1, n=MINIMUM_ROWS), tmp_path / "week.html")


@pytest.mark.parametrize("payload", PAYLOADS)
def test_text_that_could_be_markup_is_replaced(payload):
    assert not set(safe_text(payload)) & set("<>\"'&=`\\{}")
    assert safe_text("Größe ≥ 1.5 mm (65+): 20 %") == "Größe ≥ 1.5 mm (65+): 20 %"


@slow
@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_markup_of_a_name_or_a_value_reaches_the_page(tmp_path, payload):
    sides = [
        make_cohort(
            seed, classes=("no", payload), attributes={payload: np.array([payload, "b"] * 15), "age": np.ones(30)}
        )
        for seed in (0, 1)
    ]
    html = page(*sides, tmp_path / "week.html")
    assert safe_text(payload) in html
    assert payload not in html
    assert payload.replace("<", "\\u003c").replace(">", "\\u003e") not in html
    for active in ("onerror=alert", "onload=alert", "alert('ward')", "<img src=x", "<svg/"):
        assert active not in html


@slow
def test_a_column_that_one_side_lacks_is_filled_and_shown(tmp_path):
    attributes = make_cohort().attributes
    more = attributes | {"vendor-of-scanner": np.array(["north", "south"] * 15), "dose-in-mgy": np.arange(30.0)}
    html = page(make_cohort(), make_cohort(1, attributes=more), tmp_path / "week.html")
    assert "vendor-of-scanner" in html
    assert "dose-in-mgy" in html


@slow
@pytest.mark.parametrize("blind", [(0,), (1,), (0, 1)], ids=["reference", "window", "both"])
def test_a_number_that_nobody_sent_stops_nothing(tmp_path, blind):
    sides = [
        make_cohort(seed, attributes={"age": np.full(30, np.nan) if seed in blind else np.arange(30.0)})
        for seed in (0, 1)
    ]
    assert "age" in page(*sides, tmp_path / "week.html")


@slow
@pytest.mark.parametrize("task", [Task.BINARY, Task.MULTI_CLASS])
def test_labels_add_the_quality_of_the_classification(tmp_path, task):
    assert QUALITY in page(make_cohort(task=task), make_cohort(1, task=task), tmp_path / "week.html")


@slow
@pytest.mark.parametrize("unlabelled", [(0,), (1,), (0, 1)], ids=["reference", "window", "both"])
@pytest.mark.parametrize("task", [Task.BINARY, Task.MULTI_CLASS])
def test_labels_that_are_not_all_known_leave_it_out(tmp_path, task, unlabelled):
    partly = np.array([[np.nan]] + [[0.0], [1.0]] * 14 + [[1.0]])
    sides = [make_cohort(seed, task=task, labels=partly if seed in unlabelled else None) for seed in (0, 1)]
    assert QUALITY not in page(*sides, tmp_path / "week.html")


@slow
def test_one_class_and_several_labels_leave_it_out_too(tmp_path):
    healthy = make_cohort(1, labels=np.zeros((30, 1)))
    assert QUALITY not in page(make_cohort(), healthy, tmp_path / "week.html")
    several = [make_cohort(seed, task=Task.MULTI_LABEL) for seed in (0, 1)]
    assert "score c" in page(*several, tmp_path / "week.html")


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 40)), min_size=12, max_size=40),
    st.integers(2, 8),
    st.booleans(),
)
def test_no_cell_that_evidently_sees_holds_few_patients(rows, smallest, labelled):
    n, half = len(rows), len(rows) // 2
    rng = np.random.default_rng(n)
    whole = make_cohort(
        n=n,
        labels=None if labelled else np.full((n, 1), np.nan),
        attributes={"site": np.array([site for site, _ in rows]), "age": rng.choice([np.nan, 1.0, 2.0, 3.0], n)},
    )
    whole = replace(whole, patient_key=np.array([str(patient) for _, patient in rows]))
    sides = whole.select(slice(half)), whole.select(slice(half, None))
    if min(side.patients for side in sides) < smallest:
        return
    frames = list(safe_frames(*sides, smallest=smallest))
    for name in set(frames[0]) & set(frames[1]):
        for cohort, frame in zip(sides, frames, strict=True):
            values = [value for value in frame[name].unique() if value not in MIDDLES]
            # few on a side of the threshold are counted, without their scores
            assert all(len(np.unique(cohort.patient_key[frame[name] == value])) >= smallest for value in values), name


def test_scores_stay_on_their_side_of_the_threshold_and_in_order():
    sides = make_cohort(0, 200), make_cohort(1, 150)
    for cohort, frame in zip(sides, safe_frames(*sides, smallest=5), strict=True):
        seen = frame["score tumour"].to_numpy()
        assert ((seen >= 0.5) == (cohort.scores[:, 0] >= 0.5)).all()
        assert (np.diff(seen[np.argsort(cohort.scores[:, 0])]) >= 0).all()
        assert len(np.unique(seen)) > 5


def test_values_blank_elsewhere_are_pooled_here():
    sides = make_cohort(0, 60), make_cohort(1, 60)
    frames = safe_frames(*sides, smallest=5, blank={("sex", "F"), ("sex", "M")})
    assert all(set(frame["sex"]) == {POOLED} for frame in frames)
