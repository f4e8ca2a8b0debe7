"""Patients who arrive at a model, day after day, as usual or changed.

Images are real brain MRI slices, one a patient, drawn with replacement from near-duplicate groups so that every window
is a sample of one population: their embeddings (the leading 64 principal directions, 95 % of the variance), the
product's image statistics and the label. Age, sex and view are rows of the NIH ChestX-ray14 table, with its
findings as label where there are no images. Scores are simulated: their logits have a standard deviation of 1 within a
label and a mean 2 higher where it is yes.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.worlds import CHANGES, FOREIGN_SOURCE, real_embeddings, real_statistics
from monitor.cohorts import Cohort, Window
from monitor.tasks import Task

START = datetime(2026, 1, 5, tzinfo=UTC)
WIDTH = 64
LOGIT_SPREAD = 1.4  # of all logits, at about as many labels yes as no


@dataclass(frozen=True, slots=True, kw_only=True)
class Ward:
    """What a model of the benchmark has by default: images or none, patients in the reference and in a window."""

    images: bool
    reference: int
    patients: int
    days: int = 1

    @property
    def windows_a_year(self) -> int:
        return 365 // self.days


WARDS: Mapping[str, Ward] = {
    "images, daily": Ward(images=True, reference=250, patients=25),
    "table, daily": Ward(images=False, reference=1_001, patients=30),
    "large reference, daily": Ward(images=True, reference=2_001, patients=50),
    "images, weekly": Ward(images=True, reference=600, patients=60, days=7),
}
"""Every set of detectors that the product has by default: with images learned from with each window and fitted once,
without images, with small and with large-sample column tests; the weekly one crosses from one to the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """How patients differ from the usual: ``pixels`` out of CHANGES, ``age`` and ``score`` (of its logit) in standard
    deviations, ``ill`` points of prevalence more, ``foreign`` share from a source never seen.
    """

    pixels: str = "none"
    age: float = 0.0
    score: float = 0.0
    ill: float = 0.0
    foreign: float = 0.0


QUIET = Change()
PLANTED: Mapping[str, Change] = {
    "mild blur": Change(pixels="mild blur"),
    "contrast": Change(pixels="contrast"),
    "noise": Change(pixels="noise"),
    "10 % of a new source": Change(foreign=0.1),
    "age +0.2 SD": Change(age=0.2),
    "age +0.5 SD": Change(age=0.5),
    "age +0.8 SD": Change(age=0.8),
    "scores +0.2 SD": Change(score=0.2),
    "scores +0.5 SD": Change(score=0.5),
    "scores +0.8 SD": Change(score=0.8),
    "prevalence +15 points": Change(ill=0.15),
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sources:
    """Slices by change: embeddings (n, WIDTH) and statistics (n,) by name; labels, source and the table by row."""

    embeddings: Mapping[str, NDArray[np.float32]]
    statistics: Mapping[str, Mapping[str, NDArray[np.float64]]]
    ill: NDArray[np.bool_]
    foreign: NDArray[np.bool_]
    table: Mapping[str, NDArray[Any]]
    table_ill: NDArray[np.bool_]


@cache
def load_sources() -> Sources:
    """Read what patients are drawn from: one slice a patient, one row of the table a patient."""
    slices = real_embeddings()
    first = np.sort(np.unique(slices.patients, return_index=True)[1])
    values = slices.values[first].astype(np.float64)
    axes = np.linalg.svd(values - values.mean(axis=0), full_matrices=False)[2][:WIDTH].T
    folder = Path(str(importlib.metadata.distribution("torchxrayvision").locate_file("torchxrayvision/data")))
    table = pd.read_csv(next(folder.glob("Data_Entry_2017*.csv.gz"))).drop_duplicates("Patient ID")
    ages = table["Patient Age"].astype(str).str.extract(r"(\d+)")[0].astype(float).clip(0, 100).to_numpy()
    words = {"sex": "Patient Gender", "view": "View Position"}
    return Sources(
        embeddings={
            change: ((real_embeddings(change).values[first] - values.mean(axis=0)) @ axes).astype(np.float32)
            for change in CHANGES
        },
        statistics={change: {n: c[first] for n, c in real_statistics(change).items()} for change in CHANGES},
        ill=slices.labels[first] == "yes",
        foreign=slices.sources[first] == FOREIGN_SOURCE,
        table={"age": ages} | {name: table[column].to_numpy(dtype=np.str_) for name, column in words.items()},
        table_ill=(table["Finding Labels"] != "No Finding").to_numpy(dtype=np.bool_),
    )


class Arrivals:
    """Patients who arrive, each once, with one study."""

    def __init__(self, ward: Ward, generator: np.random.Generator) -> None:
        self.ward, self.generator, self.next = ward, generator, 0

    def draw(self, n: int, window: Window, change: Change = QUIET) -> Cohort:
        """Draw the studies of a window, evenly spaced in it."""
        sources, rng, numbers = load_sources(), self.generator, np.arange(self.next, self.next + n)
        self.next += n
        known = sources.ill if self.ward.images else sources.table_ill
        usual = np.flatnonzero(~sources.foreign) if self.ward.images else np.arange(len(known))
        rows = self._pick(usual, known, n, change)
        people = rng.integers(len(sources.table_ill), size=n) if self.ward.images else rows
        attributes = {name: column[people] for name, column in sources.table.items()}
        attributes["age"] = attributes["age"] + change.age * sources.table["age"].std()
        ill = known[rows]
        logits = rng.normal(2.0 * ill - 1.0, 1.0) + change.score * LOGIT_SPREAD
        images = self.ward.images
        statistics = sources.statistics[change.pixels] if images else {}
        return Cohort(
            task=Task.BINARY,
            classes=("no", "yes"),
            study_uid=np.char.mod("s%07d", numbers),
            patient_key=np.char.mod("p%07d", numbers),
            times=np.datetime64(window.start.replace(tzinfo=None), "us")
            + np.arange(n) * np.timedelta64((window.end - window.start) // n),
            scores=(1 / (1 + np.exp(-logits)))[:, None],
            labels=ill.astype(np.float64)[:, None],
            attributes=attributes,
            embeddings=sources.embeddings[change.pixels][rows] if images else None,
            image_statistics={name: column[rows] for name, column in statistics.items()},
        )

    def _pick(self, usual: NDArray[np.intp], ill: NDArray[np.bool_], n: int, change: Change) -> NDArray[np.intp]:
        rng = self.generator
        rows = usual[rng.integers(len(usual), size=n)]
        if change.ill:
            wanted = rng.random(n) < ill[usual].mean() + change.ill
            sick, well = usual[ill[usual]], usual[~ill[usual]]
            rows = np.where(wanted, sick[rng.integers(len(sick), size=n)], well[rng.integers(len(well), size=n)])
        strangers = np.flatnonzero(load_sources().foreign)
        come = rng.random(n) < change.foreign
        return np.where(come, strangers[rng.integers(len(strangers), size=n)], rows)


def window_of(ward: Ward, number: int) -> Window:
    """Give the window of a number; the reference lies before number 0."""
    length = timedelta(days=ward.days)
    return Window(start=START + number * length, end=START + (number + 1) * length)


def columns_of(cohort: Cohort) -> dict[str, NDArray[Any]]:
    """Give the columns of a cohort that a table of it would have; a label is a word."""
    score = {"score": cohort.scores[:, 0]}
    label = {"label": np.where(cohort.labels[:, 0] == 1, "yes", "no")}
    return {**cohort.image_statistics, **cohort.attributes, **score, **label}
