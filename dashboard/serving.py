"""Start the dashboard on this machine only, with safe settings: ``python -m dashboard.serving --dir DIR``."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

OPTIONS = {
    "server.address": "127.0.0.1",
    "server.headless": "true",
    "server.enableXsrfProtection": "true",
    "server.enableCORS": "true",
    "server.enableStaticServing": "false",
    "server.maxUploadSize": "50",
    "server.fileWatcherType": "none",
    "server.runOnSave": "false",
    "browser.gatherUsageStats": "false",
    "runner.magicEnabled": "false",
    "client.showErrorDetails": "none",
    "client.toolbarMode": "viewer",
    "theme.primaryColor": "#0072B2",
}


def streamlit_arguments(port: int) -> list[str]:
    """Give the arguments of ``streamlit run`` for a port on this machine."""
    app = Path(__file__).with_name("app.py")
    options = [f"--{name}={value}" for name, value in OPTIONS.items()]
    return ["run", str(app), f"--server.port={port}", *options]


def main() -> int:
    """Run Streamlit until it is stopped; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", required=True, help="folder that holds wardround.toml")
    parser.add_argument("--port", type=int, default=8501)
    asked = parser.parse_args()
    environment = {**os.environ, "WARDROUND_DIR": str(Path(asked.dir).resolve())}
    root = str(Path(__file__).resolve().parents[1])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH", "")]))
    sys.stderr.write(f"The dashboard is at http://127.0.0.1:{asked.port} (Ctrl+C stops it)\n")
    return subprocess.call([sys.executable, "-m", "streamlit", *streamlit_arguments(asked.port)], env=environment)


if __name__ == "__main__":
    sys.exit(main())
