"""`wardround simulate`: what is written is read by ingest, found by watch, the same twice, and never in the ward."""

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import Result
from PIL import Image, JpegImagePlugin
from pydicom.data import get_testdata_file
from typer.testing import CliRunner

from flows.command_line import application
from flows.ingesting import ingest_export
from flows.simulating import ask_for, describe, read_scenario, simulate
from flows.sources import SourceError
from flows.studies import read_export_studies, read_ward_studies
from flows.ward import StepRefused, Ward, load_role, open_ward, score_with
from flows.watching import watch
from monitor.results import DriftKind, Verdict
from monitor.synthetic import CHANGES, SIMULATED, Scenario

pytestmark = [
    # avalanche 0.6 imports a package that says at import that nobody maintains it; nothing of it is used
    pytest.mark.filterwarnings("ignore:JAXopt is no longer maintained:DeprecationWarning"),
]

AT = datetime(2026, 4, 6, tzinfo=UTC)
CLASSES = {"binary": ["no", "yes"], "multi-class": ["a", "b", "c"], "multi-label": ["x", "y"]}
SETTINGS = """
[models.m]
task = "{task}"
classes = {classes}
attributes = ["site", "age"]
numeric_attributes = ["age"]
[models.m.backbone]
name = "tiny"
source = "random"
image_size = 28
"""


def ward_in(directory: Path, task: str = "binary") -> Ward:
    directory.mkdir(parents=True)
    (directory / "wardround.toml").write_text(SETTINGS.format(task=task, classes=json.dumps(CLASSES[task])))
    return open_ward(directory)


def rows_of(n: int, task: str = "binary", **columns: Any) -> pd.DataFrame:
    rng, classes = np.random.default_rng(n), CLASSES[task]
    scores = rng.dirichlet(np.ones(len(classes)), n)
    answers = [rng.choice(["0", "1", ""], n) for _ in classes]
    plain: dict[str, Any] = {
        "study_uid": [f"s{i}" for i in range(n)],
        "patient_key": [f"p{i // 2}" for i in range(n)],
        "produced_at": [f"2026-03-{1 + i % 28:02d}T08:00:00+01:00" for i in range(n)],
        "model_version": "7",
        "site": [("A", "B", "")[i % 3] for i in range(n)],
        "age": ["" if i % 7 == 0 else 40 + i for i in range(n)],
    }
    if task == "binary":
        plain |= {"score": scores[:, 0]}
    else:
        plain |= {f"score_{name}": scores[:, k] for k, name in enumerate(classes)}
    if task == "multi-label":
        plain |= {f"label_{name}": answers[k] for k, name in enumerate(classes)}
    else:
        plain |= {"label": rng.choice([*classes, ""], n)}
    return pd.DataFrame(plain | columns)


def save(frame: pd.DataFrame, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(path, index=False)
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def call(*words: object, code: int = 0) -> Result:
    result = CliRunner().invoke(application, [str(word) for word in words], env={"COLUMNS": "80"})
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == code, result.output
    return result


def error(*words: object) -> str:
    result = call("simulate", *words, code=2)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line.removeprefix("Error: ")


# ---- the whole way: a rehearsal in a copy of a ward


def rehearse(small: Any, out: Path, *options: object) -> tuple[Any, Any]:
    """Simulate the first quiet week, ingest it into a copy of the ward, and watch that week there."""
    words = ("--from-export", small.export(0), "--out", out, "--dir", small.directory, "--json")
    told = json.loads(call("simulate", *options, *words).stdout)
    copy = shutil.copytree(small.directory, out.parent / f"{out.name}-ward")
    taken = json.loads(call("ingest", told["export"], "--dir", copy, "--rehearsal", "--json").stdout)
    assert (taken["received"], taken["accepted"]) == (told["studies"], told["studies"])
    return told, watch(open_ward(copy), small.model, small.weeks[0], at=AT)


def test_a_planted_change_of_images_is_found_and_no_change_is_not(small: Any, tmp_path: Path) -> None:
    before = small.rows(), sorted(tree(small.directory / "features"))
    told, report = rehearse(small, tmp_path / "dark", "--change", "contrast", "--strength", "0.8")
    assert (told["studies"], told["images_changed"], told["rescored"]) == (80, 80, 80)
    assert report.verdict is Verdict.DRIFT
    assert any(r.kind is DriftKind.APPEARANCE and r.verdict is Verdict.DRIFT for r in report.results)
    told, report = rehearse(small, tmp_path / "same", "--change", "contrast", "--strength", "0")
    assert (told["images_changed"], told["rescored"], told["notes"]) == (0, 0, [])
    assert report.verdict is Verdict.NO_DRIFT
    assert (small.rows(), sorted(tree(small.directory / "features"))) == before  # the ward itself was only read


def test_a_planted_missing_attribute_is_found_and_named(small: Any, tmp_path: Path) -> None:
    options = ("--change", "missing_attribute", "--attribute", "site", "--strength", "0.5")
    _, report = rehearse(small, tmp_path / "gone", *options)
    (found,) = (r for r in report.results if r.feature == "site")
    assert found.verdict is Verdict.DRIFT
    assert "site is missing in 50 % of studies, 0 % in the reference" in report.reason


def test_changed_images_get_the_scores_that_the_champion_gives_them(small: Any, tmp_path: Path) -> None:
    rehearse(small, tmp_path / "noisy", "--change", "noise=0.5", "--change", "score_offset=0.5")
    ward = open_ward(tmp_path / "noisy-ward")
    cohort = load_role(ward, small.model, [small.weeks[0]], None)
    champion = ward.records.champion(small.model)
    assert champion is not None
    own = score_with(ward, small.model, cohort, champion.adapter_sha256).scores
    odds = np.e * own / (1 - own)
    np.testing.assert_allclose(cohort.scores, odds / (1 + odds), rtol=1e-5)
    exported = pd.read_csv(tmp_path / "noisy" / "export.csv")
    assert set(exported["model_version"].astype(str)) == {champion.version}
    assert exported["study_uid"].str.startswith(SIMULATED).all()
    assert exported["patient_key"].str.startswith(SIMULATED).all()


def test_the_wards_own_studies_are_found_with_their_images(small: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--change", "contrast", "--only", "site=A", "--from", "2026-03-09", "--shift-days", "56")
    told = call("simulate", *options, "--out", out, "--dir", small.directory).stdout
    assert "160 studies of 160 patients" in told
    flat = " ".join(told.split())
    assert "Planted: contrast at strength 1, sudden from 2026-03-09T00:00:00+00:00 where site=A" in flat
    assert "160 of the studies are copies of studies in the reference window" in flat
    export, truth = (pd.read_csv(out / name) for name in ("export.csv", "planted.csv"))
    late = (export["produced_at"] >= "2026-03-09") & (export["site"] == "A")
    assert 0 < late.sum() < len(export)
    np.testing.assert_array_equal(truth["1 contrast"], late.astype(float))
    originals = {path.read_bytes() for path in (small.directory / "images").iterdir()}
    kept = [(out / name).read_bytes() in originals for name in export["image"]]
    np.testing.assert_array_equal(kept, ~late)
    assert json.loads((out / "scenario.json").read_text())["shift_days"] == 56


def test_without_an_adapter_scores_stay_and_a_note_says_so(small: Any, tmp_path: Path) -> None:
    shutil.rmtree(small.directory / "adapters")
    studies = read_export_studies(small.ward, small.model, small.export(0), images=True)
    done = simulate(small.ward, small.model, studies, ask_for(["contrast"], {}), tmp_path / "out")
    assert (done.images_changed, done.rescored) == (80, 0)
    assert "Scores are those of the unchanged images" in done.notes[0]
    exported = pd.read_csv(done.export, float_precision="round_trip")
    np.testing.assert_array_equal(exported["score"], studies.cohort.scores[:, 0])


# ---- what is written


@pytest.mark.parametrize("task", CLASSES)
def test_nothing_changed_is_the_same_but_for_names(task: str, tmp_path: Path) -> None:
    ward, source = ward_in(tmp_path / "ward", task), save(rows_of(40, task), tmp_path / "a" / "week.csv")
    studies = read_export_studies(ward, "m", source, images=True)
    done = simulate(ward, "m", studies, Scenario(), tmp_path / "out")
    dtypes: Any = {"label": str, "model_version": str, "label_x": str, "label_y": str}
    before, after = (pd.read_csv(path, dtype=dtypes, keep_default_na=False) for path in (source, done.export))
    for name in sorted(set(before.columns) - {"study_uid", "patient_key", "produced_at", "age"}):
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)
    assert list(pd.to_datetime(before["produced_at"], utc=True)) == list(pd.to_datetime(after["produced_at"], utc=True))
    assert list(pd.to_numeric(before["age"]).fillna(-1)) == list(pd.to_numeric(after["age"]).fillna(-1))


@pytest.mark.parametrize("task", CLASSES)
@pytest.mark.parametrize("name", [name for name, change in CHANGES.items() if change.needs != "images"])
def test_ingest_accepts_every_row_of_every_change(task: str, name: str, tmp_path: Path) -> None:
    ward, source = ward_in(tmp_path / "ward", task), save(rows_of(40, task), tmp_path / "a" / "week.csv")
    asked = {"case_mix": {"attribute": "age", "value": "60"}, "missing_attribute": {"attribute": "site"}}.get(name, {})
    studies = read_export_studies(ward, "m", source, images=True)
    done = simulate(ward, "m", studies, ask_for([f"{name}=0.7"], asked, seed=3), tmp_path / "out")
    taken = ingest_export(done.export, model="m", ward=ward_in(tmp_path / "copy", task), at=AT, rehearsal=True)
    assert (taken.received, taken.accepted) == (done.studies, done.studies)


def images_in(folder: Path) -> list[str]:
    """A grey JPEG, a colour JPEG, a grey PNG, a DICOM object."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(2)
    grey = np.rint(np.add.outer(np.arange(40), np.arange(50)) * 2 + rng.integers(0, 20, (40, 50))).astype(np.uint8)
    Image.fromarray(grey).save(folder / "grey.jpg", quality=80)
    Image.fromarray(np.stack([grey, grey // 2, 255 - grey], axis=2)).save(folder / "colour.jpeg", quality=70)
    Image.fromarray(grey).save(folder / "grey.png")
    shutil.copyfile(get_testdata_file("CT_small.dcm"), folder / "ct.dcm")
    return [f"images/{name}" for name in ("grey.jpg", "colour.jpeg", "grey.png", "ct.dcm")]


def test_a_changed_image_is_stored_as_the_archive_stores_it(tmp_path: Path) -> None:
    ward = ward_in(tmp_path / "ward")
    names = images_in(tmp_path / "a" / "images")
    source = save(rows_of(4, image=names), tmp_path / "a" / "week.csv")
    studies = read_export_studies(ward, "m", source, images=True)
    done = simulate(ward, "m", studies, ask_for(["contrast=0.8"], {}), tmp_path / "out")
    written = [tmp_path / "out" / name for name in pd.read_csv(done.export)["image"]]
    assert [path.suffix for path in written] == [".jpg", ".jpg", ".png", ".png"]
    for path, original in list(zip(written, names, strict=True))[:3]:
        with Image.open(path) as after, Image.open(tmp_path / "a" / original) as before:
            assert (after.size, after.mode) == (before.size, before.mode)
            if isinstance(before, JpegImagePlugin.JpegImageFile):
                assert isinstance(after, JpegImagePlugin.JpegImageFile)
                assert after.quantization == before.quantization
                assert JpegImagePlugin.get_sampling(after) == JpegImagePlugin.get_sampling(before)
            assert np.asarray(after).mean() < np.asarray(before).mean() - 10
    with Image.open(written[3]) as after:
        assert (after.size, after.mode) == ((128, 128), "L")
    assert ingest_export(done.export, model="m", ward=ward, at=AT, rehearsal=True).accepted == 4
    unchanged = simulate(ward, "m", studies, ask_for(["blur=0"], {}), tmp_path / "same")
    same = [tmp_path / "same" / name for name in pd.read_csv(unchanged.export)["image"]]
    assert [path.read_bytes() for path in same] == [(tmp_path / "a" / name).read_bytes() for name in names]


def test_the_same_scenario_is_the_same_byte_for_byte_and_another_seed_is_not(tmp_path: Path) -> None:
    ward = ward_in(tmp_path / "ward")
    source = save(rows_of(4, image=images_in(tmp_path / "a" / "images")), tmp_path / "a" / "week.csv")
    for name, seed in (("one", 5), ("two", 5), ("three", 6)):
        studies = read_export_studies(ward, "m", source, images=True)
        asked = ask_for(["noise=0.5", "bias_field", "label_noise=0.5"], {}, seed=seed)
        simulate(ward, "m", studies, asked, tmp_path / name)
    one, two, three = (tree(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two
    assert {name for name in one if name.startswith("images")}.isdisjoint(three)


def test_rows_that_ingest_would_refuse_are_left_out_and_counted(tmp_path: Path) -> None:
    frame = rows_of(10)
    frame.loc[3, "score"] = np.nan
    frame.loc[4, "produced_at"] = "yesterday"
    ward = ward_in(tmp_path / "ward")
    studies = read_export_studies(ward, "m", save(frame, tmp_path / "a.csv"), images=True)
    done = simulate(ward, "m", studies, ask_for(["score_offset"], {}), tmp_path / "out")
    assert done.studies == 8
    assert done.notes == ("2 studies could not be used (no image, or refused by ingest) and are left out.",)
    with pytest.raises(StepRefused, match=r"no row of .* can be used; `wardround ingest` tells why"):
        read_export_studies(ward, "m", save(frame[3:5], tmp_path / "b.csv"), images=True)


# ---- what is asked for


def test_a_scenario_file_says_the_same_as_options(tmp_path: Path) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(
        "seed = 4\nshift_days = 7\n"
        '[[changes]]\nchange = "blur"\nstrength = 0.5\ncourse = "gradual"\nstart = 2026-04-06\nuntil = "2026-05-04"\n'
        '[[changes]]\nchange = "new_site"\nstrength = 0.25\nvalue = "north"\n'
        'course = "gradual"\nstart = 2026-04-06T00:00:00Z\nuntil = 2026-05-04\n'
    )
    shared = {"course": "gradual", "start": "2026-04-06", "until": "2026-05-04", "strength": 0.5, "value": "north"}
    asked = ask_for(["blur", "new_site=0.25"], shared, seed=4, shift_days=7)
    assert read_scenario(path) == asked
    assert describe(asked.changes[1]) == (
        "new_site to north at strength 0.25, gradual from 2026-04-06T00:00:00+00:00 until 2026-05-04T00:00:00+00:00"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed = [", "is not valid TOML"),
        ("sed = 1", "cannot be used; sed: Extra inputs are not permitted"),
        ('[[changes]]\nchange = "sepia"', "cannot be used; 0: there is no change 'sepia'"),
        ('[[changes]]\nchange = "blur"\nstrength = 2', "0.strength: Input should be less than or equal to 1"),
    ],
)
def test_a_scenario_file_that_cannot_be_meant_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_scenario(path)


def test_the_list_names_every_change(tmp_path: Path) -> None:
    shown = call("simulate", "--list").stdout
    assert all(name in shown for name in CHANGES)
    listed = json.loads(call("simulate", "--list", "--json").stdout)
    assert list(listed) == list(CHANGES)
    assert listed["case_mix"]["asks"] == ["attribute", "value"]


def test_mistakes_are_one_line_that_names_the_cure(tmp_path: Path) -> None:
    home = tmp_path / "home" / "ward"
    ward = ward_in(home)
    names = images_in(tmp_path / "a" / "images")
    source = save(rows_of(4, image=names), tmp_path / "a" / "week.csv")
    ingest_export(source, model="m", ward=ward, at=AT)
    out, at = ("--out", tmp_path / "out"), ("--dir", home)
    blur = ("--change", "blur")
    assert "name a new folder for what is simulated with --out" in error(*blur, *at)
    assert "`wardround simulate --list` shows them" in error(*out, *at)
    assert "there is no change 'sepia'; choose one of" in error("--change", "sepia", *out, *at)
    assert "strength: Input should be less than or equal to 1" in error("--change", "blur=3", *out, *at)
    assert "none of blur takes --value; leave it out" in error(*blur, "--value", "x", *out, *at)
    assert "give either --scenario or --change" in error(*blur, "--scenario", source, *out, *at)
    assert "name the folder that its export lay in with --images" in error(*blur, *out, *at)
    assert "is not a window" in error(*blur, *out, *at, "--window", "soon")
    assert "there are no studies to start from" in error(*blur, *out, *at, "--window", "2020-01-01/2020-02-01")
    assert "blur changes images, and these studies have none" in error(*blur, *out, *at, "--no-images")
    found = (*blur, *at, "--images", source.parent)
    for inside in (home / "sim", home, home.parent):
        assert "inside the ward" in error(*found, "--out", inside)
    assert "there already and not empty" in error(*found, "--out", source.parent)
    assert "no attribute 'town'" in error(*found, *out, "--only", "town=B")
    assert not (tmp_path / "out").exists()
    (tmp_path / "a" / names[0]).write_bytes(b"another")
    assert "is not the one that was ingested" in error(*found, *out)
    shutil.copyfile(tmp_path / "a" / names[2], tmp_path / "a" / names[0])


def test_studies_without_an_image_are_left_out_where_others_have_one(tmp_path: Path) -> None:
    ward = ward_in(tmp_path / "ward")
    names = images_in(tmp_path / "ward" / "images")
    ingest_export(save(rows_of(4, image=names), tmp_path / "ward" / "a.csv"), model="m", ward=ward, at=AT)
    more = rows_of(6).iloc[4:]
    ingest_export(save(more, tmp_path / "ward" / "b.csv"), model="m", ward=ward, at=AT)
    studies = read_ward_studies(ward, "m", window=None, folder=None, images=True)
    assert (len(studies.cohort), studies.left_out) == (4, 2)
    assert len(read_ward_studies(ward, "m", window=None, folder=None, images=False).cohort) == 6


# ---- never into the ward that watches real patients


def test_a_simulated_export_is_refused_until_the_ward_is_a_rehearsal(tmp_path: Path) -> None:
    home = tmp_path / "ward"
    ward = ward_in(home)
    real = save(rows_of(4), tmp_path / "a" / "week.csv")
    ingest_export(real, model="m", ward=ward, at=AT)
    studies = read_export_studies(ward, "m", real, images=False)
    planted = simulate(ward, "m", studies, ask_for(["score_offset"], {}), tmp_path / "out").export
    told = call("ingest", planted, "--dir", home, code=2).stderr
    assert "line 2: the study is simulated" in told
    assert "into a copy of the ward with --rehearsal, which marks the copy for ever" in told
    mixed = tmp_path / "mixed.csv"
    pd.concat([rows_of(3), pd.read_csv(planted)]).to_csv(mixed, index=False)
    with pytest.raises(SourceError, match=r"mixed\.csv, line 5: the study is simulated"):
        ingest_export(mixed, model="m", ward=ward, at=AT)
    assert len(ward.records.load_cohort("m")) == 4
    assert not ward.records.is_rehearsal

    copy = tmp_path / "copy"
    shutil.copytree(home, copy)
    for flags in (["--rehearsal"], [], ["--rehearsal"]):
        call("ingest", planted, "--dir", copy, *flags)
    records = open_ward(copy).records
    assert records.is_rehearsal
    assert len(records.load_cohort("m")) == 8
    assert len(records.events(kind="ward.rehearsal")) == 1
    assert "a rehearsal" in call("status", "--dir", copy).stdout
    assert "a rehearsal" not in call("status", "--dir", home).stdout
