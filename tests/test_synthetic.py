"""Planted changes: nothing at strength 0, more at more strength, whole patients, the same for the same seed."""

from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.fft import dctn
from scipy.ndimage import laplace

from monitor.cohorts import MISSING, Cohort
from monitor.synthetic import (
    CHANGES,
    SIMULATED,
    ChangeRequest,
    Course,
    Scenario,
    image_generator,
    mark_simulated,
    plant_changes,
    strengths_at,
)
from monitor.synthetic_cohorts import COHORT_CHANGES
from monitor.synthetic_images import IMAGE_CHANGES, LUMINANCE, change_image
from monitor.tasks import Task

START = datetime(2026, 1, 5, tzinfo=UTC)
CLASSES = {Task.BINARY: ("no", "yes"), Task.MULTI_CLASS: ("a", "b", "c"), Task.MULTI_LABEL: ("x", "y")}
GRADED = [name for name, change in IMAGE_CHANGES.items() if not change.all_or_nothing]
STRENGTHS = st.floats(0, 1)
SEEDS = st.integers(0, 2**32 - 1)


def phantom(height: int = 61, width: int = 83) -> np.ndarray:
    """A head on black: an ellipse with a soft texture, a bright rim and a lesion, asymmetric, 8-bit."""
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    radius = np.hypot(x / 0.8, y / 0.9)
    head = np.where(radius < 1, 0.45 + 0.1 * np.sin(14 * x) * np.cos(11 * y), 0.0)
    head[(radius < 1) & (radius > 0.93)] = 0.95
    head[np.hypot(x - 0.3, y + 0.2) < 0.12] = 0.8
    return np.rint(head * 255).astype(np.uint8)


def changed(pixels: np.ndarray, name: str, strength: float, seed: int = 0) -> np.ndarray:
    return change_image(pixels, name, strength=strength, generator=np.random.default_rng(seed))


def sample(patients: int = 40, *, task: Task = Task.BINARY, seed: int = 0, images: int = 2) -> Cohort:
    """Draw patients with ``images`` studies each, one every six hours."""
    rng, classes = np.random.default_rng(seed), CLASSES[task]
    owner = np.arange(patients).repeat(images)
    n, columns = len(owner), len(classes) if task is Task.MULTI_LABEL else 1
    shares = rng.dirichlet(np.ones(3), n)
    labels = rng.integers(0, 3 if task is Task.MULTI_CLASS else 2, (patients, columns))[owner].astype(float)
    labels[rng.random(labels.shape) < 0.1] = np.nan
    return Cohort(
        task=task,
        classes=classes,
        study_uid=np.array([f"s{i}" for i in range(n)], dtype=np.str_),
        patient_key=np.array([f"p{i}" for i in owner], dtype=np.str_),
        times=np.datetime64("2026-01-05", "us") + np.arange(n) * np.timedelta64(6, "h"),
        scores={Task.BINARY: shares[:, :1], Task.MULTI_CLASS: shares, Task.MULTI_LABEL: shares[:, :2]}[task],
        labels=labels,
        attributes={
            "site": rng.choice(["A", "B", "C"], patients)[owner],
            "sex": rng.choice(["F", "M", MISSING], patients)[owner],
            "age": np.where(rng.random(n) < 0.05, np.nan, rng.normal(60, 12, patients)[owner]),
        },
        embeddings=rng.normal(size=(n, 4)).astype(np.float32),
        images=np.array([f"{i:064x}" for i in range(n)], dtype=np.str_),
    )


ASKED = {
    "case_mix": {"attribute": "sex", "value": "F"},
    "missing_attribute": {"attribute": "age"},
}


def request(name: str, **asked: object) -> ChangeRequest:
    return ChangeRequest(**({"change": name} | ASKED.get(name, {}) | asked))


def plant(cohort: Cohort, name: str, *, seed: int = 0, **asked: object) -> Cohort:
    return plant_changes(cohort, Scenario(changes=(request(name, **asked),), seed=seed)).cohort


def assert_same(one: Cohort, other: Cohort) -> None:
    for field in fields(Cohort):
        left, right = getattr(one, field.name), getattr(other, field.name)
        for key in left if isinstance(left, dict) else [None]:
            np.testing.assert_array_equal(*((left, right) if key is None else (left[key], right[key])))


def having(cohort: Cohort, mask: np.ndarray) -> float:
    """The share of patients of whom a study is marked."""
    return len(np.unique(cohort.patient_key[mask])) / cohort.patients


# ---- images


@pytest.mark.parametrize("name", IMAGE_CHANGES)
@given(seed=SEEDS)
@settings(max_examples=5)
def test_strength_0_is_an_exact_copy_of_an_image(name, seed):
    pixels = phantom()
    same = changed(pixels, name, 0.0, seed)
    np.testing.assert_array_equal(same, pixels)
    assert not np.shares_memory(same, pixels)


@pytest.mark.parametrize("name", IMAGE_CHANGES)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40), st.sampled_from([(), (1,), (3,)])),
    whole=st.booleans(),
    strength=STRENGTHS,
    seed=SEEDS,
)
@settings(max_examples=25)
def test_a_changed_image_is_one_of_the_same_kind(name, shape, whole, strength, seed):
    rng = np.random.default_rng(seed)
    size = (*shape[:2], *shape[2])
    pixels = rng.integers(0, 256, size, dtype=np.uint8) if whole else rng.random(size, dtype=np.float32)
    before = pixels.copy()
    after = changed(pixels, name, strength, seed)
    assert (after.shape, after.dtype) == (pixels.shape, pixels.dtype)
    assert np.isfinite(after).all()
    assert after.min() >= 0
    assert after.max() <= (255 if whole else 1)
    np.testing.assert_array_equal(pixels, before)
    np.testing.assert_array_equal(changed(pixels, name, strength, seed), after)


@pytest.mark.parametrize("name", GRADED)
@given(strengths=st.tuples(STRENGTHS, STRENGTHS), seed=SEEDS)
@settings(max_examples=15)
def test_more_strength_is_further_from_the_original(name, strengths, seed):
    pixels = phantom() / 255
    near, far = (np.abs(changed(pixels, name, strength, seed) - pixels).mean() for strength in sorted(strengths))
    # rounding to steps may fall luckily; everything else moves each pixel one way
    assert near <= far + (0.01 if name == "compression" else 1e-3 if name == "resolution" else 1e-12)


@pytest.mark.parametrize("name", IMAGE_CHANGES)
def test_full_strength_can_be_seen(name):
    pixels = phantom()
    assert np.abs(changed(pixels, name, 1.0).astype(float) - pixels).mean() > 2


@pytest.mark.parametrize("name", ["blur", "resolution"])
def test_sharpness_falls(name):
    pixels = phantom(200, 240) / 255
    sharp = [float(np.square(laplace(changed(pixels, name, s))).mean()) for s in np.linspace(0, 1, 9)]
    assert np.all(np.diff(sharp) < 0)


def test_noise_has_the_size_that_is_documented_and_its_grain_grows_with_the_image():
    flat = np.full((256, 256), 0.5)
    assert float(changed(flat, "noise", 0.4).std()) == pytest.approx(0.4 * 0.15, rel=0.03)
    large = changed(np.full((1024, 1024), 0.5), "noise", 0.4)
    assert float(large.std()) == pytest.approx(0.4 * 0.15, rel=0.03)
    assert np.corrcoef(large[:, :-1].ravel(), large[:, 1:].ravel())[0, 1] > 0.9
    # the magnitude of noise alone: a Rayleigh distribution, mean sigma sqrt(pi / 2)
    air = changed(np.zeros((256, 256)), "noise", 1.0)
    assert float(air.mean()) == pytest.approx(0.15 * np.sqrt(np.pi / 2), rel=0.02)


def test_grey_stays_grey():
    grey = np.repeat(phantom()[..., None], 3, axis=2)
    for name in IMAGE_CHANGES:
        after = changed(grey, name, 0.7)
        assert np.array_equal(after[..., 0], after[..., 1]), name
        np.testing.assert_array_equal(after[..., 0], changed(grey[..., 0], name, 0.7))


def test_exact_values_by_hand():
    levels = np.array([[0.0, 0.25], [0.5, 1.0]])
    np.testing.assert_array_equal(changed(levels, "inverted", 1.0), [[1.0, 0.75], [0.5, 0.0]])
    np.testing.assert_array_equal(changed(levels, "mis_oriented", 1.0), [[1.0, 0.5], [0.25, 0.0]])
    np.testing.assert_allclose(changed(levels, "mis_scaled", 0.5), levels / 4)
    np.testing.assert_allclose(changed(levels, "contrast", 0.5), levels**2)
    np.testing.assert_allclose(changed(np.full((9, 12), 0.3), "resolution", 1.0), 0.3)
    np.testing.assert_allclose(changed(np.full((9, 12), 0.3), "blur", 1.0), 0.3)


def test_compression_keeps_multiples_of_jpegs_steps():
    quality = 50.0
    after = changed(phantom(64, 64) / 255 * 0.5 + 0.25, "compression", (100 - quality) / 95)
    steps = dctn((after * 255 - 128).reshape(8, 8, 8, 8), axes=(1, 3), norm="ortho") / LUMINANCE[:, None]
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-6)


@pytest.mark.parametrize("name", ["inverted", "mis_oriented"])
def test_an_all_or_nothing_change_meets_its_share_of_the_studies_and_never_half(name):
    pixels, whole = phantom(), changed(phantom(), name, 1.0)
    met = np.array([[not np.array_equal(changed(pixels, name, s, seed), pixels) for s in (0.3, 0.7)]
                    for seed in range(200)])  # fmt: skip
    assert np.all(met[:, 0] <= met[:, 1])  # whoever is met at 0.3 is met at 0.7
    assert np.abs(met.mean(axis=0) - [0.3, 0.7]).max() < 3.3 * np.sqrt(0.25 / 200)
    assert all(np.array_equal(changed(pixels, name, 0.7, seed), whole) for seed in range(200) if met[seed, 1])


@pytest.mark.parametrize(
    ("pixels", "name", "strength", "message"),
    [
        (phantom(), "sepia", 0.5, "there is no change of images 'sepia'; there are resolution, blur"),
        (phantom(), "blur", 1.5, "a strength lies in 0 to 1, got 1.5"),
        (phantom(), "blur", float("nan"), "a strength lies in 0 to 1"),
        (phantom() / 1.0, "blur", 0.5, "must be finite and lie in 0 to 1"),
        (np.array([[0.5, np.nan]]), "blur", 0.0, "must be finite"),
        (phantom().astype(np.int32), "blur", 0.5, "got int32"),
        (np.zeros(5), "blur", 0.5, r"got float64 \(5,\)"),
        (np.zeros((0, 4)), "blur", 0.5, "got float64"),
    ],
)
def test_what_is_no_image_or_no_change_is_refused(pixels, name, strength, message):
    with pytest.raises(ValueError, match=message):
        changed(pixels, name, strength)


# ---- cohorts


@pytest.mark.parametrize("task", Task)
@pytest.mark.parametrize("name", CHANGES)
def test_strength_0_leaves_a_cohort_exactly_as_it_is(name, task):
    cohort = sample(task=task)
    assert_same(plant(cohort, name, strength=0), cohort)


@pytest.mark.parametrize("task", Task)
@pytest.mark.parametrize("name", COHORT_CHANGES)
@given(strength=STRENGTHS, seed=st.integers(0, 100))
@settings(max_examples=10)
def test_patients_stay_whole_and_nothing_is_invented(name, task, strength, seed):
    cohort = sample(task=task, seed=seed)
    scenario = Scenario(changes=(request(name, strength=strength),), seed=seed)
    planted = plant_changes(cohort, scenario)
    after = planted.cohort
    np.testing.assert_array_equal(after.study_uid, cohort.study_uid[planted.rows])
    assert len(np.unique(planted.rows)) == len(planted.rows)
    gone = set(cohort.patient_key) - set(after.patient_key)
    assert len(after) == int((~np.isin(cohort.patient_key, list(gone))).sum())
    assert_same(plant_changes(cohort, scenario).cohort, after)
    assert_same(cohort, sample(task=task, seed=seed))  # the input is left alone


@given(strength=STRENGTHS, seed=st.integers(0, 100))
def test_case_mix_reaches_the_share_that_was_asked_for(strength, seed):
    cohort = sample(60, seed=seed)
    known = cohort.select(cohort.attributes["sex"] != MISSING)
    before = having(known, known.attributes["sex"] == "F")
    after = plant(cohort, "case_mix", strength=strength, seed=seed)
    women = after.attributes["sex"] == "F"
    told = after.select(after.attributes["sex"] != MISSING)
    wanted = before + strength * (1 - before)
    # leaving out one patient more or less is what rounding may cost
    assert abs(having(told, told.attributes["sex"] == "F") - wanted) <= 0.5 / told.patients + 1e-9
    assert set(after.patient_key[women]) == set(cohort.patient_key[cohort.attributes["sex"] == "F"])
    assert (after.attributes["sex"] == MISSING).sum() == (cohort.attributes["sex"] == MISSING).sum()


@pytest.mark.parametrize("task", Task)
@given(strength=STRENGTHS, seed=st.integers(0, 100))
@settings(max_examples=15)
def test_prevalence_reaches_the_share_that_was_asked_for(task, strength, seed):
    cohort = sample(60, task=task, seed=seed, images=1)

    def share(some: Cohort) -> float:
        column = some.labels[:, -1]
        return float((column[~np.isnan(column)] == column_value).mean())

    column_value = len(CLASSES[task]) - 1 if task is not Task.MULTI_LABEL else 1
    after = plant(cohort, "prevalence", strength=strength, seed=seed)
    known = int((~np.isnan(after.labels[:, -1])).sum())
    assert abs(share(after) - (share(cohort) + strength * (1 - share(cohort)))) <= 0.5 / known + 1e-9


def test_case_mix_by_age_means_that_age_and_above():
    cohort = sample()
    after = plant(cohort, "case_mix", attribute="age", value="65")
    age, key = cohort.attributes["age"], cohort.patient_key
    old, untold = set(key[age >= 65]), set(key) - set(key[~np.isnan(age)])
    assert set(after.patient_key) == old | untold
    assert 0 < len(old) < cohort.patients - len(untold)


def test_prevalence_of_a_named_class_rises():
    after = plant(sample(task=Task.MULTI_CLASS), "prevalence", value="a", strength=1)
    label, key = after.labels[:, 0], after.patient_key
    assert set(key[label == 0]) >= set(key[~np.isnan(label)])


@pytest.mark.parametrize("task", Task)
def test_label_noise_makes_wrong_exactly_its_share_of_the_known_labels(task):
    cohort = sample(task=task)
    after = plant(cohort, "label_noise", strength=0.25)
    known = ~np.isnan(cohort.labels)
    np.testing.assert_array_equal(~np.isnan(after.labels), known)
    for column in range(cohort.labels.shape[1]):
        n = int(known[:, column].sum())
        wrong = (after.labels != cohort.labels)[known[:, column], column].sum()
        assert abs(wrong - 0.25 * n) <= 0.5
    np.testing.assert_array_equal(after.scores, cohort.scores)
    if task is Task.BINARY:
        all_wrong = plant(cohort, "label_noise", strength=1).labels
        np.testing.assert_array_equal(all_wrong, 1 - cohort.labels)


def test_score_offset_adds_logits_by_hand():
    cohort = replace(sample(2), scores=np.array([[0.0], [0.5], [0.8], [1.0]]))
    k = np.exp(2.0)
    expected = [0, k / (1 + k), 4 * k / (1 + 4 * k), 1]
    np.testing.assert_allclose(plant(cohort, "score_offset").scores[:, 0], expected)
    lower = plant(cohort, "score_offset", value="no").scores[:, 0]
    np.testing.assert_allclose(lower, [0, 1 / (1 + k), 4 / (4 + k), 1])
    three = replace(sample(1, task=Task.MULTI_CLASS, images=1), scores=np.array([[0.2, 0.3, 0.5]]))
    risen = plant(three, "score_offset", value="a").scores
    np.testing.assert_allclose(risen, np.array([[0.2 * k, 0.3, 0.5]]) / (0.2 * k + 0.8))
    both = replace(sample(1, task=Task.MULTI_LABEL, images=1), scores=np.array([[0.5, 0.5]]))
    np.testing.assert_allclose(plant(both, "score_offset").scores, k / (1 + k))
    np.testing.assert_allclose(plant(both, "score_offset", value="y").scores, [[0.5, k / (1 + k)]])


@pytest.mark.parametrize("task", Task)
@given(strengths=st.tuples(STRENGTHS, STRENGTHS))
@settings(max_examples=10)
def test_scores_rise_with_the_offset(task, strengths):
    low, high = (plant(sample(task=task), "score_offset", strength=s).scores[:, -1] for s in sorted(strengths))
    assert np.all(low <= high + 1e-12)


@pytest.mark.parametrize("task", Task)
def test_a_new_class_is_answered_unsurely_and_has_no_label_in_the_list(task):
    cohort = sample(40, task=task)
    after = plant(cohort, "new_class", strength=0.25)
    met = (after.scores != cohort.scores).any(axis=1)
    assert len(set(after.patient_key[met])) == 10
    assert set(after.patient_key[met]).isdisjoint(after.patient_key[~met])
    even = 1 / 3 if task is Task.MULTI_CLASS else 1 / 2
    assert np.abs(after.scores[met] - even).max() < np.abs(cohort.scores[met] - even).max()
    assert np.abs(after.scores[met] - even).mean() < 0.1
    known = ~np.isnan(cohort.labels[met])
    if task is Task.MULTI_LABEL:
        assert (after.labels[met][known] == 0).all()
    else:
        assert np.isnan(after.labels[met]).all()
    certain = replace(sample(1), scores=np.array([[0.0], [1.0]]))
    assert np.abs(plant(certain, "new_class").scores - 0.5).max() < 0.4


def test_a_new_site_takes_whole_patients_and_a_missing_attribute_takes_studies():
    cohort = sample(40)
    after = plant(cohort, "new_site", strength=0.3)
    new = after.attributes["site"] == "new site"
    assert having(after, new) == 12 / 40
    assert set(after.patient_key[new]).isdisjoint(after.patient_key[~new])
    named = plant(cohort, "new_site", attribute="sex", value="other")
    assert set(named.attributes["sex"]) == {"other"}
    for attribute, empty in (("age", np.isnan), ("sex", lambda column: column == MISSING)):
        without = plant(cohort, "missing_attribute", attribute=attribute, strength=0.5).attributes[attribute]
        assert empty(without).sum() >= 40
        assert not empty(without).all()
        assert empty(plant(cohort, "missing_attribute", attribute=attribute).attributes[attribute]).all()


@pytest.mark.parametrize("name", ["label_noise", "missing_attribute", "new_site", "new_class", "case_mix"])
@given(strengths=st.tuples(STRENGTHS, STRENGTHS), seed=st.integers(0, 50))
@settings(max_examples=15)
def test_whoever_is_met_is_met_at_every_higher_strength(name, strengths, seed):
    cohort = sample(seed=seed)

    def met(strength: float) -> set[str]:
        after = plant(cohort, name, strength=strength, seed=seed)
        place = {uid: i for i, uid in enumerate(after.study_uid)}
        return {
            str(uid)
            for i, uid in enumerate(cohort.study_uid)
            if uid not in place or told(after, place[uid]) != told(cohort, i)
        }

    def told(some: Cohort, row: int) -> str:
        return str([some.labels[row], some.scores[row], *(column[row] for column in some.attributes.values())])

    low, high = sorted(strengths)
    assert met(low) <= met(high)


# ---- time


DAYS = np.datetime64("2026-01-01", "us") + np.arange(0, 400, 10) * np.timedelta64(1, "D")


def at(day: int) -> datetime:
    return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=day)


def test_courses_by_hand():
    sudden = request("blur", strength=0.6, start=at(20), until=at(40))
    np.testing.assert_array_equal(strengths_at(sudden, DAYS)[:6], [0, 0, 0.6, 0.6, 0, 0])
    np.testing.assert_array_equal(strengths_at(request("blur", start=at(20)), DAYS)[:4], [0, 0, 1, 1])
    np.testing.assert_array_equal(strengths_at(request("blur", strength=0.5), DAYS), np.full(40, 0.5))
    gradual = request("blur", strength=0.5, course="gradual", start=at(10), until=at(50))
    np.testing.assert_allclose(strengths_at(gradual, DAYS)[:8], [0, 0, 0.125, 0.25, 0.375, 0.5, 0.5, 0.5])
    seasonal = request("blur", strength=0.8, course="seasonal", start=at(40), period_days=80, until=at(160))
    np.testing.assert_allclose(
        strengths_at(seasonal, DAYS)[:18],
        [0, 0, 0, 0, 0, *[0.4 - 0.4 * np.cos(np.pi * i / 4) for i in range(1, 12)], 0, 0],
        atol=1e-12,
    )


@given(
    course=st.sampled_from(Course), strength=STRENGTHS, start=st.integers(0, 300), days=st.integers(1, 300),
    period=st.floats(1, 1000),
)  # fmt: skip
def test_a_course_stays_within_its_strength_and_before_its_start_nothing_changes(course, strength, start, days, period):
    asked = request(
        "blur", course=course, strength=strength, start=at(start), until=at(start + days), period_days=period
    )
    got = strengths_at(asked, DAYS)
    assert np.all((got >= 0) & (got <= strength))
    assert not got[np.datetime64(at(start).replace(tzinfo=None), "us") > DAYS].any()


def test_a_day_is_midnight_utc_and_an_offset_is_respected():
    asked = request("blur", start="2026-04-06", until="2026-04-07T02:00:00+02:00")
    assert (asked.start, asked.until) == (datetime(2026, 4, 6, tzinfo=UTC), datetime(2026, 4, 7, tzinfo=UTC))


@pytest.mark.parametrize("name", COHORT_CHANGES)
def test_before_a_change_starts_nothing_changes_exactly(name):
    cohort, start = sample(), START + timedelta(days=10)
    scenario = Scenario(changes=(request(name, start=start),))
    planted = plant_changes(cohort, scenario)
    early = np.datetime64(start.replace(tzinfo=None), "us")
    assert_same(planted.cohort.select(planted.cohort.times < early), cohort.select(cohort.times < early))
    assert not planted.strengths[planted.cohort.times < early].any()


def test_only_one_subgroup_is_met_even_one_that_was_just_planted():
    cohort = sample(60)
    after = plant(cohort, "score_offset", only="site=B")
    there = cohort.attributes["site"] == "B"
    np.testing.assert_array_equal(after.scores != cohort.scores, there[:, None])
    scenario = Scenario(
        changes=(request("new_site", strength=0.5, value="Z"), request("blur", strength=0.7, only="site=Z"))
    )
    planted = plant_changes(cohort, scenario)
    np.testing.assert_array_equal(planted.strengths[:, 1], np.where(planted.cohort.attributes["site"] == "Z", 0.7, 0))


# ---- scenarios


def test_scores_are_answered_after_the_images_and_before_scores_change():
    cohort = sample()
    told = []

    def answer(planted):
        told.append(planted.strengths.copy())
        return np.full((len(planted.cohort), 1), 0.5)

    scenario = Scenario(changes=(request("score_offset"), request("blur", strength=0.3)))
    planted = plant_changes(cohort, scenario, answer=answer)
    np.testing.assert_array_equal(told[0], np.tile([0.0, 0.3], (len(cohort), 1)))
    np.testing.assert_allclose(planted.cohort.scores, np.exp(2) / (1 + np.exp(2)))


def test_features_of_images_that_change_are_dropped():
    cohort = sample()
    assert plant(cohort, "blur", strength=0.5).embeddings is None
    assert plant(cohort, "label_noise").embeddings is not None


def test_times_are_shifted_before_courses_are_judged():
    cohort = sample()
    scenario = Scenario(changes=(request("blur", start=START + timedelta(days=364)),), shift_days=364)
    planted = plant_changes(cohort, scenario)
    np.testing.assert_array_equal(planted.cohort.times - cohort.times, np.timedelta64(364, "D"))
    assert planted.strengths.all()


def test_simulated_studies_cannot_be_taken_for_real_ones():
    cohort = sample()
    one, again, other = (mark_simulated(cohort, Scenario(seed=seed)) for seed in (1, 1, 2))
    assert_same(one, again)
    names = [name for some in (one, other) for name in (*some.study_uid, *some.patient_key)]
    assert all(name.startswith(SIMULATED) for name in names)
    assert set(one.study_uid).isdisjoint(other.study_uid)
    assert set(one.patient_key).isdisjoint(one.study_uid)
    assert len(set(one.study_uid)) == len(cohort)
    np.testing.assert_array_equal(one.patient_index[::2], one.patient_index[1::2])
    assert one.patients == cohort.patients


def test_an_images_change_depends_on_scenario_place_and_study_alone():
    def draw(seed, number, uid):
        return image_generator(Scenario(seed=seed), number, uid).random()

    assert draw(1, 0, "s1") == draw(1, 0, "s1")
    assert len({draw(1, 0, "s1"), draw(2, 0, "s1"), draw(1, 1, "s1"), draw(1, 0, "s2")}) == 4


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"change": "sepia"}, "there is no change 'sepia'; choose one of resolution"),
        ({"change": "blur", "strength": 1.1}, "less than or equal to 1"),
        ({"change": "blur", "strength": float("nan")}, "less than or equal to 1|greater than or equal to 0"),
        ({"change": "case_mix", "attribute": "sex"}, "case_mix needs attribute and value"),
        ({"change": "missing_attribute"}, "missing_attribute needs attribute"),
        ({"change": "blur", "attribute": "sex"}, "blur takes no attribute"),
        ({"change": "blur", "course": "gradual", "start": "2026-01-01"}, "the moment it is complete"),
        ({"change": "blur", "course": "seasonal"}, "a moment at which its strength is nothing"),
        ({"change": "blur", "start": "2026-01-02", "until": "2026-01-02"}, "ends after it starts"),
        ({"change": "blur", "start": "soon"}, "Invalid isoformat"),
        ({"change": "blur", "only": "site"}, "only must be ATTRIBUTE=VALUE"),
        ({"change": "blur", "sigma": 3}, "Extra inputs"),
    ],
)
def test_a_request_that_cannot_be_meant_is_refused(asked, message):
    with pytest.raises(ValidationError, match=message):
        ChangeRequest(**asked)


@pytest.mark.parametrize(
    ("name", "asked", "changes", "message"),
    [
        ("blur", {}, {"images": None}, "these studies have none"),
        ("label_noise", {}, {"labels": np.full((80, 1), np.nan)}, "no study has one yet"),
        ("case_mix", {"attribute": "scanner"}, {}, r"no attribute 'scanner' \(there: site, sex, age\)"),
        ("case_mix", {"value": "X"}, {}, "nobody whom the change meets has that value"),
        ("case_mix", {"attribute": "age", "value": "old"}, {}, "age is a number"),
        ("prevalence", {"value": "maybe"}, {}, "there is no class 'maybe'; there are no, yes"),
        ("new_site", {"attribute": "age"}, {}, "a new site is a name"),
        ("score_offset", {"only": "town=B"}, {}, "no attribute 'town'"),
    ],
)
def test_a_cohort_without_what_a_change_needs_is_refused(name, asked, changes, message):
    with pytest.raises(ValueError, match=message):
        plant(replace(sample(), **changes), name, **asked)
