"""Adaptation: what was proposed and why, what each strategy learned, and what it forgot."""

from __future__ import annotations

import streamlit as st

from continual.plans import RunState
from dashboard import charts
from dashboard.reading import chosen_model, plain, store


def show() -> None:
    """Show the page."""
    st.title("Adaptation")
    _, records = store()
    model = chosen_model()
    plans = records.plans(model)[::-1]
    if not plans:
        st.info("Nothing was proposed so far: no drift asked for a treatment.")
        return
    names = {f"{plan.plan_id}: {plan.treatment} (proposed by {plan.proposed_by})": plan for plan in plans}
    plan = names[st.selectbox("Plan", list(names))]
    st.markdown(f"**Proposed:** {plain(plan.treatment)}. {plain(plan.reason)}")
    with st.expander("The evidence it names"):
        for line in plan.evidence:
            st.markdown(f"- {plain(line)}")
    runs = [run for run in records.runs(model) if run.plan_id == plan.plan_id]
    if not runs:
        st.info("No adapter was trained for this plan.")
        return
    for run in runs:
        if run.state is RunState.FAILED:
            st.error(f"{plain(run.strategy)} did not finish: {plain(run.reason)}. The champion was not touched.")
    finished = [run for run in runs if run.state is RunState.FINISHED]
    if not finished:
        return
    st.subheader("What each strategy is worth, on the old and on the new")
    st.plotly_chart(charts.strategies_compared(finished), width="stretch", key="strategies")
    st.caption("Measured on reference patients, from whom nothing was learned. The gate judges on others again.")
    run = finished[
        st.radio("Look at", range(len(finished)), format_func=lambda i: finished[i].strategy, horizontal=True)
    ]
    left, middle, right = st.columns(3)
    left.metric("Forgetting", "–" if run.forgetting is None else f"{run.forgetting:+.3f}", border=True)
    backward = run.backward_transfer
    middle.metric("Backward transfer", "–" if backward is None else f"{backward:+.3f}", border=True)
    right.metric("Learned from", f"{run.n_learned} studies", f"{run.memory_studies} rehearsed", "off", border=True)
    st.caption(
        "Forgetting: how much AUROC was lost on what the model knew (above 0 is loss). "
        "Backward transfer: how learning the new changed the old (above 0 is gain)."
    )
    st.plotly_chart(charts.forgetting_matrix(run), width="stretch", key="matrix")
    st.subheader("Training")
    st.plotly_chart(charts.training_losses(finished), width="stretch", key="losses")
    st.caption(
        f"{run.trainable_parameters:,} trained parameters in a {run.adapter} adapter; the backbone stays frozen. "
        f"Adapter {run.adapter_sha256[:12]}, {run.seconds:.0f} s."
    )
