"""Who is looking: no page is shown, and no record read, before a person of this ward has signed in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import streamlit as st

from dashboard.reading import now, plain, store
from registry.approvals import SignatureRefused, identify

LONGEST_VISIT, LONGEST_PAUSE = timedelta(hours=8), timedelta(minutes=30)
VISITOR = "visitor"


@dataclass(frozen=True, slots=True, kw_only=True)
class Visitor:
    """A person who signed in: since when, and when last seen."""

    name: str
    role: str
    since: datetime
    seen: datetime


def visitor() -> Visitor | None:
    """Give the person who is signed in; a long pause, a long day or being disabled ends a visit."""
    person: Visitor | None = st.session_state.get(VISITOR)
    if person is None:
        return None
    at, (_, records) = now(), store()
    known = records.user(person.name)
    overdue = at - person.since > LONGEST_VISIT or at - person.seen > LONGEST_PAUSE
    if overdue or known is None or not known.active:
        sign_out()
        return None
    person = replace(person, role=known.role, seen=at)
    st.session_state[VISITOR] = person
    return person


def sign_out() -> None:
    """End the visit."""
    st.session_state.pop(VISITOR, None)


def show_sign_in() -> None:
    """Show the form that begins a visit."""
    _, middle, _ = st.columns([1, 1.4, 1])
    with middle:
        st.title("Wardround", anchor=False)
        st.caption("Ward rounds for deployed medical-imaging AI.")
        with st.form("sign in"):
            name = st.text_input("User name", key="name")
            password = st.text_input("Password", type="password", key="password")
            pressed = st.form_submit_button("Sign in", type="primary", width="stretch")
        st.caption("People are added by an administrator: wardround user add NAME")
        if not pressed:
            return
        _, records = store()
        try:
            person = identify(records, name, password, at=now(), subject="dashboard")
        except SignatureRefused as error:
            st.error(f"**Not signed in:** {plain(error)}")
            return
    at = now()
    st.session_state[VISITOR] = Visitor(name=person.name, role=person.role, since=at, seen=at)
    st.rerun()
