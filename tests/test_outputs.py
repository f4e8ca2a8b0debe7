"""What becomes of logits: values by hand, parity with scikit-learn, monotone and bit-identical where it must be."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from continual.adapter_files import load_adapter, read_outputs, save_adapter
from continual.adapters import Adapter, AdapterRefused, new_adapter, score
from continual.backbones import Backbone, load_backbone
from continual.calibrating import (
    Lesson,
    NotFitted,
    Target,
    divide_patients,
    fit_calibration,
    fit_isotonic,
    fit_platt,
    fit_temperature,
    fit_thresholds,
    shift_prevalence,
    unshift_prevalence,
)
from continual.outputs import IDENTITY, MIX, Outputs
from continual.policies import AdaptationPolicy
from monitor.measures import say_yes
from monitor.tasks import Task

TARGET = Target(prevalence=(0.5,), sensitivity=(0.75,))


def lesson_of(logits: np.ndarray, answers: np.ndarray, task: Task = Task.BINARY) -> Lesson:
    n, columns = logits.shape
    return Lesson(
        task=task,
        findings=tuple(f"f{column}" for column in range(columns)),
        logits=logits,
        answers=answers,
        patients=np.array([f"p{i}" for i in range(n)]),
        features=np.empty((n, 0)),
        embeddings=np.empty((n, 0)),
    )


def draw(n: int = 400, slope: float = 0.5, offset: float = 0.7, seed: int = 0) -> Lesson:
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(n, 1)) * 3
    return lesson_of(logits, (generator.random((n, 1)) < expit(slope * logits + offset)).astype(float))


# ---- by hand


def test_a_temperature_divides_logits_and_a_shift_is_added_after_it() -> None:
    logits = np.array([[0.0], [2.0], [-4.0]])
    assert Outputs(temperature=2.0).apply(logits, Task.BINARY) == pytest.approx(expit([[0.0], [1.0], [-2.0]]))
    both = Outputs(temperature=2.0, shift=(0.5,))
    assert both.apply(logits, Task.BINARY) == pytest.approx(expit([[0.5], [1.5], [-1.5]]))


def test_platt_is_a_line_in_the_log_odds_of_each_finding() -> None:
    outputs = Outputs(slopes=(2.0, 1.0), intercepts=(-1.0, 0.5))
    found = outputs.apply(np.array([[0.5, 1.0]]), Task.MULTI_LABEL)
    assert found == pytest.approx(expit([[0.0, 1.5]]))


def test_a_table_is_read_by_straight_lines_and_held_at_its_ends() -> None:
    outputs = Outputs(tables=(((-1.0, 1.0), (0.2, 0.6)),))
    logits = np.array([[-9.0], [-1.0], [0.0], [1.0], [9.0]])
    steps = np.array([[0.2], [0.2], [0.4], [0.6], [0.6]])
    assert outputs.apply(logits, Task.BINARY) == pytest.approx((1 - MIX) * steps + MIX * expit(logits))


def test_a_new_prevalence_multiplies_the_odds_by_bayes_rule() -> None:
    """Saerens: chance 0.5 at a prevalence of 0.5 is a chance of 0.2 at 0.2; two classes are the same either way."""
    shift = shift_prevalence(np.array([0.5]), np.array([0.2]), Task.BINARY)
    assert shift == (pytest.approx(np.log(0.25)),)
    assert Outputs(shift=shift).apply(np.array([[0.0]]), Task.BINARY) == pytest.approx(np.array([[0.2]]))
    before, now = np.array([0.2, 0.3, 0.5]), np.array([0.5, 0.3, 0.2])
    logits = np.array([[0.1, -0.4, 1.0]])
    moved = Outputs(shift=shift_prevalence(before, now, Task.MULTI_CLASS)).apply(logits, Task.MULTI_CLASS)
    by_hand = softmax(logits, axis=1) * now / before
    assert moved == pytest.approx(by_hand / by_hand.sum())


@given(st.floats(0.05, 0.95), st.floats(-2, 2))
def test_a_shift_is_undone(now: float, shift: float) -> None:
    before = unshift_prevalence(np.array([now]), np.array([shift]), Task.BINARY)
    assert shift_prevalence(before, np.array([now]), Task.BINARY) == (pytest.approx(shift, abs=1e-6),)


def test_a_threshold_restores_a_sensitivity_or_the_best_of_both_or_the_least_cost() -> None:
    scores = np.array([0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9])[:, None]
    answers = np.array([0, 0, 1, 0, 1, 0, 1, 1.0])[:, None]
    assert fit_thresholds(scores, answers, TARGET) == (pytest.approx(0.5),)  # 3 of 4 sick from 0.5 on
    everyone = replace(TARGET, sensitivity=(1.0,))
    assert fit_thresholds(scores, answers, everyone) == (pytest.approx(0.25),)
    # sensitivity + specificity: 1 + 2/4 from 0.25, 3/4 + 3/4 from 0.5, 2/4 + 4/4 from 0.75; the middle of equals
    assert fit_thresholds(scores, answers, replace(TARGET, aim="youden")) == (pytest.approx(0.5),)
    assert fit_thresholds(scores, answers, replace(TARGET, aim="cost", cost_ratio=5)) == (pytest.approx(0.25),)
    assert fit_thresholds(scores, answers, replace(TARGET, aim="cost", cost_ratio=0.2)) == (pytest.approx(0.75),)
    with pytest.raises(NotFitted, match="0 of 8 labelled studies have the finding"):
        fit_thresholds(scores, answers * 0, TARGET)


# ---- parity with scikit-learn


class Logits(ClassifierMixin, BaseEstimator):
    """A fitted classifier whose decision is its first feature, for scikit-learn's calibration to stand on."""

    def fit(self, x: np.ndarray, y: np.ndarray) -> "Logits":
        self.classes_ = np.unique(y)
        return self

    def decision_function(self, x: np.ndarray) -> np.ndarray:
        return x[:, 0]

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.classes_[(x[:, 0] > 0).astype(int)]


@pytest.mark.parametrize("method", ["sigmoid", "isotonic"])
def test_platt_and_isotonic_are_those_of_scikit_learn(method: str) -> None:
    lesson = draw()
    truth = lesson.answers[:, 0].astype(int)
    peer = CalibratedClassifierCV(FrozenEstimator(Logits().fit(lesson.logits, truth)), method=method, cv=5)
    grid = np.linspace(-9, 9, 181)[:, None]
    if method == "sigmoid":
        peer.fit(lesson.logits, truth)
        ours = fit_platt(lesson, None).apply(grid, Task.BINARY)[:, 0]
        assert ours == pytest.approx(peer.predict_proba(grid)[:, 1], abs=2e-4)  # its own optimiser stops earlier
    else:
        table = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(lesson.logits[:, 0], truth)
        ours = fit_isotonic(lesson, None).apply(grid, Task.BINARY)[:, 0]
        mixed = (1 - MIX) * table.predict(grid[:, 0]) + MIX * expit(grid[:, 0])
        assert ours == pytest.approx(mixed, abs=1e-9)


def test_a_temperature_is_a_logistic_regression_without_intercept() -> None:
    lesson = draw(offset=0.0)
    peer = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(lesson.logits, lesson.answers[:, 0])
    assert 1 / fit_temperature(lesson, None).temperature == pytest.approx(peer.coef_[0, 0], rel=1e-4)


def test_a_fit_for_another_prevalence_weighs_classes_as_scikit_learn_does() -> None:
    lesson = draw(offset=-2.0)
    now, wanted = lesson.prevalence[0], 0.5
    weights = np.where(lesson.answers[:, 0] == 1, wanted / now, (1 - wanted) / (1 - now))
    peer = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10)
    peer.fit(lesson.logits, lesson.answers[:, 0], sample_weight=weights)
    found = fit_temperature(lesson, np.array([wanted]))
    assert 1 / found.temperature == pytest.approx(peer.coef_[0, 0], rel=1e-4)


def test_several_classes_are_calibrated_by_one_temperature() -> None:
    generator = np.random.default_rng(1)
    logits = generator.normal(size=(3000, 3)) * 2
    chances = softmax(logits / 2.5, axis=1)
    classes = (generator.random(3000)[:, None] > chances.cumsum(axis=1)).sum(axis=1)
    lesson = lesson_of(logits, np.eye(3)[classes], Task.MULTI_CLASS)
    assert fit_temperature(lesson, None).temperature == pytest.approx(2.5, rel=0.1)
    for fitted in (fit_platt(lesson, None), fit_isotonic(lesson, None)):
        said = fitted.apply(logits, Task.MULTI_CLASS)
        assert said.sum(axis=1) == pytest.approx(np.ones(3000))
        assert np.abs(said - chances).mean() < 0.03


# ---- which calibration is chosen


def test_the_choice_follows_the_number_of_labels_and_stays_simple() -> None:
    assert fit_calibration(draw(45, seed=3), None).calibration == "temperature"
    assert fit_calibration(draw(300, slope=0.4, offset=1.5), None).calibration == "platt"
    assert fit_calibration(draw(1500, slope=0.5, offset=0.0), None).calibration == "temperature"
    generator = np.random.default_rng(2)
    logits = generator.uniform(-4, 4, (3000, 1))
    bent = np.where(np.abs(logits) < 2, 0.5, np.where(logits < 0, 0.02, 0.98))
    steps = lesson_of(logits, (generator.random((3000, 1)) < bent).astype(float))
    assert fit_calibration(steps, None).calibration == "isotonic"
    with pytest.raises(NotFitted, match="patients of the rarer answer are too few to calibrate, 10 are needed"):
        fit_calibration(draw(12), None)


def test_scores_that_point_the_wrong_way_are_not_calibrated_by_a_line() -> None:
    with pytest.raises(NotFitted, match="higher scores do not mean more of the finding"):
        fit_platt(draw(slope=-1.0), None)


def test_a_patient_is_in_one_part() -> None:
    patients = np.repeat([f"p{i}" for i in range(50)], 3)
    parts = divide_patients(patients, 5, 0)
    assert all(len(np.unique(parts[patients == patient])) == 1 for patient in patients)
    assert np.bincount(parts).tolist() == [30] * 5


# ---- monotone, and answers that stay

outputs_of = st.one_of(
    st.builds(Outputs, temperature=st.floats(0.4, 10)),
    st.builds(lambda a, b: Outputs(slopes=(a,), intercepts=(b,)), st.floats(0.1, 3), st.floats(-3, 3)),
    st.builds(lambda a, b: Outputs(tables=(((-1.0, 0.0, 2.0), (a * b, b, b)),)), st.floats(0, 1), st.floats(0, 1)),
)


@given(outputs_of, st.floats(-2, 2), st.lists(st.floats(-8, 8), min_size=2, max_size=20, unique=True))
def test_the_order_of_studies_and_every_answer_stay(outputs: Outputs, shift: float, values: list[float]) -> None:
    logits = np.round(np.sort(np.array(values)), 3)[:, None]
    before = Outputs(thresholds=(0.3,))
    after = replace(outputs, shift=(shift,)).keep_answers_of(before, Task.BINARY, 1)
    scores = after.apply(logits, Task.BINARY)
    assert (np.diff(scores[:, 0]) > 0).tolist() == (np.diff(logits[:, 0]) > 0).tolist()
    said = say_yes(scores, Task.BINARY, after.thresholds)
    clear = np.abs(logits - logit(0.3)) > 1e-9
    assert (said == (expit(logits) >= 0.3))[clear].all()


def test_the_plain_threshold_is_named_by_nothing() -> None:
    kept = Outputs(temperature=3.0).keep_answers_of(IDENTITY, Task.BINARY, 1)
    assert kept.thresholds == ()
    shifted = Outputs(shift=(1.0,)).keep_answers_of(IDENTITY, Task.BINARY, 1)
    assert shifted.thresholds == (pytest.approx(float(expit(1.0))),)


# ---- refused, stored, read back


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": float("nan")}, "not finite"),
        ({"temperature": 1e9}, "a temperature lies in"),
        ({"slopes": (-1.0,), "intercepts": (0.0,)}, "slopes are above 0"),
        ({"slopes": (1.0,)}, "each has an intercept"),
        ({"temperature": 2.0, "slopes": (1.0,), "intercepts": (0.0,)}, "calibrated in one way"),
        ({"thresholds": (1.0,)}, "between 0 and 1"),
        ({"tables": (((0.0, 1.0), (0.6, 0.5)),)}, "must rise"),
        ({"tables": (((0.0, 0.0), (0.5, 0.6)),)}, "must rise"),
        ({"tables": (((0.0,), (1.5,)),)}, "lie in 0 to 1"),
        ({"tables": (((0.0,), (float("inf"),)),)}, "not finite"),
    ],
)
def test_numbers_that_no_outputs_may_hold_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Outputs(**fields)


FULL = Outputs(tables=(((-1.0, 2.5), (0.1, 0.7)),), shift=(0.25,), thresholds=(0.4,))


@pytest.mark.parametrize("outputs", [IDENTITY, FULL, Outputs(temperature=2.0), Outputs(slopes=(1.5,), intercepts=(0,))])
def test_tensors_come_back_as_they_were(outputs: Outputs) -> None:
    assert Outputs.of_tensors(outputs.tensors()) == outputs
    assert (outputs.tensors() == {}) is (outputs == IDENTITY)


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return load_backbone("tiny", source="random", image_size=28)


@pytest.fixture
def adapter(tiny: Backbone) -> Adapter:
    made = new_adapter(tiny, task=Task.BINARY, classes=("no", "yes"), policy=AdaptationPolicy(rank=2), seed=3)
    made.network.head.weight.data.normal_()
    return made


def test_the_identity_changes_no_bit_of_a_score_or_of_a_file(adapter: Adapter, tiny: Backbone, tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).normal(size=(9, tiny.card.tokens, tiny.card.width)).astype(np.float16)
    plain = score(adapter, tokens)
    same = Adapter(adapter.card, adapter.network, outputs=Outputs(thresholds=(0.3,)))
    assert score(same, tokens).tobytes() == plain.tobytes()
    sha256 = save_adapter(adapter, tmp_path)
    assert b"outputs." not in (tmp_path / f"{sha256}.safetensors").read_bytes()


def test_outputs_go_into_the_file_and_come_back(adapter: Adapter, tiny: Backbone, tmp_path: Path) -> None:
    made = Adapter(adapter.card, adapter.network, outputs=FULL)
    sha256 = save_adapter(made, tmp_path)
    path = tmp_path / f"{sha256}.safetensors"
    assert sha256 != save_adapter(adapter, tmp_path)
    assert load_adapter(tiny, path, sha256).outputs == FULL
    assert read_outputs(path, sha256) == FULL
    assert made.copy().outputs == FULL
    wrong = Adapter(adapter.card, adapter.network, outputs=Outputs(thresholds=(0.4, 0.5)))
    bad = save_adapter(wrong, tmp_path)
    with pytest.raises(AdapterRefused, match="need 1 thresholds, one a score column, got 2"):
        load_adapter(tiny, tmp_path / f"{bad}.safetensors", bad)
