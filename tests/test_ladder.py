"""The ladder on planted worlds where the right step is known, and never a step above it where all is quiet."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from continual.calibrating import Lesson
from continual.expectations import Bench, expect_ceiling, expect_steps
from continual.heads import Head
from continual.ladder import AtHand, Climb, climb
from continual.outputs import Outputs
from continual.plans import AdaptationPolicy, Treatment
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
    seeds, right = 40, WORLDS[world][2]
    taken = Counter(climb_of(bench_of(world, seed)).taken for seed in range(seeds))
    assert taken[right] >= 0.9 * seeds, taken
    if world == "quiet":
        assert set(taken) == {Treatment.WATCH_LONGER}, taken
