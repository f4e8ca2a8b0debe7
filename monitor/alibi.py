"""The one file that imports alibi-detect: its tests of two samples, and its watchers of a stream.

alibi-detect is under the Business Source License 1.1 and costs seconds to import: it is imported only
when one of its detectors runs. It permutes rows, not patients, so each patient is handed over as one
row, the mean of the patient's studies; and all rows in one unit, that of both sides together, so that
neither the unit nor the origin of the embeddings matters and relabelled sides stay alike.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitor.null_streams import simulate_cvm, simulate_fet, simulate_mmd
from monitor.results import NotEnoughData

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Test = Callable[..., tuple[float, float, float]]
Followed = tuple[Floats, Floats, int]
Follow = Callable[[Floats, np.random.Generator], Followed]

LSDD_CELLS = 200_000_000
ROUNDING = 1e-9
"""A column that varies by less than this part of its largest value is constant but for rounding."""
TRAINING_STEPS = 100
BATCH = 32
CASE_MIX_PATIENTS = 500
"""Patients of a side that the comparison at equal case mix takes at most: it inverts matrices of that size."""
LEAST_AT_EQUAL_CASE_MIX = 20
CONTEXT_CELLS = 50_000_000
LEAST_MOVES = 4
"""Patients that a relabelling at equal case mix moves on average: with fewer, nothing is left to relabel."""
MIDDLE_WINDOW = 20
TWO_WINDOWS = SHORT_WINDOW, LONG_WINDOW = 10, 40
STREAMS_PER_RUN = 10
"""Simulated streams that alibi-detect recommends for each study of the expected run."""
COPIES = "too many studies are copies of each other"


def _on_patient_means(ask: Callable[[Floats, Floats, int, int], tuple[float, float]]) -> Test:
    """Turn a question about two matrices, one row a patient, into a test like those of `monitor.columns`."""

    @functools.wraps(ask)
    def test(
        values: Floats,
        patients: NDArray[np.intp],
        is_current: Flags,
        *,
        permutations: int,
        generator: np.random.Generator,
    ) -> tuple[float, float, float]:
        means, current = _mean_by_patient(values, patients), _side_of_patient(patients, is_current)
        scaled = _in_one_unit(means)
        before, now = scaled[~current], scaled[current]
        with _quiet_and_seeded(generator) as seed:
            statistic, p = ask(before.astype(np.float32), now.astype(np.float32), permutations, seed)
        if not math.isfinite(statistic):
            raise NotEnoughData(COPIES)
        return statistic, _standardised_distance(before, now), p

    return test


@_on_patient_means
def compare_by_lsdd(before: Floats, now: Floats, permutations: int, seed: int) -> tuple[float, float]:
    """Least-squares density difference (Bu 2018); alibi-detect's p may be 0, ours is (b + 1) / (m + 1).

    Its memory is permutations times patients times kernel centres; a twentieth of the reference is its
    own choice of centres, and fewer are taken where that would not fit.
    """
    from alibi_detect.cd import LSDDDrift

    fitting = LSDD_CELLS // (permutations * (len(before) + len(now)))
    detector = LSDDDrift(
        before,
        backend="pytorch",
        n_permutations=permutations,
        n_kernel_centers=max(min(len(before) // 20, fitting), 1),
        device="cpu",
    )
    try:
        answer = detector.predict(now)["data"]
    except ValueError:
        raise NotEnoughData(f"{COPIES} for a density difference") from None
    return float(answer["distance"]), _never_zero(answer["p_val"], permutations)


@_on_patient_means
def compare_by_classifier(before: Floats, now: Floats, permutations: int, seed: int) -> tuple[float, float]:
    """Two-sample classifier (Lopez-Paz 2017): KS test on held-out scores of a penalised logistic regression.

    One half learns, the other is tested: scores out of several folds depend on each other, which made a
    nominal 1 % false-alarm rate 3 % with five folds.
    """
    from alibi_detect.cd.sklearn.classifier import ClassifierDriftSklearn
    from sklearn.linear_model import LogisticRegression

    detector = ClassifierDriftSklearn(before, LogisticRegression(C=0.01, max_iter=500), preds_type="probs")
    detector.skf = _halves(seed)
    answer = detector.predict(now)["data"]
    return float(answer["distance"]), max(float(answer["p_val"]), np.finfo(np.float64).tiny)


@_on_patient_means
def compare_by_learned_kernel(before: Floats, now: Floats, permutations: int, seed: int) -> tuple[float, float]:
    """MMD with a kernel that half of the patients teach (Liu 2020), permuted among the other half.

    The kernel is alibi-detect's own: a small encoder before one Gaussian, beside a Gaussian on the raw values.
    """
    from alibi_detect.cd import LearnedKernelDrift
    from alibi_detect.cd.pytorch import UAE
    from alibi_detect.utils.pytorch import DeepKernel, GaussianRBF

    width = before.shape[1]
    projection = UAE(shape=(width,), enc_dim=min(width, BATCH))
    kernel = DeepKernel(
        projection,
        kernel_a=GaussianRBF(init_sigma_fn=_median_of_positive, trainable=True),
        kernel_b=GaussianRBF(init_sigma_fn=_median_of_positive, trainable=True),
    )
    batch = min(BATCH, len(before) // 2, len(now) // 2)
    detector = LearnedKernelDrift(
        before,
        kernel,
        backend="pytorch",
        n_permutations=permutations,
        train_size=0.5,
        batch_size=batch,
        batch_size_predict=len(before) + len(now),
        epochs=math.ceil(TRAINING_STEPS / (min(len(before), len(now)) // 2 // batch)),
        device="cpu",
    )
    answer = detector.predict(now)["data"]
    return float(answer["distance"]), _never_zero(answer["p_val"], permutations)


@_on_patient_means
def compare_by_spot_the_diff(before: Floats, now: Floats, permutations: int, seed: int) -> tuple[float, float]:
    """Spot-the-diff (Jitkrittum 2016): KS test on held-out likeness to one learned test location.

    One half learns, the other is tested, as in `compare_by_classifier`. The location starts from the middle of
    both sides: alibi-detect starts from the mean of the whole reference, the tested half with it, which made a
    nominal 20 % false-alarm rate 34 % with 40 patients of width 200.
    """
    from alibi_detect.cd import SpotTheDiffDrift
    from alibi_detect.utils.pytorch import GaussianRBF

    learning = (len(before) + len(now)) // 2
    spread = np.concatenate([before, now]).std(axis=0)
    detector = SpotTheDiffDrift(
        before,
        backend="pytorch",
        kernel=GaussianRBF(init_sigma_fn=_median_of_positive, trainable=True),
        initial_diffs=np.random.default_rng(seed).normal(size=(1, len(spread))) * spread,
        learning_rate=0.01,
        batch_size=min(BATCH, learning),
        epochs=math.ceil(TRAINING_STEPS / max(learning // BATCH, 1)),
        device="cpu",
    )
    inner = detector._detector._detector
    inner.skf = _halves(seed)
    inner.original_model.mean.data.zero_()
    answer = detector.predict(now)["data"]
    return float(answer["distance"]), max(float(answer["p_val"]), np.finfo(np.float64).tiny)


def compare_at_equal_case_mix(
    values: Floats,
    patients: NDArray[np.intp],
    is_current: Flags,
    *,
    contexts: Floats,
    permutations: int,
    generator: np.random.Generator,
) -> tuple[float, float, float]:
    """Context-aware MMD (Cobb 2022): do embeddings (n, width) differ beyond what contexts (n, k) explain?

    Relabelled patients keep the case mix of either side: each is drawn to be current with the probability
    that its context gives it. The effect is the distance of means after a linear regression on the context.

    Raises:
        NotEnoughData: fewer than LEAST_AT_EQUAL_CASE_MIX patients on a side, or case mixes so unlike each
            other that hardly a patient could have been on the other side.
    """
    current = _side_of_patient(patients, is_current)
    kept = np.concatenate([_draw_some(np.flatnonzero(side), generator) for side in (~current, current)])
    current = current[kept]
    for side, count in (("reference", int((~current).sum())), ("window", int(current.sum()))):
        if count < LEAST_AT_EQUAL_CASE_MIX:
            raise NotEnoughData(f"{count} patients in the {side}, {LEAST_AT_EQUAL_CASE_MIX} needed at equal case mix")
    scaled = _in_one_unit(_mean_by_patient(values, patients)[kept])
    mixes = _in_own_units(_mean_by_patient(contexts, patients)[kept])
    sides = [(part[~current].astype(np.float32), part[current].astype(np.float32)) for part in (scaled, mixes)]
    (before, now), (mix_before, mix_now) = sides
    with _quiet_and_seeded(generator):
        from alibi_detect.cd import ContextMMDDrift
        from alibi_detect.utils.pytorch import GaussianRBF

        detector = ContextMMDDrift(
            before,
            mix_before,
            backend="pytorch",
            x_kernel=GaussianRBF(init_sigma_fn=_median_of_positive),
            c_kernel=GaussianRBF(init_sigma_fn=_median_of_positive),
            n_permutations=permutations,
            batch_size=max(1, CONTEXT_CELLS // len(before) ** 2),
            device="cpu",
        )
        answer = detector.predict(now, mix_now)["data"]
    moves = np.mean([float(labels[: len(before)].sum()) for labels in detector._detector.redrawn_bools])
    if moves < LEAST_MOVES:
        raise NotEnoughData("the case mix of the window hardly overlaps with the reference's")
    if not math.isfinite(answer["distance"]):
        raise NotEnoughData(COPIES)
    effect = _standardised_distance(*_adjusted(scaled, mixes, current))
    return float(answer["distance"]), effect, _never_zero(answer["p_val"], permutations)


def calibrate_mmd(reference: Floats, expected_run_time: float, generator: np.random.Generator) -> Follow:
    """Online MMD (Cobb 2022) over a sliding window, for embeddings (n, width)."""
    middle, spread = reference.mean(axis=0), float(np.sqrt(reference.var(axis=0).mean()))

    def scale(values: Floats) -> Floats:
        scaled: NDArray[Any] = ((values - middle) / spread).astype(np.float32)
        return scaled

    streams = _count_simulations(expected_run_time, MIDDLE_WINDOW)
    with _quiet_and_seeded(generator):
        from alibi_detect.cd.pytorch.mmd_online import MMDDriftOnlineTorch

        class Detector(MMDDriftOnlineTorch):  # type: ignore[misc]
            def _configure_thresholds(self) -> None:
                statistics = simulate_mmd(self.k_xx.numpy(), MIDDLE_WINDOW, streams, generator)
                self.thresholds = []
                for step in range(MIDDLE_WINDOW):
                    self.thresholds.append(float(np.quantile(statistics[:, step], 1 - self.fpr)))
                    statistics = statistics[statistics[:, step] < self.thresholds[-1]]

        detector = Detector(scale(reference), expected_run_time, MIDDLE_WINDOW, device="cpu", verbose=False)
    return _follow([detector], (MIDDLE_WINDOW,), scale)


def calibrate_cvm(reference: Floats, expected_run_time: float, generator: np.random.Generator) -> Follow:
    """Online Cramér–von Mises test (Ross 2012) over two sliding windows, for a continuous column (n, 1)."""
    streams = _count_simulations(expected_run_time, LONG_WINDOW)
    with _quiet_and_seeded(generator) as seed:
        from alibi_detect.cd import CVMDriftOnline

        class Detector(CVMDriftOnline):  # type: ignore[misc]
            def _simulate_streams(self, t_max: int) -> NDArray[np.float32]:
                return simulate_cvm(self.n, TWO_WINDOWS, t_max, streams, np.random.default_rng(seed))

        detector = Detector(reference, expected_run_time, list(TWO_WINDOWS), verbose=False)
    return _follow([detector], TWO_WINDOWS, lambda values: values)


def calibrate_fet(reference: Floats, expected_run_time: float, generator: np.random.Generator) -> Follow:
    """Online Fisher exact test (Ross 2012) over two sliding windows, for a column of 0 and 1 (n, 1).

    alibi-detect looks for a rise or for a fall; both are watched, each with twice the expected run.

    Raises:
        NotEnoughData: a column that is all 0 or all 1.
        ValueError: other values than 0 and 1.
    """
    if np.ptp(reference, axis=0).min() == 0:
        raise NotEnoughData("a column of the reference is all 0 or all 1")
    streams = _count_simulations(2 * expected_run_time, LONG_WINDOW)
    with _quiet_and_seeded(generator):
        from alibi_detect.cd import FETDriftOnline

        class Detector(FETDriftOnline):  # type: ignore[misc]
            def _simulate_streams(self, x_ref: NDArray[Any], pbar: object) -> NDArray[np.float32]:
                return simulate_fet(
                    int(x_ref.sum()),
                    self.n,
                    TWO_WINDOWS,
                    self.t_max,
                    streams,
                    rise=self.alternative == "greater",
                    smoothing=self.lam,
                    generator=generator,
                )

        detectors = [
            Detector(
                reference.astype(np.int64), 2 * expected_run_time, list(TWO_WINDOWS), alternative=way, verbose=False
            )
            for way in ("greater", "less")
        ]
    return _follow(detectors, TWO_WINDOWS, lambda values: values.astype(np.int64))


def _count_simulations(expected_run_time: float, window: int) -> int:
    """Give how many streams to simulate so that enough of them outlast the two windows that thresholds change in."""
    return math.ceil(STREAMS_PER_RUN * expected_run_time * math.exp(2 * window / expected_run_time))


def _follow(detectors: Sequence[Any], windows: Sequence[int], scale: Callable[[Floats], NDArray[Any]]) -> Follow:
    """Show a stream (n, width) to the detectors, a study at a time, until one of them gives an alarm.

    Returns what follows it: largest statistic over the sliding windows and threshold, shapes (studies, k),
    NaN until the first window is full, and the studies of the shortest sliding window that gave an alarm, 0 without.
    """

    def follow(stream: Floats, generator: np.random.Generator) -> Followed:
        figures, reach = [], 0
        with _quiet_and_seeded(generator):
            for detector in detectors:
                detector.reset_state()
            for study in scale(stream):
                answers = [detector.predict(study)["data"] for detector in detectors]
                figures.append(np.concatenate([_largest_and_threshold(answer) for answer in answers], axis=1))
                reach = min((_reach(answer, windows) for answer in answers if answer["is_drift"]), default=0)
                if reach:
                    break
        statistics, thresholds = np.array(figures).transpose(1, 0, 2) if figures else np.empty((2, 0, 0))
        return statistics, thresholds, reach

    return follow


def _largest_and_threshold(answer: dict[str, Any]) -> Floats:
    """Give the largest statistic over the sliding windows above its threshold, shape (2, figures)."""
    largest = np.fmax.reduce(np.atleast_2d(answer["test_stat"]), axis=0)
    return np.stack([largest, np.broadcast_to(answer["threshold"], largest.shape)])


def _reach(answer: dict[str, Any], windows: Sequence[int]) -> int:
    """Give the studies of the shortest sliding window whose statistic reaches the threshold."""
    over = (np.atleast_2d(answer["test_stat"]) >= answer["threshold"]).any(axis=1)
    return min(window for window, reached in zip(windows, over, strict=True) if reached)


def _halves(seed: int) -> Any:
    """Split both sides at random, one half to learn from and one to test."""
    from sklearn.model_selection import StratifiedShuffleSplit

    return StratifiedShuffleSplit(n_splits=1, test_size=0.5, random_state=seed)


def _never_zero(share: float, permutations: int) -> float:
    return (round(float(share) * permutations) + 1) / (permutations + 1)


def _median_of_positive(x: Any, y: Any, squared: Any) -> Any:
    """Give the bandwidth of the median distance, copies left out: with half of them copies it would be 0."""
    positive = squared[squared > ROUNDING * squared.max()]
    return (positive.median() / 2).sqrt().reshape(1)


def _mean_by_patient(values: Floats, patients: NDArray[np.intp]) -> Floats:
    sums = np.zeros((int(patients.max()) + 1, values.shape[1]))
    np.add.at(sums, patients, values)
    means: Floats = sums / np.bincount(patients)[:, None]
    return means


def _side_of_patient(patients: NDArray[np.intp], is_current: Flags) -> Flags:
    current = np.zeros(int(patients.max()) + 1, dtype=np.bool_)
    current[patients[is_current]] = True
    return current


def _draw_some(patients: NDArray[np.intp], generator: np.random.Generator) -> NDArray[np.intp]:
    if len(patients) <= CASE_MIX_PATIENTS:
        return patients
    return np.sort(generator.choice(patients, CASE_MIX_PATIENTS, replace=False))


def _centred(means: Floats) -> Floats:
    """Take the mean off each column; columns that do not vary become exactly 0."""
    centred: Floats = means - means.mean(axis=0)
    centred[:, np.ptp(means, axis=0) <= ROUNDING * np.abs(means).max(axis=0)] = 0
    return centred


def _in_one_unit(means: Floats) -> Floats:
    """Centre the columns and scale all alike, to a variance of 1 in the average column."""
    centred = _centred(means)
    largest = np.abs(centred).max(initial=0)
    if not largest > 0:
        raise NotEnoughData("nothing varies: every patient has the same mean, on both sides")
    centred /= largest
    scaled: Floats = centred / np.sqrt((centred**2).mean())
    return scaled


def _in_own_units(means: Floats) -> Floats:
    """Centre the columns and scale each to a variance of 1: ages and shares have no unit in common."""
    centred = _centred(means)
    spread = centred.std(axis=0)
    scaled: Floats = np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 0)
    return scaled


def _adjusted(values: Floats, mixes: Floats, current: Flags) -> tuple[Floats, Floats]:
    """Take off what a linear regression on the case mix explains, its slopes fitted within the sides."""
    within = [np.empty_like(values), np.empty_like(mixes)]
    for part, inner in zip((values, mixes), within, strict=True):
        for side in (current, ~current):
            inner[side] = part[side] - part[side].mean(axis=0)
    slopes = np.linalg.lstsq(within[1], within[0], rcond=None)[0]
    rest: Floats = values - mixes @ slopes
    return rest[~current], rest[current]


def _standardised_distance(before: Floats, now: Floats) -> float:
    """Length of the mean difference over the root of the summed variances, less what noise alone would give."""
    variance = before.var(axis=0, ddof=1).sum() / 2 + now.var(axis=0, ddof=1).sum() / 2
    squared = ((now.mean(axis=0) - before.mean(axis=0)) ** 2).sum()
    noise = before.var(axis=0, ddof=1).sum() / len(before) + now.var(axis=0, ddof=1).sum() / len(now)
    return float(np.sqrt(max(squared - noise, 0.0) / variance)) if variance > 0 else 0.0


@contextlib.contextmanager
def _quiet_and_seeded(generator: np.random.Generator) -> Iterator[int]:
    """Seed the global generators that alibi-detect draws from, put them back after, and swallow what it prints."""
    seed = int(generator.integers(2**31))
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")  # its own deprecations; nothing here for our users
        from alibi_detect.cd.pytorch import lsdd

        logging.getLogger("alibi_detect").setLevel(logging.ERROR)
        torch = lsdd.torch  # the one that alibi-detect runs on; nothing here computes with torch by itself
        state = np.random.get_state()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            np.random.seed(seed)
            try:
                yield seed
            finally:
                np.random.set_state(state)
