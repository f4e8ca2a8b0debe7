"""One strategy in detail: what its adapter kept and what it lost, in sentences, pictures, and last a table."""

from __future__ import annotations

import streamlit as st

from continual.kept import Change, KeptAndLost
from continual.plans import AdaptationRun
from dashboard import kept_charts
from dashboard.drawing import PANELS, QUIET_BAR, Interval
from dashboard.kept_charts import Step
from dashboard.kept_wording import per_thousand, stage_words, surely, tell_calibration, tell_kept, tell_triple
from dashboard.names import METRIC_MEANINGS, metric_words, plural, reword, sentence
from dashboard.reading import choose, plain, show_table
from registry.promotion import lineage
from registry.records import Records

SUBGROUP_METRICS = ("auroc", "accuracy", "brier")
CALIBRATION = ("ece_debiased", "brier", "calibration_slope", "calibration_intercept")


def show_kept(run: AdaptationRun, records: Records) -> None:
    """Show everything that was measured between the champion and a run's adapter."""
    kept = run.kept
    if kept is None:
        st.info("This adapter was trained before Wardround measured subgroups, flips and calibration for each run.")
        return
    st.markdown("\n".join(f"- {_bold(line)}" for line in tell_kept(kept)))
    with st.container(border=True):
        _show_curves(run, kept, records)
    with st.container(border=True):
        _show_triple(kept)
    with st.container(border=True):
        _show_flips(kept)
    with st.container(border=True):
        place = _pick_stage(kept)
        _show_subgroups(kept, place)
        _show_calibration(kept, place)
    with st.expander("Every stage and subgroup as a table"):
        show_table(_table(kept))
        st.caption("A dash is a figure that does not exist or may not be told; small cells are taken out.")


def _bold(line: str) -> str:
    """Escape a sentence, but for the two stars that our own wording puts around bad news."""
    return "**".join(plain(part) for part in line.split("**"))


def _show_curves(run: AdaptationRun, kept: KeptAndLost, records: Records) -> None:
    st.markdown("**Is what was known still known?**")
    figure = kept_charts.retention_curves(find_steps(run, kept, records), kept.stages)
    st.plotly_chart(figure, width="stretch", key="curves", config=QUIET_BAR)
    st.caption(
        f"The dashed line is the champion's figure, to be held on what was known and passed on the new. Thin lines are "
        f"{kept.level:.0%} intervals over patients."
    )


def find_steps(run: AdaptationRun, kept: KeptAndLost, records: Records) -> list[Step]:
    """List the models in the order of learning, as far as runs that went live recorded them; the run's own last."""
    decisions = {decision.decision_id: decision for decision in records.decisions(run.model)}
    runs = {other.run_id: other for other in records.runs(run.model)}
    version = records.plan(run.plan_id).champion_version
    history = records.champion_history(run.model)
    upto = next((i for i, move in enumerate(history) if move.version == version), len(history) - 1)
    steps: list[Step] = []
    for move in lineage(history[: upto + 1]):
        decision = decisions.get(move.decision_id)
        before = None if decision is None else runs.get(decision.run_id)
        if decision is not None and before is not None and before.kept is not None:
            steps.append(Step(name=f"version {decision.champion_version}", figures=_row(before.kept, -2)))
    return [
        *steps,
        Step(name=f"version {version}", figures=_row(kept, -2)),
        Step(name="adapter", figures=_row(kept, -1)),
    ]


def _row(kept: KeptAndLost, step: int) -> dict[str, Interval]:
    matrix = kept.matrix("auroc")
    if matrix is None:
        return {}
    row = zip(matrix.values[step], matrix.low[step], matrix.high[step], strict=True)
    return dict(zip(kept.stages, row, strict=True))


def _show_triple(kept: KeptAndLost) -> None:
    st.markdown("**Learning, potential and retention**")
    st.plotly_chart(kept_charts.learning_triple(kept.triple), width="stretch", key="triple", config=QUIET_BAR)
    st.markdown("\n".join(f"- **{name}.** {plain(told)}" for name, told in tell_triple(kept.triple).items()))
    if len(kept.stages) > 2:
        st.caption("Older stages weigh less in the retention. The dashed line is what the champion retains.")


def _show_flips(kept: KeptAndLost) -> None:
    st.markdown("**Which answers turned?**")
    st.plotly_chart(kept_charts.flips(kept), width="stretch", key="flips", config=QUIET_BAR)
    st.caption(
        "Two models that are equally good may err on different studies. An answer that was right and is wrong now is "
        "what a reader who had learned to rely on the model will stumble over."
    )


def _pick_stage(kept: KeptAndLost) -> int:
    places = range(len(kept.stages))
    if len(places) > PANELS:
        names = {str(place): place for place in places}
        return choose("Measured on", names, lambda place: sentence(stage_words(kept, place)), key="stage")
    place = st.segmented_control(
        "Measured on",
        places,
        default=0,
        format_func=lambda i: plain(sentence(stage_words(kept, i))),
        key="stage",
    )
    return 0 if place is None else place


def _show_subgroups(kept: KeptAndLost, place: int) -> None:
    st.markdown("**For whom did it change?**")
    metric = st.segmented_control(
        "Figure", SUBGROUP_METRICS, default="auroc", format_func=lambda m: sentence(metric_words(m)), key="metric"
    )
    metric = metric if metric in SUBGROUP_METRICS else "auroc"
    rows = [c for c in kept.changes if (c.stage, c.metric, c.finding) == (kept.stages[place], metric, "")]
    if not rows:
        st.info("Nothing was measured on this stage.")
        return
    st.plotly_chart(kept_charts.subgroup_changes(rows), width="stretch", key="subgroups", config=QUIET_BAR)
    worse = [row for row in rows if row.attribute and surely(row) is False]
    told = f"{plural(len(worse), 'subgroup')} surely lost." if worse else "No subgroup surely lost."
    st.caption(
        f"{told} {METRIC_MEANINGS[metric]} Turned so that right is better; of many subgroups about one in forty "
        "is called surely worse by chance alone."
    )


def _show_calibration(kept: KeptAndLost, place: int) -> None:
    st.markdown("**Do the scores still mean what they say?**")
    stage = kept.stages[place]
    curve = next(one for one in kept.reliability if one.stage == stage)
    findings = sorted({one.finding for one in (*curve.before, *curve.after)})
    finding = str(st.selectbox("Finding", findings, key="finding")) if len(findings) > 1 else "".join(findings)
    if findings:
        before, after = ([one for one in bins if one.finding == finding] for bins in (curve.before, curve.after))
        figure = kept_charts.reliability_before_after(before, after)
        st.plotly_chart(figure, width="stretch", key="reliability", config=QUIET_BAR)
    else:
        st.caption("Too few patients are labelled to draw how often scores come true.")
    wanted = finding if len(findings) > 1 else ""
    told = [_find(kept, stage, metric, wanted) for metric in CALIBRATION]
    st.markdown("\n".join(f"- {plain(tell_calibration(change))}" for change in told if change is not None))


def _find(kept: KeptAndLost, stage: str, metric: str, finding: str) -> Change | None:
    named = (stage, metric, finding, "")
    return next((c for c in kept.changes if (c.stage, c.metric, c.finding, c.attribute) == named), None)


def _table(kept: KeptAndLost) -> list[dict[str, object]]:
    flips = {(flip.stage, flip.attribute, flip.value): flip for flip in kept.flips}
    return [
        {
            "on": reword(row.stage),
            "subgroup": f"{row.attribute} {row.value}".strip() or "everyone",
            "finding": row.finding or "all",
            "figure": metric_words(row.metric),
            "champion": row.champion,
            "adapter": row.challenger,
            "change": row.difference,
            "low": row.low,
            "high": row.high,
            "studies": row.studies,
            "of 1,000 turned wrong": per_thousand(flips[row.stage, row.attribute, row.value].negative),
            "turned right": per_thousand(flips[row.stage, row.attribute, row.value].positive),
        }
        for row in kept.changes
    ]
