"""Fairness: for whom is the model worse than for everyone else, and did that change?"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from dashboard import charts
from dashboard.palette import METRIC_MEANINGS, METRIC_WORDS, VERDICT_WORDS
from dashboard.reading import pick_finding, pick_window, plain
from dashboard.wording import tell_gap
from monitor.results import SubgroupGap, Verdict, WindowReport


def show() -> None:
    """Show the page."""
    st.title("Fairness", anchor=False)
    report = pick_window()
    if report is None:
        return
    if not report.gaps:
        st.info("The export carries no attributes, so no subgroups can be compared.")
        return
    finding = pick_finding(report)
    gaps = [gap for gap in report.gaps if gap.finding == finding] or list(report.gaps)
    _show_headline(gaps)
    metric = _pick_metric(gaps)
    mine = [gap for gap in gaps if gap.metric == metric]
    if any(gap.gap is not None for gap in mine):
        figure = charts.gap_forest(mine)
        st.plotly_chart(figure, width="stretch", key="forest", config={"displayModeBar": False})
        st.caption(
            f"{METRIC_MEANINGS.get(metric, '')} A gap is the subgroup minus everyone else. Lines are "
            f"{mine[0].level:.0%} intervals over patients; the colour of a change is "
            "judged more strictly, over all subgroups together."
        )
    _show_unjudged(mine, report)
    with st.expander("The figures as a table"):
        st.dataframe(_table(mine), hide_index=True, width="stretch")


def _show_headline(gaps: Sequence[SubgroupGap]) -> None:
    changed = [gap for gap in gaps if gap.verdict is Verdict.DRIFT]
    if changed:
        lines = "  \n".join(plain(tell_gap(gap)) for gap in changed)
        st.error(f"**A subgroup's gap changed.**  \n{lines}", icon=":material/warning:")
    elif any(gap.verdict is Verdict.NO_DRIFT for gap in gaps):
        st.success("**No subgroup's gap changed against the reference beyond chance.**", icon=":material/check_circle:")
    else:
        st.info(
            "**No gap could be compared with the reference.** That is not an all-clear; the reasons are below.",
            icon=":material/hourglass_empty:",
        )


def _pick_metric(gaps: Sequence[SubgroupGap]) -> str:
    """Let the reader pick a figure; the one with a changed gap is shown first."""
    metrics = list(dict.fromkeys(gap.metric for gap in gaps))
    moved = next((gap.metric for gap in gaps if gap.verdict is Verdict.DRIFT), metrics[0])
    picked = st.segmented_control(
        "Figure",
        metrics,
        default=moved,
        format_func=lambda name: plain(METRIC_WORDS.get(name, name)),
        key="metric",
    )
    return picked or moved


def _show_unjudged(gaps: Sequence[SubgroupGap], report: WindowReport) -> None:
    missing = [gap for gap in gaps if gap.verdict is Verdict.NOT_ENOUGH_DATA]
    if not missing:
        return
    with st.expander(f"{len(missing)} of {len(gaps)} subgroups could not be judged", expanded=not report.n_labelled):
        for gap in missing:
            st.markdown(f"- {plain(gap.attribute)} {plain(gap.value)}: {plain(gap.reason)}")


def _table(gaps: Sequence[SubgroupGap]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "subgroup": f"{gap.attribute} {gap.value}",
                "studies": gap.n,
                "patients": gap.patients,
                "inside": gap.inside,
                "everyone else": gap.outside,
                "gap": gap.gap,
                "low": gap.low,
                "high": gap.high,
                "gap in reference": gap.reference_gap,
                "change": gap.change,
                "change low": gap.change_low,
                "change high": gap.change_high,
                "verdict": VERDICT_WORDS[gap.verdict],
                "in words": gap.reason,
            }
            for gap in gaps
        ]
    )
