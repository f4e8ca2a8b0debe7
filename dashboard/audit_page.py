"""Audit: everything that happened, in order, and whether the chain holds."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from dashboard.reading import plain, store

KIND_WORDS = {
    "model.registered": "model registered",
    "predictions.added": "predictions added",
    "rows.quarantined": "rows quarantined",
    "ingest.finished": "export read",
    "window.watched": "window watched",
    "plan.made": "plan made",
    "adapter.trained": "adapter trained",
    "held_out.locked": "held-out cohort locked",
    "held_out.looked_at": "held-out cohort looked at",
    "gate.decided": "gate decided",
    "decision.signed": "decision signed",
    "champion.moved": "champion moved",
    "user.added": "person added",
}


def show() -> None:
    """Show the page."""
    st.title("Audit")
    _, records = store()
    state = records.verify_events()
    if state.ok:
        st.success(f"{state.n} events hold: no row was changed, removed or reordered.", icon=":material/link:")
    else:
        st.error(f"The record is broken at event {state.bad_row}: {plain(state.reason)}", icon=":material/link_off:")
    events = records.events()[::-1]
    kinds = list(dict.fromkeys(event.kind for event in events))
    left, right = st.columns([3, 2])
    picked = left.multiselect(
        "What", kinds, format_func=lambda kind: KIND_WORDS.get(kind, kind), placeholder="everything"
    )
    wanted = right.text_input("Subject, person or detail contains")
    shown = [
        event
        for event in events
        if (not picked or event.kind in picked)
        and wanted.lower() in f"{event.subject} {event.actor} {event.payload}".lower()
    ]
    st.caption(f"{len(shown)} of {len(events)} events, newest first.")
    table = pd.DataFrame(
        [
            {
                "no.": event.seq,
                "when (UTC)": event.at,
                "who": event.actor,
                "what": KIND_WORDS.get(event.kind, event.kind),
                "subject": event.subject,
                "detail": event.payload,
                "digest": event.digest[:12],
            }
            for event in shown
        ]
    )
    st.dataframe(table, hide_index=True, width="stretch", height=560)
