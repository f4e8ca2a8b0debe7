"""How grave a window is, its headline and calibration, on the overview and on the page of a window."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from monitor.performance import evaluate
from monitor.policies import DriftPolicy
from monitor.severity import GRADE_WORDS, grade_window
from monitor.streams import Stream
from tests.conftest import MODEL, UNLABELLED_WEEK, Hospital
from tests.test_dashboard_pages import sound_page

Story = Callable[[int], Hospital]


@pytest.fixture(autouse=True)
def fresh_cache() -> Iterator[None]:
    yield
    st.cache_resource.clear()


def said(app: AppTest) -> str:
    kinds = ("markdown", "caption", "error", "info", "warning", "success")
    lines = [str(element.value) for kind in kinds for element in app.get(kind)]
    return "\n".join(lines).replace("\\", "").replace("\u2060", "")


@pytest.mark.parametrize("name", ["overview", "drift"])
def test_the_grade_is_shown_with_every_reason(tell_story: Story, name: str) -> None:
    hospital = tell_story(6)
    text = said(sound_page(name))
    severity = grade_window(hospital.records.reports(MODEL)[5], DriftPolicy())
    assert GRADE_WORDS[severity.grade] in text
    assert len(severity.reasons) > 1
    assert "is lower by 0.0" in text or "is lower by 0.1" in text


@pytest.mark.parametrize("name", ["overview", "drift"])
def test_the_headline_stands_beside_its_streams_and_their_parts(tell_story: Story, name: str) -> None:
    tell_story(6)
    app = sound_page(name)
    (headline,) = [metric for metric in app.metric if metric.label == "Headline"]
    assert headline.value.endswith(" of 100")
    assert not headline.value.startswith(("0 ", "100 "))
    assert [tab.label.lower() for tab in app.tabs] == list(Stream)


def test_a_stream_that_was_not_judged_is_said_beside_the_headline(tell_story: Story) -> None:
    tell_story(UNLABELLED_WEEK + 1)
    assert "Not judged, and so not in it: realised performance." in said(sound_page("overview"))


def test_a_window_without_calibration_says_so_and_draws_nothing(tell_story: Story) -> None:
    tell_story(1)
    assert "Calibration cannot be told" in said(sound_page("drift"))


def test_calibration_is_drawn_from_the_studies_of_the_window(tell_story: Story) -> None:
    hospital = tell_story(1)
    (report,) = hospital.records.reports(MODEL)
    cohort = hospital.records.load_cohort(MODEL, window=report.window)
    measured = evaluate(
        cohort, name="week", model_version="1", policy=DriftPolicy(), generator=np.random.default_rng(0)
    )
    hospital.records.save_report(replace(report, n=report.n + 1, evaluations=(measured,)), report.window.end)
    app = sound_page("drift")
    figures = {metric.label: metric.value for metric in app.metric}
    assert figures["Brier score"] == f"{measured.metric('brier').value:.3f}"
    assert figures["Calibration slope"] == "not known"
    assert f"Each point is {cohort.patients} to {cohort.patients} patients" in said(app)
    specs = [json.loads(chart.proto.spec) for chart in app.get("plotly_chart")]
    (drawn,) = [each for spec in specs for each in spec["data"] if each.get("name") == "this window"]
    assert drawn["customdata"] == [[cohort.patients, len(cohort)]]
