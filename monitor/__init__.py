"""What changed, how badly, for whom? Pure statistics over cohorts of studies."""

from monitor.telemetry import switch_off

switch_off()
