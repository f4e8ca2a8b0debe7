"""Approvals: champion and challenger side by side, every reason, and the signature."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st

from dashboard import treatment_charts
from dashboard.drawing import QUIET_BAR
from dashboard.glossary import show_terms
from dashboard.names import day, metric_words, reword, sentence, strategy_words
from dashboard.palette import OUTCOME_WORDS
from dashboard.reading import choose, chosen_model, now, plain, show_table, store, versions
from dashboard.signing_in import Visitor, show_sign_in, visitor
from dashboard.wording import name_plan, tell_consequence
from registry.approvals import SIGNERS, approve, identify, reject
from registry.decisions import GateDecision, Signature
from registry.entries import ChampionRecord
from registry.promotion import Promotion, lineage, promote, rollback
from registry.records import Records, RecordsError

APPROVE, REFUSE = "I approve", "I refuse"
MEANING = "I have reviewed the held-out results and approve this adapter for use on live studies."
NOTICE = "notice"
TERMS = (
    "Champion and challenger",
    "Held-out cohort",
    "The gate",
    "Calibration",
    "Forgetting",
    "95 % interval",
    "Digest",
)


def show() -> None:
    """Show the page."""
    person = visitor()
    if person is None:
        show_sign_in()
        return
    st.title("Approvals", anchor=False)
    _, records = store()
    model = chosen_model()
    if notice := st.session_state.pop(NOTICE, ""):
        st.success(plain(notice), icon=":material/check_circle:")
        _keep_choice()
    decisions = records.decisions(model)
    if decisions:
        _show_decision(_pick(records, decisions), person)
    else:
        st.info("Nothing waits for you: the gate has judged no adapter yet.")
    _show_champion(records, model, person)
    show_terms(*TERMS, metrics=("auroc", "brier"))


def state_of(decision: GateDecision, signatures: Sequence[Signature], history: Sequence[ChampionRecord]) -> str:
    """Say in a few words where a decision stands; those that wait for a person sort before the others."""
    live = history[-1] if history else None
    if live is not None and live.decision_id == decision.decision_id:
        return f"live as version {live.version}"
    if any(move.decision_id == decision.decision_id for move in history):
        return "was live, is not any more"
    if any(not signature.approved for signature in signatures):
        return "refused by a person"
    if not decision.promote:
        return "refused by the gate"
    if live is None or live.version != decision.champion_version:
        return "out of date"
    return "approved, waits to go live" if signatures else "waits for a signature"


def _keep_choice() -> None:
    """Choose the same decision anew, so that the list shows its new state and not the one it was picked under."""
    if "decision" in st.session_state:
        st.session_state["decision"] = st.session_state["decision"]


def _pick(records: Records, decisions: Sequence[GateDecision]) -> GateDecision:
    model = decisions[0].model
    strategies = {run.run_id: sentence(strategy_words(run.name)) for run in records.runs(model)}
    plans = {plan.plan_id: name_plan(plan) for plan in records.plans(model)}
    history = records.champion_history(model)
    states = {d.decision_id: state_of(d, records.signatures(d.decision_id), history) for d in decisions}
    order = ("approved, waits to go live", "waits for a signature")

    def rank(decision: GateDecision) -> tuple[bool, bool]:
        state = states[decision.decision_id]
        return state not in order, not state.startswith("live")

    def name(decision: GateDecision) -> str:
        plan = plans.get(decision.plan_id, decision.plan_id)
        return f"{strategies.get(decision.run_id, decision.run_id)}: {states[decision.decision_id]}. {plan}"

    waiting = sum(state in order for state in states.values())
    label = f"Decision ({waiting} of {len(decisions)} waiting for a person)"
    newest_first = decisions[::-1]
    ranked = sorted(newest_first, key=rank)
    return choose(label, {decision.decision_id: decision for decision in ranked}, name, key="decision")


def _show_decision(decision: GateDecision, person: Visitor) -> None:
    _, records = store()
    proposer = records.plan(decision.plan_id).proposed_by
    st.caption(plain(f"{decision.decision_id}, proposed by {proposer}, adapter {decision.adapter_sha256[:12]}"))
    failed = [check for check in decision.checks if not check.passed]
    if decision.promote:
        st.success(
            f"**The gate found no reason against this challenger.** All {len(decision.checks)} checks passed. "
            "It goes live only if a person signs.",
            icon=":material/check_circle:",
        )
    else:
        st.error(
            f"**The gate refused this challenger: {len(failed)} of {len(decision.checks)} checks failed.** "
            "It cannot be approved.",
            icon=":material/block:",
        )
    st.subheader("Challenger against champion, on patients nobody learned from", anchor=False)
    figure = treatment_charts.gate_checks(decision)
    st.plotly_chart(figure, width="stretch", key="gate", config=QUIET_BAR)
    st.caption(
        f"Right is better. Lines are {decision.policy.level:.0%} intervals over patients. On cohorts a whole line "
        "must lie right of its limit; for subgroups, forgetting and what a moved threshold trades the point must."
    )
    st.subheader("Every reason", anchor=False)
    for check in [*failed, *(check for check in decision.checks if check.passed)]:
        mark = ":green[:material/check:]" if check.passed else ":red[:material/close:]"
        st.markdown(f"{mark} {plain(reword(check.reason))}")
    with st.expander("The figures as a table"):
        show_table(_table(decision))
    _show_signature(decision, person)


def _show_signature(decision: GateDecision, person: Visitor) -> None:
    _, records = store()
    signatures = records.signatures(decision.decision_id)
    st.subheader("Signature", anchor=False)
    for signature in signatures:
        word = "Approved" if signature.approved else "Refused"
        told = f"{word} by {signature.user} ({signature.role}) on {day(signature.at)}, {signature.at:%H:%M} UTC: "
        st.markdown(plain(told + signature.meaning))
    state = state_of(decision, signatures, records.champion_history(decision.model))
    if state == "approved, waits to go live":
        _offer_promotion(decision, person)
    elif state == "waits for a signature":
        _offer_signature(records, decision, person)
    elif state == "out of date":
        st.info("Another version is live by now, so this decision cannot be signed any more. Adapt and judge again.")
    elif not signatures:
        st.caption("There is nothing to sign: what the gate refuses nobody can approve.")


def _offer_signature(records: Records, decision: GateDecision, person: Visitor) -> None:
    proposer = records.plan(decision.plan_id).proposed_by
    st.markdown(plain(tell_consequence(decision)))
    if person.name == proposer:
        st.info("You proposed this change, so another person signs.")
        return
    if person.role not in SIGNERS:
        st.info(plain(f"You are here as {person.role}; a {' or a '.join(SIGNERS)} signs."))
        return
    key = decision.decision_id
    with st.form(f"sign {key}"):
        st.caption(plain(f"You sign as {person.name}, {person.role}. Proposed by {proposer}."))
        answer = st.radio("Your decision", (APPROVE, REFUSE), index=None, horizontal=True, key=f"answer {key}")
        meaning = st.text_area(
            "What your signature means", placeholder=f"For example: {MEANING}", key=f"meaning {key}", height=80
        )
        password = st.text_input("Your password, again", type="password", key=f"password {key}")
        pressed = st.form_submit_button("Sign", type="primary")
        st.caption(f"Your signature covers exactly what is shown above (digest {decision.digest[:16]}).")
    if not pressed:
        return
    if answer is None:
        st.error("Say first whether you approve or refuse.")
        return
    sign = approve if answer == APPROVE else reject
    _act(
        lambda: sign(records, decision.decision_id, user=person.name, password=password, meaning=meaning, at=now()),
        "Your signature stands in the record.",
    )


def _offer_promotion(decision: GateDecision, person: Visitor) -> None:
    with st.form("promote"):
        st.markdown(plain(f"Approved. It can now take the place of version {decision.champion_version}."))
        password = st.text_input("Your password, again", type="password", key="promotion password")
        pressed = st.form_submit_button("Make it the champion", type="primary")
    if pressed:
        _, records = store()

        def go() -> Promotion:
            actor = identify(records, person.name, password, at=now(), model=decision.model).name
            return promote(records, versions(), decision.decision_id, actor=actor, at=now())

        _act(go, "It is the champion now.")


def _show_champion(records: Records, model: str, person: Visitor) -> None:
    line = lineage(records.champion_history(model))
    st.subheader("What is live", anchor=False)
    if not line:
        st.info("There is no champion yet. An engineer installs the live adapter: wardround promote --first FILE")
        return
    live = line[-1]
    st.markdown(plain(f"Version {live.version} since {day(live.since)}, adapter {live.adapter_sha256[:12]}."))
    if len(line) < 2:
        st.caption("There is no earlier version to go back to.")
        return
    with st.expander(f"Go back to version {plain(line[-2].version)}"), st.form("rollback", border=False):
        st.markdown(plain(f"Version {line[-2].version} answers every study again at once. No gate is asked."))
        reason = st.text_input("Why", key="rollback reason")
        password = st.text_input("Your password, again", type="password", key="rollback password")
        pressed = st.form_submit_button("Go back")
    if pressed:

        def go() -> Promotion:
            actor = identify(records, person.name, password, at=now(), model=model).name
            return rollback(records, versions(), model, actor=actor, reason=reason, at=now())

        _act(go, f"Version {line[-2].version} is the champion again.")


def _act(step: Callable[[], Any], done: str) -> None:
    """Do what a person asked for, then show the page anew; a refusal is shown where they are."""
    try:
        with st.spinner("Writing it into the record"):
            outcome = step()
    except RecordsError as error:
        st.error(f"**Not done:** {plain(error)}", icon=":material/block:")
        return
    pending = outcome.pending if isinstance(outcome, Promotion) else ""
    st.session_state[NOTICE] = f"{done} MLflow will be told later: {pending}" if pending else done
    st.rerun()


def _table(decision: GateDecision) -> list[dict[str, object]]:
    return [
        {
            "check": check.name,
            "cohort": reword(check.cohort),
            "figure": reword(metric_words(check.metric)),
            "champion": check.champion,
            "challenger": check.challenger,
            "difference": check.difference,
            "low": check.low,
            "high": check.high,
            "limit": check.margin,
            "outcome": OUTCOME_WORDS[check.passed],
        }
        for check in decision.checks
    ]
