"""Overview: what is wrong today, since when, for whom, how sure are we, and who must act."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from dashboard import charts
from dashboard.reading import chosen_model, plain, store
from monitor.results import Harm, Source, Verdict, WindowReport
from registry.agenda import next_step


def show() -> None:
    """Show the page."""
    _, records = store()
    model = chosen_model()
    st.title("Overview")
    reports = records.reports(model)
    champion = records.champion(model)
    if not reports:
        st.info("No window has been watched yet. The first verdict appears after the next round.")
        return
    last = reports[-1]
    _headline(model, last, reports)
    left, middle, right = st.columns(3)
    left.metric("Champion", f"version {champion.version}" if champion else "none yet", border=True)
    harm = _realised(last)
    known = harm is not None and harm.current is not None
    middle.metric(
        "AUROC in the last window",
        f"{harm.current:.3f}" if harm is not None and harm.current is not None else "no labels yet",
        f"{-harm.loss:+.3f} against the reference" if known and harm is not None and harm.loss is not None else None,
        border=True,
    )
    right.metric("Studies in the last window", f"{last.n}", f"{last.n_labelled} labelled", "off", border=True)
    st.subheader("Performance and verdicts, week by week")
    st.plotly_chart(charts.performance_timeline(reports), width="stretch", key="timeline")
    st.caption("Lines through the points are 95 % intervals over patients. Estimated means: without using the labels.")
    with st.expander("Every window as a table"):
        st.dataframe(_table(reports), hide_index=True, width="stretch")


def _headline(model: str, last: WindowReport, reports: Sequence[WindowReport]) -> None:
    _, records = store()
    text = f"**{plain(model)}**, week from {last.window.start:%d %B %Y}: {plain(last.reason)}"
    since = _since(reports)
    if last.verdict is Verdict.DRIFT:
        st.error(f"{text}  \nIt began in the week from {since:%d %B %Y}.", icon=":material/warning:")
    elif last.verdict is Verdict.NO_DRIFT:
        st.success(f"{text}  \nQuiet since the week from {since:%d %B %Y}.", icon=":material/check_circle:")
    else:
        st.info(text, icon=":material/hourglass_empty:")
    st.markdown(f"**Who must act:** {plain(next_step(records, model))}")


def _since(reports: Sequence[WindowReport]) -> pd.Timestamp:
    start = reports[-1].window.start
    for report in reversed(reports):
        if report.verdict is not reports[-1].verdict:
            break
        start = report.window.start
    return pd.Timestamp(start)


def _realised(report: WindowReport) -> Harm | None:
    return next((h for h in report.harms if h.source is Source.REALISED and h.metric == "auroc"), None)


def _table(reports: Sequence[WindowReport]) -> pd.DataFrame:
    rows = []
    for report in reversed(reports):
        harm = _realised(report)
        rows.append(
            {
                "from": report.window.start.date(),
                "to": report.window.end.date(),
                "verdict": charts.VERDICT_WORDS[report.verdict],
                "studies": report.n,
                "patients": report.patients,
                "AUROC": harm.current if harm else None,
                "loss": harm.loss if harm else None,
                "why": report.reason,
            }
        )
    return pd.DataFrame(rows)
