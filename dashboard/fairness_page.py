"""Fairness: for whom is the model worse than for everyone else, and did that change?"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from dashboard import charts
from dashboard.drift_page import pick_window
from dashboard.reading import plain
from monitor.results import SubgroupGap, Verdict

METRIC_WORDS = {
    "sensitivity": "Sensitivity (findings caught)",
    "specificity": "Specificity (healthy left alone)",
    "auroc": "AUROC (ranking)",
    "selection_rate": "Selection rate (how many are called positive)",
}


def show() -> None:
    """Show the page."""
    st.title("Fairness")
    report = pick_window()
    if report is None:
        return
    if not report.gaps:
        st.info("The export carries no attributes, so no subgroups can be compared.")
        return
    changed = [gap for gap in report.gaps if gap.verdict is Verdict.DRIFT]
    if changed:
        for gap in changed:
            st.error(plain(_sentence(gap)))
    elif any(gap.verdict is Verdict.NO_DRIFT for gap in report.gaps):
        st.success("No subgroup's gap changed against the reference beyond chance.")
    else:
        st.info("No gap could be compared with the reference this week; the reasons are below.")
    metrics = list(dict.fromkeys(gap.metric for gap in report.gaps))
    metric = st.radio("Show", metrics, format_func=lambda name: METRIC_WORDS.get(name, name), horizontal=True)
    mine = [gap for gap in report.gaps if gap.metric == metric]
    if any(gap.gap is not None for gap in mine):
        st.plotly_chart(charts.gap_forest(mine), width="stretch", key="forest")
        st.caption("A gap is the subgroup minus everyone else, with a 95 % interval over patients.")
    if missing := [gap for gap in mine if gap.gap is None]:
        st.markdown("**Could not be judged:**")
        for gap in missing:
            st.markdown(f"- {plain(gap.attribute)} = {plain(gap.value)}: {plain(gap.reason)}")
    with st.expander("The figures as a table"):
        st.dataframe(_table(mine), hide_index=True, width="stretch")


def _sentence(gap: SubgroupGap) -> str:
    metric = METRIC_WORDS.get(gap.metric, gap.metric)
    return f"{metric} for {gap.attribute} = {gap.value}: {gap.reason}."


def _table(gaps: Sequence[SubgroupGap]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "subgroup": f"{gap.attribute} = {gap.value}",
                "studies": gap.n,
                "patients": gap.patients,
                "inside": gap.inside,
                "everyone else": gap.outside,
                "gap": gap.gap,
                "low": gap.low,
                "high": gap.high,
                "gap in reference": gap.reference_gap,
                "verdict": charts.VERDICT_WORDS[gap.verdict],
                "in words": gap.reason,
            }
            for gap in gaps
        ]
    )
