"""Between windows: what is followed, how often it may be wrong, and what it says; alibi-detect is the real one."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from scipy.stats import poisson

from monitor.cohorts import Cohort, Window
from monitor.online import LONGEST_RUN, follow_between
from monitor.policies import DriftPolicy
from monitor.tasks import Task

START = datetime(2026, 3, 30, tzinfo=UTC)
WEEK = Window(start=START, end=START + timedelta(days=7))
ALL = ("alibi_online_mmd", "alibi_online_cvm", "alibi_online_fet")
POLICY = DriftPolicy(online_detectors=ALL, false_alarms_per_year=20)
FEATURES = ["embedding", "score yes", "age", "predicted yes"]


def draw(rng, patients, side, *, changed=None, **changes) -> Cohort:
    """Draw patients with two studies each, an hour apart; from the patient ``changed`` on all looks otherwise."""
    owner = np.arange(patients).repeat(2)
    moved = 0.0 if changed is None else np.where(np.arange(patients) >= changed, 2.0, 0.0)[:, None]
    inner = rng.normal(size=(patients, 6)) + moved
    n = len(owner)
    columns = {
        "task": Task.BINARY,
        "classes": ("no", "yes"),
        "study_uid": np.array([f"{side}-{i}" for i in range(n)]),
        "patient_key": np.array([f"{side}-{i}" for i in owner]),
        "times": np.datetime64(START.replace(tzinfo=None), "us") + np.arange(n) * np.timedelta64(1, "h"),
        "scores": 1 / (1 + np.exp(1 - inner[owner, :1])),
        "labels": np.full((n, 1), np.nan),
        "attributes": {
            "age": np.where(np.arange(n) % 10, 60 + 10 * inner[owner, 1], np.nan),
            "site": owner.astype(str),
        },
        "embeddings": inner[owner, 2:].astype(np.float32),
    }
    return Cohort(**(columns | changes))


def follow(reference, stream, *, policy=POLICY, patients_per_year=1000.0):
    return follow_between(
        reference,
        stream,
        window=WEEK,
        policy=policy,
        patients_per_year=patients_per_year,
        progress=lambda what: None,
    )


@pytest.mark.slow
def test_a_change_is_seen_in_every_stream_soon_after_it_came_and_the_window_is_left_to_tell():
    rng = np.random.default_rng(1)
    reports = follow(draw(rng, 200, "r"), draw(rng, 120, "c", changed=60), patients_per_year=8000)
    assert [report.feature for report in reports] == FEATURES
    for report in reports:
        assert report.expected_run == 2048
        assert report.false_warnings_per_year == pytest.approx(8000 / 2048)
        assert 60 < report.patients <= 95
        change = START + timedelta(hours=120)
        assert change - timedelta(hours=40) <= report.since <= report.warned_at <= change + timedelta(hours=80)
        assert report.reason.startswith(f"{report.feature} looks different since about 2026-04-0")
        assert "the window that ends on 2026-04-06 will tell" in report.reason
        assert "comes once in 2,048 patients on average, 3.9 times a year" in report.reason
    assert sum(report.false_warnings_per_year for report in reports) <= POLICY.false_alarms_per_year


@pytest.mark.slow
def test_what_was_said_stays_when_more_arrive_whatever_the_order_of_rows():
    rng = np.random.default_rng(1)
    reference, stream = draw(rng, 150, "r"), draw(rng, 90, "c", changed=20)
    early, late = (follow(reference, stream.select(slice(rows))) for rows in (130, None))
    assert early == late
    shuffled = rng.permutation(len(stream))
    assert follow(reference, stream.select(shuffled)) == late


@pytest.mark.slow
def test_without_a_change_nothing_is_said_but_how_many_were_looked_at():
    rng = np.random.default_rng(3)
    reports = follow(draw(rng, 150, "r"), draw(rng, 30, "c"), patients_per_year=3000)
    assert {(report.since, report.warned_at, report.patients) for report in reports} == {(None, None, 30)}
    assert reports[1].reason.startswith("score yes: nothing looks different in 30 patients so far. Without a change")


@pytest.mark.slow
def test_false_warnings_over_all_streams_are_no_more_than_the_budget_allows():
    """Many model-quarters of quiet patients; each quarter is begun anew, as each window is."""
    rng, warned, years, per_year = np.random.default_rng(4), 0, 0.0, 400.0
    for _ in range(12):
        reference = draw(rng, 200, "r")
        for _ in range(2):
            reports = follow(reference, draw(rng, 100, "c"), patients_per_year=per_year)
            warned += sum(report.since is not None for report in reports)
            years += 100 / per_year
    assert warned <= poisson.ppf(1 - 1e-3, POLICY.false_alarms_per_year * years)
    assert warned >= poisson.ppf(1e-4, POLICY.false_alarms_per_year * years / 8)


@pytest.mark.slow
def test_a_stream_that_cannot_be_followed_says_why_and_the_others_go_on():
    rng = np.random.default_rng(5)
    low = draw(rng, 150, "r", scores=np.full((300, 1), 0.2))
    reasons = {report.feature: report.reason for report in follow(low, draw(rng, 30, "c"), patients_per_year=4000)}
    assert reasons["score yes"] == (
        "score yes is not followed between windows: nothing varies: every value of the reference is the same"
    )
    assert "nothing looks different" in reasons["embedding"]
    few = follow(draw(rng, 60, "r"), draw(rng, 30, "c"))
    assert all("60 patients in the reference, 100 needed" in report.reason for report in few if report.feature != "age")


def test_a_budget_that_no_threshold_can_keep_is_refused():
    rng = np.random.default_rng(6)
    for report in follow(draw(rng, 150, "r"), draw(rng, 30, "c"), patients_per_year=10 * LONGEST_RUN):
        assert report.since is None
        assert "thresholds can be set for one in 32,768; follow fewer columns" in report.reason


@pytest.mark.parametrize("policy", [DriftPolicy(), POLICY.model_copy(update={"alibi_detect": False})])
def test_nothing_is_followed_unless_a_person_asks_and_allows_alibi_detect(policy):
    rng = np.random.default_rng(7)
    assert follow(draw(rng, 150, "r"), draw(rng, 30, "c"), policy=policy) == ()


def test_only_what_the_policy_names_and_both_sides_have_is_followed():
    rng = np.random.default_rng(8)
    reference, much = draw(rng, 150, "r"), 100.0 * LONGEST_RUN
    told = [
        [report.feature for report in follow(reference, stream, policy=policy, patients_per_year=much)]
        for stream, policy in (
            (draw(rng, 30, "c"), POLICY.model_copy(update={"online_detectors": ALL[1:2]})),
            (draw(rng, 30, "c", embeddings=None, attributes={}), POLICY),
        )
    ]
    assert told == [["score yes", "age"], ["score yes", "predicted yes"]]
