"""Fit what becomes of logits, on labelled studies: calibration, new prevalence, thresholds. Pure: no torch here.

Recalibration is fitted as if the finding were as frequent as in the reference (each class weighted), so that it mends
what a score means and leaves how frequent the finding became to the shift that is made for it. Both leave every
answer as it is, yes or no: the threshold moves along, and moving it is a step of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, log_expit, logit
from scipy.special import log_softmax as log_shares
from sklearn.isotonic import IsotonicRegression

from continual.outputs import TEMPERATURES, Floats, Outputs, odds_of
from continual.policies import ThresholdAim
from monitor.tasks import TASKS, Task

FOLDS = 5
LEAST = {"temperature": 10, "platt": 25, "isotonic": 200}
"""Patients with, and patients without, each finding from whom on a way of calibrating is tried."""


class NotFitted(ValueError):
    """The labels do not carry what was asked for; the message says why, with the n."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lesson:
    """Labelled studies as an adapter's head sees them.

    ``logits`` (n, score columns); ``answers`` (n, score columns) of 0, 1 or NaN; ``patients`` (n,) their keys;
    ``features`` (n, width) what enters the head; ``embeddings`` (n, d) the frozen backbone's own.
    """

    task: Task
    findings: tuple[str, ...]
    logits: Floats
    answers: Floats
    patients: NDArray[np.str_]
    features: Floats
    embeddings: Floats

    def __len__(self) -> int:
        return len(self.logits)

    @property
    def one_of(self) -> bool:
        """Tell whether exactly one of the findings is true."""
        return TASKS[self.task].scores_sum_to_one

    @property
    def prevalence(self) -> Floats:
        """Give the share of studies with each finding, half a study added to either side; (score columns,)."""
        known = ~np.isnan(self.answers)
        return np.asarray((np.nansum(self.answers, axis=0) + 0.5) / (known.sum(axis=0) + 1))

    def select(self, rows: NDArray[np.bool_] | NDArray[np.intp]) -> Lesson:
        """Keep the given rows."""
        names = ("logits", "answers", "patients", "features", "embeddings")
        columns = {name: getattr(self, name)[rows] for name in names}
        return Lesson(task=self.task, findings=self.findings, **columns)

    def rarest(self) -> int:
        """Count the patients of the rarer answer, of the finding where they are fewest."""
        counts = [
            len(np.unique(self.patients[self.answers[:, column] == answer]))
            for column in range(self.answers.shape[1])
            for answer in (0, 1)
        ]
        return min(counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What outputs are fitted to: the reference's prevalence and rates, one a finding, and how to set a threshold.

    ``told`` is a new prevalence that was estimated without labels; None: the labels tell it.
    """

    prevalence: tuple[float, ...]
    sensitivity: tuple[float, ...]
    aim: ThresholdAim = "sensitivity"
    cost_ratio: float = 5.0
    told: tuple[float, ...] | None = None


def divide_patients(patients: NDArray[np.str_], parts: int, seed: int) -> NDArray[np.intp]:
    """Put all studies of a patient into one of ``parts`` parts of about equal numbers of patients; shape (n,)."""
    keys, index = np.unique(patients, return_inverse=True)
    order = np.random.default_rng([seed, len(keys)]).permutation(len(keys))
    return np.asarray(order[index] % parts)


def fit_calibration(lesson: Lesson, prevalence: Floats | None, *, seed: int = 0) -> Outputs:
    """Choose among temperature, Platt and isotonic, as many as the labels carry, and fit it.

    Patient-grouped cross-validation measures the Brier score of each; the simplest is taken whose score lies within
    one standard error (over patients, paired) of the best (Breiman et al. 1984).

    Raises:
        NotFitted: fewer patients of a class than the simplest needs.
    """
    rarest = lesson.rarest()
    allowed = [name for name, least in LEAST.items() if rarest >= least]
    if not allowed:
        least = min(LEAST.values())
        raise NotFitted(f"{rarest} patients of the rarer answer are too few to calibrate, {least} are needed")
    if len(allowed) == 1:
        return CALIBRATIONS[allowed[0]](lesson, prevalence)
    weights, parts = weigh(lesson, prevalence), divide_patients(lesson.patients, FOLDS, seed)
    errors: dict[str, Floats] = {}
    for name in allowed:
        try:
            said = _say_out_of_fold(name, lesson, prevalence, parts)
        except NotFitted:
            continue  # slopes that are not above 0; a temperature always fits
        errors[name] = np.nanmean(weights * (said - lesson.answers) ** 2, axis=1)
    best = min(errors, key=lambda name: float(errors[name].mean()))
    chosen = next(name for name in errors if _is_as_good(errors[name] - errors[best], lesson.patients))
    return CALIBRATIONS[chosen](lesson, prevalence)


def _say_out_of_fold(name: str, lesson: Lesson, prevalence: Floats | None, parts: NDArray[np.intp]) -> Floats:
    """Give the chances (n, columns) of each part's studies by a calibration that was fitted on the others."""
    said = np.empty_like(lesson.logits)
    for part in range(FOLDS):
        fitted = CALIBRATIONS[name](lesson.select(parts != part), prevalence)
        said[parts == part] = fitted.apply(lesson.logits[parts == part], lesson.task)
    return said


def fit_temperature(lesson: Lesson, prevalence: Floats | None) -> Outputs:
    """Fit one temperature for all findings by the likelihood (Guo et al. 2017)."""
    weights, known = weigh(lesson, prevalence), ~np.isnan(lesson.answers)
    answers = np.nan_to_num(lesson.answers)

    def loss(log_temperature: float) -> float:
        logits = lesson.logits / np.exp(log_temperature)
        if lesson.one_of:
            return float(-(weights * answers * log_shares(logits, axis=1)).sum())
        terms = answers * log_expit(logits) + (1 - answers) * log_expit(-logits)
        return float(-(weights * terms)[known].sum())

    low, high = np.log(TEMPERATURES)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-9})
    return Outputs(temperature=float(np.clip(np.exp(found.x), *TEMPERATURES)))


def fit_platt(lesson: Lesson, prevalence: Floats | None) -> Outputs:
    """Fit Platt's slope and intercept of each finding's log-odds, with his targets (1999).

    Raises:
        NotFitted: a slope is not above 0, so that higher scores would mean less of the finding.
    """
    weights, odds = weigh(lesson, prevalence), _odds(lesson)
    pairs = []
    for column in range(odds.shape[1]):
        known = ~np.isnan(lesson.answers[:, column])
        y, x, w = lesson.answers[known, column], odds[known, column], weights[known, column]
        yes = y.sum()
        target = np.where(y == 1, (yes + 1) / (yes + 2), 1 / (len(y) - yes + 2))
        pairs.append(_fit_line(x, target, w))
    if min(slope for slope, _ in pairs) <= 0:
        raise NotFitted("higher scores do not mean more of the finding, so nothing can be calibrated")
    return Outputs(slopes=tuple(slope for slope, _ in pairs), intercepts=tuple(offset for _, offset in pairs))


def fit_isotonic(lesson: Lesson, prevalence: Floats | None) -> Outputs:
    """Fit a rising table of each finding's chances over its log-odds (Zadrozny and Elkan 2002)."""
    weights, odds = weigh(lesson, prevalence), _odds(lesson)
    tables = []
    for column in range(odds.shape[1]):
        known = ~np.isnan(lesson.answers[:, column])
        fit = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
        fit.fit(odds[known, column], lesson.answers[known, column], sample_weight=weights[known, column])
        tables.append((tuple(fit.X_thresholds_.tolist()), tuple(fit.y_thresholds_.tolist())))
    return Outputs(tables=tuple(tables))


CALIBRATIONS: dict[str, Callable[[Lesson, Floats | None], Outputs]] = {
    "temperature": fit_temperature,
    "platt": fit_platt,
    "isotonic": fit_isotonic,
}
"""Ways of calibrating, the simplest first."""


def shift_prevalence(before: Floats, now: Floats, task: Task) -> tuple[float, ...]:
    """Give what to add to log-odds (or to log-chances of classes) when prevalences (columns,) change.

    Saerens, Latinne and Decaestecker (2002): each class's chance times its new share over its old.
    """
    before, now = (np.clip(side, 1e-6, 1 - 1e-6) for side in (before, now))
    moved = np.log(now / before) if TASKS[task].scores_sum_to_one else logit(now) - logit(before)
    return tuple(float(one) for one in moved)


def unshift_prevalence(now: Floats, shift: Floats, task: Task) -> Floats:
    """Give the prevalence (columns,) from which ``shift`` led to ``now``: what plain scores are right for."""
    now = np.clip(now, 1e-6, 1 - 1e-6)
    if TASKS[task].scores_sum_to_one:
        before = now * np.exp(-shift)
        return np.asarray(before / before.sum())
    return np.asarray(expit(logit(now) - shift))


def fit_thresholds(scores: Floats, answers: Floats, target: Target) -> tuple[float, ...]:
    """Set a threshold for each finding on labelled studies; scores and answers (n, findings).

    "sensitivity": the highest at which as many of the sick are caught as in the reference; "youden": the largest
    sensitivity + specificity; "cost": the least cost, where a missed one costs ``cost_ratio`` false alarms.

    Raises:
        NotFitted: a finding has labels of one kind only.
    """
    found = []
    for column in range(scores.shape[1]):
        known = ~np.isnan(answers[:, column])
        s, y = scores[known, column], answers[known, column]
        if not 0 < y.sum() < len(y):
            raise NotFitted(f"{int(y.sum())} of {len(y)} labelled studies have the finding: no threshold can be set")
        found.append(_set_threshold(s, y, target, column))
    return tuple(found)


def weigh(lesson: Lesson, prevalence: Floats | None) -> Floats:
    """Weigh each answer so that findings are as frequent as ``prevalence`` (columns,) says; (n, columns), mean 1."""
    answers = np.nan_to_num(lesson.answers)
    if prevalence is None:
        return np.ones_like(answers)
    now = lesson.prevalence
    if lesson.one_of:
        ratio = (prevalence / prevalence.sum()) / (now / now.sum())
        return np.asarray(np.broadcast_to((answers * ratio).sum(axis=1, keepdims=True), answers.shape))
    return np.asarray(answers * prevalence / now + (1 - answers) * (1 - prevalence) / (1 - now))


def _set_threshold(scores: Floats, answers: Floats, target: Target, column: int) -> float:
    """Try every cut between two different scores; of equals the one nearest to the middle of the scores' range."""
    values = np.unique(scores)
    cuts = np.concatenate([[values[0] / 2], (values[1:] + values[:-1]) / 2, [(values[-1] + 1) / 2]])
    yes, no = np.sort(scores[answers == 1]), np.sort(scores[answers == 0])
    caught = 1 - np.searchsorted(yes, cuts, side="left") / len(yes)
    spared = np.searchsorted(no, cuts, side="left") / len(no)
    if target.aim == "sensitivity":
        enough = cuts[caught >= target.sensitivity[column] - 1e-12]
        best = enough[-1] if len(enough) else cuts[0]
    else:
        worth = caught + spared
        if target.aim == "cost":
            worth = -(target.cost_ratio * (1 - caught) * len(yes) + (1 - spared) * len(no))
        equal = np.flatnonzero(worth >= worth.max() - 1e-12)
        best = cuts[equal[len(equal) // 2]]
    return float(np.clip(best, 1e-9, 1 - 1e-9))


def _odds(lesson: Lesson) -> Floats:
    return odds_of(lesson.logits) if lesson.one_of else lesson.logits


def _fit_line(x: Floats, target: Floats, weights: Floats) -> tuple[float, float]:
    """Fit the slope and intercept of a logistic regression with soft targets, weights of mean about 1."""
    weights = weights / weights.sum()

    def loss(line: Floats) -> tuple[float, Floats]:
        z = line[0] * x + line[1]
        off = weights * (expit(z) - target)
        value = -(weights * (target * log_expit(z) + (1 - target) * log_expit(-z))).sum()
        return float(value), np.asarray([off @ x, off.sum()])

    found = minimize(loss, np.asarray([1.0, 0.0]), jac=True, method="BFGS", options={"gtol": 1e-9})
    return float(found.x[0]), float(found.x[1])


def _is_as_good(excess: Floats, patients: NDArray[np.str_]) -> bool:
    """Tell whether a mean excess error (n,) lies within one standard error over patients of 0."""
    _, index = np.unique(patients, return_inverse=True)
    sums = np.bincount(index, weights=excess - excess.mean())
    error = float(np.sqrt((sums**2).sum())) / len(excess)
    return float(excess.mean()) <= error
