"""Settings: unknown keys are refused by name, the environment wins, and the template tells the truth."""

import re
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import pytest

from continual.backbone_cards import Loading
from flows.starting import TEMPLATE, start_ward
from registry.records import open_records
from registry.settings import (
    BackboneSettings,
    ModelSettings,
    Settings,
    SettingsError,
    read_settings,
    read_window,
    weights_path,
)

AT = datetime(2026, 1, 5, tzinfo=UTC)


def write(directory: Path, content: str) -> Path:
    (directory / "wardround.toml").write_text(content, encoding="utf-8")
    return directory


def test_a_missing_file_names_the_command_that_writes_one(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"wardround.toml does not exist; run `wardround init --dir .*` first"):
        read_settings(tmp_path)


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ("colour = 1", "colour"),
        ("[drift]\nalhpa = 0.01", "drift.alhpa"),
        ("[models.m]\nclases = ['no', 'yes']", "models.m.clases"),
        ("[models.m.backbone]\nsize = 112", "models.m.backbone.size"),
        ("[gate]\nmargins = 1", "gate.margins"),
        ("[adaptation]\nepoch = 1", "adaptation.epoch"),
        ("[roles]\ntraining = 0.5", "roles.training"),
    ],
)
def test_an_unknown_key_is_refused_by_its_name(tmp_path: Path, content: str, key: str) -> None:
    with pytest.raises(SettingsError, match=rf"cannot be used; {re.escape(key)}: Extra inputs are not permitted"):
        read_settings(write(tmp_path, content))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[drift]\nfalse_alarms_per_year = 0", "drift.false_alarms_per_year"),
        ("[roles]\nlearning = 0.9", r"learning \+ held_out \+ reference must be 1"),
        ("[models.m]\nclasses = ['yes', 'yes']", "needs at least 2 different classes"),
        ("[models.m]\nnumeric_attributes = ['age']", "must also stand in attributes: .*age"),
        ("[models.m]\ntask = 'poetry'", "models.m.task"),
        ("[models.m]\nreference = 'spring'", "'spring' is not a window; write its first day and the day after it"),
        ("[models.m.backbone]\ndownload = true\nrevision = 'main'", "needs revision, the 40 hexadecimal digits"),
        ("[models.m.backbone]\nsha256 = 'abc'", "models.m.backbone.sha256"),
        ("[models.m.backbone]\ndevice = 'mps'", "models.m.backbone.device"),
        ("[models.m", "is not valid TOML"),
    ],
)
def test_a_value_that_is_not_allowed_is_named_in_one_line(tmp_path: Path, content: str, told: str) -> None:
    with pytest.raises(SettingsError, match=told) as refused:
        read_settings(write(tmp_path, content))
    assert "\n" not in str(refused.value)


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"drift\.false_alarms_per_year: .*; gate\.margin: "):
        read_settings(write(tmp_path, "[drift]\nfalse_alarms_per_year = -2\n[gate]\nmargin = -1"))


def test_the_environment_stands_above_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "[drift]\nfalse_alarms_per_year = 3\nminimum_patients = 30")
    monkeypatch.setenv("WARDROUND_DRIFT__FALSE_ALARMS_PER_YEAR", "0.5")
    settings = read_settings(tmp_path)
    assert (settings.drift.false_alarms_per_year, settings.drift.minimum_patients) == (0.5, 30)
    monkeypatch.setenv("WARDROUND_DRIFT__FALSE_ALARMS_PER_YEAR", "0")
    with pytest.raises(SettingsError, match=r"drift\.false_alarms_per_year"):
        read_settings(tmp_path)


def test_the_folder_that_a_command_names_by_environment_is_no_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WARDROUND_DIR", "/elsewhere")
    assert read_settings(write(tmp_path, "")).directory == tmp_path.resolve()


def test_a_backbone_is_loaded_as_the_settings_say_from_a_path_beside_them(tmp_path: Path) -> None:
    more = f"revision = '{'a1' * 20}'\ndownload = true\nmean = [0.5, 0.5, 0.5]\nlicence = 'ours'\nprecision = 'float32'"
    settings = read_settings(write(tmp_path, f"[models.m.backbone]\nsource = 'timm'\npath = 'weights/uni'\n{more}"))
    backbone = settings.model("m").backbone
    assert backbone.loading == Loading(
        download=True, revision="a1" * 20, mean=(0.5, 0.5, 0.5), licence="ours", precision="float32"
    )
    assert weights_path(settings, backbone) == str(tmp_path.resolve() / "weights" / "uni")
    assert weights_path(settings, BackboneSettings()) == ""
    assert BackboneSettings().loading == Loading()


def test_databases_lie_beside_the_settings_unless_they_are_named(tmp_path: Path) -> None:
    settings = read_settings(write(tmp_path, ""))
    assert settings.database_url == f"sqlite:///{tmp_path.resolve() / 'wardround.db'}"
    assert settings.tracking_uri == f"sqlite:///{tmp_path.resolve() / 'mlflow.db'}"
    settings = read_settings(write(tmp_path, 'database = "postgresql://h/w"\ntracking = "http://h:5000"'))
    assert (settings.database_url, settings.tracking_uri) == ("postgresql://h/w", "http://h:5000")


def test_an_unknown_model_is_told_with_those_that_there_are(tmp_path: Path) -> None:
    settings = read_settings(write(tmp_path, "[models.a]\n[models.b]"))
    with pytest.raises(SettingsError, match=r"no model 'c' in wardround.toml \(there: a, b\)"):
        settings.model("c")
    with pytest.raises(SettingsError, match="there: none yet"):
        read_settings(write(tmp_path, "")).model("c")


@pytest.mark.parametrize("text", ["spring", "2026-03-30", "2026-04-06/2026-03-30", "a/b/c", ""])
def test_what_is_no_window_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="as 2026-03-30/2026-04-06"):
        read_window(text)


def test_a_window_reads_back_what_its_key_says() -> None:
    assert read_window("2026-03-30/2026-04-06").key == "2026-03-30/2026-04-06"


# ---- init


def test_init_writes_what_reads_back_and_registers_the_model(tmp_path: Path) -> None:
    path = start_ward(tmp_path / "new" / "ward", "chest-xray", at=AT)
    settings = read_settings(path.parent)
    assert list(settings.models) == ["chest-xray"]
    assert open_records(settings.database_url).models() == settings.models


def test_init_never_overwrites(tmp_path: Path) -> None:
    write(tmp_path, "# mine")
    with pytest.raises(SettingsError, match="exists already; edit it, or choose another --dir"):
        start_ward(tmp_path, "m", at=AT)
    assert (tmp_path / "wardround.toml").read_text() == "# mine"


def test_the_template_says_what_holds_without_it() -> None:
    """A key that is deleted keeps its value: what the template shows is the default, but for the attributes."""
    shown = tomllib.loads(TEMPLATE.format(name="m"))
    example = ModelSettings(attributes=("site", "device", "sex", "age"), numeric_attributes=("age",))
    assert Settings(**shown) == Settings(models={"m": example})


def test_the_comments_of_the_template_are_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = TEMPLATE.format(name="m")
    commented = re.search(r'^# (reference = "\S+")', text, re.MULTILINE)
    assert commented
    settings = read_settings(write(tmp_path, text.replace(f"# {commented[1]}", commented[1])))
    assert settings.model("m").reference == "2026-01-05/2026-03-30"
    named = re.search(r"(WARDROUND_\w+)=(\S+) sets false_alarms", text)
    assert named
    monkeypatch.setenv(named[1], named[2])
    assert read_settings(tmp_path).drift.false_alarms_per_year == 2
