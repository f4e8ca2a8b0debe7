"""Fairness: for whom is the model worse than for everyone else, and did that change?"""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from dashboard import charts, window_charts
from dashboard.drawing import QUIET_BAR
from dashboard.glossary import show_terms
from dashboard.names import METRIC_MEANINGS, METRIC_WORDS, metric_words
from dashboard.palette import VERDICT_WORDS
from dashboard.reading import chosen_model, pick_finding, pick_window, plain, reports_of, show_table
from dashboard.wording import tell_gap, tell_unjudged
from monitor.results import SubgroupGap, Verdict, WindowReport


def show() -> None:
    """Show the page."""
    st.title("Fairness", anchor=False)
    reports = reports_of(chosen_model())
    finding = pick_finding(reports[-1]) if reports else ""
    _show_history(reports, finding)
    report = pick_window()
    if report is None:
        return
    if not report.gaps:
        st.info("The export carries no attributes, so no subgroups can be compared.")
        return
    gaps = [gap for gap in report.gaps if gap.finding == finding] or list(report.gaps)
    _show_headline(gaps)
    metric = _pick_metric(gaps)
    mine = [gap for gap in gaps if gap.metric == metric]
    if any(gap.gap is not None for gap in mine):
        figure = charts.gap_forest(mine)
        st.plotly_chart(figure, width="stretch", key="forest", config=QUIET_BAR)
        st.caption(
            f"{METRIC_MEANINGS.get(metric, '')} A gap is the subgroup minus everyone else. Lines are "
            f"{mine[0].level:.0%} intervals over patients; the colour of a change is "
            "judged more strictly, over all subgroups together."
        )
    _show_unjudged(mine)
    with st.expander("The figures as a table"):
        show_table(_table(mine))
    measured = tuple(dict.fromkeys(gap.metric for gap in gaps if gap.metric in METRIC_MEANINGS))
    show_terms("Subgroup", "Gap", "Reference", "95 % interval", "Not enough data", metrics=measured)


def _show_history(reports: Sequence[WindowReport], finding: str) -> None:
    if any(report.gaps for report in reports):
        st.subheader("Did a subgroup's gap change, window by window", anchor=False)
        figure = window_charts.gaps_by_week(reports, finding)
        st.plotly_chart(figure, width="stretch", key="history", config=QUIET_BAR)
        st.caption("No drift: none of its subgroups moved in any figure that could be judged.")


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


def _show_unjudged(gaps: Sequence[SubgroupGap]) -> None:
    """List the subgroups that could not be judged, with the reason; unfolded where there is nothing else to see."""
    missing = [gap for gap in gaps if gap.verdict is Verdict.NOT_ENOUGH_DATA]
    if not missing:
        return
    title = f"{len(missing)} of {len(gaps)} subgroups could not be judged by {metric_words(gaps[0].metric)}"
    with st.expander(plain(title), expanded=len(missing) == len(gaps)):
        st.markdown(
            "\n".join(
                f"- **{plain(gap.attribute)} {plain(gap.value)}**: {plain(tell_unjudged(gap))}" for gap in missing
            )
        )


def _table(gaps: Sequence[SubgroupGap]) -> list[dict[str, object]]:
    return [
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
            "p": gap.p_value,
            "p needed": gap.threshold,
            "verdict": VERDICT_WORDS[gap.verdict],
            "in words": tell_unjudged(gap),
        }
        for gap in gaps
    ]
