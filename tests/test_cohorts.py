"""Windows tile time, cohorts refuse what would spoil a comparison, and nothing is lost in selecting and joining."""

from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.cohorts import MISSING, Cohort, Window, binary_labels, concatenate, tile_windows
from monitor.tasks import TASKS, Task

START = datetime(2026, 1, 5, tzinfo=UTC)
WEEK = timedelta(days=7)
moments = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
lengths = st.timedeltas(timedelta(microseconds=1), timedelta(days=400))
SHAPES = {
    Task.BINARY: (("no", "yes"), 1, 1),
    Task.MULTI_CLASS: (("a", "b", "c"), 3, 1),
    Task.MULTI_LABEL: (("x",), 1, 1),
}


def make_cohort(n=6, *, task=Task.BINARY, first=0, **changes) -> Cohort:
    classes, scores, labels = SHAPES[task]
    columns = {
        "task": task,
        "classes": classes,
        "study_uid": np.array([f"s{first + i}" for i in range(n)], dtype=np.str_),
        "patient_key": np.array([f"p{(first + i) // 2}" for i in range(n)], dtype=np.str_),
        "times": np.datetime64("2026-01-05", "us") + np.arange(n) * np.timedelta64(1, "D"),
        "scores": np.linspace(0, 1, n * scores).reshape(n, scores),
        "labels": (np.arange(n * labels) % 2).reshape(n, labels).astype(float),
        "attributes": {"sex": np.array(["F", "M", MISSING] * n)[:n], "age": np.arange(n, dtype=float)},
        "embeddings": np.arange(n * 2, dtype=np.float32).reshape(n, 2),
        "images": np.array([f"image {first + i}" for i in range(n)], dtype=np.str_),
    }
    return Cohort(**(columns | changes))


@pytest.mark.parametrize("zone", [None, timezone(timedelta(hours=1))])
def test_a_window_is_in_utc(zone):
    with pytest.raises(ValueError, match="UTC"):
        Window(start=START.replace(tzinfo=zone), end=START + WEEK)


@pytest.mark.parametrize("length", [timedelta(0), -WEEK])
def test_a_window_ends_after_it_starts(length):
    with pytest.raises(ValueError, match="ends after it starts"):
        Window(start=START, end=START + length)


@given(moments, lengths)
def test_a_window_holds_its_start_and_not_its_end_and_its_key_reads_back(start, length):
    window = Window(start=start, end=start + length)
    assert window.contains(start)
    assert window.contains(window.end - timedelta(microseconds=1))
    assert not window.contains(window.end)
    assert not window.contains(start - timedelta(microseconds=1))
    assert Window.from_key(window.key) == window


def test_the_key_of_whole_days_is_short():
    assert Window(start=START, end=START + WEEK).key == "2026-01-05/2026-01-12"
    assert Window.from_key("2026-01-05T01:00:00+01:00/2026-01-12").start == START


@given(moments, st.timedeltas(timedelta(0), timedelta(days=300)), st.timedeltas(timedelta(days=5), timedelta(days=60)))
def test_windows_tile_time_without_gap_or_overlap(start, span, length):
    windows = list(tile_windows(start, start + span, length))
    assert len(windows) == span // length
    edges = [start, *(window.end for window in windows)]
    assert [window.start for window in windows] == edges[:-1]
    assert edges[-1] <= start + span < edges[-1] + length
    for share in (0, 0.3, 0.999):
        moment = start + share * span
        assert sum(window.contains(moment) for window in windows) == (moment < edges[-1])


def test_a_window_length_is_positive():
    with pytest.raises(ValueError, match="positive"):
        list(tile_windows(START, START + WEEK, timedelta(0)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patient_key": np.array(["p"])}, "patient_key must have shape"),
        ({"times": np.array(["2026-01-05"] * 7, "datetime64[us]")}, "times must have shape"),
        ({"scores": np.zeros(6)}, "scores must have shape"),
        ({"scores": np.zeros((6, 2))}, "scores must have shape"),
        ({"labels": np.zeros((6, 2))}, "labels must have shape"),
        ({"attributes": {"sex": np.array(["F"])}}, "attribute 'sex' must have shape"),
        ({"images": np.array(["a"])}, "images must have shape"),
        ({"embeddings": np.zeros((5, 2), np.float32)}, "embeddings must be finite with shape"),
        ({"embeddings": np.zeros(6, np.float32)}, "embeddings must be finite with shape"),
        ({"embeddings": np.full((6, 2), np.nan, np.float32)}, "embeddings must be finite"),
        ({"embeddings": np.full((6, 2), np.inf, np.float32)}, "embeddings must be finite"),
        ({"scores": np.array([[0.5]] * 5 + [[np.nan]])}, "scores must be finite"),
        ({"scores": np.array([[0.5]] * 5 + [[1.01]])}, r"in \[0, 1\]"),
        ({"scores": np.array([[0.5]] * 5 + [[-0.01]])}, r"in \[0, 1\]"),
        ({"labels": np.full((6, 1), 2.0)}, "labels must be NaN or one of 0 … 1"),
        ({"labels": np.full((6, 1), 0.5)}, "labels must be NaN or one of"),
        ({"labels": np.full((6, 1), np.inf)}, "labels must be NaN or one of"),
        ({"classes": ("yes",)}, "at least 2 classes"),
    ],
)
def test_a_column_that_would_spoil_a_comparison_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_cohort(**changes)


@pytest.mark.parametrize("task", list(Task))
def test_an_empty_window_is_a_valid_cohort(task):
    empty = make_cohort(0, task=task)
    assert (len(empty), empty.patients, empty.labelled.shape) == (0, 0, (0,))
    assert empty.binary_labels().shape == empty.scores.shape
    assert len(empty.within(Window(start=START, end=START + WEEK))) == 0
    assert empty.digest == make_cohort(task=task).select(np.zeros(6, dtype=bool)).digest


def test_patients_are_counted_and_numbered():
    cohort = make_cohort()
    assert cohort.patients == 3
    assert cohort.patient_index.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("rows", "kept"), [(slice(1, 3), [1, 2]), (np.array([5, 0]), [5, 0]), (np.arange(6) % 2 == 1, [1, 3, 5])]
)
def test_selecting_keeps_the_rows_of_every_column(rows, kept):
    cohort = make_cohort()
    part = cohort.select(rows)
    assert part.study_uid.tolist() == [f"s{i}" for i in kept]
    assert part.attributes["age"].tolist() == kept
    assert part.images.tolist() == [f"image {i}" for i in kept]
    for name in ("patient_key", "times", "scores", "labels", "embeddings"):
        assert np.array_equal(getattr(part, name), getattr(cohort, name)[rows])


def test_the_studies_of_a_window_are_those_in_the_half_open_interval():
    part = make_cohort().within(Window(start=START + timedelta(days=1), end=START + timedelta(days=3)))
    assert part.study_uid.tolist() == ["s1", "s2"]


@given(st.integers(0, 6), st.integers(0, 6), st.sampled_from(list(Task)))
def test_a_cohort_that_is_cut_and_joined_is_the_same(cut, other, task):
    cohort = make_cohort(task=task)
    low, high = sorted((cut, other))
    joined = concatenate([cohort.select(part) for part in (slice(0, low), slice(low, high), slice(high, 6))])
    assert joined.digest == cohort.digest
    for name in ("study_uid", "times", "scores", "embeddings", "images"):
        assert np.array_equal(getattr(joined, name), getattr(cohort, name))
    assert np.array_equal(joined.attributes["sex"], cohort.attributes["sex"])


def test_joining_keeps_only_what_all_have():
    plain = make_cohort(2, first=10, embeddings=None, images=None, attributes={"age": np.zeros(2)})
    joined = concatenate([make_cohort(), plain])
    assert (joined.embeddings, joined.images, list(joined.attributes)) == (None, None, ["age"])
    assert len(joined) == 8
    with pytest.raises(ValueError, match="same task and classes"):
        concatenate([make_cohort(), make_cohort(classes=("healthy", "ill"))])


def test_labels_become_one_answer_for_each_finding():
    nan = np.nan
    binary = binary_labels(Task.BINARY, ("no", "yes"), np.array([[0], [1], [nan]], dtype=float))
    assert np.array_equal(binary, [[0], [1], [nan]], equal_nan=True)
    several = binary_labels(Task.MULTI_CLASS, ("a", "b", "c"), np.array([[0], [2], [nan]]))
    assert np.array_equal(several, [[1, 0, 0], [0, 0, 1], [nan] * 3], equal_nan=True)
    labels = np.array([[0, 1], [nan, 1], [nan, nan]])
    assert np.array_equal(binary_labels(Task.MULTI_LABEL, ("x", "y"), labels), labels, equal_nan=True)


def test_a_study_is_labelled_when_every_label_of_it_is_known():
    nan = np.nan
    cohort = make_cohort(
        3,
        task=Task.MULTI_LABEL,
        classes=("x", "y"),
        scores=np.full((3, 2), 0.5),
        labels=np.array([[0, 1], [nan, 1], [nan, nan]]),
    )
    assert cohort.labelled.tolist() == [True, False, False]
    assert cohort.findings == ("x", "y")


@pytest.mark.parametrize("task", list(Task))
def test_there_is_a_finding_for_each_score(task):
    cohort = make_cohort(task=task)
    assert len(cohort.findings) == TASKS[task].score_columns(cohort.classes) == cohort.scores.shape[1]
    assert set(cohort.findings) <= set(cohort.classes)


@given(st.permutations(range(6)))
def test_the_digest_does_not_depend_on_the_order(order):
    cohort = make_cohort()
    assert cohort.select(np.array(order)).digest == cohort.digest


@pytest.mark.parametrize(
    "changes",
    [
        {"study_uid": np.array([f"t{i}" for i in range(6)])},
        {"patient_key": np.array(["p0"] * 6)},
        {"times": np.full(6, np.datetime64("2026-01-05", "us"))},
        {"labels": np.zeros((6, 1))},
        {"labels": np.full((6, 1), np.nan)},
        {"images": np.array(["other"] * 6)},
        {"images": None},
        {"classes": ("no", "maybe")},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_the_digest_depends_on_what_decides_results(changes):
    assert make_cohort(**changes).digest != make_cohort().digest


def test_the_digest_knows_which_label_belongs_to_which_study():
    labels = make_cohort().labels
    assert make_cohort(labels=labels[::-1].copy()).digest != make_cohort().digest
    assert make_cohort(5).digest != make_cohort().digest
