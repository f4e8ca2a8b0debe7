"""`wardround labels request` and `import` as a person uses them: plain words, clean JSON, exit codes for cron."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from flows.command_line import application
from registry.settings import FILE_NAME

pytestmark = [
    # avalanche 0.6 imports a package that says at import that nobody maintains it; nothing of it is used
    pytest.mark.filterwarnings("ignore:JAXopt is no longer maintained:DeprecationWarning"),
    # MLflow's own tables use a loader strategy that SQLAlchemy 2.1 deprecates
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning"),
]

WEEK = "2026-02-23/2026-03-02"


def call(*words: object, code: int = 0) -> Result:
    result = CliRunner().invoke(application, [str(word) for word in words], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result


def answer(*words: object, code: int = 0) -> Any:
    return json.loads(call(*words, "--json", code=code).stdout)


@pytest.fixture
def home(small: Any) -> Path:
    """Give the small ward with its fourth week taken in without any label."""
    with (small.directory / FILE_NAME).open("a", encoding="utf-8") as file:
        file.write("\n[adaptation.labels]\nnear_duplicate = 0.9999\n")
    path = small.export(3)
    rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [name for name in rows[0] if name != "label"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    call("ingest", path, "--dir", small.directory)
    return Path(small.directory)


def fill(path: Path, label: str) -> Path:
    back = path.parent / "back.csv"
    back.write_text(path.read_text(encoding="utf-8-sig").replace(",,,,", f",{label},Rahel,2026-03-03,"))
    return back


def test_a_worklist_goes_out_and_comes_back(home: Path) -> None:
    told = call("labels", "request", "--n", 10, "--window", WEEK, "--by", "emma.engineer", "--dir", home).stdout
    assert "5 drawn at random from " in told
    assert "5 chosen to learn from" in told
    assert "Readers write no or yes into label" in told
    (path,) = (home / "worklists").glob("wl-*.csv")
    status = call("status", "--dir", home).stdout
    assert f"Worklist {path.stem}, 0 days old: 0 of 10 studies have come back (0%)." in status
    back = fill(path, "yes")
    assert answer("labels", "import", back, "--dir", home)["accepted"] == 10
    again = answer("labels", "import", back, "--dir", home)
    assert (again["accepted"], again["duplicate"], again["received"]) == (0, 10, 10)
    assert answer("status", "--dir", home)["bright-left"]["worklists"] == []
    assert call("audit", "verify", "--dir", home)


def test_what_cannot_be_used_is_told_and_is_exit_code_5(home: Path) -> None:
    done = answer("labels", "request", "--n", 4, "--window", WEEK, "--out", home / "out.csv", "--dir", home)
    assert (done["studies"], done["path"], done["answers"]) == (4, str(home / "out.csv"), ["no", "yes"])
    told = call("labels", "import", fill(home / "out.csv", "perhaps"), "--dir", home, code=5).stdout
    assert "4 rows: 0 labels taken in, 0 known already, 0 empty, 0 in conflict, 4 in quarantine." in told
    assert "unknown class: 4" in told
    again = answer("labels", "request", "--again", done["worklist_id"], "--out", home / "2.csv", "--dir", home)
    assert again["studies"] == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("request",), "run `wardround plan`, or name windows with --window"),
        (("request", "--window", "last week"), "is not a window"),
        (("request", "--window", WEEK, "--by", "nobody"), "nobody"),
        (("import", "there-is-none.csv"), "does not exist"),
    ],
)
def test_what_cannot_be_done_is_one_line_with_the_cure(home: Path, words: tuple[str, ...], message: str) -> None:
    result = call("labels", *words, "--dir", home, code=2)
    assert result.stdout == ""
    assert re.match("Error: ", result.stderr)
    assert message in result.stderr
