"""Markup in data stays text, the server stays on this machine, and nothing heavy is loaded."""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import streamlit as st
from argon2 import PasswordHasher
from streamlit.components.v2 import manifest_scanner
from streamlit.testing.v1 import AppTest

from dashboard.reading import plain
from dashboard.serving import ADDRESS, DIRECTORY, SAFE, serving_environment, streamlit_arguments
from dashboard.signing_in import VISITOR, Visitor
from registry.approvals import approve
from registry.entries import ChampionRecord, QuarantinedRow
from registry.records import Records, open_records
from registry.settings import FILE_NAME, ModelSettings
from tests.conftest import OFFICER, PASSWORD, REFERENCE, WEEKS, decide, kept_of, plan_of, report_of, run_of
from tests.test_dashboard_pages import PAGES, scan_once, sound_page

PAYLOADS = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "![tracking](https://evil.example/pixel.png)",
    "[click here](javascript:alert(1))",
    "https://evil.example/login",
    "www.evil.example",
    "officer@evil.example",
    "**bold** _thin_ `code` ~~gone~~",
    "# heading",
    "$\\frac{1}{0}$",
    ":red[:material/check:] :tada:",
    "a | b\n---|---\n1 | 2",
    "\n\n> quote\n\n- list",
    "</div><style>*{display:none}</style>",
    "&lt;b&gt; &#60;i&#62;",
    "<https://evil.example>",
)
"""What would show a picture, a link, a heading or a lie if it were taken for markup."""

SIGNS = re.compile(
    r"(?<!\\)<\w"  # a tag
    r"|(?<!\\)!?\[[^\]]*(?<!\\)\]\("  # a link or picture
    r"|https?:(?!\u2060)(?=\\?/)|www\.(?!\u2060)"  # a bare address
    r"|\w@\w"  # a mail address
    r"|(?<!\\)`|(?<!\\)~~|(?<!\\)\$"  # code, strike-through, formula
)
OURS = re.compile(r":(?:red|green)\[:material/\w+:\]")


@pytest.fixture(autouse=True)
def one_scan(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(manifest_scanner, "scan_component_manifests", scan_once)
    yield
    st.cache_resource.clear()


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tell the story once more, with markup wherever a text comes from outside."""
    return build_hostile_story(tmp_path_factory.mktemp("hostile") / "ward")


@pytest.fixture
def hostile(told: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(DIRECTORY, str(told))
    return told


BAD = " ".join(PAYLOADS)
BAD_MODEL = "<script>alert(1)</script>![x](https://evil.example/x.png)"


def build_hostile_story(directory: Path) -> Path:
    directory.mkdir(parents=True)
    (directory / FILE_NAME).write_text(f"[models.{json.dumps(BAD_MODEL)}]\nclasses = ['no', 'yes']\n", encoding="utf-8")
    records = open_records(f"sqlite:///{directory / 'wardround.db'}")
    records.register_model(BAD_MODEL, ModelSettings(), REFERENCE.start)
    cheap = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(PASSWORD)
    proposer = "<b>emma</b> www.evil.example"
    for name, role in ((proposer, "engineer"), (OFFICER, "quality officer")):
        records.add_user(name, role, cheap, REFERENCE.start)
    for number in range(6):
        report = report_of(WEEKS[number], number)
        records.save_report(
            replace(
                report,
                model=BAD_MODEL,
                reason=BAD,
                results=tuple(replace(r, feature=f"{r.feature} {BAD}", reason=BAD) for r in report.results),
                gaps=tuple(replace(g, value=f"{g.value} {BAD}", attribute=BAD, reason=BAD) for g in report.gaps),
                harms=tuple(replace(h, finding=BAD, reason=h.reason and BAD) for h in report.harms),
                contributions=tuple(replace(c, attribute=BAD, value=f"{c.value} {BAD}") for c in report.contributions),
            ),
            WEEKS[number].end,
        )
    batch = records.begin_batch(BAD_MODEL, f"{BAD_MODEL}.csv", "0" * 64, WEEKS[0].end)
    records.quarantine(batch, [QuarantinedRow(line=1, reason=BAD, detail=BAD, content=BAD)], WEEKS[0].end)
    records.finish_batch(batch, WEEKS[0].end)
    _treat(records, proposer)
    return directory


def _treat(records: Records, proposer: str) -> None:
    at = WEEKS[6].end
    first = ChampionRecord(
        model=BAD_MODEL,
        number=0,
        version="1",
        adapter_sha256="a1" * 32,
        decision_id="",
        kind="first",
        actor=proposer,
        reason=BAD,
        since=REFERENCE.start,
    )
    records.move_champion(first, expected=None)
    plan = replace(plan_of(), model=BAD_MODEL, reason=BAD, evidence=(BAD, BAD_MODEL), proposed_by=proposer)
    records.save_plan(plan, at)
    for strategy in ("naive", "replay"):
        run = run_of(plan, strategy, old=0.933, new=0.927)
        kept = kept_of((BAD, f"new {BAD}"), old=0.933, new=0.927)
        changes = tuple(replace(c, attribute=c.attribute and BAD, reason=BAD) for c in kept.changes)
        flips = tuple(replace(f, attribute=f.attribute and BAD) for f in kept.flips)
        kept = replace(kept, changes=changes, flips=flips)
        run = replace(run, model=BAD_MODEL, adapter=BAD, experiences=(BAD, f"new {BAD}"), kept=kept)
        records.save_run(run, at)
        decision = decide(run, old=-0.001, new=0.075)
        checks = tuple(replace(c, reason=BAD, cohort=BAD, metric=f"{c.metric} {BAD}") for c in decision.checks)
        decision = replace(decision, model=BAD_MODEL, checks=checks)
        records.save_decision(decision, at)
        if strategy == "naive":
            approve(records, decision.decision_id, user=OFFICER, password=PASSWORD, meaning=BAD, at=at)
    failed = run_of(plan, "ewc", old=0.9, new=0.9)
    failed = replace(
        failed, model=BAD_MODEL, state=type(failed.state).FAILED, reason=BAD, strategy=BAD_MODEL, matrix=()
    )
    records.save_run(failed, at)


def markup_of(app: AppTest) -> list[str]:
    """Give every text that Streamlit reads as Markdown."""
    kinds = ("title", "header", "subheader", "markdown", "caption", "error", "info", "success", "warning")
    return [str(element.value) for kind in kinds for element in app.get(kind)]


def labels_of(app: AppTest) -> list[str]:
    """Give the labels that Streamlit reads as Markdown: of expanders, buttons, choices and fields."""
    kinds = ("expander", "button", "selectbox", "radio", "text_input", "text_area", "multiselect", "button_group")
    labels = [str(element.proto.label) for kind in kinds for element in app.get(kind) if hasattr(element, "proto")]
    return labels + [option.content for group in app.get("button_group") for option in group.proto.options]


@pytest.mark.parametrize("name", PAGES)
def test_no_page_makes_markup_of_data(hostile: Path, name: str) -> None:
    app = sound_page(name)
    if name == "approvals":
        assert len(app.selectbox(key="decision").options) == 2
    texts = [OURS.sub("", text) for text in [*markup_of(app), *labels_of(app)]]
    assert not [found.group() for text in texts for found in SIGNS.finditer(text)]
    assert not any(re.search(r"^\s*(#|>)", line) for text in texts for line in text.splitlines())
    assert any("evil" in text for text in texts), "the payloads did not reach the page, so nothing was tested"


@pytest.mark.parametrize("name", PAGES)
def test_no_page_lets_html_through(hostile: Path, name: str) -> None:
    app = sound_page(name)
    assert not app.get("html")
    assert not [element for element in app.markdown if element.allow_html]


@pytest.mark.parametrize("name", PAGES)
def test_figures_escape_every_label(hostile: Path, name: str) -> None:
    """Plotly reads a dialect of HTML in every text, and its links are live."""
    specs = [json.loads(chart.proto.spec) for chart in sound_page(name).get("plotly_chart")]
    assert specs
    allowed = re.compile(r"</?i>|<br>|<extra></extra>")
    for text in _texts_in(specs):
        assert "<" not in allowed.sub("", text), text


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _texts_in(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts_in(each)


def test_the_side_bar_shows_a_model_name_as_text(hostile: Path) -> None:
    app = AppTest.from_file(Path(__file__).resolve().parents[1] / "dashboard" / "app.py", default_timeout=30)
    at = datetime.now(UTC)
    name = "<b>x</b> ![x](https://evil.example)"
    open_records(f"sqlite:///{hostile / 'wardround.db'}").add_user(name, "auditor", "no hash", REFERENCE.start)
    app.session_state[VISITOR] = Visitor(name=name, role="auditor", since=at, seen=at)
    app.run()
    texts = [str(element.value) for element in [*app.sidebar.markdown, *app.sidebar.caption]]
    assert any("script" in text for text in texts)
    assert not [text for text in texts if SIGNS.search(text)]


def test_a_name_that_is_refused_is_shown_as_text(hostile: Path) -> None:
    app = AppTest.from_file(Path(__file__).resolve().parents[1] / "dashboard" / "app.py", default_timeout=30).run()
    for _ in range(6):
        app.text_input(key="name").input("<img src=x onerror=alert(1)> www.evil.example")
        app.text_input(key="password").input("wrong")
        app.button[0].click().run()
    assert "onerror" in app.error[0].value
    assert not SIGNS.search(app.error[0].value)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_text_made_plain_reads_as_it_was(payload: str) -> None:
    shown = html.unescape(re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", plain(payload))).replace("\u2060", "")
    assert shown == html.unescape(payload.replace("\n", " "))
    assert not SIGNS.search(plain(payload))


# --- the server


def test_the_dashboard_listens_on_this_machine_alone() -> None:
    arguments = streamlit_arguments(8600)
    assert "--server.address=127.0.0.1" in arguments
    assert "--server.port=8600" in arguments
    assert [a for a in arguments if a.startswith("--server.allowedHosts=")] == [
        "--server.allowedHosts=127.0.0.1",
        "--server.allowedHosts=localhost",
    ]
    assert not [argument for argument in arguments if "0.0.0.0" in argument]
    assert ADDRESS == "127.0.0.1"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("server.enableXsrfProtection", "true"),
        ("server.enableCORS", "true"),
        ("server.enableStaticServing", "false"),
        ("browser.gatherUsageStats", "false"),
        ("client.showErrorDetails", "none"),
        ("client.toolbarMode", "viewer"),
        ("client.disableDataExport", "true"),
        ("runner.magicEnabled", "false"),
    ],
)
def test_safe_settings_are_passed_on_and_known_to_streamlit(option: str, value: str) -> None:
    from streamlit import config

    assert SAFE[option] == value
    assert f"--{option}={value}" in streamlit_arguments()
    assert option in config._config_options_template


@pytest.mark.parametrize("port", [0, -1, 65536, 70000])
def test_a_port_that_is_none_is_refused(port: int) -> None:
    with pytest.raises(ValueError, match="a port is 1 to 65535"):
        streamlit_arguments(port)


@pytest.mark.parametrize("extra", [["--address", "0.0.0.0"], ["--server.address=0.0.0.0"], ["--host", "::"]])
def test_another_address_cannot_be_asked_for(extra: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dashboard.serving", "--dir", str(tmp_path), *extra]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "unrecognized arguments" in done.stderr


def test_the_store_is_named_by_its_full_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    environment = serving_environment(Path("ward"))
    assert environment[DIRECTORY] == str(tmp_path / "ward")
    assert environment["PYTHONPATH"].split(os.pathsep)[0] == str(Path(__file__).resolve().parents[1])


def test_nothing_heavy_is_loaded_with_the_dashboard() -> None:
    heavy = ("torch", "torchvision", "avalanche", "alibi_detect", "evidently", "prefect", "mlflow", "flows", "sklearn")
    code = f"import sys, json, dashboard.app; print(json.dumps([m for m in {heavy!r} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []
