"""How pages get at the records: opened once a process, the reader's choices, and text from data made safe to show."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import pandas as pd
import streamlit as st

from dashboard.names import distinct
from dashboard.serving import DIRECTORY
from dashboard.wording import tell_window
from monitor.results import WindowReport
from monitor.suppression import suppress_report
from registry.model_versions import ModelVersions
from registry.records import Records, open_records
from registry.settings import Settings, read_settings

Choice = TypeVar("Choice")

MARKUP = re.compile(r"([!-/:-@\[-`{-~])")
LINKS = re.compile(r"(?i)(www)(?=\.)|(https?|ftp|mailto|xmpp)(?=:)|(?<=\w)(@)(?=\w)")
JOINER = "\u2060"
"""Zero width: it keeps a web address from being turned into a link, and shows nothing."""


@st.cache_resource(show_spinner="Opening the records")
def open_store(directory: str) -> tuple[Settings, Records]:
    """Open the settings and records of a store directory; one connection pool a process."""
    settings = read_settings(Path(directory))
    return settings, open_records(settings.database_url)


def store() -> tuple[Settings, Records]:
    """Give the store that WARDROUND_DIR names."""
    return open_store(str(Path(os.environ.get(DIRECTORY, ".")).resolve()))


def versions() -> ModelVersions:
    """Give the MLflow registry of the store."""
    settings, _ = store()
    return ModelVersions(tracking_uri=settings.tracking_uri, artifact_root=settings.directory / "mlartifacts")


def chosen_model() -> str:
    """Give the model picked in the side bar; without any model the page ends here."""
    _, records = store()
    names = model_names(records)
    if not names:
        st.info("No model is under watch yet. An engineer starts with: wardround ingest")
        st.stop()
    picked = st.session_state.get("model", names[0])
    return picked if picked in names else names[0]


def model_names(records: Records) -> list[str]:
    """List the models, those that something was told of first."""
    return sorted(records.models(), key=lambda name: (not records.reports(name), name))


def reports_of(model: str) -> list[WindowReport]:
    """Give the reports of a model as they may be shown: small cells never leave the process."""
    settings, records = store()
    return [suppress_report(report, settings.drift.smallest_cell) for report in records.reports(model)]


def pick_window() -> WindowReport | None:
    """Let the reader pick a watched window, the newest first; None, and a word about it, when there is none."""
    reports = reports_of(chosen_model())[::-1]
    if not reports:
        st.info("No window has been watched yet. The first verdict appears after the next round.")
        return None
    return choose("Window", {report.window.key: report for report in reports}, tell_window, key="window")


def choose(label: str, options: Mapping[str, Choice], name: Callable[[Choice], str], *, key: str) -> Choice:
    """Let the reader pick one of some things, each under an identity of its own and a name that no other has.

    Streamlit tells choices apart by the name shown: two of one name would both give the first.
    """
    names = dict(zip(options, distinct([name(option) for option in options.values()]), strict=True))
    return options[st.selectbox(label, list(options), format_func=lambda place: names.get(place, place), key=key)]


def pick_finding(report: WindowReport) -> str:
    """Give the finding to show: the only one, or the one the reader picks."""
    findings = list(dict.fromkeys(harm.finding for harm in report.harms))
    if len(findings) > 1:
        return str(st.selectbox("Finding", findings, key="finding"))
    return findings[0] if findings else ""


def show_table(rows: Sequence[Mapping[str, object]]) -> None:
    """Show figures as a table, to three digits; what is missing is a dash."""
    table = pd.DataFrame(rows)
    fractions = {name: st.column_config.NumberColumn(format="%.3f") for name in table.select_dtypes("float").columns}
    small = st.column_config.NumberColumn(format="%.4f")
    fractions |= {name: small for name in fractions if name in ("p", "p needed")}
    st.dataframe(table, hide_index=True, width="stretch", column_config=fractions, placeholder="–")


def plain(text: object) -> str:
    """Escape a text from data so that Streamlit shows its characters and makes nothing of them."""
    unlinked = LINKS.sub(lambda found: found.group() + JOINER, str(text))
    return MARKUP.sub(r"\\\1", unlinked).replace("\n", " ").replace("\r", " ")


def now() -> datetime:
    """Read the clock, for what is signed on these pages."""
    return datetime.now(UTC)
