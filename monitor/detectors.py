"""Every detector by name behind one function type."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from monitor.alibi import (
    compare_at_equal_case_mix,
    compare_by_classifier,
    compare_by_learned_kernel,
    compare_by_lsdd,
    compare_by_spot_the_diff,
)
from monitor.columns import (
    permutation_chi_square,
    permutation_jensen_shannon,
    permutation_ks,
    permutation_psi,
    permutation_wasserstein,
)
from monitor.domain_classifier import permutation_classifier
from monitor.embedding_shift import permutation_shift
from monitor.kernels import permutation_mmd
from monitor.results import NotEnoughData

LEAST_PATIENTS = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """One side of a comparison.

    Attributes:
        values: embeddings, shape (n, width), or one column of numbers or words, shape (n,).
        patients: patient of each row, texts or whole numbers, shape (n,).
        context: case mix of each row as numbers, shape (n, k), for a comparison at equal case mix.
    """

    values: NDArray[Any]
    patients: NDArray[Any]
    context: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.values)

    def select(self, rows: NDArray[Any]) -> Sample:
        """Give some rows, by number or by mask."""
        context = None if self.context is None else self.context[rows]
        return Sample(values=self.values[rows], patients=self.patients[rows], context=context)


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


class Detector(Protocol):
    """Compare a reference with a current sample."""

    def __call__(
        self, reference: Sample, current: Sample, *, permutations: int, generator: np.random.Generator
    ) -> Outcome:
        """Test whether the two samples come from one distribution.

        Raises:
            NotEnoughData: too few patients on a side, nothing varies, or no context where one is needed.
            ValueError: values of a form that the detector does not read.
        """


def compare(
    name: str, reference: Sample, current: Sample, *, permutations: int, generator: np.random.Generator
) -> Outcome:
    """Run the detector of a name.

    A patient on both sides counts as current only: relabelling patients needs each on one side.

    Raises:
        NotEnoughData: too few patients on a side, nothing varies, or no context where one is needed.
        ValueError: no such detector, values of a form that it does not read, or not finite.
    """
    if name not in DETECTORS:
        raise ValueError(f"no detector {name!r}; there are {', '.join(DETECTORS)}")
    kept = reference.select(~np.isin(reference.patients, current.patients))
    for side, sample in (("reference", kept), ("window", current)):
        if (patients := len(np.unique(sample.patients))) < LEAST_PATIENTS:
            raise NotEnoughData(f"{patients} patients in the {side}, {LEAST_PATIENTS} needed")
    if kept.values.shape[1:] != current.values.shape[1:]:
        raise ValueError(f"rows of the reference have shape {kept.values.shape[1:]}, those of the window others")
    both = np.concatenate([kept.values, current.values])
    refuse_unknown(both)
    if len(np.unique(both, axis=0)) < 2:
        raise NotEnoughData("nothing varies: every value is the same, on both sides")
    return DETECTORS[name](kept, current, permutations=permutations, generator=generator)


def refuse_unknown(values: NDArray[Any]) -> None:
    """Refuse what is neither a finite number nor a word."""
    if values.dtype.kind not in "biufUS":
        raise ValueError(f"values must be numbers or words, not {values.dtype}")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError("values must be finite; quarantine the others at ingest")


def _reading(kinds: str, dimensions: int, test: Callable[..., tuple[float, float, float]], effect: str) -> Detector:
    """Make a detector of a test that takes both sides at once; it reads such dtype kinds and dimensions only."""

    def detect(reference: Sample, current: Sample, *, permutations: int, generator: np.random.Generator) -> Outcome:
        values = np.concatenate([reference.values, current.values])
        if values.ndim != dimensions or values.dtype.kind not in kinds:
            raise ValueError(f"values are {values.dtype} {values.shape}: {FORMS[kinds, dimensions]} are compared here")
        sides = (values, *_sides(reference, current))
        statistic, size, p = test(*sides, permutations=permutations, generator=generator)
        return Outcome(statistic=statistic, effect=size, effect_name=effect, p_value=p)

    return detect


def _sides(reference: Sample, current: Sample) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    patients = np.unique(np.concatenate([reference.patients, current.patients]), return_inverse=True)[1]
    return patients, np.arange(len(patients)) >= len(reference)


def _detect_at_equal_case_mix(
    reference: Sample, current: Sample, *, permutations: int, generator: np.random.Generator
) -> Outcome:
    if reference.context is None or current.context is None:
        raise NotEnoughData("no case mix is known to compare at")
    contexts = np.concatenate([reference.context, current.context]).astype(np.float64)
    refuse_unknown(contexts)

    test = functools.partial(compare_at_equal_case_mix, contexts=contexts)
    detect = _reading(NUMBERS, 2, test, "standardised mean distance at equal case mix")
    return detect(reference, current, permutations=permutations, generator=generator)


NUMBERS, WORDS_TOO = "biuf", "biufUS"
FORMS = {
    (NUMBERS, 2): "embeddings (n, width)",
    (NUMBERS, 1): "numbers (n,)",
    (WORDS_TOO, 1): "categories (n,)",
}
MEANS = "standardised mean distance"
_TESTS: dict[str, tuple[str, int, Callable[..., tuple[float, float, float]], str]] = {
    "mmd": (NUMBERS, 2, permutation_mmd, "standardised kernel distance"),
    "ks": (NUMBERS, 1, permutation_ks, "KS distance"),
    "chi_square": (WORDS_TOO, 1, permutation_chi_square, "Cramér's V"),
    "wasserstein": (NUMBERS, 1, permutation_wasserstein, "standardised Wasserstein distance"),
    "psi": (WORDS_TOO, 1, permutation_psi, "PSI beyond chance"),
    "jensen_shannon": (WORDS_TOO, 1, permutation_jensen_shannon, "Jensen–Shannon distance"),
    "embedding_shift": (NUMBERS, 2, permutation_shift, "standardised feature distance"),
    "domain_classifier": (NUMBERS, 2, permutation_classifier, "AUROC above chance"),
    "alibi_lsdd": (NUMBERS, 2, compare_by_lsdd, MEANS),
    "alibi_classifier": (NUMBERS, 2, compare_by_classifier, MEANS),
    "alibi_learned_kernel": (NUMBERS, 2, compare_by_learned_kernel, MEANS),
    "alibi_spot_the_diff": (NUMBERS, 2, compare_by_spot_the_diff, MEANS),
}
EFFECT_NAMES = {name: effect for name, (*_, effect) in _TESTS.items()}
"""What the effect of a detector is called, however its p-value is found."""

DETECTORS: dict[str, Detector] = {name: _reading(*row) for name, row in _TESTS.items()}
DETECTORS["alibi_context_mmd"] = _detect_at_equal_case_mix
