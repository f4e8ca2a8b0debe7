"""Adaptation: what was proposed and why, what each strategy learned, and what it forgot."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from continual.plans import AdaptationPlan, AdaptationRun, RunState
from dashboard import treatment_charts
from dashboard.drawing import PANELS, QUIET_BAR
from dashboard.glossary import show_terms
from dashboard.kept_view import show_kept
from dashboard.names import number, plural, reword, sentence, strategy_words
from dashboard.reading import choose, chosen_model, plain, show_table, store
from dashboard.wording import name_plan, tell_evidence, tell_run
from registry.decisions import GateDecision
from registry.records import Records

TERMS = (
    "Adapter",
    "Strategy",
    "Champion and challenger",
    "Forgetting",
    "Backward transfer",
    "Learning, potential, retention",
    "Flip",
    "Subgroup",
    "95 % interval",
)


def show() -> None:
    """Show the page."""
    st.title("Adaptation", anchor=False)
    _, records = store()
    model = chosen_model()
    plans = records.plans(model)[::-1]
    if not plans:
        st.info("Nothing was proposed so far: no drift asked for a treatment.")
        return
    plan = plans[0]
    if len(plans) > 1:
        label = f"Proposal (the newest of {len(plans)} first)"
        plan = choose(label, {plan.plan_id: plan for plan in plans}, name_plan, key="plan")
    _show_plan(plan)
    _show_ladder(plan)
    runs = [run for run in records.runs(model) if run.plan_id == plan.plan_id]
    finished = [run for run in runs if run.state is RunState.FINISHED and run.matrix]
    if not runs:
        st.info("No adapter was made for this proposal.")
    elif finished:
        _show_comparison(finished, records.decisions(model))
    for run in runs:
        if run.state is not RunState.FINISHED:
            st.error(plain(tell_run(run)), icon=":material/error:")
    if finished:
        _show_one(finished, records)
        with st.expander("The figures as a table"):
            show_table(_table(finished))
    show_terms(*TERMS, metrics=("auroc", "brier", "ece_debiased", "calibration_slope", "calibration_intercept"))


def _show_plan(plan: AdaptationPlan) -> None:
    with st.container(border=True):
        st.caption(plain(f"Proposed by {plan.proposed_by}, against version {plan.champion_version}"))
        st.markdown(f"**{plain(sentence(plan.treatment.value))}.** {plain(reword(plan.reason))}")
        with st.expander(f"The evidence it names ({len(plan.evidence)})"):
            st.markdown("\n".join(f"- {plain(line)}" for line in tell_evidence(plan)))


def _show_ladder(plan: AdaptationPlan) -> None:
    """Show each smaller step that was not taken, and why."""
    others = [verdict for verdict in plan.rungs if verdict.treatment is not plan.treatment]
    if not others:
        return
    st.subheader("Steps not taken, and why", anchor=False)
    marks = {True: "needed, and not allowed now", False: "not enough"}
    lines = [
        f"- **{plain(sentence(one.treatment.value))}** ({marks[one.enough]}): {plain(reword(one.sentence))}."
        for one in others
    ]
    st.markdown("\n".join(lines))


def _show_comparison(runs: Sequence[AdaptationRun], decisions: Sequence[GateDecision]) -> None:
    st.subheader("What was kept, and what was gained", anchor=False)
    figure = treatment_charts.strategies_compared(runs)
    st.plotly_chart(figure, width="stretch", key="strategies", config=QUIET_BAR)
    passed = {decision.run_id: decision.promote for decision in decisions}
    judged = {None: "", True: " **The gate passed it.**", False: " **The gate refused it.**"}
    st.markdown("\n".join(f"- {plain(tell_run(run))}{judged[passed.get(run.run_id)]}" for run in runs))
    st.caption(
        "Left of the dashed line is worse than the champion, right is better. Measured on reference patients, from "
        "whom nothing is learned; the gate judges once more, on others."
    )


def _show_one(runs: Sequence[AdaptationRun], records: Records) -> None:
    st.subheader("In detail", anchor=False)
    places = range(len(runs))
    place = st.segmented_control(
        "Strategy", places, default=0, format_func=lambda i: plain(strategy_words(runs[i].name)), key="strategy"
    )
    run = runs[place or 0]
    # a wide table takes the whole page, or its columns would run into each other
    left, right = st.columns([3, 2]) if len(run.experiences) <= PANELS else (st.container(), st.container())
    left.plotly_chart(treatment_charts.forgetting_matrix(run), width="stretch", key="matrix", config=QUIET_BAR)
    left.caption(
        "AUROC with its interval. Each row is the model after one learning step, as far back as it was recorded; a "
        "column that grows paler downwards is forgetting."
    )
    with right.container(border=True):
        st.markdown(f"**Forgetting:** {plain(_lost(run.forgetting))}")
        st.markdown(f"**Backward transfer:** {plain(_signed(run.backward_transfer))} on what was known before")
        rehearsed = f"{plural(run.memory_studies, 'older one')} rehearsed" if run.memory_studies else "none rehearsed"
        st.markdown(f"**Learned from:** {plain(plural(run.n_learned, 'new study'))}, {plain(rehearsed)}")
        numbers = plural(run.trainable_parameters, "number")
        told = f"{numbers} of the adapter ({run.adapter}); the large network stays as it is"
        st.markdown(f"**Trained:** {plain(told)}")
    show_kept(run, records)
    with st.expander("How training went"):
        st.plotly_chart(treatment_charts.training_losses(runs), width="stretch", key="losses", config=QUIET_BAR)
        st.caption(plain(f"Adapter {run.adapter_sha256[:12]}, seed {run.seed}, {run.seconds:.0f} s."))


def _lost(value: float | None) -> str:
    if value is None:
        return "not measured"
    return f"{number(value)} of AUROC lost" if value > 0.0005 else "nothing lost"


def _signed(value: float | None) -> str:
    return "not measured" if value is None else f"{value:+.3f}"


def _table(runs: Sequence[AdaptationRun]) -> list[dict[str, object]]:
    return [
        {
            "strategy": strategy_words(run.name),
            **{
                f"AUROC on {reword(name)}": figure for name, figure in zip(run.experiences, run.matrix[-1], strict=True)
            },
            "forgetting": run.forgetting,
            "backward transfer": run.backward_transfer,
            "forward transfer": run.forward_transfer,
            "studies learned": run.n_learned,
            "studies rehearsed": run.memory_studies,
            "seconds": run.seconds,
            "adapter": run.adapter_sha256[:12],
        }
        for run in runs
    ]
