"""The table of severity, row by row, and that worse is never graded milder."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.cohorts import Window
from monitor.policies import DriftPolicy
from monitor.results import DriftKind, DriftResult, Harm, Source, SubgroupGap, Verdict, WindowReport
from monitor.severity import Grade, grade_window

WEEK = Window(start=datetime(2026, 1, 5, tzinfo=UTC), end=datetime(2026, 1, 12, tzinfo=UTC))
POLICY = DriftPolicy(tolerated_loss=0.05, stop_loss=0.15)
ORDER = [Grade.QUIET, Grade.NOT_ENOUGH_DATA, Grade.WATCH, Grade.ACT, Grade.STOP]

QUIET = WindowReport(
    model="m",
    window=WEEK,
    verdict=Verdict.NO_DRIFT,
    reason="Nothing differs.",
    n=50,
    patients=50,
    n_labelled=50,
    results=(),
    evaluations=(),
    gaps=(),
    harms=(),
    contributions=(),
)
LOSS = Harm(
    window=WEEK,
    metric="accuracy",
    finding="tumour",
    source=Source.REALISED,
    reference=0.9,
    current=0.8,
    loss=0.1,
    low=0.02,
    high=0.2,
    level=0.95,
    sure=True,
    n=50,
    reason="",
)
GAP = SubgroupGap(
    window=WEEK,
    attribute="sex",
    value="F",
    metric="sensitivity",
    finding="tumour",
    n=20,
    patients=20,
    inside=0.6,
    outside=0.9,
    gap=-0.3,
    low=-0.5,
    high=-0.1,
    reference_gap=-0.2,
    change=-0.1,
    change_low=-0.2,
    change_high=-0.01,
    level=0.95,
    verdict=Verdict.DRIFT,
    reason="",
)
CHANGE = DriftResult(
    window=WEEK,
    detector="mmd",
    kind=DriftKind.APPEARANCE,
    feature="embedding",
    verdict=Verdict.DRIFT,
    statistic=1.0,
    effect=0.4,
    effect_name="distance",
    p_value=0.001,
    threshold=0.01,
    n_reference=100,
    n_current=50,
    patients_reference=100,
    patients_current=50,
    reason="",
    least_effect=0.2,
)


def loss(size, **changes):
    return replace(QUIET, harms=(replace(LOSS, loss=size, **changes),))


def gap(change, **changes):
    return replace(QUIET, gaps=(replace(GAP, change=change, **changes),))


def drifted(effect=0.4, **changes):
    return replace(QUIET, verdict=Verdict.DRIFT, results=(replace(CHANGE, effect=effect),), **changes)


NO_LABELS = (replace(LOSS, loss=None, sure=False),)
KNOWN = (replace(LOSS, loss=0.01, sure=False),)
ESTIMATE = (replace(LOSS, loss=0.1, source=Source.ESTIMATED),)


@pytest.mark.parametrize(
    ("report", "alarm_windows", "grade"),
    [
        (QUIET, 0, Grade.QUIET),
        (replace(QUIET, verdict=Verdict.NOT_ENOUGH_DATA), 0, Grade.NOT_ENOUGH_DATA),
        (loss(0.15), 0, Grade.STOP),
        (loss(0.149), 0, Grade.ACT),
        (loss(0.05), 0, Grade.ACT),
        (loss(0.049), 0, Grade.WATCH),
        (loss(0.3, sure=False), 0, Grade.QUIET),
        (loss(0.3, source=Source.ESTIMATED), 0, Grade.WATCH),
        (gap(-0.15), 0, Grade.STOP),
        (gap(-0.06), 0, Grade.ACT),
        (gap(-0.04), 0, Grade.WATCH),
        (gap(0.3), 0, Grade.QUIET),
        (gap(-0.3, verdict=Verdict.NO_DRIFT), 0, Grade.QUIET),
        (gap(-0.3, metric="selection_rate"), 0, Grade.WATCH),
        (drifted(), 0, Grade.WATCH),
        (drifted(harms=KNOWN), 3, Grade.WATCH),
        (drifted(harms=NO_LABELS), 2, Grade.WATCH),
        (drifted(harms=NO_LABELS), 3, Grade.ACT),
        (drifted(0.61, harms=NO_LABELS), 1, Grade.ACT),
        (drifted(0.61, harms=NO_LABELS), 0, Grade.WATCH),
        (drifted(harms=KNOWN + ESTIMATE), 1, Grade.ACT),
        (drifted(harms=KNOWN + ESTIMATE), 0, Grade.WATCH),
        (replace(QUIET, verdict=Verdict.NOT_ENOUGH_DATA), 1, Grade.WATCH),
    ],
)
def test_every_row_of_the_table(report, alarm_windows, grade):
    severity = grade_window(report, POLICY, alarm_windows=alarm_windows)
    assert severity.grade is grade
    assert bool(severity.reasons) is (grade is not Grade.QUIET)


def test_all_reasons_are_told_the_gravest_first():
    both = replace(drifted(harms=(LOSS, replace(LOSS, metric="auroc", loss=0.2))), gaps=(GAP,))
    assert grade_window(both, POLICY, alarm_windows=2).reasons == (
        "auroc of tumour is lower by 0.200, beyond chance",
        "accuracy of tumour is lower by 0.100, beyond chance",
        "sensitivity of tumour of sex F fell behind everyone else's by 0.100, beyond chance",
        "an alarm is open for 2 windows, the largest change 2.0 times the least that counts",
        "the window differs from the reference beyond chance",
    )


sizes = st.floats(0.001, 0.9)


@given(sizes, sizes, sizes, st.integers(0, 5), st.integers(0, 5))
def test_more_loss_or_a_longer_alarm_is_never_graded_milder(one, other, change, first, second):
    smaller, larger = sorted((one, other))
    shorter, longer = sorted((first, second))

    def rank(size, windows):
        harms = (replace(LOSS, loss=size),)
        report = drifted(change, harms=harms, gaps=(replace(GAP, change=-size),))
        return ORDER.index(grade_window(report, POLICY, alarm_windows=windows).grade)

    assert rank(smaller, shorter) <= rank(larger, shorter)
    assert rank(smaller, shorter) <= rank(smaller, longer)
