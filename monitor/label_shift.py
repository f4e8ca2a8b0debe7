"""How frequent a finding has become, estimated without labels: black-box shift estimation.

Lipton, Wang and Smola (2018), in the soft form: what a model says on average of each class is known from a labelled
reference, so that what it says on average now tells the mixture of classes. It holds while each class looks as it
did; that is checked, by whether the window's scores are such a mixture at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from monitor.cohorts import Cohort, Window
from monitor.intervals import Floats, draw_both, sum_by_patient
from monitor.policies import DriftPolicy
from monitor.results import PrevalenceShift
from monitor.tasks import TASKS

Codes = NDArray[np.intp]

LEAST_PATIENTS = 5
"""Patients of every class that the reference must have."""

LEAST_SEPARATION = 4.0
"""Sampling errors by which the classes' average answers must differ in the direction in which they differ least."""

INVOLVED = 0.95
"""Part of the squared length of that direction that the classes make up who are said to be involved, largest first."""

ROUNDING = 1e-12

GRID = 48
"""Scores at which two distribution functions are compared."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Question:
    """A set of classes that shares of studies are asked of.

    ``said`` (n, J) and ``said_now`` (m, J) are scores, ``classes`` (n,) the class of each reference study out of K;
    ``owners`` and ``owners_now`` number the patients. ``names`` are those of the K classes, ``findings`` name
    (class, name, column) to report.
    """

    said: Floats
    classes: Codes
    owners: Codes
    said_now: Floats
    owners_now: Codes
    names: tuple[str, ...]
    findings: tuple[tuple[int, str, int], ...]


def estimate_prevalence(
    reference: Cohort, current: Cohort, *, window: Window, policy: DriftPolicy, generator: np.random.Generator
) -> tuple[PrevalenceShift, ...]:
    """Estimate the share of every finding in a window without its labels, with an interval over patients.

    Binary and multi-class: the shares of all classes together, on the simplex; multi-label: each finding alone.
    Patients of both sides are resampled together.
    """
    counts, first, second = draw_both(reference.patient_key, current.patient_key, policy.resamples, generator)
    found: list[PrevalenceShift] = []
    for question in _questions(reference, current, first, second):
        reason = _explain_impossible(question, current.patients, policy)
        if reason:
            found += [_absent(question, finding, window, policy, reason) for finding in question.findings]
        else:
            found += _estimate(question, counts, window, policy)
    return tuple(found)


def _questions(reference: Cohort, current: Cohort, first: Codes, second: Codes) -> Iterator[_Question]:
    labels = reference.binary_labels()
    if TASKS[reference.task].scores_sum_to_one:
        known = ~np.isnan(labels).any(axis=1)
        yield _Question(
            said=reference.scores[known],
            classes=labels[known].argmax(axis=1),
            owners=first[known],
            said_now=current.scores,
            owners_now=second,
            names=reference.classes,
            findings=tuple((place, name, place) for place, name in enumerate(reference.findings)),
        )
        return
    for column, name in enumerate(reference.findings):
        known = ~np.isnan(labels[:, column])
        yield _Question(
            said=reference.scores[known][:, [column]],
            classes=labels[known, column].astype(np.intp),
            owners=first[known],
            said_now=current.scores[:, [column]],
            owners_now=second,
            names=(f"no {name}", name) if TASKS[reference.task].label_per_finding else reference.classes,
            findings=((1, name, 0),),
        )


def _explain_impossible(question: _Question, patients: int, policy: DriftPolicy) -> str:
    if patients < policy.minimum_patients:
        return f"{patients} patients, {policy.minimum_patients} are needed"
    for place, name in enumerate(question.names):
        seen = len(np.unique(question.owners[question.classes == place]))
        if seen < LEAST_PATIENTS:
            return f"{seen} patients of class {name} in the reference, {LEAST_PATIENTS} are needed"
    return ""


def _estimate(question: _Question, counts: Floats, window: Window, policy: DriftPolicy) -> list[PrevalenceShift]:
    weights = np.concatenate([np.ones((1, counts.shape[1])), counts])
    answers, said_now = _average_answers(question, weights)
    if alike := _find_alike(answers):
        reason = _tell_alike(question, alike)
        return [_absent(question, finding, window, policy, reason) for finding in question.findings]
    shares = _solve(answers, said_now)
    patients = len(np.unique(question.owners_now))
    reach = float(t.ppf(0.5 + policy.level / 2, patients - 1)) * shares[1:].std(axis=0, ddof=1)
    told = _on_simplex(shares[0])
    found: list[PrevalenceShift] = []
    for place, name, column in question.findings:
        low, high = (float(np.clip(shares[0, place] + side * reach[place], 0, 1)) for side in (-1, 1))
        found.append(
            PrevalenceShift(
                window=window,
                finding=name,
                reference=float((question.classes == place).mean()),
                estimate=float(told[place]),
                low=low,
                high=high,
                level=policy.level,
                n=len(question.said_now),
                patients=patients,
                reason="",
                fits=_test_fit(question, column, weights, shares),
            )
        )
    return found


def _average_answers(question: _Question, weights: Floats) -> tuple[Floats, Floats]:
    """Average the scores of each class (b, J, K) and of the window (b, J) under weights of patients."""
    by_class = [
        _average(question.said[mine], question.owners[mine], weights)
        for mine in (question.classes == place for place in range(len(question.names)))
    ]
    return np.stack(by_class, axis=2), _average(question.said_now, question.owners_now, weights)


def _average(values: Floats, owners: Codes, weights: Floats) -> Floats:
    table = sum_by_patient(np.column_stack([values, np.ones(len(values))]), owners, weights.shape[1])
    totals = weights @ table
    return np.asarray(totals[:, :-1] / np.maximum(totals[:, -1:], 1e-12))


def _find_alike(answers: Floats) -> tuple[int, ...]:
    """Name the classes whose mixture cannot be told, none where all can; from average answers (b, J, K), row 0 as seen.

    A change of the shares by v, which sums to 0, moves what is said on average by A v. The v of length 1 that moves it
    least is the last right singular vector of A on such changes, and how far it does the singular value; it
    must be LEAST_SEPARATION times what A v errs by when patients are drawn again. Of two classes that is
    their distance in standard errors. Three may each differ from each and yet one be a mixture of the others.
    """
    classes = answers.shape[2]
    changes = np.linalg.svd(np.ones((1, classes)))[2][1:].T
    _, values, weights = np.linalg.svd(answers[0] @ changes, full_matrices=True)
    least = changes @ weights[-1]
    moved = float(values[-1]) if len(values) == classes - 1 else 0.0
    error = float(np.sqrt(np.square((answers[1:] - answers[0]) @ least).sum(axis=1).mean()))
    if moved >= LEAST_SEPARATION * max(error, ROUNDING):
        return ()
    order = np.argsort(-np.abs(least), kind="stable")
    enough = int(np.searchsorted(np.cumsum(least[order] ** 2), INVOLVED)) + 1
    return tuple(sorted(order[: max(enough, 2)].tolist()))


def _tell_alike(question: _Question, alike: tuple[int, ...]) -> str:
    names = [question.names[place] for place in alike]
    told = f"{', '.join(names[:-1])} and {names[-1]}"
    patients = len(np.unique(question.owners))
    return f"the model's answers do not tell {told} apart enough, by {patients} patients in the reference"


def _solve(answers: Floats, said_now: Floats) -> Floats:
    """Find the shares (b, K) whose mixture of answers is what is said now, by least squares; they sum to about 1."""
    rows, classes = len(answers), answers.shape[2]
    design = np.concatenate([answers, np.ones((rows, 1, classes))], axis=1)
    target = np.concatenate([said_now, np.ones((rows, 1))], axis=1)
    squared = np.einsum("bjk,bjl->bkl", design, design) + 1e-12 * np.eye(classes)
    return np.asarray(np.linalg.solve(squared, np.einsum("bjk,bj->bk", design, target)[..., None])[..., 0])


def _on_simplex(shares: Floats) -> Floats:
    clipped = np.clip(shares, 0, 1)
    return np.asarray(clipped / clipped.sum()) if clipped.sum() > 0 else np.full(len(shares), 1 / len(shares))


def _test_fit(question: _Question, column: int, weights: Floats, shares: Floats) -> float:
    """Test whether the window's scores are a mixture of the classes', with the bootstrap's own process as the null.

    The largest distance between both distribution functions, against that of the resampled process around itself
    (van der Vaart and Wellner 1996, 3.7), in which the shares are estimated anew.
    """
    both = np.concatenate([question.said[:, column], question.said_now[:, column]])
    grid = np.unique(np.quantile(both, np.linspace(0, 1, GRID + 2)[1:-1], method="inverted_cdf"))
    now = _average(_below(question.said_now[:, column], grid), question.owners_now, weights)
    mixed = np.zeros_like(now)
    for place in range(len(question.names)):
        mine = question.classes == place
        mixed += shares[:, [place]] * _average(
            _below(question.said[mine, column], grid), question.owners[mine], weights
        )
    apart = now - mixed
    seen, usual = np.abs(apart[0]).max(), np.abs(apart[1:] - apart[0]).max(axis=1)
    return float((1 + (usual >= seen - 1e-12).sum()) / len(apart))


def _below(values: Floats, grid: Floats) -> Floats:
    return np.asarray(values[:, None] <= grid, dtype=np.float64)


def _absent(
    question: _Question, finding: tuple[int, str, int], window: Window, policy: DriftPolicy, reason: str
) -> PrevalenceShift:
    place, name, _ = finding
    return PrevalenceShift(
        window=window,
        finding=name,
        reference=float((question.classes == place).mean()) if len(question.classes) else None,
        estimate=None,
        low=None,
        high=None,
        level=policy.level,
        n=len(question.said_now),
        patients=len(np.unique(question.owners_now)),
        reason=reason,
    )
