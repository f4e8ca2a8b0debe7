"""Figures of streams, calibration and estimates hold their numbers; what was not judged is said, never drawn as 0."""

from __future__ import annotations

import pytest

from dashboard import calibration_charts, charts, stream_charts
from dashboard.names import part_words
from dashboard.palette import LOOK, QUIET
from monitor.policies import DriftPolicy
from monitor.reconciliation import reconcile
from monitor.reliability import ReliabilityBin
from monitor.results import PrevalenceShift
from monitor.streams import Part, StreamScore, score_streams
from tests.conftest import UNLABELLED_WEEK, WEEKS, report_of

REPORTS = [report_of(window, number) for number, window in enumerate(WEEKS[:8])]


def test_streams_are_bars_with_their_scores_and_what_was_not_judged_says_so() -> None:
    worst = Part(name="embedding (embedding_shift)", score=50.0, told="moved")
    streams = [
        StreamScore(name="appearance", score=50.0, parts=(worst,)),
        StreamScore(name="behaviour", score=100.0, parts=(Part(name="score", score=100.0, told="quiet"),)),
        StreamScore(name="realised performance", score=None, parts=()),
    ]
    figure = stream_charts.stream_scores(streams)
    (bars,) = figure.data
    assert list(bars.x) == [None, 100.0, 50.0]
    told, *scores = [note.text for note in figure.layout.annotations if note.text != "image embedding (feature shift)"]
    assert told == "not judged: nothing was compared"
    assert scores == ["–", "100", "50", "<i>of 100</i>"]
    assert list(bars.marker.color) == [LOOK, QUIET, LOOK]
    assert bars.hovertext[2] == "image embedding (feature shift): moved"


def test_a_stream_over_time_is_a_panel_and_a_window_without_a_score_a_ring_and_no_bar() -> None:
    scores = {
        name: [next(s.score for s in score_streams(report, DriftPolicy()) if s.name == name) for report in REPORTS]
        for name in ("appearance", "realised performance")
    }
    figure = stream_charts.streams_by_week([report.window for report in REPORTS], scores)
    bars = [each for each in figure.data if each.type == "bar"]
    rings = [each for each in figure.data if each.type == "scatter"]
    assert [list(each.y) for each in bars] == list(scores.values())
    assert bars[1].y[UNLABELLED_WEEK] is None
    assert WEEKS[UNLABELLED_WEEK].middle in list(rings[1].x)
    assert "not judged" in bars[1].hovertext[UNLABELLED_WEEK]
    assert [each.showlegend for each in rings].count(True) == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("score yes (ks)", "score for yes (KS)"),
        ("auroc of yes", "AUROC of yes"),
        ("realised performance", "realised performance"),
    ],
)
def test_parts_are_named_as_readers_know_them(name: str, words: str) -> None:
    assert part_words(name) == words


def test_errors_of_estimates_have_a_panel_a_figure_with_what_chance_allows_and_the_band_of_the_past() -> None:
    errors = reconcile(REPORTS)
    past = {(REPORTS[3].window, "auroc", "yes"): 0.05}
    figure = calibration_charts.estimate_errors(errors, past)
    points = [each for each in figure.data if each.type == "scatter"]
    bands = [each for each in figure.data if each.type == "bar"]
    assert sum(len(each.y) for each in points) == len(errors) > 0
    for each, metric in zip(points, dict.fromkeys(error.metric for error in errors), strict=True):
        mine = [error for error in errors if error.metric == metric]
        assert list(each.y) == [error.error for error in mine]
        assert list(each.error_y.array) == pytest.approx([1.96 * error.variance**0.5 for error in mine])
    (known,) = [height for band in bands for height in band.y if height]
    assert known == pytest.approx(2 * 1.96 * 0.05)
    assert min(min(band.base) for band in bands) == pytest.approx(-1.96 * 0.05)


def test_reliability_is_drawn_with_intervals_and_patients_and_the_briers_parts_add_up() -> None:
    bins = [
        ReliabilityBin(finding="yes", said=0.1, seen=0.2, low=0.05, high=0.4, studies=12, patients=7),
        ReliabilityBin(finding="yes", said=0.9, seen=0.8, low=None, high=None, studies=9, patients=6),
    ]
    diagonal, drawn = calibration_charts.reliability(bins).data
    assert list(diagonal.x) == list(diagonal.y) == [0, 1]
    assert (list(drawn.x), list(drawn.y)) == ([0.1, 0.9], [0.2, 0.8])
    assert list(drawn.error_y.array) == pytest.approx([0.2, 0.0])
    assert [tuple(row) for row in drawn.customdata] == [(7, 12), (6, 9)]
    (fall,) = calibration_charts.brier_parts([("difficulty", 0.2), ("discrimination", -0.1)], 0.1).data
    assert list(fall.x) == [0.2, -0.1, 0.1]
    assert list(fall.measure) == ["relative", "relative", "total"]


def test_prevalences_show_the_reference_beside_the_estimate() -> None:
    shift = PrevalenceShift(
        window=WEEKS[0],
        finding="yes",
        reference=0.4,
        estimate=0.5,
        low=0.45,
        high=0.6,
        level=0.95,
        n=80,
        patients=60,
        reason="",
    )
    before, now = charts.prevalences([shift]).data
    assert (list(before.x), list(now.x)) == ([0.4], [0.5])
    assert list(now.error_x.arrayminus) == pytest.approx([0.05])
