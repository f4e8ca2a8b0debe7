"""Approvals: champion and challenger side by side, every reason, and the signature."""

from __future__ import annotations

import streamlit as st
from registry.approvals import SignatureRefused, approve, reject
from registry.promotion import promote

from dashboard import charts
from dashboard.reading import chosen_model, now, plain, store, versions
from registry.decisions import GateDecision, Signature
from registry.records import RecordsError

MEANING = "I have reviewed the held-out results and approve this adapter for use on live studies."


def show() -> None:
    """Show the page."""
    st.title("Approvals")
    _, records = store()
    model = chosen_model()
    decisions = records.decisions(model)[::-1]
    if not decisions:
        st.info("The gate has judged nothing yet.")
        return
    strategies = {run.run_id: run.strategy for run in records.runs(model)}
    decisions.sort(key=lambda decision: not decision.promote)
    names = {_name(decision, strategies): decision for decision in decisions}
    decision = names[st.selectbox("Gate decision", list(names))]
    if decision.promote:
        st.success("The gate found no reason against this challenger. It goes live only if a person signs.")
    else:
        st.error("The gate refused this challenger. It cannot be signed.")
    st.subheader("Challenger against champion, on patients nobody learned from")
    st.plotly_chart(charts.gate_checks(decision), width="stretch", key="gate")
    st.subheader("Every reason")
    for check in decision.checks:
        mark = ":material/check: " if check.passed else ":material/close: **failed** "
        st.markdown(f"{mark}{plain(check.reason)}")
    _signatures(records.signatures(decision.decision_id), decision)


def _name(decision: GateDecision, strategies: dict[str, str]) -> str:
    word = "may be signed" if decision.promote else "refused by the gate"
    return f"{strategies.get(decision.run_id, '?')}: {word} ({decision.decision_id})"


def _signatures(signatures: list[Signature], decision: GateDecision) -> None:
    _, records = store()
    st.subheader("Signature")
    champion = records.champion(decision.model)
    for signature in signatures:
        word = "Approved" if signature.approved else "Refused"
        told = (
            f"{word} by {signature.user} ({signature.role}) on {signature.at:%d %B %Y, %H:%M} UTC: {signature.meaning}"
        )
        st.markdown(plain(told))
    live = champion is not None and champion.decision_id == decision.decision_id
    if live:
        st.success(f"This challenger is the champion now, as version {champion.version if champion else ''}.")
    elif any(signature.approved for signature in signatures):
        _promote(decision)
    elif not signatures and decision.promote:
        _sign(decision)
    elif not decision.promote:
        st.caption("There is nothing to sign.")


def _sign(decision: GateDecision) -> None:
    st.caption(f"Your signature covers exactly what is shown above (digest {decision.digest[:16]}).")
    with st.form("sign"):
        user = st.text_input("Your user name")
        password = st.text_input("Your password, again", type="password")
        meaning = st.text_input("What your signature means", value=MEANING)
        left, right = st.columns(2)
        signing = left.form_submit_button("Sign: approve", type="primary", width="stretch")
        refusing = right.form_submit_button("Refuse", width="stretch")
    if not (signing or refusing):
        return
    _, records = store()
    word = approve if signing else reject
    try:
        word(records, decision.decision_id, user=user, password=password, meaning=meaning, at=now())
    except (SignatureRefused, RecordsError) as error:
        st.error(plain(error))
        return
    st.rerun()


def _promote(decision: GateDecision) -> None:
    st.info("Approved. Promotion makes it the champion in the records and moves MLflow's alias.")
    with st.form("promote"):
        user = st.text_input("Your user name")
        pressed = st.form_submit_button("Promote to champion", type="primary")
    if not pressed:
        return
    _, records = store()
    try:
        with st.spinner("Promoting"):
            promote(records, versions(), decision.decision_id, actor=user, at=now())
    except (RecordsError, SignatureRefused) as error:
        st.error(plain(error))
        return
    st.rerun()
