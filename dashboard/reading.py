"""How pages get at the records: opened once a process, and text from data made safe to show."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from pathlib import Path

import streamlit as st
from registry.model_versions import ModelVersions

from registry.records import Records, open_records
from registry.settings import Settings, read_settings

DIRECTORY = "WARDROUND_DIR"
MARKUP = re.compile(r"([\\`*_{}\[\]<>()#+\-.!|~$:&])")


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
    return ModelVersions(settings.tracking_uri, settings.directory / "mlartifacts")


def chosen_model() -> str:
    """Give the model picked in the side bar."""
    _, records = store()
    names = sorted(records.models())
    if not names:
        st.info("No model is under watch yet. An engineer registers one with: wardround ingest")
        st.stop()
    picked = st.session_state.get("model", names[0])
    return picked if picked in names else names[0]


def plain(text: object) -> str:
    """Escape a text from data so that Streamlit shows its characters and nothing else."""
    return MARKUP.sub(r"\\\1", str(text)).replace("\n", " ")


def now() -> datetime:
    """Read the clock, for signatures given on these pages."""
    return datetime.now(UTC)
