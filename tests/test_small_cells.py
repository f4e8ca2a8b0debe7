"""A rare value and a rare combination are watched; nothing that leaves tells how many patients they have."""

import json
import re
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest
from typer.testing import CliRunner

from dashboard.signing_in import VISITOR, Visitor
from flows.command_line import application
from flows.ingesting import ingest_export
from flows.ward import load_role, open_ward, reference_of
from flows.watching import report_path, watch
from monitor.cohorts import Window
from monitor.reports import POOLED
from registry.settings import FILE_NAME

MODEL = "chest"
RARE, COMBINED = "Zebra-7", "F & east"
WINDOW = Window(start=datetime(2026, 2, 2, tzinfo=UTC), end=datetime(2026, 2, 9, tzinfo=UTC))
AT = datetime(2026, 2, 10, tzinfo=UTC)
OLDEST, ODD_SCORE = 101.25, 0.123456789
SETTINGS = f"""
[models.{MODEL}]
attributes = ["site", "sex", "age"]
numeric_attributes = ["age"]
window_days = 7
reference = "2026-01-05/2026-02-02"
[drift]
alibi_detect = false
evidently = false
permutations = 199
resamples = 100
intersection_depth = 2
false_alarms_per_year = 300
minimum_subgroup = 2
"""
NUMBERS = ("n", "patients", "inside", "outside", "gap", "low", "high", "reference_gap", "change", "change_low")
NUMBERS += ("change_high", "p_value", "n_current", "share_reference", "share_current", "shift", "carried", "p_share")
NUMBERS += ("p_within", "patients_reference", "patients_current")


def write_exports(folder: Path) -> list[Path]:
    """Write four weeks in which two sites send, and a fifth in which they change places and a rare value arrives."""
    rng = np.random.default_rng(3)
    week = [("north", "F", 26), ("north", "M", 24), ("east", "M", 44), ("east", "F", 2), (RARE, "M", 2), (RARE, "F", 1)]
    history = [("north", "F", 60), ("north", "M", 60), ("east", "M", 30), ("east", "F", 3)]
    paths = []
    for name, groups, start, days in (("history", history, datetime(2026, 1, 5), 27), ("week", week, WINDOW.start, 6)):
        rows = []
        for site, sex, n in groups:
            for place in range(n):
                label = int(rng.integers(2))
                rows.append(
                    {
                        "study_uid": f"{name}-{site}-{sex}-{place}",
                        "patient_key": f"{name}-{site}-{sex}-{place}",
                        "produced_at": (start.replace(tzinfo=UTC) + timedelta(days=rng.uniform(0, days))).isoformat(),
                        "score": round(float(np.clip(rng.normal(0.3 + 0.4 * label, 0.15), 0.01, 0.99)), 6),
                        "label": ["no", "yes"][label],
                        "site": site,
                        "sex": sex,
                        # of two patients the age is not known, and one is far older than all others
                        "age": None if (name, site, place) == ("week", "north", 0) else float(rng.integers(20, 90)),
                    }
                )
        rows[-1] |= {"age": OLDEST, "score": ODD_SCORE}
        paths.append(folder / f"{name}.csv")
        pd.DataFrame(rows).to_csv(paths[-1], index=False)
    return paths


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("rare") / "ward"
    directory.mkdir()
    (directory / FILE_NAME).write_text(SETTINGS, encoding="utf-8")
    ward = open_ward(directory)
    for path in write_exports(directory.parent):
        ingest_export(path, model=MODEL, ward=ward, at=AT)
    watch(ward, MODEL, WINDOW, at=AT)
    return directory


def run(home: Path, *words: str) -> str:
    return CliRunner().invoke(application, [*words, "--dir", str(home)]).output


def page(home: Path, name: str) -> str:
    """Give everything that a page sends to a browser."""

    def show(name: str) -> None:
        import importlib

        importlib.import_module(f"dashboard.{name}_page").show()

    app = AppTest.from_function(show, kwargs={"name": name}, default_timeout=60)
    at = datetime.now(UTC)
    app.session_state[VISITOR] = Visitor(name="olivia", role="quality officer", since=at, seen=at)
    app.run()
    assert not app.exception
    st.cache_resource.clear()
    tables = [table.value.to_json(orient="records") for table in app.dataframe]
    texts = [
        str(element.value) for kind in ("markdown", "caption", "error", "info", "success") for element in app.get(kind)
    ]
    charts = [element.proto.spec for element in app.get("plotly_chart")]
    return "\n".join([*tables, *texts, *charts]).replace("\\", "")


def assert_tells_no_count(text: str) -> None:
    """A small number of patients stands in no sentence, nor any number right beside the rare value."""
    for sentence in re.split(r"(?<=[.;])\s|\n", text):
        for rare in (RARE, COMBINED):
            told = sentence.partition(rare)[2][:60]
            assert not re.search(r"^[^A-Za-z\"]*\d", told), sentence[:200]
    found = re.search(r"(?<![\d.])[1-4] (labelled )?(patients|studies)\b(?! or)", text)
    assert found is None, text[max(found.start() - 80, 0) : found.end() + 40]


def test_reports_as_json_blank_the_rare_value_and_the_combination_and_what_would_give_them_away(home: Path) -> None:
    printed = run(home, "watch", "--model", MODEL, "--window", WINDOW.key, "--json")
    (report,) = json.loads(printed[printed.index("[\n") :])
    assert report["verdict"] == "DRIFT"
    assert "site" in report["reason"]
    rows = (*report["gaps"], *report["contributions"])
    rare = [row for row in rows if RARE in row["value"] or row["value"] == COMBINED]
    assert {row["value"] for row in rare} >= {RARE, COMBINED}
    for row in rare:
        assert all(row.get(name) is None for name in NUMBERS), row
    blank = {row["value"] for row in report["contributions"] if row["attribute"] == "site" and row["suppressed"]}
    assert len(blank) > 1, "one blank alone follows from the total"
    for gap in report["gaps"]:
        if gap["attribute"] == "site" and gap["value"] in blank:
            assert gap["n"] is gap["patients"] is None
    ages = [result for result in report["results"] if result["feature"] == "age"]
    assert [result["patients_current"] for result in ages] == [None], "less the total it counts who has no age"
    assert_tells_no_count(json.dumps(report, ensure_ascii=False))


@pytest.mark.parametrize(
    "words", [("watch", "--model", MODEL, "--window", WINDOW.key), ("status",), ("status", "--json")]
)
def test_what_commands_print_tells_no_small_count(home: Path, words: tuple[str, ...]) -> None:
    assert_tells_no_count(run(home, *words))


def test_events_and_files_beside_the_database_name_nothing_rare(home: Path) -> None:
    texts = [event.payload for event in open_ward(home).records.events()]
    texts += [path.read_text(encoding="utf-8") for path in (home / "references").rglob("*.json")]
    assert texts
    for text in texts:
        assert RARE not in text
        assert COMBINED not in text


@pytest.mark.parametrize("name", ["overview", "drift", "fairness"])
def test_pages_send_no_figure_of_the_rare(home: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARDROUND_DIR", str(home))
    sent = page(home, name)
    assert "site" in sent
    assert_tells_no_count(sent)
    for row in re.findall(r"\{[^{}]*(?:Zebra-7|F & east)[^{}]*\}", sent):
        figures = {key: value for key, value in json.loads(row).items() if isinstance(value, float | int)}
        assert not {key: value for key, value in figures.items() if key not in ("p needed",)}, row


@pytest.mark.slow
def test_evidently_sees_neither_the_rare_nor_a_single_number(home: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(home, tmp_path / "ward"))
    text = (copy / FILE_NAME).read_text(encoding="utf-8")
    (copy / FILE_NAME).write_text(text.replace("evidently = false", "evidently = true"), encoding="utf-8")
    ward = open_ward(copy)
    watch(ward, MODEL, WINDOW, at=AT)
    html = report_path(ward, MODEL, WINDOW).read_text(encoding="utf-8")
    assert POOLED in html
    assert RARE not in html
    assert str(OLDEST) not in html
    assert str(ODD_SCORE) not in html
    sides = (reference_of(ward, MODEL, ""), load_role(ward, MODEL, [WINDOW], None))
    single = {f"{score:.6f}" for side in sides for score in side.scores[:, 0]}
    assert not [score for score in single if score in html], "a score of one study"
