"""Every library's telemetry is switched off before that library is imported."""

import os

SWITCHES: dict[str, str] = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
    "PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS": "false",
    "STREAMLIT_BROWSER_GATHER_USAGE_STATS": "false",
    "STREAMLIT_SERVER_ADDRESS": "127.0.0.1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "WANDB_MODE": "disabled",
    "WANDB_ERROR_REPORTING": "false",
    "OTEL_SDK_DISABLED": "true",
}

PERMISSION = "WARDROUND_ALLOW_TELEMETRY"


def switch_off() -> None:
    """Assign every telemetry switch, unless WARDROUND_ALLOW_TELEMETRY=1 says otherwise.

    Assignment and not a default: ``DO_NOT_TRACK=1`` in a user's shell would leave MLflow on,
    which only understands the literal ``true``.
    """
    if os.environ.get(PERMISSION) != "1":
        os.environ.update(SWITCHES)


def switches_left_on() -> dict[str, str | None]:
    """Name each switch whose value in this process is not the quiet one, with the value found."""
    found = {name: os.environ.get(name) for name in SWITCHES}
    return {name: value for name, value in found.items() if value != SWITCHES[name]}
