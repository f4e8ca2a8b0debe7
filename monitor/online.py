"""Watch studies one by one between windows, with the expected run to a false alarm set beforehand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitor.alibi import Follow, calibrate_cvm, calibrate_fet, calibrate_mmd
from monitor.detectors import FORMS, NUMBERS, Sample, refuse_unknown
from monitor.results import NotEnoughData

Floats = NDArray[np.float64]
LEAST_REFERENCE = 100
MOST_REFERENCE = 400
"""Patients of the reference that are used at most: calibration simulates streams against each of them."""
EXPECTED_RUNS = (20, 20_000)

WATCHES: dict[str, tuple[int, Callable[[Floats, float, np.random.Generator], Follow]]] = {
    "alibi_online_mmd": (2, calibrate_mmd),
    "alibi_online_cvm": (1, calibrate_cvm),
    "alibi_online_fet": (1, calibrate_fet),
}
"""By name: the dimensions that values have, as in `Sample`, and how thresholds are set."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StreamWatch:
    """A reference with thresholds set for one expected run, ready for any number of streams."""

    name: str
    reference: Sample
    expected_run_time: float
    follow: Follow


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StreamAnswer:
    """What was seen in a stream, up to its first alarm.

    Attributes:
        first_alarm: how many studies of the stream had come at the alarm, that one among them; None without.
        counted: row in the stream of each study that was counted, shape (c,).
        statistics: shape (c, k), k watched figures; NaN until the first sliding window is full.
        thresholds: what a statistic must exceed, shape (c, k).
    """

    first_alarm: int | None
    counted: NDArray[np.intp]
    statistics: Floats
    thresholds: Floats


def expected_run(patients_per_year: float, false_alarms_per_year: float, *, streams: int = 1) -> float:
    """Give the expected run, in patients, of each of so many streams that keep to a budget of false alarms together."""
    return streams * patients_per_year / false_alarms_per_year


def calibrate_watch(
    name: str, reference: Sample, *, expected_run_time: float, generator: np.random.Generator
) -> StreamWatch:
    """Set thresholds so that without drift an alarm comes after so many patients, on average.

    Successive studies of a patient are like each other, and a test that takes them for so many patients gives
    alarms too often: each patient counts once, with the first study, in the reference and in the stream; who is
    in the reference is not counted in the stream. So patients, not studies, are the unit of the expected run.

    Args:
        name: alibi_online_mmd for embeddings; alibi_online_cvm for a continuous column; alibi_online_fet for
            a column of 0 and 1.
        reference: in order of time; MOST_REFERENCE of its patients, drawn at random, are used.
        expected_run_time: in patients, from `expected_run`; within EXPECTED_RUNS. Calibration simulates ten
            streams for each, seconds for a thousand and minutes for ten thousand.
        generator: source of randomness.

    Raises:
        NotEnoughData: fewer than LEAST_REFERENCE patients, or nothing varies.
        ValueError: no such watch, an expected run outside EXPECTED_RUNS, values of another form or not finite.
    """
    if name not in WATCHES:
        raise ValueError(f"no watch {name!r}; there are {', '.join(WATCHES)}")
    if not EXPECTED_RUNS[0] <= expected_run_time <= EXPECTED_RUNS[1]:
        raise ValueError(f"an expected run of {expected_run_time} patients is outside {EXPECTED_RUNS}")
    values = _read(name, reference)
    first = _first_studies(reference.patients)
    if len(first) < LEAST_REFERENCE:
        raise NotEnoughData(f"{len(first)} patients in the reference, {LEAST_REFERENCE} needed")
    if len(np.unique(values[first], axis=0)) < 2:
        raise NotEnoughData("nothing varies: every value of the reference is the same")
    used = first if len(first) <= MOST_REFERENCE else generator.choice(first, MOST_REFERENCE, replace=False)
    follow = WATCHES[name][1](values[used], expected_run_time, generator)
    return StreamWatch(name=name, reference=reference, expected_run_time=expected_run_time, follow=follow)


def watch_stream(watch: StreamWatch, stream: Sample, *, generator: np.random.Generator) -> StreamAnswer:
    """Follow a stream in order of time until the first alarm; see `calibrate_watch` for who counts.

    Raises:
        ValueError: values of another form than the reference's, or not finite.
    """
    values = _read(watch.name, stream)
    if stream.values.shape[1:] != watch.reference.values.shape[1:]:
        raise ValueError(f"the stream's rows have shape {stream.values.shape[1:]}, the reference's another")
    first = _first_studies(stream.patients)
    counted = first[~np.isin(stream.patients[first], watch.reference.patients)]
    statistics, thresholds, alarm = watch.follow(values[counted], generator)
    counted = counted[: len(statistics)]
    return StreamAnswer(
        first_alarm=int(counted[-1]) + 1 if alarm else None,
        counted=counted,
        statistics=statistics,
        thresholds=thresholds,
    )


def _read(name: str, sample: Sample) -> Floats:
    """Give the values as a matrix (n, width), a column as one of width 1."""
    refuse_unknown(sample.values)
    dimensions = WATCHES[name][0]
    if sample.values.ndim != dimensions or sample.values.dtype.kind not in NUMBERS:
        raise ValueError(f"{name} reads {FORMS[NUMBERS, dimensions]}, not {sample.values.dtype} {sample.values.shape}")
    if name == "alibi_online_fet" and not np.isin(sample.values, (0, 1)).all():
        raise ValueError(f"{name} reads 0 and 1 only")
    matrix: NDArray[Any] = sample.values.astype(np.float64)
    return matrix if dimensions == 2 else matrix[:, None]


def _first_studies(patients: NDArray[np.str_]) -> NDArray[np.intp]:
    return np.sort(np.unique(patients, return_index=True)[1])
