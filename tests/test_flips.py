"""Flips: exact values of six studies by hand, what they add up to, and how often their intervals hold the truth."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from continual.flips import measure_flips, right_answers, share_of
from monitor.intervals import draw_patients
from monitor.measures import Answers
from monitor.tasks import Task


def answers(said: list[int], labels: list[float]) -> Answers:
    n = len(said)
    return Answers(
        finding="yes",
        scores=np.asarray(said, dtype=float),
        said=np.asarray(said, dtype=float),
        labels=np.asarray(labels, dtype=float),
        patients=np.arange(n),
    )


def flips(before: list[list[float]], after: list[list[float]], patients: list[int] | None = None):
    marks = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    index = np.arange(len(before)) if patients is None else np.asarray(patients)
    counts = draw_patients(np.zeros(index.max() + 1, dtype=np.intp), 200, np.random.default_rng(0))
    return measure_flips(*marks, index, counts)


def test_six_studies_by_hand() -> None:
    labels = [1.0, 1, 1, 0, 0, float("nan")]
    before = right_answers([answers([1, 1, 0, 0, 1, 1], labels)], Task.BINARY)  # right right wrong right wrong ?
    after = right_answers([answers([1, 0, 1, 1, 1, 0], labels)], Task.BINARY)  # right wrong right wrong wrong ?
    assert before[:5, 0].tolist() == [1, 1, 0, 1, 0]
    assert after[:5, 0].tolist() == [1, 0, 1, 0, 0]
    assert np.isnan(before[5, 0])
    negative, positive = flips(before.tolist(), after.tolist())
    assert negative.value == pytest.approx(2 / 5)
    assert positive.value == pytest.approx(1 / 5)
    assert negative.studies == 5


def test_a_model_that_must_choose_answers_once_a_study() -> None:
    # three classes: chosen class and truth of three studies, one-against-rest columns
    said = np.eye(3)[[0, 1, 2]]
    truth = np.eye(3)[[0, 2, 2]]
    columns = [answers(said[:, c].tolist(), truth[:, c].tolist()) for c in range(3)]
    assert right_answers(columns, Task.MULTI_CLASS).tolist() == [[1], [0], [1]]
    assert right_answers(columns, Task.MULTI_LABEL).tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 1]]


def test_an_unchanged_model_flips_nothing_and_says_how_sure_that_is() -> None:
    same = [[1.0]] * 30
    negative, positive = flips(same, same)
    assert negative.value == positive.value == 0
    low, high = negative.interval(0.95)
    assert low == 0
    assert 0.05 < high < 0.2  # 30 patients without a flip leave about one in nine open (Wilson)


def test_no_known_answer_is_none_and_not_zero() -> None:
    nothing = [[float("nan")]] * 4
    negative, _ = flips(nothing, nothing)
    assert (negative.value, negative.reason, negative.interval(0.95)) == (None, "no labelled study", (None, None))


marks = st.lists(
    st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0]), st.booleans()), min_size=1, max_size=40
)


@settings(deadline=None)
@given(marks)
def test_flips_add_up_to_the_change_of_accuracy(drawn: list[tuple[float, float, bool]]) -> None:
    nan = float("nan")
    before = [[a if known else nan] for a, _, known in drawn]
    after = [[b if known else nan] for _, b, known in drawn]
    negative, positive = flips(before, after)
    known = [(a, b) for a, b, told in drawn if told]
    if not known:
        assert negative.value is None
        return
    assert negative.value is not None
    assert positive.value is not None
    assert 0 <= negative.value <= 1
    assert negative.value + positive.value <= 1
    gained = np.mean([b for _, b in known]) - np.mean([a for a, _ in known])
    assert positive.value - negative.value == pytest.approx(gained)
    again = flips(after, before)
    assert (again[0].value, again[1].value) == (positive.value, negative.value)


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2])
def test_intervals_of_flips_hold_the_truth(rate: float) -> None:
    """Patients with one to four studies that flip together: nominal 95 %, inside a binomial bound or wider."""
    generator, rounds, patients, held = np.random.default_rng(7), 400, 80, 0
    for _ in range(rounds):
        studies = generator.integers(1, 5, patients)
        prone = generator.beta(rate * 6, (1 - rate) * 6, patients)  # studies of one patient resemble each other
        index = np.repeat(np.arange(patients), studies)
        turned = generator.random(len(index)) < prone[index]
        counts = draw_patients(np.zeros(patients, dtype=np.intp), 200, generator)
        low, high = share_of(turned[:, None].astype(float), index, counts).interval(0.95)
        assert low is not None
        assert high is not None
        held += low <= rate <= high
    assert held >= binom.ppf(0.001, rounds, 0.93)  # 0.93: a few patients flip, and Student's t is for means
    print(f"rate {rate}: {held / rounds:.3f} of {rounds} intervals hold the truth")  # noqa: T201
