"""Start the dashboard on this machine only, with safe settings: ``python -m dashboard.serving --dir DIR``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import NoReturn

from dashboard.palette import THEME

ADDRESS = "127.0.0.1"
DIRECTORY = "WARDROUND_DIR"

SAFE = {
    "server.address": ADDRESS,
    "server.headless": "true",
    "server.enableXsrfProtection": "true",
    "server.enableCORS": "true",
    "server.enableStaticServing": "false",
    "server.enableAgentApi": "false",
    "server.maxUploadSize": "50",
    "server.fileWatcherType": "none",
    "server.runOnSave": "false",
    "server.disconnectedSessionTTL": "120",
    "browser.gatherUsageStats": "false",
    "browser.serverAddress": ADDRESS,
    "runner.magicEnabled": "false",
    "client.showErrorDetails": "none",
    "client.showErrorLinks": "false",
    "client.toolbarMode": "viewer",
    "client.disableDataExport": "true",
}
"""Nothing leaves the machine, nobody else reaches it, and an error tells a browser nothing about the inside."""


def streamlit_arguments(port: int = 8501) -> list[str]:
    """Give the arguments of ``streamlit`` that serve the dashboard on a port of this machine alone."""
    if not 0 < port < 65536:
        raise ValueError(f"a port is 1 to 65535, got {port}")
    app = Path(__file__).with_name("app.py")
    hosts = [f"--server.allowedHosts={host}" for host in (ADDRESS, "localhost")]
    options = [f"--{name}={value}" for name, value in {**SAFE, **THEME}.items()]
    return ["run", str(app), f"--server.port={port}", *hosts, *options]


def serving_environment(directory: Path) -> dict[str, str]:
    """Give the environment in which the dashboard finds its store and its packages."""
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, DIRECTORY: str(directory.resolve()), "PYTHONPATH": path}


def main() -> NoReturn:
    """Become Streamlit, so that whoever stops this process stops the dashboard."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", required=True, type=Path, help="folder that holds wardround.toml")
    parser.add_argument("--port", type=int, default=8501)
    asked = parser.parse_args()
    sys.stderr.write(f"The dashboard is at http://{ADDRESS}:{asked.port} (Ctrl+C stops it)\n")
    sys.stderr.flush()
    command = [sys.executable, "-m", "streamlit", *streamlit_arguments(asked.port)]
    os.execve(sys.executable, command, serving_environment(asked.dir))


if __name__ == "__main__":
    main()
