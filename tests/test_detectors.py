"""The contract of every detector in the table, and that alibi-detect stays out where it is switched off."""

import random
import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import binom

from monitor.detectors import DETECTORS, LEAST_PATIENTS, NotEnoughData, Outcome, Sample, compare, is_constant

# importing alibi-detect costs seconds
ALIBI = [name for name in DETECTORS if name.startswith("alibi_")]
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in ALIBI else name for name in DETECTORS]
COLUMNS = {"ks": lambda numbers: numbers, "chi_square": lambda numbers: (numbers > 0).astype(float)}
EMBEDDED = [
    pytest.param(name, marks=pytest.mark.slow) if name in ALIBI else name for name in DETECTORS - COLUMNS.keys()
]
each = pytest.mark.parametrize("name", NAMES)


def draw(name, seed, patients, side, *, shift=0.0, images=2) -> Sample:
    """Draw one side in the form that the detector reads: embeddings unless it is a test of columns."""
    rng = np.random.default_rng(seed)
    owner = np.arange(patients).repeat(images)
    values = rng.normal(shift, 1, (patients, 6))[owner] + rng.normal(0, 0.2, (len(owner), 6))
    if name in COLUMNS:
        values = COLUMNS[name](values[:, 0])
    return Sample(values=values, patients=np.array([f"{side}{i}" for i in owner]))


def ask(name, reference, current, seed=0) -> Outcome:
    return compare(name, reference, current, permutations=199, generator=np.random.default_rng(seed))


@each
def test_nothing_is_found_in_two_samples_of_one_kind(name):
    outcome = ask(name, draw(name, 1, 60, "r"), draw(name, 2, 40, "c"))
    assert 0.001 < outcome.p_value <= 1
    assert 0 <= outcome.effect < 0.3


@each
def test_a_large_shift_is_found_and_named(name):
    outcome = ask(name, draw(name, 1, 60, "r"), draw(name, 2, 40, "c", shift=2))
    assert 0 < outcome.p_value <= 0.005
    assert outcome.effect > 0.4
    assert outcome.effect_name
    assert np.isfinite(outcome.statistic)


@each
def test_the_same_seed_gives_the_same_outcome(name):
    sides = draw(name, 1, 30, "r"), draw(name, 2, 25, "c", shift=0.3)
    outcome = ask(name, *sides, seed=3)
    np.random.random()  # somebody else draws in between
    assert ask(name, *sides, seed=3) == outcome


@each
def test_the_global_generators_are_left_alone(name):
    states = [random.getstate(), str(np.random.get_state())]
    if name in ALIBI:
        import torch

        before = torch.get_rng_state()
    ask(name, draw(name, 1, 30, "r"), draw(name, 2, 25, "c"))
    assert [random.getstate(), str(np.random.get_state())] == states
    assert name not in ALIBI or torch.equal(torch.get_rng_state(), before)


@each
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_a_value_that_is_not_finite_is_refused(name, wrong, side):
    sides = [draw(name, 1, 30, "r"), draw(name, 2, 25, "c")]
    sides[side].values[3] = wrong
    with pytest.raises(ValueError, match="finite") as caught:
        ask(name, *sides)
    assert not isinstance(caught.value, NotEnoughData)


@each
def test_too_few_patients_are_not_enough_however_many_images_they_have(name):
    few, many = LEAST_PATIENTS - 1, 30
    with pytest.raises(NotEnoughData, match=r"^3 patients in the reference, 4 needed$"):
        ask(name, draw(name, 1, few, "r", images=50), draw(name, 2, many, "c"))
    with pytest.raises(NotEnoughData, match=r"^3 patients in the window, 4 needed$"):
        ask(name, draw(name, 1, many, "r"), draw(name, 2, few, "c", images=50))
    with pytest.raises(NotEnoughData, match=r"^0 patients in the window"):
        ask(name, draw(name, 1, many, "r"), draw(name, 2, 0, "c"))


@each
@pytest.mark.parametrize("patients", [(LEAST_PATIENTS, LEAST_PATIENTS), (LEAST_PATIENTS, 80), (80, LEAST_PATIENTS)])
def test_the_least_number_of_patients_is_answered(name, patients):
    outcome = ask(name, draw(name, 5, patients[0], "r", shift=1), draw(name, 6, patients[1], "c"))
    assert 0 < outcome.p_value <= 1


@each
def test_values_that_do_not_vary_are_not_enough(name):
    sides = [draw(name, 1, 30, "r"), draw(name, 2, 25, "c")]
    for side in sides:
        side.values[:] = 0.25
    with pytest.raises(NotEnoughData, match="every value is the same, on both sides"):
        ask(name, *sides)


def test_one_embedding_for_the_whole_window_is_the_largest_change_there_is():
    """As when preprocessing upstream makes the same picture of everything: an alarm, never silence."""
    current = draw("mmd", 2, 25, "c")
    current.values[:] = current.values[0]
    assert is_constant(current)
    outcome = ask("mmd", draw("mmd", 1, 30, "r"), current)
    assert outcome.p_value < 0.01
    assert outcome.effect > 0.5


@each
def test_a_patient_on_both_sides_counts_as_current_only(name):
    reference, current = draw(name, 1, 40, "r"), draw(name, 2, 25, "c")
    back = np.array([f"r{i // 5}" if i < 20 else f"c{i}" for i in range(len(current))])
    returned = Sample(values=current.values, patients=back)
    strangers = ~np.isin(reference.patients, back)
    assert strangers.sum() == len(reference) - 8
    without = Sample(values=reference.values[strangers], patients=reference.patients[strangers])
    assert ask(name, reference, returned) == ask(name, without, returned)
    with pytest.raises(NotEnoughData, match="0 patients in the reference"):
        ask(name, reference, reference)


@pytest.mark.parametrize("name", EMBEDDED)
def test_a_dimension_that_never_varies_does_no_harm(name):
    reference, current = draw(name, 1, 40, "r"), draw(name, 2, 25, "c")
    for side in (reference, current):
        side.values[:, 0] = 0
    assert 0.001 < ask(name, reference, current).p_value <= 1


@pytest.mark.slow
def test_copies_that_leave_no_density_to_estimate_are_not_enough():
    reference, current = draw("alibi_lsdd", 1, 40, "r"), draw("alibi_lsdd", 2, 25, "c")
    reference.values[:] = 0
    with pytest.raises(NotEnoughData, match="too many studies are copies of each other"):
        ask("alibi_lsdd", reference, current)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "runs"), [("alibi_lsdd", 150), ("alibi_classifier", 1000)])
def test_alibi_detect_keeps_its_false_alarm_rate_when_patients_have_several_images(name, runs):
    p_values = np.array(
        [ask(name, draw(name, [1, i], 200, "r"), draw(name, [2, i], 40, "c"), seed=i).p_value for i in range(runs)]
    )
    for alpha in (0.01, 0.05, 0.2):
        assert (p_values <= alpha).sum() <= binom.ppf(1 - 1e-4, runs, alpha), alpha


def test_words_are_compared_as_categories():
    sides = [Sample(values=np.array(list("ab" * 20)), patients=np.arange(40).astype(str))]
    sides.append(Sample(values=np.array(list("bc" * 20)), patients=np.arange(40, 80).astype(str)))
    assert ask("chi_square", *sides).p_value == 1 / 200


def test_an_unknown_name_is_refused_with_the_names_there_are():
    sides = draw("mmd", 1, 30, "r"), draw("mmd", 2, 25, "c")
    with pytest.raises(ValueError, match="no detector 'wish'; there are mmd, ks, chi_square, alibi_lsdd, alibi_class"):
        ask("wish", *sides)


SWITCHED_OFF = """
import sys
from datetime import UTC, datetime
import numpy as np
from monitor.cohorts import Cohort, Window
from monitor.policies import DriftPolicy
from monitor.tasks import Task
from monitor.watching import watch_window

def side(name, n):
    rng = np.random.default_rng(n)
    return Cohort(task=Task.BINARY, classes=("no", "yes"), study_uid=np.array([f"{name}{i}" for i in range(n)]),
        patient_key=np.array([f"{name}{i}" for i in range(n)]), times=np.full(n, np.datetime64("2026-01-05", "us")),
        scores=rng.random((n, 1)), labels=rng.integers(0, 2, (n, 1)).astype(float),
        embeddings=rng.normal(size=(n, 4)).astype(np.float32))

window = Window(start=datetime(2026, 1, 5, tzinfo=UTC), end=datetime(2026, 1, 12, tzinfo=UTC))
policy = DriftPolicy(alibi_detect=False, permutations=99, resamples=100)
report = watch_window(side("r", 50), side("c", 40), model="m", model_version="1", window=window, policy=policy)
assert [r.detector for r in report.results if r.feature == "embedding"] == ["mmd"], report.results
print(sorted({name.split(".")[0] for name in sys.modules} & {"alibi_detect", "torch", "evidently", "avalanche"}))
"""


def test_a_window_is_watched_without_alibi_detect_where_it_is_switched_off():
    done = subprocess.run([sys.executable, "-c", SWITCHED_OFF], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
