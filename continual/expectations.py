"""What each cheap step of the ladder would leave lost, measured before anything is changed. Pure: no torch here.

Each step is tried on the labelled learning patients of the drifted windows by cross-validation with all studies of a
patient in one part, exactly as it would be made later, and compared with the reference patients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from continual.calibrating import (
    FOLDS,
    Lesson,
    NotFitted,
    Target,
    divide_patients,
    fit_calibration,
    fit_thresholds,
    shift_prevalence,
    unshift_prevalence,
)
from continual.heads import Head, new_head, refit_head
from continual.outputs import Floats, Outputs
from continual.plans import Expectation, ExpectedHarm
from continual.policies import AdaptationPolicy, Treatment
from monitor.calibration import recalibrate, score_logit
from monitor.intervals import Difference, Estimate, Form, draw_both, sum_by_patient
from monitor.measures import Answers, Basis, estimate, say_yes

RESAMPLES = 300
LEVEL = 0.95
CALIBRATION = "calibration"
MENDS = {
    Treatment.RECALIBRATE: "brier",
    Treatment.CORRECT_PREVALENCE: "brier",
    Treatment.MOVE_THRESHOLD: "sensitivity",
    Treatment.REFIT_HEAD: "auroc",
}
"""The figure that a step is for; a threshold may also be moved for the specificity."""

PROBE_HOLD = 5.0
"""Penalty of the free linear head whose AUROC says what the backbone sees."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bench:
    """What the steps are tried on.

    ``new``: learning patients of the drifted windows; ``learned``: those of everything learned before, for rehearsal;
    ``reference``: reference patients of the live version's windows, as it answers them. ``head`` and ``outputs`` are
    the champion's.
    """

    new: Lesson
    learned: tuple[Lesson, ...]
    reference: Lesson
    head: Head
    outputs: Outputs
    policy: AdaptationPolicy
    told: tuple[float, ...] | None = None

    @property
    def target(self) -> Target:
        """Give what outputs are fitted to: the reference's prevalence and sensitivity."""
        scores = self.outputs.apply(self.reference.logits, self.reference.task)
        said = say_yes(scores, self.reference.task, self.outputs.thresholds)
        sick = self.reference.answers == 1
        caught = (said & sick).sum(axis=0) / np.maximum(sick.sum(axis=0), 1)
        return Target(
            prevalence=tuple(map(float, self.reference.prevalence)),
            sensitivity=tuple(map(float, caught)),
            aim=self.policy.threshold_aim,
            cost_ratio=self.policy.cost_ratio,
            told=self.told,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Said:
    """What is said of some studies: chances (n, columns), and yes or no (n, columns)."""

    scores: Floats
    yes: NDArray[np.bool_]


def fit_outputs(treatment: Treatment, lesson: Lesson, before: Outputs, target: Target) -> Outputs:
    """Fit the outputs of a step on labelled studies; a step brings the smaller ones with it where they surely help.

    Recalibrating and a new prevalence leave every answer as it is (the threshold moves along).

    Raises:
        NotFitted: the labels do not carry it.
    """
    columns, old = lesson.logits.shape[1], np.asarray(target.prevalence)
    shift = np.asarray(before.shift or (0.0,) * columns)
    if treatment is Treatment.RECALIBRATE:
        calibrated = replace(fit_calibration(lesson, unshift_prevalence(old, shift, lesson.task)), shift=before.shift)
        return calibrated.keep_answers_of(before, lesson.task, columns)
    if treatment is Treatment.CORRECT_PREVALENCE:
        if len(lesson):
            before = _bring(Treatment.RECALIBRATE, lesson, before, target)
        now = lesson.prevalence if target.told is None else np.asarray(target.told)
        moved = shift + np.asarray(shift_prevalence(old, now, lesson.task))
        shifted = replace(before, shift=tuple(map(float, moved)), thresholds=())
        return shifted.keep_answers_of(before, lesson.task, columns)
    base = before
    for smaller in (Treatment.RECALIBRATE, Treatment.CORRECT_PREVALENCE):
        base = _bring(smaller, lesson, base, target)
    scores = base.apply(lesson.logits, lesson.task)
    return replace(base, thresholds=fit_thresholds(scores, lesson.answers, target))


def _bring(treatment: Treatment, lesson: Lesson, before: Outputs, target: Target) -> Outputs:
    """Take a smaller step along where it surely helps and the labels carry it."""
    try:
        candidate = fit_outputs(treatment, lesson, before, target)
    except NotFitted:
        return before
    return candidate if _surely_better(lesson, before, candidate) else before


def expect_steps(bench: Bench) -> tuple[Expectation, ...]:
    """Measure what watching longer and each step that the labels carry would leave; empty without a usable reference.

    Watching longer comes first: what is lost now.
    """
    if bench.reference.rarest() < 2 or bench.new.rarest() < 2:
        return ()
    labels, policy = len(bench.new), bench.policy
    now = _say(bench.new.logits, bench.outputs, bench.new)
    found = [_expect(Treatment.WATCH_LONGER, bench, now, now)]
    for treatment in (Treatment.RECALIBRATE, Treatment.CORRECT_PREVALENCE, Treatment.MOVE_THRESHOLD):
        if treatment is Treatment.MOVE_THRESHOLD and bench.new.one_of:
            continue
        if labels >= policy.labels_for(treatment):
            found.append(_try(treatment, bench, now))
    if labels >= policy.labels_for(Treatment.REFIT_HEAD):
        found.append(_try(Treatment.REFIT_HEAD, bench, now))
    return tuple(found)


def expect_ceiling(bench: Bench) -> tuple[ExpectedHarm, ...]:
    """Measure the AUROC that a free linear head on the backbone's embeddings leaves lost: what the backbone sees."""
    lesson = bench.new
    if lesson.rarest() < 2 * FOLDS or not lesson.embeddings.shape[1]:
        return ()
    seen = replace(lesson, features=lesson.embeddings)
    empty = new_head(lesson.logits.shape[1], lesson.embeddings.shape[1])
    logits = np.empty_like(lesson.logits)
    for train, test in _parts(lesson):
        logits[test] = refit_head(empty, (seen.select(train),), hold=PROBE_HOLD).logits(seen.features[test])
    said = _say(logits, Outputs(), lesson)
    return tuple(harm for harm in _losses(bench, said) if harm.metric == "auroc")


def expect_from_prevalence(bench: Bench, low: Floats, high: Floats) -> tuple[ExpectedHarm, ...]:
    """Foresee, without any label of now, what a new prevalence costs in calibration while each class looks as before.

    ``bench.told`` is the new prevalence and ``low`` to ``high`` bound it, (columns,). The reference's scores are
    averaged with its classes as frequent as they are now; what correct chances would gain there is given away.
    """
    lesson, old = bench.reference, np.clip(bench.reference.prevalence, 1e-6, 1 - 1e-6)
    scores = bench.outputs.apply(lesson.logits, lesson.task)

    def cost(now: Floats) -> Floats:
        now = np.clip(now, 1e-6, 1 - 1e-6)
        y = np.nan_to_num(lesson.answers)
        weights = y * now / old + (1 - y) * (1 - now) / (1 - old)
        better = expit(logit(np.clip(scores, 1e-9, 1 - 1e-9)) + logit(now) - logit(old))
        return np.asarray(np.nanmean(weights * ((scores - y) ** 2 - (better - y) ** 2), axis=0))

    told = np.asarray(bench.told)
    ends = np.stack([cost(low), cost(high)])
    moved = (low > old) | (high < old)
    return tuple(
        ExpectedHarm(
            metric=CALIBRATION,
            finding=finding,
            loss=float(cost(told)[column]),
            low=float(ends[:, column].min()) if moved[column] else 0.0,
            high=float(ends[:, column].max()),
            sure=bool(moved[column]),
            patients=len(np.unique(lesson.patients)),
        )
        for column, finding in enumerate(lesson.findings)
    )


def _try(treatment: Treatment, bench: Bench, now: Said) -> Expectation:
    lesson, target = bench.new, bench.target
    said = Said(scores=np.empty_like(lesson.logits), yes=np.empty(lesson.logits.shape, dtype=np.bool_))
    try:
        for train, test in _parts(lesson):
            part = lesson.select(train)
            if treatment is Treatment.REFIT_HEAD:
                head = refit_head(bench.head, (*bench.learned, part), hold=bench.policy.head_hold)
                made = _say(head.logits(lesson.features[test]), bench.outputs.after_training(), lesson)
            else:
                outputs = fit_outputs(treatment, part, bench.outputs, target)
                made = _say(lesson.logits[test], outputs, lesson)
            said.scores[test], said.yes[test] = made.scores, made.yes
    except NotFitted as error:
        return Expectation(treatment=treatment, harms=(), mends=MENDS[treatment], reason=str(error))
    return _expect(treatment, bench, said, now)


def _expect(treatment: Treatment, bench: Bench, said: Said, now: Said) -> Expectation:
    harms = _losses(bench, said)
    if treatment is Treatment.REFIT_HEAD:
        harms = (*harms, *_losses_on_the_old(bench))
    if treatment is Treatment.WATCH_LONGER:
        return Expectation(treatment=treatment, harms=harms)
    mends = MENDS[treatment]
    if treatment is Treatment.MOVE_THRESHOLD:
        mends = side_of_threshold(bench.new.answers, now.yes, said.yes)
    gain, low, high = _gain(bench.new, mends, said, now)
    return Expectation(treatment=treatment, harms=harms, mends=mends, gain=gain, gain_low=low, gain_high=high)


def side_of_threshold(answers: Floats, before: NDArray[np.bool_], after: NDArray[np.bool_]) -> str:
    """Name the rate that a moved threshold raises, over all findings; answers and yes/no have shape (n, findings)."""
    sick = answers == 1
    return "sensitivity" if (after & sick).sum() >= (before & sick).sum() else "specificity"


def _losses(bench: Bench, said: Said) -> tuple[ExpectedHarm, ...]:
    """Measure every tolerated figure of every finding, reference minus what is said of the new studies."""
    reference = _say(bench.reference.logits, bench.outputs, bench.reference)
    return _compare(bench, (bench.reference, reference), (bench.new, said), tuple(bench.policy.tolerated_loss))


def _losses_on_the_old(bench: Bench) -> tuple[ExpectedHarm, ...]:
    """Measure what a refitted head would lose on the reference patients, in their order."""
    head = refit_head(bench.head, (*bench.learned, bench.new), hold=bench.policy.head_hold)
    before = _say(bench.reference.logits, bench.outputs, bench.reference)
    after = _say(head.logits(bench.reference.features), bench.outputs.after_training(), bench.reference)
    lost = _compare(bench, (bench.reference, before), (bench.reference, after), ("auroc",))
    return tuple(replace(harm, finding=f"{harm.finding}, on what was known before") for harm in lost)


def _compare(
    bench: Bench, first: tuple[Lesson, Said], second: tuple[Lesson, Said], names: Sequence[str]
) -> tuple[ExpectedHarm, ...]:
    generator = np.random.default_rng([bench.policy.seed, 1])
    counts, owners, others = draw_both(first[0].patients, second[0].patients, RESAMPLES, generator)
    sides = [_answers(*side, index) for side, index in ((first, owners), (second, others))]
    pairs = [
        (name, before.finding, Difference(first=figure(before, name, counts), second=figure(now, name, counts)))
        for before, now in zip(*sides, strict=True)
        for name in names
    ]
    measured = [pair for pair in pairs if pair[2].value is not None]
    strict = 1 - (1 - LEVEL) / max(len(measured), 1)
    return tuple(_write(name, finding, lost, strict) for name, finding, lost in measured)


def _write(name: str, finding: str, lost: Difference, strict: float) -> ExpectedHarm:
    sign = -1.0 if name == CALIBRATION else 1.0  # a calibration is worse when it is larger
    value, (low, high) = lost.value or 0.0, lost.interval(LEVEL)
    ends = sorted(sign * (value if end is None else end) for end in (low, high))
    least = min(sign * (value if end is None else end) for end in lost.interval(strict))
    patients = min(side.patients for side in (lost.first, lost.second) if isinstance(side, Estimate))
    return ExpectedHarm(
        metric=name,
        finding=finding,
        loss=sign * value,
        low=ends[0],
        high=ends[1],
        sure=low is not None and least > 0,
        patients=patients,
    )


def figure(answers: Answers, name: str, counts: Floats) -> Estimate:
    """Measure one figure of labelled answers under resamples of patients (b, patients)."""
    if name != CALIBRATION:
        return estimate(answers, [name], counts)[name]
    known = answers.carrying(Basis.LABELLED)
    terms, given_away = give_away(known)
    table = sum_by_patient(np.stack([terms, np.ones(len(terms))], axis=1), known.patients, counts.shape[1])
    totals = counts @ table
    return Estimate(
        value=given_away,
        form=Form.NORMAL,
        studies=len(terms),
        patients=known.count_patients(),
        informative=float(known.count_patients()),
        replicates=totals[:, 0] / np.maximum(totals[:, 1], 1e-12) - float(terms.mean()) + given_away,
    )


def give_away(answers: Answers) -> tuple[Floats, float]:
    """Give the Brier score that a logistic recalibration of the same scores would save: each study's part, the mean.

    The mean is less what fitting two numbers saves by chance, to first order: the trace of the fit's sandwich
    variance over patients against the curvature of the Brier score (as in Takeuchi's criterion). 0 where classes are
    separated.
    """
    fit = recalibrate(answers.scores, answers.labels)
    if fit is None:
        return np.zeros(len(answers.scores)), 0.0
    better, logits = fit.apply(answers.scores), score_logit(answers.scores)
    terms = (answers.scores - answers.labels) ** 2 - (better - answers.labels) ** 2
    by_patient = sum_by_patient(fit.influences, answers.patients, int(answers.patients.max()) + 1)
    steep = (better * (1 - better))[:, None] * np.stack([np.ones_like(logits), logits], axis=1)
    chance = float(np.trace((by_patient.T @ by_patient) @ (steep.T @ steep))) / len(terms)
    return terms, float(terms.mean()) - chance


def _gain(lesson: Lesson, name: str, said: Said, now: Said) -> tuple[float, float, float]:
    """Give the mean gain over the findings in one figure on the same studies, with its interval; > 0 is better."""
    keys, index = np.unique(lesson.patients, return_inverse=True)
    counts = np.random.default_rng(len(keys)).multinomial(len(keys), np.full(len(keys), 1 / len(keys)), RESAMPLES)
    values, spread = [], []
    for after, before in zip(_answers(lesson, said, index), _answers(lesson, now, index), strict=True):
        first, second = (estimate(side, [name], counts.astype(np.float64))[name] for side in (after, before))
        if first.value is not None and second.value is not None:
            values.append(first.value - second.value)
            spread.append(first.replicates - second.replicates)
    if not values:
        return 0.0, 0.0, 0.0
    sign = -1.0 if name == "brier" else 1.0
    mean, reach = float(np.mean(values)), 1.96 * float(np.nanstd(np.mean(spread, axis=0), ddof=1))
    return sign * mean, sign * mean - reach, sign * mean + reach


def _surely_better(lesson: Lesson, before: Outputs, after: Outputs) -> bool:
    """Tell whether other outputs lower the Brier score beyond what their two fitted numbers and chance explain."""
    now, then = (outputs.apply(lesson.logits, lesson.task) for outputs in (before, after))
    saved = np.nanmean((now - lesson.answers) ** 2 - (then - lesson.answers) ** 2, axis=1)
    _, index = np.unique(lesson.patients, return_inverse=True)
    error = float(np.sqrt((np.bincount(index, weights=saved - saved.mean()) ** 2).sum())) / len(saved)
    return bool(float(saved.mean()) > 1.96 * error + 0.5 / (int(index.max()) + 1))


def _say(logits: Floats, outputs: Outputs, lesson: Lesson) -> Said:
    scores = outputs.apply(logits, lesson.task)
    return Said(scores=scores, yes=say_yes(scores, lesson.task, outputs.thresholds))


def _parts(lesson: Lesson) -> list[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    parts = divide_patients(lesson.patients, FOLDS, 0)
    return [(parts != part, parts == part) for part in range(FOLDS) if (parts == part).any()]


def _answers(lesson: Lesson, said: Said, index: NDArray[np.intp]) -> tuple[Answers, ...]:
    return tuple(
        Answers(
            finding=finding,
            scores=said.scores[:, column],
            said=said.yes[:, column].astype(np.float64),
            labels=lesson.answers[:, column],
            patients=index,
        )
        for column, finding in enumerate(lesson.findings)
    )
