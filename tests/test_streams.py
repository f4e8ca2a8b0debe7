"""Streams and the headline: a part that shouts is never averaged away."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.cohorts import Window
from monitor.policies import DriftPolicy
from monitor.results import DriftKind, DriftResult, Harm, Source, Verdict, WindowReport
from monitor.streams import Stream, score_headline, score_streams

WEEK = Window(start=datetime(2026, 1, 5, tzinfo=UTC), end=datetime(2026, 1, 12, tzinfo=UTC))
POLICY = DriftPolicy()
KIND_OF = {Stream.ACQUISITION: DriftKind.ACQUISITION, Stream.APPEARANCE: DriftKind.APPEARANCE}


def result(kind: DriftKind, effect: float | None, *, least: float = 0.2, drift: bool = True) -> DriftResult:
    verdict = Verdict.DRIFT if drift else Verdict.NO_DRIFT
    return DriftResult(
        window=WEEK,
        detector="ks",
        kind=kind,
        feature=f"{kind} {effect}",
        verdict=Verdict.NOT_ENOUGH_DATA if effect is None else verdict,
        statistic=effect,
        effect=effect,
        effect_name="distance",
        p_value=None if effect is None else 0.001,
        threshold=0.01,
        n_reference=100,
        n_current=50,
        patients_reference=100,
        patients_current=50,
        reason="too few" if effect is None else "measured",
        least_effect=least,
    )


def loss(value: float | None, *, sure: bool, source: Source = Source.REALISED) -> Harm:
    return Harm(
        window=WEEK,
        metric="auroc",
        finding="tumour",
        source=source,
        reference=0.9,
        current=None if value is None else 0.9 - value,
        loss=value,
        low=None,
        high=None,
        level=0.95,
        sure=sure,
        n=50,
        reason="no labels" if value is None else "",
    )


def report(*results: DriftResult, harms: tuple[Harm, ...] = ()) -> WindowReport:
    return WindowReport(
        model="m",
        window=WEEK,
        verdict=Verdict.NO_DRIFT,
        reason="said",
        n=50,
        patients=50,
        n_labelled=50,
        results=results,
        evaluations=(),
        gaps=(),
        harms=harms,
        contributions=(),
    )


def scores(one: WindowReport) -> dict[str, float | None]:
    return {stream.name: stream.score for stream in score_streams(one, POLICY)}


def test_every_stream_is_there_even_without_a_part():
    assert scores(report()) == dict.fromkeys(Stream, None)


@pytest.mark.parametrize(("effect", "score"), [(0.1, 100), (0.2, 100), (0.4, 50), (2.0, 10), (0.0, 100)])
def test_a_drifted_part_scores_the_least_size_over_its_own(effect, score):
    assert scores(report(result(DriftKind.APPEARANCE, effect)))[Stream.APPEARANCE] == pytest.approx(score)


def test_what_is_within_chance_scores_100_however_large_it_looks():
    assert scores(report(result(DriftKind.BEHAVIOUR, 0.9, drift=False)))[Stream.BEHAVIOUR] == 100


def test_case_mix_belongs_to_acquisition_and_the_worst_part_sets_the_score():
    found = score_streams(
        report(result(DriftKind.ACQUISITION, 0.1, drift=False), result(DriftKind.CASE_MIX, 0.8)), POLICY
    )
    acquisition = next(stream for stream in found if stream.name == Stream.ACQUISITION)
    assert acquisition.score == pytest.approx(25)
    assert acquisition.worst == acquisition.parts[1]
    assert len(acquisition.parts) == 2


@pytest.mark.parametrize(("value", "sure", "score"), [(0.1, True, 50), (0.1, False, 100), (0.02, True, 100)])
def test_realised_performance_scores_sure_losses_against_the_tolerated_one(value, sure, score):
    assert scores(report(harms=(loss(value, sure=sure),)))[Stream.PERFORMANCE] == pytest.approx(score)


def test_an_estimate_is_not_realised_performance():
    assert scores(report(harms=(loss(0.3, sure=True, source=Source.ESTIMATED),)))[Stream.PERFORMANCE] is None


def test_what_could_not_be_judged_stays_a_part_and_says_why():
    (stream,) = [
        stream
        for stream in score_streams(report(result(DriftKind.APPEARANCE, None)), POLICY)
        if stream.name == Stream.APPEARANCE
    ]
    assert (stream.score, stream.worst, stream.parts[0].told) == (None, None, "too few")


@given(st.lists(st.tuples(st.sampled_from(list(DriftKind)), st.none() | st.floats(0, 5), st.booleans()), max_size=8))
def test_the_headline_is_the_worst_stream_and_hides_none(drawn):
    streams = score_streams(report(*(result(kind, effect, drift=drift) for kind, effect, drift in drawn)), POLICY)
    headline = score_headline(streams)
    judged = [stream.score for stream in streams if stream.score is not None]
    assert headline.score == min(judged, default=None)
    assert [part.name for part in headline.parts] == list(Stream)
    assert all(score is None or 0 < score <= 100 for score in [headline.score, *(s.score for s in streams)])


@given(st.floats(0.01, 5), st.floats(0.01, 5))
def test_a_larger_change_never_scores_better(one, other):
    smaller, larger = sorted((one, other))
    worse, better = (
        scores(report(result(DriftKind.APPEARANCE, effect)))[Stream.APPEARANCE] for effect in (larger, smaller)
    )
    assert worse <= better


def test_a_result_without_a_calibrated_least_effect_is_held_against_the_policys():
    old = replace(result(DriftKind.APPEARANCE, 2 * POLICY.minimum_effect), least_effect=0.0)
    assert scores(report(old))[Stream.APPEARANCE] == pytest.approx(50)
