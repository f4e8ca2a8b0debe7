"""Watch studies one by one between windows, with the expected run to a false alarm set beforehand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitor.alibi import Follow, calibrate_cvm, calibrate_fet, calibrate_mmd
from monitor.cohorts import Cohort, Window
from monitor.detectors import FORMS, NUMBERS, Sample, refuse_unknown
from monitor.measures import answers_of
from monitor.policies import DriftPolicy
from monitor.results import NotEnoughData

Floats = NDArray[np.float64]
Tell = Callable[[str], None]
LEAST_REFERENCE = 100
MOST_REFERENCE = 400
"""Patients of the reference that are used at most: calibration simulates streams against each of them."""
EXPECTED_RUNS = (20, 50_000)
"""Patients; to calibrate the longest takes a minute or two."""
LONGEST_RUN = 2**15
MARGIN = 1.5
"""Thresholds are set for a run so much longer than is stated: a reference of some hundred patients is not the
population that they come from, and simulated runs of MMD came out a quarter shorter than set."""

WATCHES: dict[str, tuple[int, Callable[[Floats, float, np.random.Generator], Follow]]] = {
    "alibi_online_mmd": (2, calibrate_mmd),
    "alibi_online_cvm": (1, calibrate_cvm),
    "alibi_online_fet": (1, calibrate_fet),
}
"""By name: the dimensions that values have, as in `Sample`, and how thresholds are set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamReport:
    """What one online test says of the studies since the last complete window: an early warning, never a verdict.

    Attributes:
        window: the one that is not complete yet.
        detector: name of the test, out of WATCHES.
        feature: what it follows.
        patients: who were counted, up to the warning.
        expected_run: patients after which a false warning comes without a change, on average; at least as many as the
            budget asks for.
        false_warnings_per_year: what that is a year, as patients arrive.
        since: when the oldest study arrived of those that gave the warning; None without one.
        warned_at: when the study arrived with which it was given; None without one.
        reason: all this in a sentence, or why the stream cannot be followed.
    """

    window: Window
    detector: str
    feature: str
    patients: int
    expected_run: float
    false_warnings_per_year: float
    since: datetime | None
    warned_at: datetime | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Stream:
    """One column, or the embeddings, of both sides in order of time, and the test that follows it.

    ``times`` (n,) are those of the rows of ``stream``.
    """

    test: str
    feature: str
    reference: Sample
    stream: Sample
    times: NDArray[np.datetime64]


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
        since: row of the first study in the shortest sliding window that gave the alarm; None without.
        counted: row in the stream of each study that was counted, shape (c,).
        statistics: shape (c, k), k watched figures; NaN until the first sliding window is full.
        thresholds: what a statistic must exceed, shape (c, k).
    """

    first_alarm: int | None
    since: int | None
    counted: NDArray[np.intp]
    statistics: Floats
    thresholds: Floats


def expected_run(patients_per_year: float, false_alarms_per_year: float, *, streams: int = 1) -> float:
    """Give the expected run, in patients, of each of so many streams that keep to a budget of false alarms together."""
    return streams * patients_per_year / false_alarms_per_year


def follow_between(
    reference: Cohort,
    stream: Cohort,
    *,
    window: Window,
    policy: DriftPolicy,
    patients_per_year: float,
    progress: Tell,
) -> tuple[StreamReport, ...]:
    """Follow what arrived since the last complete window, with every online test that the policy names.

    Embeddings by MMD, scores and numeric attributes by Cramér and von Mises, predicted findings by Fisher. Each
    window is begun anew, so that the same studies give the same answer, and an answer stays what it was when more
    arrive. All streams together have ``policy.false_alarms_per_year`` false warnings a year at most, beside those of
    complete windows: the expected run of each is what that asks for, rounded up to a power of two.

    Args:
        reference: what windows are compared with.
        stream: the studies since the last complete window.
        window: the one that is not complete yet.
        policy: its ``online_tests`` are run.
        patients_per_year: how many patients arrive, each counted once a window.
        progress: told what is done.

    Raises:
        ValueError: the policy names a test that there is not.
    """
    if unknown := [name for name in policy.online_tests if name not in WATCHES]:
        raise ValueError(f"no online test {unknown[0]!r}; there are {', '.join(WATCHES)}")
    streams = list(_list_streams(_in_order(reference), _in_order(stream), policy.online_tests))
    asked = expected_run(patients_per_year, policy.false_alarms_per_year, streams=max(len(streams), 1))
    run = 2.0 ** math.ceil(math.log2(max(asked, EXPECTED_RUNS[0])))
    reports: list[StreamReport] = []
    for place, one in enumerate(streams):
        progress(f"{one.test} on {one.feature}")
        seen = StreamReport(
            window=window,
            detector=one.test,
            feature=one.feature,
            patients=len(np.unique(one.stream.patients)),
            expected_run=run,
            false_warnings_per_year=patients_per_year / run,
            since=None,
            warned_at=None,
            reason=_tell_not_followed(one.feature, _tell_too_long(asked)) if run > LONGEST_RUN else "",
        )
        reports.append(seen if seen.reason else _follow_one(one, seen, [policy.seed, place]))
    return tuple(reports)


def _follow_one(one: _Stream, seen: StreamReport, seed: list[int]) -> StreamReport:
    """Complete a report by what the stream shows, or by why it cannot be followed."""
    calibrating, following = (np.random.default_rng([*seed, part]) for part in range(2))
    try:
        watch = calibrate_watch(
            one.test, one.reference, expected_run_time=MARGIN * seen.expected_run, generator=calibrating
        )
    except NotEnoughData as error:
        return replace(seen, reason=_tell_not_followed(one.feature, str(error)))
    answer = watch_stream(watch, one.stream, generator=following)
    shown = replace(seen, patients=len(answer.counted))
    if answer.since is not None:
        since, warned_at = (_moment(one.times[row]) for row in (answer.since, answer.counted[-1]))
        shown = replace(shown, since=since, warned_at=warned_at)
    return replace(shown, reason=_tell_stream(shown))


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
            streams for each.
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
    statistics, thresholds, reach = watch.follow(values[counted], generator)
    counted = counted[: len(statistics)]
    return StreamAnswer(
        first_alarm=int(counted[-1]) + 1 if reach else None,
        since=int(counted[max(len(counted) - reach, 0)]) if reach else None,
        counted=counted,
        statistics=statistics,
        thresholds=thresholds,
    )


def _list_streams(reference: Cohort, stream: Cohort, tests: tuple[str, ...]) -> Iterator[_Stream]:
    """Give everything that is followed; of a column the rows in which it is known."""

    def make(test: str, feature: str, before: NDArray[Any], now: NDArray[Any]) -> _Stream:
        kept = [~np.isnan(side).reshape(len(side), -1).any(axis=1) for side in (before, now)]
        return _Stream(
            test=test,
            feature=feature,
            reference=Sample(values=before[kept[0]], patients=reference.patient_key[kept[0]]),
            stream=Sample(values=now[kept[1]], patients=stream.patient_key[kept[1]]),
            times=stream.times[kept[1]],
        )

    if "alibi_online_mmd" in tests and reference.embeddings is not None and stream.embeddings is not None:
        yield make("alibi_online_mmd", "embedding", reference.embeddings, stream.embeddings)
    if "alibi_online_cvm" in tests:
        for column, finding in enumerate(stream.findings):
            yield make("alibi_online_cvm", f"score {finding}", reference.scores[:, column], stream.scores[:, column])
        for name, values in stream.attributes.items():
            before = reference.attributes.get(name)
            if values.dtype.kind == "f" and before is not None and not np.isnan(before).all():
                yield make("alibi_online_cvm", name, before, values)
    if "alibi_online_fet" in tests:
        for known, new in zip(answers_of(reference), answers_of(stream), strict=True):
            yield make("alibi_online_fet", f"predicted {new.finding}", known.said, new.said)


def _in_order(cohort: Cohort) -> Cohort:
    return cohort.select(np.argsort(cohort.times, kind="stable"))


def _tell_not_followed(feature: str, why: str) -> str:
    return f"{feature} is not followed between windows: {why}"


def _tell_too_long(asked: float) -> str:
    return (
        f"among so many patients the budget asks for a false warning in {asked:,.0f} at most, and thresholds can be "
        f"set for one in {LONGEST_RUN:,}; follow fewer columns, or make windows shorter"
    )


def _tell_stream(report: StreamReport) -> str:
    patients = f"{report.patients} patient{'s' * (report.patients != 1)}"
    often = (
        f"Without a change a warning comes once in {report.expected_run:,.0f} patients on average, "
        f"{report.false_warnings_per_year:.2g} times a year."
    )
    if report.since is None:
        return f"{report.feature}: nothing looks different in {patients} so far. {often}"
    return (
        f"{report.feature} looks different since about {report.since:%Y-%m-%d %H:%M} UTC, seen after {patients}; "
        f"the window that ends on {report.window.end:%Y-%m-%d} will tell. {often}"
    )


def _moment(time: np.datetime64) -> datetime:
    moment: datetime = time.astype("datetime64[us]").item()
    return moment.replace(tzinfo=UTC)


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
