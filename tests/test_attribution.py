"""Where a drift sits, by hand."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from scipy.stats import binom

from monitor.attribution import PERMUTATIONS, attribute_drift
from monitor.cohorts import MISSING, Cohort, Window
from monitor.domain_classifier import score_studies
from monitor.permutations import contrasts, sides_by_patient
from monitor.tasks import Task

WEEK = Window(start=datetime(2026, 1, 5, tzinfo=UTC), end=datetime(2026, 1, 12, tzinfo=UTC))


def make_cohort(attributes, embeddings=None) -> Cohort:
    columns = {name: np.asarray(column) for name, column in attributes.items()}
    n = len(next(iter(columns.values())))
    return Cohort(
        task=Task.BINARY,
        classes=("no", "yes"),
        study_uid=np.arange(n).astype(np.str_),
        patient_key=np.arange(n).astype(np.str_),
        times=np.full(n, np.datetime64("2026-01-05", "us")),
        scores=np.full((n, 1), 0.5),
        labels=np.full((n, 1), np.nan),
        attributes=columns,
        embeddings=None if embeddings is None else np.array(embeddings, dtype=np.float32).reshape(n, -1),
    )


def attribute(reference, current) -> dict:
    """Give (value) -> contribution in the order of importance."""
    return {
        (c.attribute, c.value): c
        for c in attribute_drift(reference, current, window=WEEK, generator=np.random.default_rng(0))
    }


def test_shares_by_hand():
    reference = make_cohort({"site": ["a", "a", "a", "b"]})
    current = make_cohort({"site": ["b", "b", "c", "a"]})
    found = attribute(reference, current)
    # "a" lost as much as "b" and "c" gained together
    expected = {("site", "a"): (1, 0.75, 0.25), ("site", "b"): (2, 0.25, 0.5), ("site", "c"): (1, 0.0, 0.25)}
    assert list(found) == list(expected)
    for key, figures in expected.items():
        assert (found[key].n_current, found[key].share_reference, found[key].share_current) == figures
        assert found[key].window == WEEK


def test_a_value_that_arrived_comes_before_one_that_went_and_names_decide_the_rest():
    reference = make_cohort({"site": ["a"] * 10, "sex": ["F"] * 5 + ["M"] * 5})
    current = make_cohort({"site": ["a"] * 5 + ["b"] * 5, "sex": ["F"] * 5 + ["M"] * 5})
    assert list(attribute(reference, current)) == [("site", "b"), ("site", "a"), ("sex", "F"), ("sex", "M")]


def test_numbers_are_cut_at_the_quartiles_of_the_reference():
    reference = make_cohort({"age": np.array([10.0, 20, 30, 40, 50])})
    current = make_cohort({"age": np.array([20, 20.5, 99, 99, np.nan])})
    found = attribute(reference, current)
    shares = {value: (c.share_reference, c.share_current) for (_, value), c in found.items()}
    assert shares == {
        "≤ 20": (0.4, 0.2),
        "20 to 30": (0.2, 0.2),
        "30 to 40": (0.2, 0),
        "> 40": (0.2, 0.4),
        MISSING: (0, 0.2),
    }


def test_equal_quartiles_are_one_cut():
    reference, current = make_cohort({"dose": np.full(4, 2.0)}), make_cohort({"dose": np.array([2.0, 3.0])})
    found = attribute(reference, current)
    assert {value: c.share_current for (_, value), c in found.items()} == {"≤ 2": 0.5, "> 2": 0.5}


def test_a_number_never_known_in_the_reference_is_known_or_missing():
    found = attribute(make_cohort({"dose": np.full(3, np.nan)}), make_cohort({"dose": np.array([1.5, 2.5, np.nan])}))
    assert {value: (c.share_reference, c.n_current) for (_, value), c in found.items()} == {
        "known": (0, 2),
        MISSING: (1, 1),
    }


def test_what_cannot_be_measured_is_none():
    words = {"site": ["a", "b"] * 5}
    line = list(range(10))
    for before, now in ((line, None), (None, line)):
        found = attribute(make_cohort(words, before), renamed(make_cohort(words, now)))
        assert {(c.shift, c.carried) for c in found.values()} == {(None, None)}
    few = attribute(make_cohort(words, line), renamed(make_cohort({"site": ["a"] * 4}, line[:4])))
    assert {c.shift for c in few.values()} == {None}
    gone = attribute(make_cohort({"site": ["a", "z"] * 5}, line), renamed(make_cohort(words, line)))
    assert gone["site", "z"].shift is None
    assert gone["site", "b"].shift is not None


def test_an_attribute_of_one_side_is_left_out_and_an_empty_window_has_shares_of_zero():
    reference = make_cohort({"site": ["a", "b"], "ward": ["x", "y"]}, [0, 1])
    current = make_cohort({"site": ["a", "b"], "device": ["d", "d"]}, [0, 1])
    assert {name for name, _ in attribute(reference, current)} == {"site"}
    empty = attribute(reference, reference.select(np.zeros(2, dtype=bool)))
    assert {(c.n_current, c.share_current, c.shift) for c in empty.values()} == {(0, 0.0, None)}


def renamed(cohort: Cohort) -> Cohort:
    """Give other patients the same studies."""
    return replace(cohort, patient_key=np.char.add("other-", cohort.patient_key))


def world(rng, patients, *, first=0, site_b=0.3, moved="", images=2) -> Cohort:
    """Draw patients of two sites and two sexes; the images of one value, or of all, are moved."""
    owner = np.arange(patients).repeat(images)
    site = np.where(rng.random(patients) < site_b, "b", "a")[owner]
    sex = rng.choice(["F", "M"], patients)[owner]
    values = rng.normal(size=(patients, 20))[owner] + 0.2 * rng.normal(size=(len(owner), 20))
    values += 1.5 * (site == "b")[:, None]
    values += 1.0 * ((site == moved) | (sex == moved) | (moved == "all"))[:, None]
    cohort = make_cohort({"site": site, "sex": sex}, values)
    return replace(
        cohort,
        patient_key=np.array([f"p{first + i}" for i in owner]),
        study_uid=np.array([f"s{first * images + i}" for i in range(len(owner))]),
    )


def beyond(found) -> set:
    return {key for key, contribution in found.items() if contribution.beyond_chance}


def test_a_value_that_gained_share_is_told_from_one_that_moved_within():
    rng = np.random.default_rng(0)
    reference = world(rng, 150)
    more = attribute(reference, world(rng, 80, first=1000, site_b=0.8))
    assert list(more)[:2] == [("site", "b"), ("site", "a")]
    assert {("site", "a"), ("site", "b")} <= beyond(more)
    # within either sex the sites have changed, so their images have; within a site nothing has: the site explains it
    assert min(more["sex", value].p_share for value in "FM") > 0.01
    assert max(more["sex", value].p_within for value in "FM") < 0.01
    assert more["site", "b"].p_share == 1 / 2000
    assert min(more["site", value].p_within for value in "ab") > 0.01
    within = attribute(reference, world(rng, 80, first=1000, moved="b"))
    assert within["site", "b"].p_within == 1 / 2000
    assert within["site", "b"].beyond_chance
    assert within["site", "a"].p_within > 0.01
    assert min(within["site", value].p_share for value in "ab") > 0.01
    assert next(iter(within)) == ("site", "b")


def test_the_shift_is_the_mean_score_of_a_classifier_that_never_saw_the_patient():
    rng = np.random.default_rng(1)
    reference, current = world(rng, 60), world(rng, 40, first=1000, moved="b")
    returned = replace(
        current, patient_key=np.where(np.arange(80) < 6, reference.patient_key[:80], current.patient_key)
    )
    found = attribute(reference, returned)
    kept = ~np.isin(reference.patient_key, returned.patient_key)
    assert kept.sum() == len(reference) - 6
    values = np.concatenate([reference.embeddings[kept], returned.embeddings])
    owners = np.unique(np.concatenate([reference.patient_key[kept], returned.patient_key]), return_inverse=True)[1]
    is_current = np.arange(len(values)) >= kept.sum()
    # relabellings are drawn first, as for every other figure of the table
    generator = np.random.default_rng(0)
    contrasts(*sides_by_patient(owners, is_current), PERMUTATIONS, generator)
    scores = score_studies(values.astype(float), owners, is_current, generator=generator)
    now, before = returned.attributes["site"] == "b", reference.attributes["site"][kept] == "b"
    assert found["site", "b"].shift == pytest.approx(scores[is_current][now].mean())
    part = scores[is_current][now].sum() / is_current.sum() - scores[~is_current][before].sum() / kept.sum()
    whole = scores[is_current].mean() - scores[~is_current].mean()
    assert found["site", "b"].carried == pytest.approx(part / whole)


def test_parts_carried_sum_to_the_whole_difference():
    rng = np.random.default_rng(1)
    found = attribute(world(rng, 600), world(rng, 400, first=1000, moved="b"))
    for name in ("site", "sex"):
        assert sum(c.carried for (attribute, _), c in found.items() if attribute == name) == pytest.approx(1)
    assert found["site", "b"].carried > 0.8


def test_the_shift_is_nothing_on_average_where_nothing_changed():
    """Along the difference of both means itself it would be 0.7 on average."""
    rng, shifts = np.random.default_rng(4), []
    for _ in range(40):
        found = attribute(world(rng, 60), world(rng, 40, first=1000))
        shifts.append([found["sex", value].shift for value in "FM"])
    means = np.mean(shifts, axis=1)
    assert abs(means.mean()) < 3 * means.std(ddof=1) / np.sqrt(len(means))


@pytest.mark.parametrize("images", [1, 4])
def test_nothing_is_beyond_chance_as_rarely_as_promised_where_nothing_changed(images):
    rng, runs, alarms = np.random.default_rng([2, images]), 60, 0
    for _ in range(runs):
        alarms += bool(beyond(attribute(world(rng, 60, images=images), world(rng, 40, first=1000, images=images))))
    assert alarms <= binom.ppf(1 - 1e-4, runs, 0.05)


def test_few_patients_have_no_p_values():
    rng = np.random.default_rng(3)
    found = attribute(world(rng, 40), world(rng, 4, first=1000))
    assert {(c.p_share, c.p_within, c.beyond_chance) for c in found.values()} == {(None, None, False)}
