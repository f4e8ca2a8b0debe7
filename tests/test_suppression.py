"""Small cells do not leave, nor can they be computed from what does."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from monitor.cohorts import MISSING, Window
from monitor.results import (
    Contribution,
    DriftKind,
    DriftResult,
    Evaluation,
    Harm,
    Metric,
    Source,
    SubgroupGap,
    Verdict,
    WindowReport,
)
from monitor.suppression import suppress_report, suppress_subgroups

WEEK = Window(start=datetime(2026, 1, 5, tzinfo=UTC), end=datetime(2026, 1, 12, tzinfo=UTC))
GAP = SubgroupGap(
    window=WEEK,
    attribute="site",
    value="A",
    metric="auroc",
    finding="tumour",
    n=0,
    patients=0,
    inside=0.8,
    outside=0.9,
    gap=-0.1,
    low=-0.2,
    high=0.0,
    reference_gap=-0.1,
    change=0.0,
    change_low=-0.1,
    change_high=0.1,
    level=0.95,
    verdict=Verdict.NO_DRIFT,
    reason="measured",
    p_value=0.5,
)


def gaps(*patients: int, **changes):
    return [replace(GAP, value=f"v{i}", patients=n, n=2 * n, **changes) for i, n in enumerate(patients)]


def suppress_gaps(rows, smallest):
    return suppress_subgroups(rows, (), smallest)[0]


def shown(rows):
    return [row.patients for row in rows]


def test_a_small_cell_loses_every_figure_and_says_why():
    small, beside, large = suppress_gaps(gaps(4, 9, 50), 5)
    assert small == replace(
        GAP,
        value="v0",
        n=None,
        patients=None,
        **dict.fromkeys(("inside", "outside", "gap", "low", "high", "reference_gap")),
        **dict.fromkeys(("change", "change_low", "change_high", "p_value")),
        suppressed=True,
        reason="suppressed: fewer than 5 patients",
    )
    assert (beside.n, beside.patients, beside.gap, beside.suppressed) == (None, None, -0.1, True)
    assert large == gaps(4, 9, 50)[2]


@pytest.mark.parametrize(
    ("patients", "left"),
    [
        ((5, 6, 7), [5, 6, 7]),
        ((4, 6, 7), [None, None, 7]),
        ((4, 3, 7), [None, None, 7]),
        ((1, 1, 60), [None, None, None]),
        ((0, 4, 7, 9), [0, None, None, 9]),
        ((4,), [None]),
        ((0, 0), [0, 0]),
    ],
)
def test_what_is_left_by_hand(patients, left):
    assert shown(suppress_gaps(gaps(*patients), 5)) == left


def test_a_cell_that_is_blank_in_one_metric_is_blank_in_all_and_other_attributes_stay():
    rows = gaps(3, 40) + gaps(30, 40, metric="sensitivity") + gaps(30, 40, attribute="sex")
    assert shown(suppress_gaps(rows, 5)) == [None, None, None, None, 30, 40]


def test_a_small_count_in_words_is_hidden_wherever_it_stands():
    told = "outside: 3 labelled studies, 20 are needed; 4 patients with tumour, 5 are needed; 40 studies"
    (row,) = suppress_gaps(gaps(50, reason=told), 5)
    assert row.reason == (
        "outside: fewer than 5 labelled studies, 20 are needed; "
        "fewer than 5 patients with tumour, 5 are needed; 40 studies"
    )


def test_the_difference_of_two_metrics_counts_gives_no_small_one_away():
    rows = [
        *gaps(24, 30, metric="calibration_offset"),
        *gaps(21, 20, metric="specificity"),
        *gaps(3, 10, metric="sensitivity"),
    ]
    left = suppress_gaps(rows, 5)
    assert [row.patients for row in left if row.value == "v0"] == [None, None, None]


def test_a_line_of_a_crossed_table_gives_no_small_count_away():
    crossed = [
        replace(
            GAP, attribute="sex & site", value=f"{sex} & {site}", parts=(("sex", sex), ("site", site)), patients=n, n=n
        )
        for sex, site, n in (("F", "A", 30), ("F", "B", 3), ("M", "A", 20), ("M", "B", 40))
    ]
    assert shown(suppress_gaps(crossed, 5)) == [None] * 4  # three blank ones would be computed from the lines


@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.integers(2, 12))
def test_no_small_count_is_shown_nor_can_be_computed_from_the_total(patients, smallest):
    left = suppress_gaps(gaps(*patients), smallest)
    assert all(n is None or n == 0 or n >= smallest for n in shown(left))
    hidden = [n for n, row in zip(patients, left, strict=True) if row.patients is None]
    filled = [n for n in patients if n > 0]
    assert not hidden or len(hidden) == len(filled) or (len(hidden) > 1 and sum(hidden) >= smallest)
    assert suppress_gaps(left, smallest) == left


def test_contributions_hide_shares_and_counts_of_either_side():
    plain = {"window": WEEK, "attribute": "site", "shift": 0.3, "share_reference": 0.5, "share_current": 0.1}
    rows = [
        Contribution(**plain, value="a", n_current=6, patients_reference=40, patients_current=3),
        Contribution(**plain, value="b", n_current=60, patients_reference=45, patients_current=30),
        Contribution(**plain, value="c", n_current=70, patients_reference=50, patients_current=40),
    ]
    rest, small, beside = suppress_subgroups((), rows, 5)[1]
    assert (small.n_current, small.share_current, small.share_reference, small.shift) == (None, None, None, None)
    assert (small.patients_current, small.patients_reference, small.suppressed) == (None, None, True)
    assert (beside.n_current, beside.share_current, beside.shift) == (None, None, 0.3)
    assert rest == rows[2]  # blank ones come last, so that no rank tells a size


# ---- several tables together


def crossed_rows(counts):
    """Tell what a window shows of two attributes: both marginals, their crossing, and the values that carry a drift."""
    rows, vectors = [], []
    for attribute, axis in (("site", 1), ("sex", 0)):
        for place, n in enumerate(counts.sum(axis=axis)):
            rows.append(replace(GAP, attribute=attribute, value=f"{attribute}{place}", patients=int(n), n=int(n)))
            mask = np.zeros(counts.shape)
            mask[(place, slice(None)) if axis else (slice(None), place)] = 1
            vectors.append(mask)
    for (i, j), n in np.ndenumerate(counts):
        if n:
            parts = (("site", f"site{i}"), ("sex", f"sex{j}"))
            value, mask = f"site{i} & sex{j}", np.zeros(counts.shape)
            mask[i, j] = 1
            rows.append(replace(GAP, attribute="site & sex", value=value, parts=parts, patients=int(n), n=int(n)))
            vectors.append(mask)
    return rows, vectors


def values_of(rows, before):
    return [
        Contribution(
            window=WEEK,
            attribute=row.attribute,
            value=row.value,
            n_current=row.n,
            share_reference=0.5,
            share_current=0.5,
            shift=0.1,
            patients_reference=n,
            patients_current=row.patients,
        )
        for row, n in zip(rows, before, strict=True)
    ]


def is_computed(target, known, filled):
    """Tell whether a sum of cells follows from sums that are known, where empty cells are known to be empty."""
    base = np.array([vector[filled] for vector in known])
    return np.linalg.matrix_rank(np.vstack([base, target[filled]])) == np.linalg.matrix_rank(base)


@given(
    st.lists(st.integers(0, 25), min_size=8, max_size=8),
    st.lists(st.integers(0, 25), min_size=6, max_size=6),
    st.integers(2, 8),
)
@example([5, 30, 12, 12, 3, 0, 40, 8], [30] * 6, 5)  # the marginal of the second site follows from its line
def test_no_small_count_follows_from_all_tables_together(now, before, smallest):
    counts = np.array(now).reshape(4, 2)
    rows, vectors = crossed_rows(counts)
    values = values_of(rows[:6], before)
    left, told = suppress_subgroups(rows, values, smallest)
    shown_now = {row.value: row.patients_current for row in told}
    known = [np.ones(counts.shape)]
    for row, vector in zip(left, vectors, strict=True):
        if row.patients is not None or shown_now.get(row.value) is not None:
            known.append(vector)
    for row, vector in zip(rows, vectors, strict=True):
        if 0 < row.patients < smallest and 0 < row.patients < counts.sum():
            assert not is_computed(vector, known, counts > 0), row.value
    for attribute in ("site", "sex"):
        sides = [n for n, value in zip(before, values, strict=True) if value.attribute == attribute]
        hidden = [
            n
            for n, value in zip(before, values, strict=True)
            if value.attribute == attribute and n and next(r for r in told if r.value == value.value).suppressed
        ]
        filled = [n for n in sides if n]
        few = any(0 < n < smallest for n in sides)
        assert not few or len(hidden) == len(filled) or (len(hidden) > 1 and sum(hidden) >= smallest)


# ---- the rest of a report


def loss(metric, n, **changes):
    fields = {"reference": 0.9, "current": 0.6, "loss": 0.3, "low": 0.1, "high": 0.5, "level": 0.95, "sure": True}
    return Harm(window=WEEK, metric=metric, finding="yes", source=Source.REALISED, n=n, reason="", **(fields | changes))


def figure(name, n):
    return Metric(name=name, finding="yes", value=0.5, low=0.4, high=0.6, level=0.95, n=n)


def result(feature, reason="", n=97):
    return DriftResult(
        window=WEEK,
        detector="ks",
        kind=DriftKind.CASE_MIX,
        feature=feature,
        verdict=Verdict.NO_DRIFT,
        statistic=0.1,
        effect=0.1,
        effect_name="KS distance",
        p_value=0.5,
        threshold=0.01,
        n_reference=n,
        n_current=n,
        patients_reference=n,
        patients_current=n,
        reason=reason,
    )


def report(**parts):
    nothing = dict.fromkeys(("results", "evaluations", "gaps", "harms", "contributions"), ())
    whole = {"model": "m", "window": WEEK, "verdict": Verdict.NO_DRIFT, "reason": "", "n": 100, "patients": 100}
    return WindowReport(**(whole | {"n_labelled": 100} | nothing | parts))


def test_figures_that_rest_on_few_of_a_class_go_and_the_count_of_the_other_class_with_them():
    harms = (loss("sensitivity", 3), loss("specificity", 97), loss("auroc", 100), loss("accuracy", 100))
    metrics = tuple(figure(name, n) for name, n in (("sensitivity", 3), ("specificity", 97), ("brier", 100)))
    evaluation = Evaluation(
        model_version="1", cohort="week", source=Source.REALISED, n=100, patients=100, n_labelled=100, metrics=metrics
    )
    left = suppress_report(report(harms=harms, evaluations=(evaluation,)), 5)
    sensitivity, specificity, auroc, accuracy = left.harms
    for hidden in (sensitivity, auroc):
        assert (hidden.n, hidden.current, hidden.loss, hidden.low, hidden.sure) == (None, None, None, None, False)
        assert hidden.reason == "suppressed: fewer than 5 patients"
    assert (specificity.n, specificity.loss) == (None, 0.3)
    assert accuracy == harms[3]
    assert [(one.value, one.n) for one in left.evaluations[0].metrics] == [(None, None), (0.5, None), (0.5, 100)]
    assert suppress_report(report(harms=(loss("sensitivity", 5), loss("specificity", 95))), 5).harms[0].loss == 0.3


def test_a_comparison_counts_nobody_where_its_unknown_values_would_be_few():
    values = [
        Contribution(
            window=WEEK,
            attribute="age",
            value=value,
            n_current=n,
            share_reference=0.1,
            share_current=n / 100,
            shift=0.0,
            patients_reference=n,
            patients_current=n,
        )
        for value, n in (("≤ 60", 50), ("> 60", 47), (MISSING, 3))
    ]
    left = suppress_report(report(results=(result("age"), result("margin", n=100)), contributions=values), 5)
    assert [one.patients_current for one in left.results] == [None, 100]
    assert [one.n_reference for one in left.results] == [None, 100]


def test_reasons_quote_no_small_count_and_the_sentence_speaks_of_what_is_left():
    kept = result("age", "3 patients in the window, 20 needed")
    rare = Contribution(
        window=WEEK,
        attribute="site",
        value="Zebra-7",
        n_current=3,
        share_reference=0.0,
        share_current=0.03,
        shift=2.0,
        beyond_chance=True,
        patients_reference=0,
        patients_current=3,
    )
    told = "Most of it sits in site = Zebra-7: 0% of the reference, 3% now."
    drifted = replace(result("site"), verdict=Verdict.DRIFT)
    whole = report(verdict=Verdict.DRIFT, reason=told, results=(kept, drifted), contributions=(rare,))
    left = suppress_report(whole, 5)
    assert left.results[0].reason == "fewer than 5 patients in the window, 20 needed"
    assert "site" in left.reason
    assert "Zebra-7" not in left.reason
    assert suppress_report(left, 5) == left
