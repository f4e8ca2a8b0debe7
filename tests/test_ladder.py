"""The ladder on planted worlds where the right step is known, and never a step above it where all is quiet."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import date

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from continual.calibrating import Lesson
from continual.expectations import Bench, expect_ceiling, expect_from_prevalence, expect_steps, give_away
from continual.heads import Head, new_head, refit_head
from continual.label_uses import OpenWorklist
from continual.ladder import AtHand, Climb, climb, is_outside
from continual.outputs import Outputs
from continual.plans import ExpectedHarm
from continual.policies import AdaptationPolicy, Treatment
from monitor.measures import Answers
from monitor.performance import auroc
from monitor.results import DriftKind
from monitor.tasks import Task

POLICY = AdaptationPolicy()
APART, WIDTH = 2.4, 6
"""Distance of the classes in standard deviations: an AUROC of about 0.955; features."""

HEAD = Head(weight=np.asarray([[APART, APART, 0.0, 0.0, 0.0, 0.0]]), bias=np.zeros(1))
Change = Callable[[np.random.Generator, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def draw(generator: np.random.Generator, patients: int, prevalence: float, change: Change | None = None) -> Lesson:
    """Draw studies of one or two a patient: the classes lie apart on the first feature, chances are calibrated at 1/2.

    The second feature is empty until a change fills it; the others are noise. The embeddings are the features and what
    a linear head on the features cannot see: the product of the last two.
    """
    patient = np.repeat(np.arange(patients), generator.integers(1, 3, patients))
    sick = generator.random(patients)[patient] < prevalence
    x = generator.normal(size=(len(patient), WIDTH))
    x[:, 0] += APART * (sick - 0.5)
    x[:, 1] = 0.0
    embeddings = np.concatenate([x, x[:, 4:5] * x[:, 5:6]], axis=1)
    if change is not None:
        x, embeddings = change(generator, x, sick)
    return Lesson(
        task=Task.BINARY,
        findings=("tumour",),
        logits=HEAD.logits(x),
        answers=sick.astype(float)[:, None],
        patients=np.char.add("p", patient.astype(str)),
        features=x,
        embeddings=embeddings,
    )


def same(generator: np.random.Generator, x: np.ndarray, sick: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return x, x


def too_sure(generator: np.random.Generator, x: np.ndarray, sick: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Stretch the feature that decides: scores become five times too sure, answers stay."""
    return x * np.asarray([5, 1, 1, 1, 1, 1]), x


def too_low(generator: np.random.Generator, x: np.ndarray, sick: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Darken: all logits fall by 2.4, so that sick studies are missed."""
    return x - np.asarray([1, 0, 0, 0, 0, 0]), x


def another_sign(generator: np.random.Generator, x: np.ndarray, sick: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Let the finding show on another feature that points the wrong way for the old head."""
    x = x.copy()
    x[:, 1] = generator.normal(size=len(x)) - APART * (sick - 0.5)
    x[:, 0] = 0.0
    return x, x


def hidden(generator: np.random.Generator, x: np.ndarray, sick: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Let the finding show in no feature of the head, but in the backbone's embeddings."""
    x = x.copy()
    x[:, 0] = generator.normal(size=len(x))
    seen = generator.normal(size=len(x)) + APART * (sick - 0.5)
    return x, np.concatenate([x, seen[:, None]], axis=1)


def unseen(generator: np.random.Generator, x: np.ndarray, sick: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Let the finding show nowhere."""
    x = x.copy()
    x[:, 0] = generator.normal(size=len(x))
    return x, x


WORLDS: dict[str, tuple[Change, float, Treatment]] = {
    "quiet": (same, 0.5, Treatment.WATCH_LONGER),
    "calibration": (too_sure, 0.5, Treatment.RECALIBRATE),
    "prevalence": (same, 0.1, Treatment.CORRECT_PREVALENCE),
    "threshold": (too_low, 0.5, Treatment.MOVE_THRESHOLD),
    "concept": (another_sign, 0.5, Treatment.REFIT_HEAD),
    "appearance": (hidden, 0.5, Treatment.UPDATE_ADAPTER),
    "blind": (unseen, 0.5, Treatment.NEW_BACKBONE),
}


def bench_of(world: str, seed: int, patients: int = 400) -> Bench:
    generator = np.random.default_rng([seed, *world.encode()])
    change, prevalence, _ = WORLDS[world]
    return Bench(
        new=draw(generator, patients, prevalence, change),
        learned=(draw(generator, patients, 0.5),),
        reference=draw(generator, patients, 0.5),
        head=HEAD,
        outputs=Outputs(),
        policy=POLICY,
    )


def climb_of(bench: Bench, **changes: object) -> Climb:
    at_hand = AtHand(labelled=len(bench.new), expectations=expect_steps(bench), ceiling=expect_ceiling(bench))
    return climb((), (DriftKind.APPEARANCE,), replace(at_hand, **changes), bench.policy)  # type: ignore[arg-type]


@pytest.mark.parametrize("world", WORLDS)
def test_the_right_step_is_taken(world: str) -> None:
    climbed = climb_of(bench_of(world, seed=0))
    assert climbed.taken is WORLDS[world][2], "\n".join(v.sentence for v in climbed.verdicts)
    told = [verdict.treatment for verdict in climbed.verdicts]
    assert told == list(Treatment)[: len(told)]
    assert [verdict.enough for verdict in climbed.verdicts] == [False] * (len(told) - 1) + [True]
    assert all(verdict.sentence and "nan" not in verdict.sentence for verdict in climbed.verdicts)


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
def test_the_right_step_is_taken_nine_times_in_ten(world: str) -> None:
    seeds, right = 20, WORLDS[world][2]
    taken = Counter(climb_of(bench_of(world, seed, patients=600)).taken for seed in range(seeds))
    assert taken[right] >= 0.9 * seeds, taken
    if world == "quiet":
        assert set(taken) == {Treatment.WATCH_LONGER}, taken


# ---- where the labels, the policy or what was tried decide


def expected(bench: Bench) -> AtHand:
    return AtHand(labelled=len(bench.new), expectations=expect_steps(bench), ceiling=expect_ceiling(bench))


def test_what_was_tried_and_refused_gives_way_to_the_next_step_and_at_last_to_people() -> None:
    bench = bench_of("concept", seed=0)
    at_hand, tried = expected(bench), []
    taken = []
    while not taken or taken[-1] is not Treatment.NEW_BACKBONE:
        climbed = climb((), (), replace(at_hand, tried=tuple(tried)), POLICY)
        taken.append(climbed.taken)
        tried.append(climbed.taken)
    assert taken == [Treatment.REFIT_HEAD, Treatment.UPDATE_ADAPTER, Treatment.NEW_BACKBONE]
    assert "it was tried for these windows and refused" in [v.sentence for v in climbed.verdicts]


@pytest.mark.parametrize("world", [name for name in WORLDS if name != "quiet"])
def test_no_step_above_the_highest_allowed_is_taken(world: str) -> None:
    bench = bench_of(world, seed=0)
    low = POLICY.model_copy(update={"highest": Treatment.RECALIBRATE})
    climbed = climb((), (), expected(bench), low)
    allowed = world == "calibration"
    assert climbed.taken is (Treatment.RECALIBRATE if allowed else Treatment.WATCH_LONGER)
    assert ("the policy goes no higher than “recalibrate”" in climbed.lacking) is not allowed


def test_too_few_labels_say_how_many_are_missing() -> None:
    bench = bench_of("appearance", seed=0)
    few = replace(bench, new=bench.new.select(np.arange(45)))
    climbed = climb((), (), expected(few), POLICY)
    assert climbed.taken is Treatment.WATCH_LONGER
    asked = "request 15 more with `wardround labels request --n 29`, 14 of them to measure by"
    assert climbed.lacking == f"45 of 60 labels to learn from are there; {asked}"
    told = {verdict.treatment: verdict.sentence for verdict in climbed.verdicts}
    assert told[Treatment.REFIT_HEAD] == "45 labelled studies are too few, 50 are needed"
    assert told[Treatment.UPDATE_ADAPTER] == "45 labelled studies to learn from are too few, 60 are asked for"


def test_labels_on_their_way_are_told_and_not_asked_for_again() -> None:
    bench = bench_of("appearance", seed=0)
    few = expected(replace(bench, new=bench.new.select(np.arange(45))))
    since = date(2026, 3, 2)
    worklist = OpenWorklist(worklist_id="wl-1", since=since, days=1, asked=20, returned=0, to_learn_from=10)
    climbed = climb((), (), replace(few, waiting=(worklist,)), POLICY)
    assert climbed.taken is Treatment.WATCH_LONGER
    there, coming, asked = climbed.lacking.split("; ")
    assert there == "45 of 60 labels to learn from are there"
    assert coming == "10 are on worklist wl-1 since 2026-03-02"
    assert asked.startswith("request 5 more with `wardround labels request --n ")
    whole = replace(worklist, to_learn_from=15)
    assert "request" not in climb((), (), replace(few, waiting=(whole,)), POLICY).lacking


LOST = ExpectedHarm(metric="auroc", finding="tumour", loss=0.1, low=0.05, high=0.15, sure=True, patients=80)


@pytest.mark.parametrize(
    ("metric", "kinds", "step"),
    [
        ("calibration", (DriftKind.BEHAVIOUR,), Treatment.RECALIBRATE),
        ("sensitivity", (DriftKind.BEHAVIOUR,), Treatment.MOVE_THRESHOLD),
        ("auroc", (DriftKind.CONCEPT,), Treatment.REFIT_HEAD),
        ("auroc", (DriftKind.APPEARANCE,), Treatment.UPDATE_ADAPTER),
        ("auroc", (DriftKind.ACQUISITION, DriftKind.BEHAVIOUR), Treatment.UPDATE_ADAPTER),
    ],
)
def test_where_nothing_was_measured_the_kind_of_drift_decides(
    metric: str, kinds: tuple[DriftKind, ...], step: Treatment
) -> None:
    climbed = climb((replace(LOST, metric=metric),), kinds, AtHand(labelled=100), POLICY)
    assert climbed.taken is step
    assert len(climbed.verdicts) == step.rung + 1


def test_a_new_prevalence_is_foreseen_without_labels() -> None:
    """The cost that is foreseen from the reference is the one that labels show, and correcting needs no label."""
    bench = replace(bench_of("prevalence", seed=1, patients=2000), told=(0.1,))
    (foreseen,) = expect_from_prevalence(bench, np.asarray([0.08]), np.asarray([0.12]))
    (now,) = [harm for harm in expect_steps(bench)[0].harms if harm.metric == "calibration"]
    assert foreseen.loss == pytest.approx(now.loss, abs=0.01)
    assert is_outside(foreseen, POLICY)
    climbed = climb((), (), AtHand(labelled=0, shifted=(foreseen,)), POLICY)
    assert climbed.taken is Treatment.CORRECT_PREVALENCE
    (quiet,) = expect_from_prevalence(replace(bench, told=(0.5,)), np.asarray([0.45]), np.asarray([0.55]))
    assert not is_outside(quiet, POLICY)


def test_a_refitted_head_keeps_what_was_learned_and_is_the_same_each_time() -> None:
    bench = bench_of("concept", seed=2)
    lessons = (*bench.learned, bench.new)
    head = refit_head(bench.head, lessons, hold=2.0)
    again = refit_head(bench.head, lessons, hold=2.0)
    assert (head.weight == again.weight).all()
    for lesson in (bench.reference, bench.new):
        area = auroc(head.logits(lesson.features)[:, 0], lesson.answers[:, 0])
        assert area is not None
        assert area > 0.93
    held = refit_head(bench.head, lessons, hold=1e9)
    assert held.weight == pytest.approx(bench.head.weight, abs=1e-4)


def test_a_refitted_head_is_the_logistic_regression_of_scikit_learn() -> None:
    """From a head of zeros, on features of unit variance, one study a patient: C is 1 / hold, the bias held too."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(300, 3))
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    y = (generator.random(300) < 1 / (1 + np.exp(-x[:, 0]))).astype(float)
    lesson = replace(draw(generator, 300, 0.5), patients=np.arange(300).astype(str), features=x, answers=y[:, None])
    ours = refit_head(new_head(1, 3), (lesson,), hold=4.0)
    with_bias = np.concatenate([x, np.ones((300, 1))], axis=1)
    peer = LogisticRegression(C=1 / 4.0, fit_intercept=False, tol=1e-10).fit(with_bias, y)
    assert np.append(ours.weight, ours.bias) == pytest.approx(peer.coef_[0], abs=1e-4)


def test_calibrated_scores_give_nothing_away_on_average_and_others_what_they_lose() -> None:
    """Over many draws of calibrated scores the mean is 0, what fitting saves by chance is taken out."""
    found, generator = [], np.random.default_rng(0)
    for _ in range(300):
        scores = generator.uniform(0.02, 0.98, 80)
        found.append(give_away(answers_at(scores, (generator.random(80) < scores).astype(float)))[1])
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(len(found))
    scores = generator.uniform(0.02, 0.98, 20_000)
    labels = (generator.random(20_000) < scores).astype(float)
    odds = np.log(scores / (1 - scores))
    sure = 1 / (1 + np.exp(-3 * odds))
    lost = np.mean((sure - labels) ** 2 - (scores - labels) ** 2)
    assert give_away(answers_at(sure, labels))[1] == pytest.approx(lost, abs=0.001)


def answers_at(scores: np.ndarray, labels: np.ndarray) -> Answers:
    said, patients = (scores >= 0.5).astype(float), np.arange(len(scores))
    return Answers(finding="tumour", scores=scores, said=said, labels=labels, patients=patients)


def test_what_was_only_not_proven_asks_for_patients_and_not_for_a_new_backbone() -> None:
    """A refusal for want of held-out patients says nothing against what was made."""
    policy = AdaptationPolicy()
    harm = ExpectedHarm(metric="auroc", finding="yes", loss=0.2, low=0.1, high=0.3, sure=True, patients=100)
    tried = (Treatment.REFIT_HEAD, Treatment.UPDATE_ADAPTER)
    for unproven, taken in ((True, Treatment.WATCH_LONGER), (False, Treatment.NEW_BACKBONE)):
        at_hand = AtHand(labelled=500, tried=tried, unproven=unproven)
        climbed = climb([harm], [DriftKind.APPEARANCE], at_hand, policy)
        assert climbed.taken is taken
        assert ("labels request" in climbed.lacking) == unproven
