"""Subgroup bootstraps beside fairlearn: uv run --group bench python -m benchmarks.subgroups [--fast].

Twenty subgroups, patient-level resamples of AUROC, sensitivity, specificity (1 less the false-positive rate) and
calibration error, inside each subgroup and among everyone else. fairlearn's MetricFrame has no patients and no
resamples: a bootstrap loop draws patients, and the frame computes the four figures by group alone. It is timed over a
few resamples and scaled up.
"""

from __future__ import annotations

import argparse
import tracemalloc
import warnings

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.results import Case, record, seconds
from monitor.measures import Answers
from monitor.subgroup_figures import SubgroupFigures, draw_in_chunks

SUBGROUPS = 20
NAMES = ("auroc", "sensitivity", "specificity", "ece")
PEER_RESAMPLES = 3


def draw(studies: int) -> tuple[Answers, np.ndarray]:
    """Draw two studies a patient."""
    rng = np.random.default_rng(0)
    owner = np.arange(studies // 2).repeat(2)
    scores = 1 / (1 + np.exp(-rng.normal(-0.5, 1.5, studies)))
    labels = (rng.random(studies) < scores).astype(float)
    said = (scores >= 0.5).astype(float)
    answers = Answers(finding="yes", scores=scores, said=said, labels=labels, patients=owner)
    return answers, rng.integers(SUBGROUPS, size=studies // 2)[owner]


def ours(answers: Answers, subgroup: np.ndarray, resamples: int) -> None:
    patients = int(answers.patients.max()) + 1
    figures = SubgroupFigures(answers, subgroup, subgroups=SUBGROUPS, patients=patients, names=NAMES)
    generator = np.random.default_rng(1)
    for counts in draw_in_chunks([np.arange(patients)], resamples, len(answers.scores), generator):
        figures.weigh(counts)


def fairlearn_seconds(answers: Answers, subgroup: np.ndarray) -> float:
    """Time one resample."""
    from fairlearn.metrics import MetricFrame
    from sklearn.metrics import recall_score, roc_auc_score

    def specificity(truth: np.ndarray, scores: np.ndarray) -> float:
        return float(recall_score(1 - truth, scores < 0.5, zero_division=0))

    def calibration(truth: np.ndarray, scores: np.ndarray) -> float:
        bins = np.minimum((scores * 10).astype(int), 9)
        off = np.bincount(bins, weights=scores - truth, minlength=10)
        return float(np.abs(off).sum() / len(truth))

    metrics = {
        "auroc": roc_auc_score,
        "sensitivity": lambda truth, scores: recall_score(truth, scores >= 0.5),
        "specificity": specificity,
        "ece": calibration,
    }
    rng, patients = np.random.default_rng(2), int(answers.patients.max()) + 1
    rows = np.arange(len(answers.scores)).reshape(patients, 2)

    def resample() -> None:
        drawn = rows[rng.integers(patients, size=patients)].ravel()
        MetricFrame(
            metrics=metrics,
            y_true=answers.labels[drawn].astype(int),
            y_pred=answers.scores[drawn],
            sensitive_features=subgroup[drawn],
        ).by_group.to_numpy()

    resample()
    return seconds(lambda: [resample() for _ in range(PEER_RESAMPLES)]) / PEER_RESAMPLES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="smaller work, within a minute")
    fast = parser.parse_args().fast
    studies, resamples = (20_000, 300) if fast else (100_000, 1_000)
    answers, subgroup = draw(studies)
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours(answers, subgroup, 10)
        mine = seconds(lambda: ours(answers, subgroup, resamples))
        peer = resamples * fairlearn_seconds(answers, subgroup)
        tracemalloc.start()
        ours(answers, subgroup, resamples // 10)
        peak = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
    n = f"{SUBGROUPS} subgroups x {studies:,} studies x {resamples} resamples, {', '.join(NAMES)}"
    cases = [
        Case(case="seconds", ours=mine, peer=peer, peer_name="fairlearn MetricFrame, scaled up", target=50, n=n),
        Case(case="peak MB beyond the data", ours=peak, peer=500, peer_name="budget", target=1, n=n),
    ]
    command, note = "uv run --group bench python -m benchmarks.subgroups", "one thread on both sides"
    record("subgroups", cases, command=command, note=f"{note}; ours gives everyone else too", fast=fast)


if __name__ == "__main__":
    main()
