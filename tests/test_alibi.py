"""What our border to alibi-detect adds to it: rates that hold, case mix, and watches of a stream."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom, poisson

from monitor.detectors import Sample, compare
from monitor.online import calibrate_watch, expected_run, watch_stream
from monitor.results import NotEnoughData

RUN = 50


def draw(seed, patients, side, *, width=6, images=2, older=0.0, shift=0.0) -> Sample:
    """Draw embeddings that lean on the patient's age; the younger have other embeddings than the older."""
    rng = np.random.default_rng(seed)
    owner = np.arange(patients).repeat(images)
    age, sex = rng.normal(older, 1, patients), rng.random(patients) < 0.5
    ours = shift + age[:, None] * np.linspace(0, 1, width) + rng.normal(size=(patients, width))
    values = ours[owner] + rng.normal(0, 0.2, (len(owner), width))
    context = np.column_stack([60 + 10 * age, sex, ~sex])[owner]
    return Sample(values=values, patients=np.array([f"{side}{i}" for i in owner]), context=context)


def ask(name, *sides, seed=0):
    return compare(name, *sides, permutations=199, generator=np.random.default_rng(seed))


def null_p_values(name, runs, patients, *, older=0.0, width=6):
    """Ask about unchanged windows; an older window's embeddings differ no more than its case mix explains."""
    sides = (
        (draw([1, i], patients[0], "r", width=width), draw([2, i], patients[1], "c", width=width, older=older))
        for i in range(runs)
    )
    return np.array([ask(name, *pair, seed=i).p_value for i, pair in enumerate(sides)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "runs", "patients", "how"),
    [
        ("alibi_lsdd", 150, (200, 40), {}),
        ("alibi_classifier", 1000, (200, 40), {}),
        ("alibi_learned_kernel", 40, (60, 40), {}),
        ("alibi_spot_the_diff", 60, (40, 30), {"width": 200}),
        ("alibi_context_mmd", 80, (60, 40), {"older": 1.0}),
    ],
)
def test_the_false_alarm_rate_is_kept_when_patients_have_several_images(name, runs, patients, how):
    """At equal case mix even where the case mix has changed, and when the reference has few patients of great width."""
    p_values = null_p_values(name, runs, patients, **how)
    for alpha in (0.01, 0.05, 0.2):
        assert (p_values <= alpha).sum() <= binom.ppf(1 - 1e-4, runs, alpha), alpha


@pytest.mark.slow
def test_copies_that_leave_no_density_to_estimate_are_not_enough():
    sides = draw(1, 60, "r", images=1), draw(2, 40, "c", images=1)
    for side in sides:
        side.values[1:] = 0.5
    with pytest.raises(NotEnoughData, match="too many studies are copies of each other"):
        ask("alibi_lsdd", *sides)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alibi_lsdd", "alibi_classifier", "alibi_learned_kernel", "alibi_spot_the_diff"])
@pytest.mark.parametrize("constant", [0, 1])
def test_a_side_of_copies_is_the_change_that_it_is(name, constant):
    """As when preprocessing upstream makes the same picture of everything."""
    sides = draw(1, 60, "r", images=1), draw(2, 40, "c", images=1)
    sides[constant].values[:] = sides[constant].values[0]
    assert ask(name, *sides).p_value < 0.01


@pytest.mark.slow
def test_a_change_that_the_case_mix_explains_is_drift_to_mmd_and_none_at_equal_case_mix():
    sides = draw(1, 250, "r"), draw(2, 150, "c", older=1)
    assert ask("mmd", *sides).p_value < 0.01
    outcome = ask("alibi_context_mmd", *sides)
    assert outcome.p_value > 0.05
    assert outcome.effect < 0.2
    assert outcome.effect_name == "standardised mean distance at equal case mix"


@pytest.mark.slow
def test_a_change_beyond_the_case_mix_is_found_and_sized():
    outcome = ask("alibi_context_mmd", draw(1, 100, "r"), draw(2, 60, "c", older=1, shift=1))
    assert outcome.p_value < 0.01
    assert outcome.effect == pytest.approx(1, abs=0.25)


def test_without_a_case_mix_there_is_nothing_to_compare_at():
    sides = draw(1, 30, "r"), draw(2, 30, "c")
    for one, other in ((replace(sides[0], context=None), sides[1]), (sides[0], replace(sides[1], context=None))):
        with pytest.raises(NotEnoughData, match=r"^no case mix is known to compare at$"):
            ask("alibi_context_mmd", one, other)


def test_a_case_mix_that_is_not_finite_is_refused():
    sides = draw(1, 30, "r"), draw(2, 30, "c")
    sides[1].context[3, 0] = np.nan
    with pytest.raises(ValueError, match="finite"):
        ask("alibi_context_mmd", *sides)


def test_too_few_patients_at_equal_case_mix_are_counted():
    with pytest.raises(NotEnoughData, match=r"^19 patients in the window, 20 needed at equal case mix$"):
        ask("alibi_context_mmd", draw(1, 30, "r"), draw(2, 19, "c"))


@pytest.mark.slow
def test_case_mixes_without_overlap_leave_nothing_to_compare():
    with pytest.raises(NotEnoughData, match="hardly overlaps"):
        ask("alibi_context_mmd", draw(1, 60, "r"), draw(2, 40, "c", older=12))


@pytest.mark.slow
def test_a_case_mix_that_never_varies_is_as_good_as_none():
    sides = [replace(side, context=np.full((len(side), 2), 7.0)) for side in (draw(1, 60, "r"), draw(2, 40, "c"))]
    assert ask("alibi_context_mmd", *sides).p_value > 0.05
    assert ask("alibi_context_mmd", sides[0], replace(sides[1], values=sides[1].values + 1)).p_value < 0.01


def stream(name, rng, n, side, *, shift=0.0) -> Sample:
    if name == "alibi_online_mmd":
        values = rng.normal(shift, 1, (n, 4))
    elif name == "alibi_online_cvm":
        values = rng.normal(shift, 1, n)
    else:
        values = (rng.random(n) < 0.3 + 0.3 * shift).astype(float)
    return Sample(values=values, patients=np.array([f"{side}{i}" for i in range(n)]))


WATCHES = [
    ("alibi_online_mmd", 1, 30),
    ("alibi_online_cvm", 12, 4),
    ("alibi_online_fet", 12, 4),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "references", "streams"), WATCHES)
def test_alarms_without_drift_come_no_oftener_than_the_expected_run_says(name, references, streams):
    """Over all the patients watched, alarms are at most what a Poisson count of one a run would be."""
    rng = np.random.default_rng(4)
    alarms = watched = 0
    for _ in range(references):
        watch = calibrate_watch(name, stream(name, rng, 200, "r"), expected_run_time=RUN, generator=rng)
        for _ in range(streams):
            answer = watch_stream(watch, stream(name, rng, 4 * RUN, "c"), generator=rng)
            alarms += answer.first_alarm is not None
            watched += len(answer.counted)
    assert watched > 20 * RUN
    assert alarms <= poisson.ppf(1 - 1e-3, watched / RUN)
    assert alarms >= poisson.ppf(1e-4, watched / RUN / 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, *_ in WATCHES])
@pytest.mark.parametrize("shift", [2, -1])
def test_a_planted_change_is_found_soon_and_the_same_seed_says_the_same(name, shift):
    rng = np.random.default_rng(7)
    reference = stream(name, rng, 150, "r")
    before, after = stream(name, rng, 15, "b"), stream(name, rng, 60, "c", shift=shift)
    both = Sample(
        values=np.concatenate([before.values, after.values]), patients=np.concatenate([before.patients, after.patients])
    )
    watch = calibrate_watch(name, reference, expected_run_time=100, generator=np.random.default_rng(1))
    answer = watch_stream(watch, both, generator=np.random.default_rng(2))
    assert 15 < answer.first_alarm <= 60
    assert len(answer.counted) == len(answer.statistics) == len(answer.thresholds) == answer.first_alarm
    assert (answer.statistics[-1] >= answer.thresholds[-1]).any()
    again = watch_stream(watch, both, generator=np.random.default_rng(2))
    assert again.first_alarm == answer.first_alarm
    np.testing.assert_array_equal(again.statistics, answer.statistics)


@pytest.mark.slow
def test_each_patient_counts_once_and_one_of_the_reference_never():
    rng = np.random.default_rng(3)
    reference = stream("alibi_online_cvm", rng, 120, "r")
    patients = np.array(["a", "a", "r5", "b", "a", "c", "b"])
    watch = calibrate_watch("alibi_online_cvm", reference, expected_run_time=20, generator=rng)
    answer = watch_stream(watch, Sample(values=rng.normal(size=7), patients=patients), generator=rng)
    assert answer.counted.tolist() == [0, 3, 5]
    assert answer.first_alarm is None
    assert np.isnan(answer.statistics).all()
    nobody = watch_stream(watch, Sample(values=np.empty(0), patients=patients[:0]), generator=rng)
    assert nobody.first_alarm is None
    assert len(nobody.counted) == 0


def test_the_expected_run_follows_from_the_budget():
    assert expected_run(6_000, 1) == 6_000
    assert expected_run(6_000, 2, streams=3) == 9_000


@pytest.mark.parametrize(
    ("name", "reference", "run", "error", "words"),
    [
        ("wish", np.zeros(200), 50, ValueError, "no watch 'wish'; there are alibi_online_mmd"),
        ("alibi_online_cvm", np.arange(200.0), 5, ValueError, "an expected run of 5 patients is outside"),
        ("alibi_online_cvm", np.arange(200.0), np.nan, ValueError, "outside"),
        ("alibi_online_cvm", np.arange(99.0), 50, NotEnoughData, "^99 patients in the reference, 100 needed$"),
        ("alibi_online_cvm", np.zeros(200), 50, NotEnoughData, "nothing varies"),
        ("alibi_online_cvm", np.r_[np.nan, np.arange(199.0)], 50, ValueError, "finite"),
        ("alibi_online_cvm", np.zeros((200, 3)), 50, ValueError, r"reads numbers \(n,\), not float64 \(200, 3\)"),
        ("alibi_online_mmd", np.arange(200.0), 50, ValueError, r"reads embeddings \(n, width\)"),
        ("alibi_online_fet", np.arange(200.0), 50, ValueError, "reads 0 and 1 only"),
    ],
)
def test_a_watch_that_cannot_be_set_up_is_refused_with_the_reason(name, reference, run, error, words):
    side = Sample(values=reference, patients=np.arange(len(reference)).astype(str))
    with pytest.raises(error, match=words):
        calibrate_watch(name, side, expected_run_time=run, generator=np.random.default_rng(0))
