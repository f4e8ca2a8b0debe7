"""May it go live, and who said so? Records, the gate, approvals and model versions."""

import monitor as monitor  # telemetry is off before MLflow can be imported
