"""Every detector by name behind one function type. The one file that may import alibi-detect.

alibi-detect is under the Business Source License 1.1 and costs seconds to import: it is imported only
when one of its detectors runs. It permutes rows, not patients, so each patient is handed over as one
row, the mean of the patient's embeddings.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from monitor.columns import permutation_chi_square, permutation_ks
from monitor.embedding_shift import permutation_shift
from monitor.kernels import permutation_mmd

Floats = NDArray[np.float64]
LEAST_PATIENTS = 4
LSDD_CELLS = 200_000_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """One side of a comparison: ``values`` (n,) or (n, width), and the patient of each row (n,)."""

    values: NDArray[Any]
    patients: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a detector answers: statistic, effect size with its name, and the p-value in (0, 1]."""

    statistic: float
    effect: float
    effect_name: str
    p_value: float


def is_constant(sample: Sample) -> bool:
    """Tell whether every study has the same embedding, as after a broken preprocessing."""
    return sample.values.ndim == 2 and len(sample) > 1 and not np.ptp(sample.values, axis=0).any()


class NotEnoughData(ValueError):
    """The samples cannot carry a verdict; the message says why, with the n."""


class Detector(Protocol):
    """Compare a reference with a current sample."""

    def __call__(
        self, reference: Sample, current: Sample, *, permutations: int, generator: np.random.Generator
    ) -> Outcome:
        """Test whether the two samples come from one distribution.

        Raises:
            NotEnoughData: too few patients on a side, or nothing varies.
            ValueError: values that are not finite.
        """


def compare(
    name: str, reference: Sample, current: Sample, *, permutations: int, generator: np.random.Generator
) -> Outcome:
    """Run the detector of a name.

    A patient on both sides counts as current only: relabelling patients needs each on one side.

    Raises:
        NotEnoughData: too few patients on a side, or nothing varies.
        ValueError: no such detector, or values that are not finite.
    """
    if name not in DETECTORS:
        raise ValueError(f"no detector {name!r}; there are {', '.join(DETECTORS)}")
    returning = np.isin(reference.patients, current.patients)
    kept = Sample(values=reference.values[~returning], patients=reference.patients[~returning])
    for side, sample in (("reference", kept), ("window", current)):
        if (patients := len(np.unique(sample.patients))) < LEAST_PATIENTS:
            raise NotEnoughData(f"{patients} patients in the {side}, {LEAST_PATIENTS} needed")
    both = np.concatenate([kept.values, current.values])
    if both.dtype.kind == "f" and not np.isfinite(both).all():
        raise ValueError("values must be finite; quarantine the others at ingest")
    if len(np.unique(both, axis=0)) < 2:
        raise NotEnoughData("nothing varies: every value is the same, on both sides")
    return DETECTORS[name](kept, current, permutations=permutations, generator=generator)


def _own(test: Callable[..., tuple[float, float, float]], effect_name: str) -> Detector:
    def detect(reference: Sample, current: Sample, *, permutations: int, generator: np.random.Generator) -> Outcome:
        values = np.concatenate([reference.values, current.values])
        patients = np.unique(np.concatenate([reference.patients, current.patients]), return_inverse=True)[1]
        is_current = np.arange(len(values)) >= len(reference)
        statistic, effect, p = test(values, patients, is_current, permutations=permutations, generator=generator)
        return Outcome(statistic=statistic, effect=effect, effect_name=effect_name, p_value=p)

    return detect


def _alibi(ask: Callable[[Floats, Floats, int, int], tuple[float, float]]) -> Detector:
    def detect(reference: Sample, current: Sample, *, permutations: int, generator: np.random.Generator) -> Outcome:
        before, now = _mean_by_patient(reference), _mean_by_patient(current)
        with _quiet_and_seeded(int(generator.integers(2**31))) as seed:
            statistic, p = ask(before, now, permutations, seed)
        effect = _standardised_distance(before, now)
        return Outcome(statistic=statistic, effect=effect, effect_name="standardised mean distance", p_value=p)

    return detect


def _ask_lsdd(before: Floats, now: Floats, permutations: int, seed: int) -> tuple[float, float]:
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
        raise NotEnoughData("too many studies are copies of each other for a density difference") from None
    return float(answer["distance"]), (round(float(answer["p_val"]) * permutations) + 1) / (permutations + 1)


def _ask_classifier(before: Floats, now: Floats, permutations: int, seed: int) -> tuple[float, float]:
    """Two-sample classifier (Lopez-Paz 2017): KS test on held-out scores of a penalised logistic regression.

    One half learns, the other is tested: scores out of several folds depend on each other, which made a
    nominal 1 % false-alarm rate 3 % with five folds.
    """
    from alibi_detect.cd.sklearn.classifier import ClassifierDriftSklearn
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedShuffleSplit

    detector = ClassifierDriftSklearn(before, LogisticRegression(C=0.01, max_iter=500), preds_type="probs")
    detector.skf = StratifiedShuffleSplit(n_splits=1, test_size=0.5, random_state=seed)
    answer = detector.predict(now)["data"]
    return float(answer["distance"]), max(float(answer["p_val"]), np.finfo(np.float64).tiny)


def _mean_by_patient(sample: Sample) -> Floats:
    patients, rows = np.unique(sample.patients, return_inverse=True)
    sums = np.zeros((len(patients), sample.values.shape[1]))
    np.add.at(sums, rows, sample.values)
    means: NDArray[Any] = (sums / np.bincount(rows)[:, None]).astype(np.float32)
    return means


def _standardised_distance(before: Floats, now: Floats) -> float:
    """Length of the mean difference over the root of the summed variances, less what noise alone would give."""
    variance = before.var(axis=0, ddof=1).sum() / 2 + now.var(axis=0, ddof=1).sum() / 2
    squared = ((now.mean(axis=0) - before.mean(axis=0)) ** 2).sum()
    noise = before.var(axis=0, ddof=1).sum() / len(before) + now.var(axis=0, ddof=1).sum() / len(now)
    return float(np.sqrt(max(squared - noise, 0.0) / variance)) if variance > 0 else 0.0


@contextlib.contextmanager
def _quiet_and_seeded(seed: int) -> Iterator[int]:
    """Seed the global generators that alibi-detect draws from, put them back after, and swallow what it prints."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")  # its own deprecations; nothing here for our users
        from alibi_detect.cd.pytorch import lsdd

        logging.getLogger("alibi_detect").setLevel(logging.ERROR)
        state = np.random.get_state()
        with lsdd.torch.random.fork_rng(devices=[]):
            lsdd.torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            try:
                yield seed
            finally:
                np.random.set_state(state)


DETECTORS: dict[str, Detector] = {
    "mmd": _own(permutation_mmd, "standardised kernel distance"),
    "ks": _own(permutation_ks, "KS distance"),
    "chi_square": _own(permutation_chi_square, "Cramér's V"),
    "alibi_lsdd": _alibi(_ask_lsdd),
    "alibi_classifier": _alibi(_ask_classifier),
    "embedding_shift": _own(permutation_shift, "standardised feature distance"),
}
