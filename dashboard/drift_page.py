"""Drift: what changed in one window, how much, and where it sits."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from dashboard import charts
from dashboard.reading import chosen_model, plain, store
from monitor.results import Verdict, WindowReport


def show() -> None:
    """Show the page."""
    st.title("Drift")
    report = pick_window()
    if report is None:
        return
    word = {Verdict.DRIFT: st.error, Verdict.NO_DRIFT: st.success, Verdict.NOT_ENOUGH_DATA: st.info}[report.verdict]
    word(plain(report.reason))
    st.subheader("What changed, and how much")
    st.plotly_chart(charts.drift_effects(report.results), width="stretch", key="effects")
    st.caption(
        "Each bar compares this week with the reference. It counts as drift when chance is ruled out "
        "(over all bars together) and the change is large enough to matter. Patients, not images, are the unit."
    )
    if unknown := [result for result in report.results if result.verdict is Verdict.NOT_ENOUGH_DATA]:
        st.markdown("**Could not be judged:**")
        for result in unknown:
            st.markdown(f"- {plain(result.feature)} ({plain(result.detector)}): {plain(result.reason)}")
    st.subheader("Where it sits")
    if report.contributions:
        st.plotly_chart(charts.attribution(report.contributions), width="stretch", key="attribution")
    else:
        st.info("The export carries no attributes, so the change cannot be attributed.")
    with st.expander("The figures as a table"):
        st.dataframe(_table(report), hide_index=True, width="stretch")
    _evidently(report)


def pick_window() -> WindowReport | None:
    """Let the reader pick a watched window, the newest first; None when there is none."""
    _, records = store()
    reports = records.reports(chosen_model())[::-1]
    if not reports:
        st.info("No window has been watched yet.")
        return None
    names = {
        f"{r.window.start:%d %b %Y} – {r.window.end:%d %b %Y}: {charts.VERDICT_WORDS[r.verdict]}": r for r in reports
    }
    return names[st.selectbox("Window", list(names))]


def _table(report: WindowReport) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "kind": result.kind.value,
                "feature": result.feature,
                "detector": result.detector,
                "verdict": charts.VERDICT_WORDS[result.verdict],
                "effect": result.effect,
                "p": result.p_value,
                "p needed": result.threshold,
                "patients now": result.patients_current,
                "patients in reference": result.patients_reference,
                "in words": result.reason,
            }
            for result in report.results
        ]
    )


def _evidently(report: WindowReport) -> None:
    settings, _ = store()
    name = report.window.key.replace("/", "_").replace(":", "")
    path = settings.directory / "reports" / report.model / f"{name}.html"
    if path.exists():
        st.download_button(
            "Evidently's report of this window (HTML)", path.read_bytes(), f"evidently_{name}.html", "text/html"
        )
