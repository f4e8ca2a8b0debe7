"""How grave a window is, its headline and its streams: shown alike on the overview and on the page of a window."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from dashboard import stream_charts
from dashboard.drawing import QUIET_BAR
from dashboard.glossary import TERMS
from dashboard.names import part_words, reword, sentence
from dashboard.reading import plain, store
from dashboard.wording import tell_alarm
from monitor.results import WindowReport
from monitor.severity import GRADE_WORDS, Grade, grade_window
from monitor.streams import Part, StreamScore, score_headline, score_streams
from registry.entries import windows_open

BOXES = {Grade.STOP: st.error, Grade.ACT: st.error, Grade.WATCH: st.warning}


def show_severity(report: WindowReport) -> None:
    """Show how grave a window is, with every rule that says so, the gravest first."""
    settings, records = store()
    alarms = records.alarms(report.model)
    severity = grade_window(report, settings.drift, alarm_windows=windows_open(alarms, report.window))
    st.subheader("How grave is it?", anchor=False, help=TERMS["Severity"])
    told = f"**{plain(GRADE_WORDS[severity.grade])}** {plain(tell_alarm(alarms, report.window))}"
    reasons = "".join(f"\n- {plain(sentence(reword(reason)))}." for reason in severity.reasons)
    show_it = BOXES.get(severity.grade)
    if show_it is None:
        st.markdown(told + ("\n" + reasons if reasons else ""))
    else:
        show_it(f"{told}\n{reasons}")


def show_streams(report: WindowReport) -> None:
    """Show the headline beside the four streams it is the worst of, each with its parts one click away."""
    settings, _ = store()
    streams = score_streams(report, settings.drift)
    headline = score_headline(streams)
    st.subheader("Four streams and a headline", anchor=False, help=TERMS["Stream score"])
    left, right = st.columns([1, 4], vertical_alignment="center")
    score = "not judged" if headline.score is None else f"{headline.score:.0f} of 100"
    left.metric("Headline", score, help=TERMS["Headline"])
    missing = [part.name for part in headline.parts if part.score is None]
    if missing:
        left.caption(plain(f"Not judged, and so not in it: {', '.join(missing)}."))
    right.plotly_chart(stream_charts.stream_scores(streams), width="stretch", key="streams", config=QUIET_BAR)
    with st.expander("The parts of every stream"):
        for tab, stream in zip(st.tabs([sentence(stream.name) for stream in streams]), streams, strict=True):
            with tab:
                _show_parts(stream)


def show_streams_over_time(reports: Sequence[WindowReport]) -> None:
    """Show the headline and each stream over all windows."""
    settings, _ = store()
    rows = [score_streams(report, settings.drift) for report in reports]
    scores = {"headline": [score_headline(streams).score for streams in rows]}
    for place, stream in enumerate(rows[0]):
        scores[stream.name] = [streams[place].score for streams in rows]
    figure = stream_charts.streams_by_week([report.window for report in reports], scores)
    st.plotly_chart(figure, width="stretch", key="streams over time", config=QUIET_BAR)


def _show_parts(stream: StreamScore) -> None:
    if not stream.parts:
        st.markdown("Not judged: nothing of it was compared.")
        return
    worst_first = sorted(stream.parts, key=_rank)
    st.plotly_chart(
        stream_charts.stream_scores(worst_first), width="stretch", key=f"parts {stream.name}", config=QUIET_BAR
    )
    for part in worst_first:
        if part.score is None:
            st.markdown(f"- {plain(part_words(part.name))}: not judged, {plain(reword(part.told))}")


def _rank(part: Part) -> tuple[bool, float]:
    return part.score is None, part.score or 0.0
