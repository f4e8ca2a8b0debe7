"""Audit: everything that happened, in order, and whether the record holds."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from dashboard import charts
from dashboard.drawing import QUIET_BAR
from dashboard.event_wording import EVENT_WORDS, tell_event, tell_move
from dashboard.glossary import show_terms
from dashboard.reading import chosen_model, plain, store
from registry.audit import Event

COLUMNS = {
    "no.": st.column_config.NumberColumn(width=56),
    "when (UTC)": st.column_config.DatetimeColumn(format="D MMM YYYY, HH:mm", width=150),
    "who": st.column_config.TextColumn(width=120),
    "what": st.column_config.TextColumn(width=180),
    "in words": st.column_config.TextColumn(width=440),
}


def show() -> None:
    """Show the page."""
    st.title("Audit", anchor=False)
    _, records = store()
    state = records.verify_events()
    if state.ok:
        st.success(
            f"**The record holds.** {state.n} events, each chained to the one before: none was changed, removed or "
            "moved.",
            icon=":material/link:",
        )
    else:
        st.error(
            f"**The record is broken at event {state.bad_row}.** {plain(state.reason)}", icon=":material/link_off:"
        )
    events = records.events()
    if not events:
        st.info("Nothing has happened yet.")
        return
    _show_champions()
    st.subheader("What happened, and when", anchor=False)
    shown = _filter(events)
    if shown:
        figure = charts.events_by_day(shown, EVENT_WORDS)
        st.plotly_chart(figure, width="stretch", key="events", config=QUIET_BAR)
    st.caption(f"{len(shown)} of {len(events)} events, newest first.")
    st.dataframe(_table(shown), hide_index=True, width="stretch", height=480, column_config=COLUMNS)
    show_terms("Event", "Digest", "Held-out cohort", "Champion and challenger", "The gate", "Adapter")


def _show_champions() -> None:
    _, records = store()
    history = records.champion_history(chosen_model())
    if not history:
        return
    with st.expander("Who was champion, and when", expanded=True):
        st.markdown("\n".join(f"- {plain(tell_move(move))}" for move in reversed(history)))


def _filter(events: Sequence[Event]) -> list[Event]:
    kinds = list(dict.fromkeys(event.kind for event in events))
    left, right = st.columns(2)
    picked = left.multiselect(
        "What", kinds, format_func=lambda kind: EVENT_WORDS.get(kind, kind), placeholder="Everything", key="kinds"
    )
    wanted = right.text_input("Person, subject or detail contains", key="wanted").lower()
    return [
        event
        for event in events
        if (not picked or event.kind in picked)
        and wanted in f"{event.actor} {event.model} {event.subject} {event.payload}".lower()
    ]


def _table(events: Sequence[Event]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "no.": event.seq,
                "when (UTC)": event.at,
                "who": event.actor,
                "what": EVENT_WORDS.get(event.kind, event.kind),
                "in words": tell_event(event),
                "model": event.model,
                "detail": event.payload,
                "digest": event.digest[:12],
            }
            for event in reversed(events)
        ]
    )
