"""Promote, take over and roll back: thin over the registry, which holds the rules."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from flows.ward import Ward
from registry.entries import ChampionRecord


def install_first(ward: Ward, model: str, adapter: Path, *, actor: str, at: datetime) -> ChampionRecord:
    """Take over an adapter that is live already as version 1, so that everything later has a champion to beat."""
    raise NotImplementedError
