"""The dashboard in a real browser: every page looked at, a decision approved, and no word to anybody else."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, Request, expect, sync_playwright

from tests.conftest import MODEL, OFFICER, PASSWORD, Hospital

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PAGES = ("Overview", "Drift", "Fairness", "Adaptation", "Approvals", "Audit")
ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 10_000
"""Milliseconds until a page's heading must be there."""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed (apt-get install chromium)"),
]


@dataclass(kw_only=True)
class Visit:
    """A browser at the dashboard of a hospital, and everything it asked for."""

    hospital: Hospital
    page: Page
    address: str
    asked: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def sign_in(self, password: str = PASSWORD) -> None:
        self.page.get_by_label("User name").fill(OFFICER)
        self.page.get_by_label("Password", exact=True).fill(password)
        self.page.get_by_role("button", name="Sign in").click()

    def open(self, name: str) -> None:
        self.page.get_by_test_id("stSidebarNav").get_by_role("link", name=name).click()
        self.sees(name)

    def sees(self, heading: str) -> None:
        expect(self.page.get_by_role("heading", name=heading, level=1)).to_be_visible(timeout=PATIENCE)

    def settles(self) -> None:
        """Wait until the page is drawn to its end, and prove that nothing on it failed."""
        expect(self.page.get_by_test_id("stStatusWidget")).to_have_count(0, timeout=PATIENCE)
        expect(self.page.get_by_test_id("stSkeleton")).to_have_count(0, timeout=PATIENCE)
        expect(self.page.get_by_test_id("stException")).to_have_count(0)


@pytest.fixture
def visit(tell_story: Callable[[int], Hospital]) -> Iterator[Visit]:
    hospital = tell_story(8)
    port = _free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "dashboard.serving", "--dir", str(hospital.directory), "--port", str(port)]
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL) as server:
        try:
            _wait_for(f"{address}/_stcore/health", server)
            yield from _browse(hospital, address)
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(timeout=20)


def _browse(hospital: Hospital, address: str) -> Iterator[Visit]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        visit = Visit(hospital=hospital, page=page, address=address)

        def note(request: Request) -> None:
            visit.asked.append(request.url)

        page.on("request", note)
        page.on("websocket", lambda socket: visit.asked.append(socket.url))
        page.on("pageerror", lambda error: visit.broken.append(str(error)))
        page.goto(address)
        yield visit
        browser.close()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _wait_for(url: str, server: subprocess.Popen[bytes], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert server.poll() is None, "the dashboard ended before it was up"
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise AssertionError(f"{url} did not answer within {seconds:.0f} s")


def test_every_page_is_drawn_and_nothing_leaves_the_machine(visit: Visit) -> None:
    visit.sees("Wardround")
    visit.sign_in()
    visit.sees("Overview")
    for name in PAGES:
        visit.open(name)
        expect(visit.page.locator(".js-plotly-plot").first).to_be_visible(timeout=PATIENCE)
        visit.settles()
    hosts = {urlsplit(url).hostname for url in visit.asked if not url.startswith(("data:", "blob:"))}
    assert hosts == {"127.0.0.1"}
    assert not visit.broken


def test_an_address_of_a_page_shows_nothing_to_who_has_not_signed_in(visit: Visit) -> None:
    for name in PAGES:
        visit.page.goto(f"{visit.address}/{name.lower()}")
        visit.sees("Wardround")
        expect(visit.page.get_by_test_id("stSidebarNav")).to_have_count(0)
        expect(visit.page.locator(".js-plotly-plot")).to_have_count(0)
    visit.sign_in("wrong")
    expect(visit.page.get_by_text("the user name or the password is wrong")).to_be_visible(timeout=PATIENCE)
    visit.sees("Wardround")


def test_approving_in_the_browser_stands_in_the_records(visit: Visit) -> None:
    decision = visit.hospital.decision("replay")
    visit.sign_in()
    visit.open("Approvals")
    page = visit.page
    page.get_by_text("I approve", exact=True).click()
    page.get_by_label("What your signature means").fill("I have read every reason.")
    page.get_by_label("Your password, again").fill(PASSWORD)
    page.get_by_role("button", name="Sign", exact=True).click()
    expect(page.get_by_text("Your signature stands in the record.")).to_be_visible(timeout=PATIENCE)
    visit.settles()
    (signature,) = visit.hospital.records.signatures(decision.decision_id)
    assert (signature.user, signature.approved, signature.digest) == (OFFICER, True, decision.digest)
    assert signature.meaning == "I have read every reason."
    expect(page.get_by_role("button", name="Make it the champion")).to_be_visible(timeout=PATIENCE)
    expect(page.get_by_role("combobox", name="Decision")).to_have_value(re.compile("approved, waits to go live"))
    assert visit.hospital.records.champion(MODEL).version == "1"
    assert visit.hospital.records.verify_events().ok
    visit.open("Audit")
    expect(page.get_by_text("The record holds.")).to_be_visible(timeout=PATIENCE)


def test_two_browsers_are_two_visits(visit: Visit) -> None:
    visit.sign_in()
    visit.sees("Overview")
    context = visit.page.context.browser.new_context()
    other = context.new_page()
    other.goto(visit.address)
    expect(other.get_by_role("heading", name="Wardround", level=1)).to_be_visible(timeout=PATIENCE)
    expect(other.locator(".js-plotly-plot")).to_have_count(0)
    context.close()
    visit.page.get_by_role("button", name="Sign out").click()
    visit.sees("Wardround")
