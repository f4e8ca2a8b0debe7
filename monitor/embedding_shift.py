"""Two-sample test of embeddings against a reference fitted once: what moved, mean, spread, mixture or texture?

Its p-value is exact either way: a reference fitted beforehand learns features on patients who take no part in the
permutations (Kübler et al. 2022, a witness two-sample test); a comparison of two samples at hand learns them from
both, unlabelled, so that they are the same for every relabelling. Random Fourier features are Rahimi and Recht's
(2007); the maximum over studentised groups with one p-value is Westfall and Young's (1993).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitor.embedding_features import FLAT, GROUPS, VERSION, FeatureMap, chunks, columns, learn, map_features
from monitor.permutations import SINGLE_ROUNDING, p_value
from monitor.results import NotEnoughData

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]

LEAST_PATIENTS = 4
STUDIES_TO_LEARN_FROM = 20_000
PATIENTS_A_DIRECTION = 3  # with as many directions as patients, whitening puts every relabelling equally far


class TooFewPatients(NotEnoughData):
    """The patients on one side cannot carry a verdict; the message says which side, with the n."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reference:
    """A fitted reference: what was learned on one half of its patients, and the other half, mapped.

    Attributes:
        learned: the feature map.
        learned_from: keys of the patients it was learned from, sorted.
        patients: keys of the other patients, sorted, shape (patients,).
        sizes: their studies, shape (patients,).
        sums: their features summed by patient, shape (patients, features).
        variance: of each feature over their studies, shape (features,).
    """

    learned: FeatureMap
    learned_from: NDArray[Any]
    patients: NDArray[Any]
    sizes: Floats
    sums: Singles
    variance: Floats

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Give everything as named plain arrays, ready for ``numpy.savez``; `of` reads them back."""
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "learned"}
        return own | {field.name: getattr(self.learned, field.name) for field in fields(FeatureMap)}

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]]) -> Reference:
        """Rebuild a reference from what `arrays` gave."""
        own = {field.name: arrays[field.name] for field in fields(cls) if field.name != "learned"}
        return cls(learned=FeatureMap(**{field.name: arrays[field.name] for field in fields(FeatureMap)}), **own)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """What `test_shift` answers.

    Attributes:
        statistic: largest studentised distance over the groups, in standard deviations of its permutations.
        p_value: (b + 1) / (m + 1), for all groups together.
        group: the group, out of GROUPS, that moved most.
        effect: how far it moved, 0 without a difference and not growing with n; see `test_shift`.
        studies: studies of the window that were compared.
        left_out: studies of the window whose patients the features were learned from.
    """

    statistic: float
    p_value: float
    group: str
    effect: float
    studies: int
    left_out: int


def fit_reference(values: NDArray[Any], patients: NDArray[Any], *, generator: np.random.Generator) -> Reference:
    """Learn the features on a random half of the patients and map the other half.

    Args:
        values: embeddings, shape (n, width), finite, in any one unit.
        patients: key of each row's patient, shape (n,).
        generator: source of randomness, for the halves and the frequencies.

    Raises:
        TooFewPatients: fewer than 4 patients.
        ValueError: shapes that do not fit, or values that are not finite.
    """
    _check(values, patients)
    keys, owners = np.unique(patients, return_inverse=True)
    _need(len(keys), LEAST_PATIENTS, "the reference")
    learns = np.zeros(len(keys), dtype=np.bool_)
    learns[generator.permutation(len(keys))[: len(keys) // 2]] = True
    order = np.argsort(owners, kind="stable")
    teaching, rest = order[learns[owners[order]]], order[~learns[owners[order]]]
    learned = _learn_features(values, teaching, generator)
    return _map_reference(learned, keys[learns], values[rest], keys[owners[rest]])


def _learn_features(
    values: NDArray[Any], teaching: NDArray[np.intp], generator: np.random.Generator, most: int | None = None
) -> FeatureMap:
    """Learn from some rows, or from an even draw of them where they are many."""
    if len(teaching) > STUDIES_TO_LEARN_FROM:
        teaching = teaching[np.sort(generator.choice(len(teaching), STUDIES_TO_LEARN_FROM, replace=False))]
    return learn(np.asarray(values[teaching], dtype=np.float64), generator, most)


def _map_reference(
    learned: FeatureMap, learned_from: NDArray[Any], values: NDArray[Any], patients: NDArray[Any]
) -> Reference:
    """Map studies, in order of their patients, and keep their sums by patient."""
    keys, owners = np.unique(patients, return_inverse=True)
    sums = np.zeros((len(keys), len(learned.middle)), dtype=np.float32)
    squares = np.zeros(len(learned.middle))
    for rows in chunks(len(values)):
        features = map_features(learned, values[rows])
        ids, starts = np.unique(owners[rows], return_index=True)
        sums[ids] += np.add.reduceat(features, starts, axis=0)
        squares += np.square(features, dtype=np.float64).sum(axis=0)
    return Reference(
        learned=learned,
        learned_from=learned_from,
        patients=keys,
        sizes=np.bincount(owners).astype(np.float64),
        sums=sums,
        variance=squares / len(values) - (sums.sum(axis=0, dtype=np.float64) / len(values)) ** 2,
    )


def name_reference(values: NDArray[Any], patients: NDArray[Any], *, seed: int) -> str:
    """Name what `fit_reference` gives for a generator of this seed: one content, seed and version, one name.

    Args:
        values: embeddings, shape (n, width).
        patients: key of each row's patient, shape (n,).
        seed: of the generator.
    """
    digest = hashlib.sha256(f"{VERSION} {seed} {values.shape} {values.dtype} {patients.dtype}".encode())
    for array in (values, patients):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def test_shift(
    reference: Reference,
    values: NDArray[Any],
    patients: NDArray[Any],
    *,
    permutations: int,
    generator: np.random.Generator,
) -> Shift:
    """Test whether a window comes from the distribution of the reference, with patients permuted as wholes.

    The distance of a group is the sum of its features' squared mean differences, each in units of its own
    permutations; the largest studentised distance over the groups is the statistic, of the observed labels and
    of every relabelling alike, so that one exact p-value covers all groups. A patient on both sides counts
    as current only; studies of patients whom the features were learned from are left out.

    The effect is sqrt(max(0, sum_j d_j² / s_j² - noise) / breadth) over the features j of the group that moved
    most: d_j the mean difference, s_j² the variance in an even mixture of both sides, noise what the winner
    of a relabelling typically reaches, breadth as in `FeatureMap`. One feature that moves by one standard
    deviation in a group of k independent ones is an effect of about k^(-1/4), all of them k^(1/4).

    Args:
        reference: from `fit_reference`.
        values: embeddings of the window, shape (n, width), finite, in the reference's unit.
        patients: key of each row's patient, shape (n,).
        permutations: how many relabellings of patients.
        generator: source of randomness, for the relabellings.

    Raises:
        TooFewPatients: too few patients who may be compared on either side.
        ValueError: shapes that do not fit, or values that are not finite.

    >>> rng = np.random.default_rng(0)
    >>> reference = fit_reference(rng.normal(size=(400, 32)), np.arange(400), generator=rng)
    >>> window = rng.normal(0.5, 1, size=(100, 32))
    >>> shift = test_shift(reference, window, np.arange(400, 500), permutations=199, generator=rng)
    >>> shift.p_value, shift.group, shift.effect > 1
    (0.005, 'leading directions', True)
    """
    _check(values, patients, len(reference.learned.centre))
    studies = np.flatnonzero(~np.isin(patients, reference.learned_from))
    keys, owners = np.unique(patients[studies], return_inverse=True)
    staying = np.flatnonzero(~np.isin(reference.patients, keys))
    _need(len(keys), LEAST_PATIENTS, "the window")
    _need(len(staying), LEAST_PATIENTS // 2, "the half of the reference that is compared")
    sides = _relabellings(len(staying), len(keys), permutations, generator)
    before, now = sides[:, : len(staying)], sides[:, len(staying) :]
    sizes = np.concatenate([reference.sizes[staying], np.bincount(owners).astype(np.float64)])
    moved_before, total_before = _add_up_reference(reference, staying, before)
    kept = values if len(studies) == len(values) else values[studies]  # a copy of a million rows is not free
    moved_now, total_now, squares = _add_up_window(reference.learned, kept, owners, now)
    moved, total = moved_before + moved_now, total_before + total_now
    counts = _count_current(sides, sizes)[:, None]
    differences = moved / counts - (total - moved) / (sizes.sum() - counts)
    variance = (reference.variance + squares / len(studies) - (total_now / len(studies)) ** 2) / 2
    return _judge(reference.learned, differences, variance, (len(studies), len(patients) - len(studies)))


def permutation_shift(
    values: NDArray[Any],
    patients: NDArray[np.intp],
    is_current: NDArray[np.bool_],
    *,
    permutations: int,
    generator: np.random.Generator,
) -> tuple[float, float, float]:
    """Learn the features from both sides, unlabelled, and test one against the other.

    What is learned is the same for every relabelling, so that the p-value stays exact, and no patient is spent on
    learning alone: this sees more than `fit_reference` and `test_shift`, but nothing of it can be fitted before.

    Arguments as `monitor.kernels.permutation_mmd`.

    Returns: statistic, effect and p-value.

    Raises:
        TooFewPatients: fewer than 4 patients on a side.
        ValueError: shapes that do not fit, or values that are not finite.
    """
    _check(values, patients)
    order = np.argsort(patients, kind="stable")
    rest = order[~is_current[order]]
    _need(len(np.unique(patients[rest])), LEAST_PATIENTS, "the reference")
    most = max(1, len(np.unique(patients)) // PATIENTS_A_DIRECTION)
    learned = _learn_features(values, order, generator, most)
    reference = _map_reference(learned, patients[:0], values[rest], patients[rest])
    window = (values[is_current], patients[is_current])
    shift = test_shift(reference, *window, permutations=permutations, generator=generator)
    return shift.statistic, shift.effect, shift.p_value


def _check(values: NDArray[Any], patients: NDArray[Any], width: int | None = None) -> None:
    if values.ndim != 2 or patients.shape != values.shape[:1]:
        raise ValueError(f"values {values.shape} must be (n, width) and patients {patients.shape} (n,)")
    if width is not None and values.shape[1] != width:
        raise ValueError(f"the window's embeddings are {values.shape[1]} wide, the reference's {width}")
    if not all(np.isfinite(values[rows]).all() for rows in chunks(len(values))):
        raise ValueError("values must be finite; quarantine the others at ingest")


def _need(found: int, least: int, where: str) -> None:
    if found < least:
        raise TooFewPatients(f"{found} patients in {where}, {least} needed")


def _count_current(sides: NDArray[np.bool_], sizes: Floats) -> Floats:
    """Count the current studies of each relabelling; piece by piece, for the product needs floats of all patients."""
    counts = np.zeros(len(sides))
    for some in chunks(len(sizes)):
        counts += sides[:, some] @ sizes[some]
    return counts


def _add_up_reference(
    reference: Reference, staying: NDArray[np.intp], sides: NDArray[np.bool_]
) -> tuple[Floats, Floats]:
    """Sum the features (relabellings, features) that stand on the current side, and all of them."""
    added = np.zeros((len(sides) + 1, len(reference.variance)))
    for some in chunks(len(staying)):
        added += _and_all(sides[:, some]) @ reference.sums[staying[some]]
    return added[:-1], added[-1]


def _add_up_window(
    learned: FeatureMap, values: NDArray[Any], owners: NDArray[np.intp], sides: NDArray[np.bool_]
) -> tuple[Floats, Floats, Floats]:
    """Sum likewise over the window's studies, mapped a chunk at a time, and their squares too."""
    added, squares = np.zeros((len(sides) + 1, len(learned.middle))), np.zeros(len(learned.middle))
    for rows in chunks(len(values)):
        features = map_features(learned, values[rows])
        added += _and_all(sides[:, owners[rows]]) @ features
        squares += np.einsum("nf,nf->f", features, features)
    return added[:-1], added[-1], squares


def _and_all(sides: NDArray[np.bool_]) -> Singles:
    """Give the sides as factors, with a last row that takes everybody: one product then gives the total as well."""
    factors = np.ones((len(sides) + 1, sides.shape[1]), dtype=np.float32)
    factors[:-1] = sides
    return factors


def _relabellings(before: int, now: int, permutations: int, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Give who is current, (permutations + 1, before + now); row 0 as observed, the others drawn evenly."""
    sides = np.zeros((permutations + 1, before + now), dtype=np.bool_)
    sides[0, before:] = True
    few = min(before, now)
    for row in sides[1:]:
        row[generator.choice(before + now, few, replace=False, shuffle=False)] = True
    if now > few:
        np.logical_not(sides[1:], out=sides[1:])
    return sides


def _judge(learned: FeatureMap, differences: Floats, variance: Floats, studies: tuple[int, int]) -> Shift:
    """Studentise each group by its own relabellings and take the largest, row by row alike."""
    squared = differences**2
    noise = squared.mean(axis=0)
    relative = np.divide(squared, noise, out=np.zeros_like(squared), where=noise > FLAT**2)
    # Wilson and Hilferty's (1931) cube root gives groups of any width tails alike
    sums = np.cbrt(_sum_by_group(learned, relative))
    spread = sums.std(axis=0)
    distances = np.divide(sums - sums.mean(axis=0), spread, out=np.zeros_like(sums), where=spread > FLAT)
    largest = distances.max(axis=1)
    chance = max(0.0, float(largest[1:].mean()))
    group, effect = _name_and_size(learned, squared, variance, chance)
    return Shift(
        statistic=float(largest[0]),
        p_value=p_value(largest, rounding=SINGLE_ROUNDING),
        group=group,
        effect=effect,
        studies=studies[0],
        left_out=studies[1],
    )


def _name_and_size(learned: FeatureMap, squared: Floats, variance: Floats, chance: float) -> tuple[str, float]:
    """Name the group that lies furthest beyond its relabellings, and size what chance does not give the furthest."""
    even = np.maximum(variance + squared[0] / 4, FLAT**2)
    sums = _sum_by_group(learned, squared / even)
    usual, spread = sums[1:].mean(axis=0), sums[1:].std(axis=0)
    beyond = np.divide(sums[0] - usual, spread, out=np.zeros_like(usual), where=spread > FLAT**2)
    best = int(beyond.argmax())
    excess = max(0.0, float(sums[0, best] - usual[best] - chance * spread[best]))
    return GROUPS[best], float(np.sqrt(excess / learned.breadth[best]))


def _sum_by_group(learned: FeatureMap, features: Floats) -> Floats:
    """Sum (relabellings, features) to (relabellings, groups)."""
    return np.stack([features[:, group].sum(axis=1) for group in columns(learned.axes.shape)], axis=1)
