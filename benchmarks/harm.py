"""Performance without labels beside NannyML's CBPE: uv run --group bench python -m benchmarks.harm [--fast].

Cohorts: tumour on real brain MRI embeddings (a linear probe; windows mix sources and prevalences anew), rejected scans
by image-quality metrics at ABIDE's sites (a logistic regression; windows are drawn from sites it never saw), and
simulated scores for speed alone. The patients are divided anew many times into those of the model, of the reference and
of the windows, because windows of one division share its reference's luck. Both sides estimate the same windows
from the same labelled reference, one study a patient. A window's error is estimated minus realised.

The mean absolute error is met where it is no worse than the peer's beyond sampling error: the target is lowered by half
of the 95 % interval (Student's t over divisions) of the difference, which is told. Coverage counts the windows whose
realised figure lies in the interval that the product shows around the estimate, with the errors of the division's
earlier windows as its history; met means 90 to 99 %. NannyML runs with its defaults.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

os.environ["NML_DISABLE_USAGE_LOGGING"] = "1"

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import t
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from benchmarks.results import Case, median_seconds, record, seconds
from benchmarks.worlds import real_embeddings
from monitor.cohorts import Cohort, Window
from monitor.harm import compare_estimated, measure_harm
from monitor.measures import Answers
from monitor.policies import DriftPolicy
from monitor.reconciliation import EstimationError, reconcile
from monitor.results import Harm, Source, Verdict, WindowReport
from monitor.tasks import Task

METRICS = {"auroc": "roc_auc", "accuracy": "accuracy", "sensitivity": "recall", "specificity": "specificity"}
START = datetime(2026, 1, 5, tzinfo=UTC)
POLICY = DriftPolicy(resamples=100)
SIZE = 120
COVERAGE = (0.90, 0.99)

Floats = NDArray[np.float64]
Labelled = tuple[Floats, Floats]
"""Scores (n,) and labels (n,)."""


def cohort_of(sample: Labelled, first: int) -> Cohort:
    n = len(sample[0])
    keys = np.array([f"p{first + i}" for i in range(n)])
    return Cohort(
        task=Task.BINARY,
        classes=("no", "yes"),
        study_uid=keys,
        patient_key=keys,
        times=np.full(n, np.datetime64("2026-01-05", "us")),
        scores=sample[0][:, None],
        labels=sample[1][:, None],
    )


def brain_windows(count: int, size: int, division: int) -> tuple[Labelled, list[Labelled]]:
    """One slice a patient; a probe of one third, a reference of another, windows out of the rest with another mix."""
    data, rng = real_embeddings(), np.random.default_rng([0, division])
    first = np.sort(np.unique(data.patients, return_index=True)[1])
    values, labels = data.values[first], (data.labels[first] == "yes").astype(float)
    large = np.char.find(data.sources[first].astype(str), "3") >= 0
    thirds = np.array_split(rng.permutation(len(first)), 3)
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=1e-3, max_iter=500)).fit(
        values[thirds[0]], labels[thirds[0]]
    )
    scores = probe.predict_proba(values)[:, 1]
    reference = scores[thirds[1]], labels[thirds[1]]
    return reference, [(scores[rows], labels[rows]) for rows in _mix(rng, thirds[2], labels, large, count, size)]


def abide_windows(count: int, size: int, division: int) -> tuple[Labelled, list[Labelled]]:
    """A model of some sites; reference and windows are scans of others, mixed anew in every window."""
    folder = Path(str(importlib.metadata.distribution("mriqc-learn").locate_file("mriqc_learn/datasets")))
    table, rng = pd.read_csv(folder / "abide.tsv", sep="\t"), np.random.default_rng([1, division])
    labels = (table["rater_3"] == -1).to_numpy(dtype=float)
    metrics = (
        table.select_dtypes("number").drop(columns=[c for c in table if c.startswith("rater")]).fillna(0).to_numpy()
    )
    sites = table["site"].to_numpy()
    order = rng.permutation(np.unique(sites))
    seen, other = np.isin(sites, order[::2]), np.isin(sites, order[1::2])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500)).fit(metrics[seen], labels[seen])
    scores, rows = model.predict_proba(metrics)[:, 1], rng.permutation(np.flatnonzero(other))
    half = len(rows) // 2
    reference = scores[rows[:half]], labels[rows[:half]]
    few = np.isin(sites, order[1::4])
    return reference, [(scores[drawn], labels[drawn]) for drawn in _mix(rng, rows[half:], labels, few, count, size)]


def _mix(
    rng: np.random.Generator, rows: NDArray[np.intp], labels: Floats, group: NDArray[np.bool_], count: int, size: int
) -> Iterator[NDArray[np.intp]]:
    """Draw windows in which group and class weigh otherwise than in the pool."""
    for _ in range(count):
        weights = np.exp(rng.normal(0, 0.7) * group[rows] + rng.normal(0, 0.7) * labels[rows])
        yield rng.choice(rows, size, p=weights / weights.sum())


def ours(reference: Labelled, windows: list[Labelled]) -> tuple[dict[str, Floats], dict[str, list[bool]]]:
    """Estimate every window with the errors of the earlier ones; also whether the interval held the realised figure."""
    known, history = cohort_of(reference, 0), list[EstimationError]()
    errors, held = ({name: [] for name in METRICS} for _ in range(2))
    for number, sample in enumerate(windows):
        window = Window(start=START + timedelta(days=number), end=START + timedelta(days=number + 1))
        current = cohort_of(sample, 10_000_000)
        generator = np.random.default_rng(number)
        harms = measure_harm(known, current, window=window, policy=POLICY, generator=generator, history=history)
        realised = {harm.metric: harm.current for harm in harms if harm.source is Source.REALISED}
        for harm in harms:
            truth = realised[harm.metric]
            if harm.source is Source.ESTIMATED and None not in (harm.current_low, harm.current_high, truth):
                held[harm.metric].append(harm.current_low <= truth <= harm.current_high)
                errors[harm.metric].append(harm.current - truth)
        history += reconcile([_report(window, current, harms)])
    return {name: np.array(found) for name, found in errors.items()}, held


def _report(window: Window, current: Cohort, harms: tuple[Harm, ...]) -> WindowReport:
    return WindowReport(
        model="m",
        window=window,
        verdict=Verdict.NO_DRIFT,
        reason="",
        n=len(current),
        patients=len(current),
        n_labelled=len(current),
        results=(),
        evaluations=(),
        gaps=(),
        harms=harms,
        contributions=(),
    )


def nannyml_frame(samples: list[Labelled]) -> pd.DataFrame:
    scores, labels = (np.concatenate([sample[part] for sample in samples]) for part in (0, 1))
    times = pd.date_range("2026-01-01", periods=len(scores), freq="s")
    return pd.DataFrame(
        {"score": scores, "said": (scores >= 0.5).astype(int), "label": labels.astype(int), "at": times}
    )


def nannyml_errors(reference: Labelled, windows: list[Labelled]) -> dict[str, Floats]:
    import nannyml

    estimator = nannyml.CBPE(
        y_pred_proba="score",
        y_pred="said",
        y_true="label",
        timestamp_column_name="at",
        problem_type="classification_binary",
        metrics=list(METRICS.values()),
        chunk_size=len(windows[0][0]),
    ).fit(nannyml_frame([reference]))
    table = estimator.estimate(nannyml_frame(windows)).filter(period="analysis").to_df()
    return {
        name: (table[peer, "value"] - table[peer, "realized"]).to_numpy(dtype=float) for name, peer in METRICS.items()
    }


def compare(
    name: str, draw: Callable[[int, int, int], tuple[Labelled, list[Labelled]]], divisions: int, count: int
) -> list[Case]:
    off, held = {metric: list[tuple[float, float]]() for metric in METRICS}, {metric: [] for metric in METRICS}
    for division in range(divisions):
        reference, windows = draw(count, SIZE, division)
        (errors, inside), peers = ours(reference, windows), nannyml_errors(reference, windows)
        for metric in METRICS:
            off[metric].append((np.abs(errors[metric]).mean(), np.nanmean(np.abs(peers[metric]))))
            held[metric] += inside[metric]
    n = f"{divisions} divisions, {count} windows of {SIZE} each"
    return [
        case
        for metric in METRICS
        for case in (_error(name, metric, off[metric], n), _cover(name, metric, held[metric], n))
    ]


def _error(name: str, metric: str, off: list[tuple[float, float]], n: str) -> Case:
    mine, theirs = np.mean(off, axis=0)
    apart = np.subtract(*np.transpose(off))
    reach = float(t.ppf(0.975, len(apart) - 1) * apart.std(ddof=1) / np.sqrt(len(apart)))
    told = f"{name}: mean absolute error of {metric}; ours minus peer's {apart.mean():+.4f} ± {reach:.4f}"
    target = float(theirs / (theirs + reach))
    return Case(case=told, ours=float(mine), peer=float(theirs), peer_name="NannyML CBPE", target=target, n=n)


def _cover(name: str, metric: str, held: list[bool], n: str) -> Case:
    """Count the distance of the coverage from the middle of what is asked, against the farthest that is borne."""
    covered, middle = float(np.mean(held)), sum(COVERAGE) / 2
    told = f"{name}: realised {metric} in the interval shown: {covered:.1%} of {len(held)} windows"
    borne, apart = COVERAGE[1] - middle, max(abs(covered - middle), 1e-3)
    return Case(case=told, ours=apart, peer=borne, peer_name="borne about 94.5 %", target=1, n=n)


def speed(rows: int) -> Case:
    """Estimate one window of so many rows from a reference of as many; fitting included on both sides."""
    rng = np.random.default_rng(2)

    def draw(center: float) -> Labelled:
        scores = 1 / (1 + np.exp(-rng.normal(center, 1.5, rows)))
        return scores, (rng.random(rows) < scores).astype(float)

    reference, window = draw(-1), draw(-0.5)
    sides = [
        Answers(
            finding="yes", scores=s, said=(s >= 0.5).astype(float), labels=y, patients=np.arange(rows) + place * rows
        )
        for place, (s, y) in enumerate((reference, window))
    ]
    mine = median_seconds(lambda: compare_estimated(sides[0], sides[1], 2 * rows, 20), 3)
    peer = seconds(lambda: nannyml_errors(reference, [window]))
    n = f"{rows:,} rows, simulated scores, four metrics"
    return Case(case="seconds to estimate", ours=mine, peer=peer, peer_name="NannyML CBPE", target=10, n=n)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="smaller work, within a minute")
    fast = parser.parse_args().fast
    logging.disable(logging.WARNING)
    divisions, count = (5, 15) if fast else (40, 25)
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = compare("brain MRI", brain_windows, divisions, count)
        cases += compare("ABIDE sites", abide_windows, divisions, count)
        cases.append(speed(100_000 if fast else 1_000_000))
    command = "uv run --group bench python -m benchmarks.harm"
    note = "one thread on both sides; coverage is met from 90 to 99 %"
    record("harm", cases, command=command, note=note, fast=fast)


if __name__ == "__main__":
    main()
