"""Overview: what is wrong today, since when, for whom, how sure are we, what is proposed, and who must act."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from dashboard import window_charts
from dashboard.drawing import QUIET_BAR
from dashboard.glossary import show_terms
from dashboard.grading import show_severity, show_streams, show_streams_over_time
from dashboard.names import METRIC_MEANINGS, days
from dashboard.palette import VERDICT_WORDS
from dashboard.reading import chosen_model, pick_finding, plain, reports_of, show_table, store
from dashboard.wording import (
    tell_arrivals,
    tell_change,
    tell_for_whom,
    tell_headline,
    tell_how_bad,
    tell_how_sure,
    tell_other_losses,
    tell_proposal,
    tell_since_when,
)
from monitor.cohorts import span_of
from monitor.labels import tell_arrival
from monitor.results import Source, Verdict, WindowReport
from registry.agenda import next_step

METRIC = "auroc"
TERMS: tuple[str, ...] = ("Reference", "Window", "Drift", "Not enough data", "Beyond chance", "95 % interval")
TERMS += (
    "Alarm",
    "Severity",
    "Headline",
    "Stream score",
    "Labelled",
    "Estimated without labels",
    "Subgroup",
    "Adapter",
    "The gate",
    "Quarantine",
)
BANNERS = {
    Verdict.DRIFT: (st.error, ":material/warning:"),
    Verdict.NO_DRIFT: (st.success, ":material/check_circle:"),
    Verdict.NOT_ENOUGH_DATA: (st.info, ":material/hourglass_empty:"),
}


def show() -> None:
    """Show the page."""
    settings, records = store()
    model = chosen_model()
    st.title("Overview", anchor=False)
    if records.is_rehearsal:
        st.warning("This is a rehearsal: its studies may be simulated.", icon=":material/theater_comedy:")
    reports, history = reports_of(model), records.champion_history(model)
    if not reports:
        st.info("No window has been watched yet. The first verdict appears after the next round.")
        _show_action(model)
        return
    newest = reports[-1]
    show_banner(newest.verdict, tell_headline(reports), tell_change(newest))
    show_severity(newest)
    show_streams(newest)
    finding = pick_finding(newest)
    live = history[-1].version if history else ""
    answers = {
        "Since when?": tell_since_when(reports),
        "For whom?": tell_for_whom(newest),
        "How bad is it?": _tell_harm(newest, finding),
        "How sure are we?": tell_how_sure(newest, settings.drift.false_alarms_per_year),
        "What is proposed?": tell_proposal(records.plans(model), records.decisions(model), live),
        "Who must act?": next_step(records, model),
    }
    _show_answers(answers)
    st.subheader("Performance and verdicts, window by window", anchor=False)
    figure = window_charts.week_by_week(reports, history, metric=METRIC, finding=finding)
    st.plotly_chart(figure, width="stretch", key="weeks", config=QUIET_BAR, alt=tell_headline(reports))
    st.caption(
        f"{METRIC_MEANINGS[METRIC]} Lines up and down are 95 % intervals, of an estimate where "
        "labels will put it; the marks below are the verdicts."
    )
    st.subheader("The streams, window by window", anchor=False)
    show_streams_over_time(reports)
    st.subheader("What came in", anchor=False)
    st.markdown(plain(tell_arrivals(records.batches(model), records.quarantined(model))))
    st.markdown(plain(tell_arrival(records.label_arrival(model, span_of([report.window for report in reports])))))
    with st.expander("Every window as a table"):
        show_table(_table(reports, finding))
    show_terms(*TERMS, metrics=(METRIC,))


def show_banner(verdict: Verdict, headline: str, reason: str) -> None:
    """Show a verdict in its colour: the headline in bold, the reason below."""
    box, icon = BANNERS[verdict]
    box(f"**{plain(headline)}**  \n{plain(reason)}", icon=icon)


def _tell_harm(report: WindowReport, finding: str) -> str:
    measured, estimated = (
        window_charts.harm_of(report, source, METRIC, finding) for source in (Source.REALISED, Source.ESTIMATED)
    )
    others = tell_other_losses([harm for harm in report.harms if harm.finding == finding], METRIC)
    return f"{tell_how_bad(measured, estimated)} {others}".strip()


def _show_action(model: str) -> None:
    _, records = store()
    _show_answers({"Who must act?": next_step(records, model)})


def _show_answers(answers: dict[str, str]) -> None:
    """Show questions and answers as cards, three in a row."""
    items = list(answers.items())
    for start in range(0, len(items), 3):
        for column, (question, answer) in zip(st.columns(3), items[start : start + 3], strict=False):
            with column.container(border=True, height="stretch"):
                st.caption(question)
                st.markdown(plain(answer))


def _table(reports: Sequence[WindowReport], finding: str) -> list[dict[str, object]]:
    _, records = store()
    rows: list[dict[str, object]] = []
    for report in reversed(reports):
        harm = window_charts.harm_of(report, Source.REALISED, METRIC, finding)
        arrival = records.label_arrival(report.model, report.window)
        rows.append(
            {
                "window": days(report.window),
                "verdict": VERDICT_WORDS[report.verdict],
                "studies": report.n,
                "patients": report.patients,
                "labelled": arrival.labelled,
                "days to half the labels": arrival.half_days,
                "AUROC": harm.current if harm else None,
                "loss": harm.loss if harm else None,
                "why": tell_change(report),
            }
        )
    return rows
