"""Adaptation: what was proposed and why, what each strategy learned, and what it forgot."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from continual.plans import AdaptationPlan, AdaptationRun, RunState
from dashboard import treatment_charts
from dashboard.reading import chosen_model, plain, store
from dashboard.wording import tell_run

QUIET_BAR = {"displayModeBar": False}


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
        plan = st.selectbox("Proposal", plans, format_func=_name_plan, key="plan")
    _show_plan(plan)
    runs = [run for run in records.runs(model) if run.plan_id == plan.plan_id]
    finished = [run for run in runs if run.state is RunState.FINISHED and run.matrix]
    if not runs:
        st.info("No adapter was trained for this proposal.")
    elif finished:
        _show_comparison(finished)
    for run in runs:
        if run.state is RunState.FAILED:
            st.error(plain(tell_run(run)), icon=":material/error:")
    if finished:
        _show_one(finished)
        with st.expander("The figures as a table"):
            st.dataframe(_table(finished), hide_index=True, width="stretch")


def _name_plan(plan: AdaptationPlan) -> str:
    return f"{plan.treatment.value}, against version {plan.champion_version}, proposed by {plan.proposed_by}"


def _show_plan(plan: AdaptationPlan) -> None:
    with st.container(border=True):
        st.caption(plain(f"Proposed by {plan.proposed_by}, against version {plan.champion_version}"))
        st.markdown(f"**{plain(plan.treatment.value.capitalize())}.** {plain(plan.reason)}")
        with st.expander(f"The evidence it names ({len(plan.evidence)})"):
            for line in plan.evidence:
                st.markdown(f"- {plain(line)}")


def _show_comparison(runs: Sequence[AdaptationRun]) -> None:
    st.subheader("What each strategy kept, and what it gained", anchor=False)
    figure = treatment_charts.strategies_compared(runs)
    st.plotly_chart(figure, width="stretch", key="strategies", config=QUIET_BAR)
    for run in runs:
        st.markdown(f"- {plain(tell_run(run))}")
    st.caption(
        "Left of the dashed line is worse than the champion, right is better. Measured on reference patients, from "
        "whom nothing is learned; the gate judges once more, on others."
    )


def _show_one(runs: Sequence[AdaptationRun]) -> None:
    st.subheader("Step by step", anchor=False)
    places = range(len(runs))
    place = st.segmented_control(
        "Strategy", places, default=0, format_func=lambda i: plain(runs[i].strategy), key="strategy"
    )
    run = runs[place or 0]
    left, right = st.columns([3, 2])
    left.plotly_chart(treatment_charts.forgetting_matrix(run), width="stretch", key="matrix", config=QUIET_BAR)
    left.caption("Each row is the model after one learning step. A column that grows darker downwards is forgetting.")
    with right.container(border=True):
        st.caption("Forgetting: AUROC lost on what was known before")
        st.markdown(f"**{_signed(run.forgetting)}**")
        st.caption("Backward transfer: how learning the new changed the old")
        st.markdown(f"**{_signed(run.backward_transfer)}**")
        st.caption("Learned from")
        st.markdown(f"**{run.n_learned} studies**, {run.memory_studies} older ones rehearsed")
        st.caption("Trained")
        st.markdown(plain(f"{run.trainable_parameters:,} parameters ({run.adapter}); the backbone stays frozen."))
    with st.expander("How training went"):
        st.plotly_chart(treatment_charts.training_losses(runs), width="stretch", key="losses", config=QUIET_BAR)
        st.caption(plain(f"Adapter {run.adapter_sha256[:12]}, seed {run.seed}, {run.seconds:.0f} s."))


def _signed(value: float | None) -> str:
    return "not measured" if value is None else plain(f"{value:+.3f}")


def _table(runs: Sequence[AdaptationRun]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "strategy": run.strategy,
                **{f"AUROC on {name}": figure for name, figure in zip(run.experiences, run.matrix[-1], strict=True)},
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
    )
