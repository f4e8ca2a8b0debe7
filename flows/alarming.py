"""Follow the alarm of a model from window to window, and what its windows are compared with because of it."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from continual.files import write_atomically
from flows.ward import Ward, load_role, version_in
from monitor import comparisons
from monitor.alarms import AlarmState, advance, joins_comparison, list_settled, weigh_window
from monitor.asked_columns import name_columns
from monitor.cohorts import Cohort, Window, concatenate
from monitor.column_reference import ColumnSketch, of_arrays, to_arrays
from monitor.comparisons import Background, calibrate, sketch_reference
from monitor.embedding_shift import Reference, fit_reference, name_reference
from monitor.reconciliation import reconcile
from monitor.results import WindowReport
from registry.entries import AlarmEntry

Arrays = dict[str, NDArray[Any]]

MOST_LEARNED = 2000
"""Patients of a reference up to which embeddings are compared by features learned from both sides."""

CALIBRATION = "least-effects-2"
"""Names how least effects are calibrated; change it whenever detectors, effects or stretches change."""


def load_background(ward: Ward, model: str, reference: Cohort, current: Cohort, window: Window) -> Background:
    """Give what a window is seen against: the reference with the quiet windows before it that joined, the effects
    that count, and what earlier estimates were off by.
    """
    earlier = _before(ward, model, window)
    opened = [entry.state.open_since == entry.window for entry in earlier]
    places = list_settled([entry.joined for entry in earlier], opened, ward.settings.drift.join_after)
    joined = [earlier[place].window for place in places]
    watched = {entry.window for entry in earlier}
    cohort = reference
    if joined:  # windows of the same version, answered as its reference is
        quiet = replace(load_role(ward, model, joined, None), thresholds=reference.thresholds)
        cohort = concatenate([reference, quiet])
    return Background(
        cohort=cohort,
        embedding=_fit_embedding_once(ward, cohort),
        columns=_fit_columns_once(ward, cohort),
        least_effects=_calibrate_once(ward, reference, current.patients),
        errors=reconcile(report for report in ward.records.reports(model) if report.window in watched),
    )


def _fit_embedding_once(ward: Ward, cohort: Cohort) -> Reference | None:
    """Fit a large reference once and keep it beside the reports; a smaller one is learned from with each window."""
    policy, values = ward.settings.drift, cohort.embeddings
    if values is None or cohort.patients <= MOST_LEARNED or "embedding_shift" not in policy.embedding_detectors:
        return None

    def fit() -> Arrays:
        return fit_reference(values, cohort.patient_key, generator=np.random.default_rng(policy.seed)).arrays()

    return Reference.of(_keep_once(ward, name_reference(values, cohort.patient_key, seed=policy.seed), fit))


def _fit_columns_once(ward: Ward, cohort: Cohort) -> dict[str, ColumnSketch]:
    """Sketch the columns of a reference once that is so large that every window is compared with it by bins."""
    policy = ward.settings.drift
    if cohort.patients <= comparisons.MOST_PERMUTED:
        return {}
    name = name_columns(cohort, policy)
    return of_arrays(_keep_once(ward, name, lambda: to_arrays(sketch_reference(cohort, policy))))


def _keep_once(ward: Ward, name: str, fit: Callable[[], Arrays]) -> Arrays:
    """Give what is kept under a name of its content; what is not there is fitted and kept."""
    path = ward.settings.directory / "references" / f"{name[:32]}.npz"
    if not path.exists():
        content, arrays = io.BytesIO(), fit()
        np.savez_compressed(content, allow_pickle=False, **arrays)
        write_atomically(path, content.getvalue())
    with np.load(path, allow_pickle=False) as stored:
        return dict(stored)


def _calibrate_once(ward: Ward, reference: Cohort, patients: int) -> dict[str, float]:
    """Calibrate the effects that count on the reference, once for windows of about a size; kept beside the reports."""
    policy = ward.settings.drift
    if reference.patients < 2 * policy.minimum_patients or patients < policy.minimum_patients:
        return {}
    size = 2 ** round(math.log2(patients))
    identity = [
        CALIBRATION,
        reference.digest,
        hashlib.sha256(reference.scores.tobytes()).hexdigest(),
        size,
        policy.model_dump_json(),
    ]
    key = hashlib.sha256("\n".join(map(str, identity)).encode()).hexdigest()
    path = ward.settings.directory / "references" / f"{key[:32]}.json"
    if path.exists():
        stored: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
        return stored
    effects = calibrate(reference, size, policy, np.random.default_rng([policy.seed, size]))
    write_atomically(path, json.dumps(effects, sort_keys=True, indent=1).encode())
    return effects


def follow_alarm(ward: Ward, model: str, window: Window, *, at: datetime) -> tuple[AlarmEntry, ...]:
    """Take the report of a window into the alarm, and those of all later windows again; returns them, in order.

    What comes out depends on nothing but the stored reports, so that anybody can compute it again.
    """
    entries = _before(ward, model, window)
    made: list[AlarmEntry] = []
    for report in ward.records.reports(model, since=window.start):  # a year of reports takes half a second to read
        made.append(_advance(ward, report, [*entries, *made]))
        ward.records.save_alarm(made[-1], at)
    return tuple(made)


def _before(ward: Ward, model: str, window: Window) -> list[AlarmEntry]:
    """List the entries before a window, in order, since the version that is live in it went live."""
    earlier = [entry for entry in ward.records.alarms(model) if entry.window.start < window.start]
    return _latest_run(version_in(ward, model, window), earlier)


def _latest_run(version: str, entries: Sequence[AlarmEntry]) -> list[AlarmEntry]:
    """Give the last entries in a row that are about a version: a new version, or one restored, starts anew."""
    return list(takewhile(lambda entry: entry.version == version, reversed(entries)))[::-1]


def _advance(ward: Ward, report: WindowReport, earlier: Sequence[AlarmEntry]) -> AlarmEntry:
    policy, model, window = ward.settings.drift, report.model, report.window
    version = version_in(ward, model, window)
    mine = _latest_run(version, earlier)
    evidence = weigh_window(window, report.results)
    state = advance(mine[-1].state if mine else AlarmState(), evidence, policy)
    compared = max((result.patients_reference or 0 for result in report.results), default=0)
    joins = joins_comparison(state, evidence, patients=report.patients, compared=compared, policy=policy)
    return AlarmEntry(
        model=model, window=window, version=version, joined=joins and not _is_mixed(ward, model, window), state=state
    )


def _is_mixed(ward: Ward, model: str, window: Window) -> bool:
    """Tell whether another version went live in the window, so that two versions answered its studies."""
    return any(window.contains(entry.since) for entry in ward.records.champion_history(model)[1:])
