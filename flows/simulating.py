"""Simulate: real studies, changed as a scenario says, as an export that ingest reads. Nothing is written into the ward.

The folder gets ``images/`` (named by content), ``scenario.json`` (what was asked for), ``planted.csv`` (how strongly
each change was asked of each study: the truth that alarms are held against), and last ``export.csv``.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin
from pydantic import ValidationError

from continual.adapters import AdapterRefused, choose_inputs, score
from continual.files import write_atomically
from continual.images import read_image, read_native
from continual.weights import WeightsRefused
from flows.sources import label_columns, score_columns
from flows.studies import Studies
from flows.ward import StepRefused, Ward, adapter_of, backbone_of, windows_of
from monitor.cohorts import MISSING, Cohort
from monitor.synthetic import (
    CHANGES,
    ChangeRequest,
    Planted,
    Scenario,
    image_generator,
    mark_simulated,
    plant_changes,
)
from monitor.synthetic_images import IMAGE_CHANGES, change_image
from monitor.tasks import TASKS
from registry.settings import ModelSettings

BATCH = 32
CHUNK = 5_000
JPEG = b"\xff\xd8\xff"
AGREEING = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """What was written, and what a person must know before relying on it."""

    export: Path
    studies: int
    patients: int
    images_changed: int
    rescored: int
    changes: tuple[str, ...]
    notes: tuple[str, ...]


def ask_for(changes: Sequence[str], shared: Mapping[str, Any], *, seed: int = 0, shift_days: int = 0) -> Scenario:
    """Make a scenario of changes written as NAME or NAME=STRENGTH, which share everything else.

    Raises:
        ValueError: a change that there is not, or that misses or does not take what was given.
    """
    if not changes:
        raise ValueError("name at least one change with --change; `wardround simulate --list` shows them")
    given = {name: value for name, value in shared.items() if value not in (None, "")}
    requests = []
    for text in changes:
        name, _, strength = text.partition("=")
        takes = (*CHANGES[name].asks, *CHANGES[name].takes) if name in CHANGES else ()
        fitting = {key: value for key, value in given.items() if key not in ("attribute", "value") or key in takes}
        requests.append({**fitting, "change": name} | ({"strength": strength} if strength else {}))
    for key in ("attribute", "value"):
        if key in given and not any(key in request for request in requests):
            raise ValueError(f"none of {', '.join(changes)} takes --{key}; leave it out")
    return _validated({"changes": requests, "seed": seed, "shift_days": shift_days}, "this cannot be simulated")


def read_scenario(path: Path) -> Scenario:
    """Read a scenario from TOML: seed, shift_days and a [[changes]] table for each change.

    Raises:
        ValueError: broken TOML, an unknown key or a value out of range.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from None
    return _validated(content, f"{path} cannot be used")


def simulate(ward: Ward, model: str, studies: Studies, scenario: Scenario, out: Path) -> Simulation:
    """Write the changed studies into a new folder, as an export for ``ingest``; the same scenario, the same bytes.

    Where images change and the champion's adapter and backbone are at hand, it answers the changed images; otherwise
    the scores stay those of the originals, and a note says so.

    Raises:
        StepRefused: the folder is not new, or inside the ward, or around it.
        ValueError: the studies lack what a change needs.
    """
    _check_folder(ward, out)
    plant_changes(studies.cohort, scenario)  # what cannot be planted is refused before anything is written
    writing = _Writing(ward=ward, model=model, studies=studies, scenario=scenario, folder=out / "images")
    planted = plant_changes(studies.cohort, scenario, answer=writing.answer if studies.images else None)
    planted = replace(planted, cohort=mark_simulated(planted.cohort, scenario))
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "scenario.json", (scenario.model_dump_json(indent=2) + "\n").encode())
    write_atomically(out / "planted.csv", _csv(_truth(planted, scenario)))
    export = out / "export.csv"
    versions = writing.versions or [studies.versions[row] for row in planted.rows]
    frame = _frame(planted.cohort, ward.settings.model(model), images=writing.names, versions=versions)
    write_atomically(export, _csv(frame))  # last: a folder with an export is complete
    return Simulation(
        export=export,
        studies=len(planted.cohort),
        patients=planted.cohort.patients,
        images_changed=writing.changed,
        rescored=writing.rescored,
        changes=tuple(map(describe, scenario.changes)),
        notes=(*_notes(ward, model, studies, planted), *writing.notes),
    )


def describe(request: ChangeRequest) -> str:
    """Say in a few words what was asked for."""
    words = [request.change, *([f"of {request.attribute}"] if request.attribute else [])]
    words += [f"to {request.value}"] if request.value else []
    words += [f"at strength {request.strength:g}, {request.course}"]
    words += [
        f"{word} {moment.isoformat()}" for word, moment in (("from", request.start), ("until", request.until)) if moment
    ]
    return " ".join([*words, *([f"where {request.only}"] if request.only else [])])


@dataclass(slots=True, kw_only=True)
class _Writing:
    """Writes the images of a simulation, and what came of it."""

    ward: Ward
    model: str
    studies: Studies
    scenario: Scenario
    folder: Path
    names: list[str] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    changed: int = 0
    rescored: int = 0

    def answer(self, planted: Planted) -> NDArray[np.float64]:
        """Write every image, and give the scores that belong to them."""
        self.folder.mkdir(parents=True)
        originals = [self.studies.images[row] for row in planted.rows]
        differs = np.zeros(len(originals), dtype=np.bool_)
        for number, original in enumerate(originals):
            content, suffix = self._change(planted, number, original)
            differs[number] = content is not None
            name = self._store(original.read_bytes() if content is None else content, suffix)
            self.names.append(f"{self.folder.name}/{name}")
            self.ward.progress("Changing images", number + 1, len(originals))
        self.changed = int(differs.sum())
        self.versions = [self.studies.versions[row] for row in planted.rows]
        return self._rescore(planted, originals, np.flatnonzero(differs)) if self.changed else planted.cohort.scores

    def _change(self, planted: Planted, number: int, original: Path) -> tuple[bytes | None, str]:
        """Give the changed file and its suffix; None where the image stays what it was, byte for byte."""
        asked = [
            (place, request.change, strength)
            for place, request in enumerate(self.scenario.changes)
            if request.change in IMAGE_CHANGES and (strength := float(planted.strengths[number, place])) > 0
        ]
        if not asked:
            return None, original.suffix
        before = read_native(original)
        grey = bool((before == before[..., :1]).all())
        after: NDArray[Any] = before[..., 0] if grey else before
        for place, name, strength in asked:
            generator = image_generator(self.scenario, place, str(planted.cohort.study_uid[number]))
            after = change_image(after, name, strength=strength, generator=generator)
        same = np.array_equal(after, before[..., 0] if grey else before)
        return (None, original.suffix) if same else _encode(after, original)

    def _store(self, content: bytes, suffix: str) -> str:
        name = f"{hashlib.sha256(content).hexdigest()[:32]}{suffix.lower()}"
        if not (self.folder / name).exists():
            (self.folder / name).write_bytes(content)
        return name

    def _rescore(self, planted: Planted, originals: Sequence[Path], rows: NDArray[np.intp]) -> NDArray[np.float64]:
        scores, champion = planted.cohort.scores.copy(), self.ward.records.champion(self.model)
        try:
            if champion is None:
                raise AdapterRefused("the ward has no champion")
            answer = _answering(self.ward, self.model, champion.adapter_sha256)
            some = rows[:BATCH]
            known = answer([originals[row] for row in some])
            scores[rows] = answer([self.folder.parent / self.names[row] for row in rows])
        except (AdapterRefused, WeightsRefused) as error:
            self.notes.append(
                f"Scores are those of the unchanged images, since no model could answer the changed ones ({error}): "
                "let your model answer them, or expect drift of appearance alone."
            )
            return scores
        apart = float(np.abs(known - planted.cohort.scores[some]).max())
        if apart > AGREEING:
            self.notes.append(
                f"On {len(some)} unchanged images the champion's scores differ from the stored ones by up to "
                f"{apart:.3f}: a drift of scores may come from that."
            )
        for row in rows:
            self.versions[row] = champion.version
        self.rescored = len(rows)
        return scores


def _answering(ward: Ward, model: str, adapter_sha256: str) -> Callable[[Sequence[Path]], NDArray[np.float64]]:
    """Load the champion; its features of simulated images are not stored."""
    adapter, backbone = adapter_of(ward, model, adapter_sha256), backbone_of(ward, model)

    def answer(paths: Sequence[Path]) -> NDArray[np.float64]:
        parts = []
        for start in range(0, len(paths), BATCH):
            pixels = [read_image(path, backbone.card.image_size) for path in paths[start : start + BATCH]]
            parts.append(score(adapter, choose_inputs(adapter.card.reads, backbone.embed(np.stack(pixels)))))
            ward.progress("Scoring images", min(start + BATCH, len(paths)), len(paths))
        return np.concatenate(parts)

    return answer


def _encode(pixels: NDArray[np.uint8], like: Path) -> tuple[bytes, str]:
    """Encode as the archive did: a JPEG with the tables of the original, so that only the planted change is new.

    Everything else becomes PNG, which keeps every pixel.
    """
    buffer = BytesIO()
    with like.open("rb") as file:
        if file.read(len(JPEG)) == JPEG:
            with Image.open(like, formats=("JPEG",)) as original:
                if original.mode in ("L", "RGB") and isinstance(original, JpegImagePlugin.JpegImageFile):
                    picture = Image.fromarray(pixels).convert(original.mode)
                    sampling = JpegImagePlugin.get_sampling(original)
                    picture.save(buffer, "JPEG", qtables=original.quantization, subsampling=sampling)
                    return buffer.getvalue(), ".jpg"
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue(), ".png"


def _check_folder(ward: Ward, out: Path) -> None:
    home, target = ward.settings.directory.resolve(), out.resolve()
    if target.is_relative_to(home) or home.is_relative_to(target):
        raise StepRefused(
            f"{out} is inside the ward {home}, or around it, and a rehearsal never writes there; name another --out"
        )
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise StepRefused(f"{out} is there already and not empty; name a new folder with --out")


def _frame(cohort: Cohort, settings: ModelSettings, *, images: Sequence[str], versions: Sequence[str]) -> pd.DataFrame:
    """Put a cohort into the columns of an export."""
    columns: dict[str, Any] = {
        "study_uid": cohort.study_uid,
        "patient_key": cohort.patient_key,
        "produced_at": [f"{moment}Z" for moment in np.datetime_as_string(cohort.times, unit="us")],
        "model_version": list(versions),
        **({"image": list(images)} if images else {}),
        **dict(zip(score_columns(settings), cohort.scores.T, strict=True)),
    }
    names = ("0", "1") if TASKS[settings.task].label_per_finding else settings.classes
    for name, labels in zip(label_columns(settings), cohort.labels.T, strict=True):
        columns[name] = ["" if np.isnan(label) else names[int(label)] for label in labels]
    for name, column in cohort.attributes.items():
        columns[name] = column if column.dtype.kind == "f" else np.where(column == MISSING, "", column)
    return pd.DataFrame(columns)


def _truth(planted: Planted, scenario: Scenario) -> pd.DataFrame:
    columns = {
        f"{place} {request.change}": planted.strengths[:, place - 1]
        for place, request in enumerate(scenario.changes, start=1)
    }
    return pd.DataFrame({"study_uid": planted.cohort.study_uid, **columns})


def _csv(frame: pd.DataFrame) -> bytes:
    return frame.to_csv(index=False, lineterminator="\n").encode()


def _notes(ward: Ward, model: str, studies: Studies, planted: Planted) -> list[str]:
    notes = []
    if studies.left_out:
        notes.append(f"{studies.left_out} studies could not be used (no image, or refused by ingest) and are left out.")
    if ward.settings.model(model).reference:
        champion = ward.records.champion(model)
        kept = studies.cohort.select(planted.rows)
        copies = sum(len(kept.within(one)) for one in windows_of(ward, model, champion.version if champion else ""))
        if copies:
            notes.append(
                f"{copies} of the studies are copies of studies in the reference window, closer to it than new "
                "patients would be; take later ones with --window."
            )
    return notes


def _validated(content: Mapping[str, Any], sentence: str) -> Scenario:
    try:
        return Scenario(**content)
    except ValidationError as error:
        problems = [
            f"{'.'.join(str(part) for part in problem['loc'] if part != 'changes')}: "
            f"{problem['msg'].removeprefix('Value error, ')}"
            for problem in error.errors()
        ]
        raise ValueError(f"{sentence}; {'; '.join(problems)}") from None
