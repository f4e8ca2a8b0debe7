"""When, in what order, from where? Sources, steps, Prefect flows and the command line."""

import monitor as monitor  # telemetry is off before Prefect can be imported
