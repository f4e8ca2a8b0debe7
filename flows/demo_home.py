"""The demo writes in its own folder and nowhere else. Imports nothing: libraries look for homes when imported."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

IN_HOME = ("PREFECT_HOME", "MPLCONFIGDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TORCH_HOME", "HF_HOME", "WANDB_DIR")


def keep_inside(directory: Path) -> None:
    """Point every library that writes to a home folder into ``directory``; call it before any of them is imported."""
    home = (directory / "tool-state").resolve()
    with suppress(OSError):  # where nothing can be written, whoever opens the folder next says so in one line
        home.mkdir(parents=True, exist_ok=True)
    os.environ["HOME"] = str(home)  # Avalanche writes to ~/.avalanche and can be told no other place
    for name in IN_HOME:
        os.environ[name] = str(home / name.lower())
    os.environ["WARDROUND_LOG"] = str((directory / "wardround-error.log").resolve())
    for name in ("PREFECT_LOGGING_LEVEL", "PREFECT_SERVER_LOGGING_LEVEL"):
        os.environ.setdefault(name, "ERROR")
