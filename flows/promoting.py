"""Promote, take over and roll back: thin over the registry, which holds the rules."""

from __future__ import annotations

import shutil
from datetime import datetime
from pathlib import Path

from flows.ward import StepRefused, Ward, backbone_of
from continual.adapters import content_sha256, load_adapter
from registry.entries import ChampionRecord
from registry.promotion import install, promote, rollback


def install_first(ward: Ward, model: str, adapter: Path, *, actor: str, at: datetime) -> ChampionRecord:
    """Take over an adapter that is live already as version 1, so that everything later has a champion to beat."""
    raise NotImplementedError
