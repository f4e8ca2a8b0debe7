"""Telemetry is off before any library is imported, whatever the user's shell says."""

import json
import os
import subprocess
import sys

import pytest

from monitor.telemetry import PERMISSION, SWITCHES, switch_off, switches_left_on

SHOW = "import json, os; import monitor; print(json.dumps(dict(os.environ)))"


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (*SWITCHES, PERMISSION):
        monkeypatch.setenv(name, "")  # so that it is put back afterwards, set or not
        monkeypatch.delenv(name)
    return monkeypatch


def test_every_switch_is_assigned_and_not_just_a_default(bare):
    bare.setenv("DO_NOT_TRACK", "1")
    bare.setenv("STREAMLIT_SERVER_ADDRESS", "0.0.0.0")
    switch_off()
    assert {name: os.environ[name] for name in SWITCHES} == SWITCHES
    assert switches_left_on() == {}


@pytest.mark.parametrize("permission", ["0", "true", ""])
def test_only_the_literal_one_is_a_permission(bare, permission):
    bare.setenv(PERMISSION, permission)
    switch_off()
    assert switches_left_on() == {}


def test_with_permission_every_switch_stays_as_it_is(bare):
    bare.setenv(PERMISSION, "1")
    bare.setenv("DO_NOT_TRACK", "1")
    switch_off()
    assert os.environ["DO_NOT_TRACK"] == "1"
    assert not (SWITCHES.keys() - {"DO_NOT_TRACK"}) & os.environ.keys()


def test_switches_that_are_on_are_named_with_what_they_say(bare):
    switch_off()
    bare.setenv("DO_NOT_TRACK", "1")
    bare.delenv("WANDB_MODE")
    assert switches_left_on() == {"DO_NOT_TRACK": "1", "WANDB_MODE": None}


def imported(**environment: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name not in (*SWITCHES, PERMISSION)}
    done = subprocess.run(
        [sys.executable, "-c", SHOW], env=inherited | environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_importing_monitor_switches_everything_off():
    found = imported(DO_NOT_TRACK="1")
    assert {name: found.get(name) for name in SWITCHES} == SWITCHES


def test_importing_monitor_with_permission_leaves_everything():
    found = imported(DO_NOT_TRACK="1", **{PERMISSION: "1"})
    assert {name: found[name] for name in SWITCHES if name in found} == {"DO_NOT_TRACK": "1"}
