"""Adapting: Avalanche really trains, what was kept and lost is measured, and failures keep nothing."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from continual import adapting
from continual.adapter_files import load_adapter
from continual.adapters import Adapter, new_adapter, score
from continual.adapting import (
    AdaptationFailed,
    AdaptationInterrupted,
    Experience,
    adapt,
    measure_auroc,
    start_learner,
    train_first,
)
from continual.backbones import Backbone, load_backbone
from continual.checkpoints import load_checkpoint
from continual.memory_selection import MemoryPolicy
from continual.plans import AdaptationRun, RunState
from continual.policies import AdaptationPolicy, EarlyStopping, RunLimits
from monitor.tasks import Task

# avalanche 0.6 imports a package that says at import that nobody maintains it; nothing of it is used
pytestmark = pytest.mark.filterwarnings("ignore:JAXopt is no longer maintained:DeprecationWarning")

POLICY = AdaptationPolicy(epochs=4, learning_rate=3e-3, memory=MemoryPolicy(studies=40))
CLASSES = ("no", "yes")
DIRECTIONS = np.random.default_rng(99).normal(size=(3, 48))


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return load_backbone("tiny", source="random", image_size=28)


def stage(name: str, n: int = 120, *, seed: int, signs: tuple[int, ...] = (1, 0), labels: Any = None) -> Experience:
    """Plant the label along some directions of the tokens, with a sign for each; two studies a patient."""
    generator = np.random.default_rng(seed)
    n = n if labels is None else len(labels)
    answers = generator.integers(0, 2, n)
    shift = sum(sign * direction for sign, direction in zip(signs, DIRECTIONS, strict=False))
    tokens = generator.normal(size=(n, 5, 48)) + 0.5 * (2 * answers - 1)[:, None, None] * shift
    return Experience(
        name=name,
        tokens=tokens.astype(np.float16),
        labels=np.asarray(answers if labels is None else labels, dtype=np.float64)[:, None],
        patient_key=np.array([f"{seed}-{i // 2}" for i in range(n)]),
    )


OLD, OLD_OTHERS = stage("old", seed=1), stage("old", seed=2)
# the first direction means the opposite now: who learns only this must forget
NEW, NEW_OTHERS = stage("new", seed=3, signs=(-1, 1)), stage("new", seed=4, signs=(-1, 1))


def quiet(what: str, done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def champion(tiny: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    directory = tmp_path_factory.mktemp("champion")
    path = train_first(tiny, OLD, task=Task.BINARY, classes=CLASSES, policy=POLICY, directory=directory, progress=quiet)
    return load_adapter(tiny, path, path.stem)


def run(champion: Adapter, directory: Path, strategy: str = "naive", **changes: Any) -> tuple[Adapter, AdaptationRun]:
    arguments: dict[str, Any] = {
        "start": champion,
        "stream": [OLD, NEW],
        "evaluation": [OLD_OTHERS, NEW_OTHERS],
        "learned": 1,
        "strategy": strategy,
        "policy": POLICY,
        "plan_id": "plan-1",
        "model": "model",
        "directory": directory,
        "progress": quiet,
    }
    return adapt(**(arguments | changes))


def test_a_first_adapter_learns_what_was_planted(champion: Adapter) -> None:
    figure = measure_auroc(champion, OLD_OTHERS)
    assert figure is not None
    assert figure > 0.95


@pytest.mark.parametrize("strategy", ["naive", "replay", "ewc"])
def test_a_run_tells_what_it_did(champion: Adapter, tmp_path: Path, tiny: Backbone, strategy: str) -> None:
    told: list[tuple[str, int, int]] = []
    adapter, result = run(champion, tmp_path, strategy, progress=lambda *what: told.append(what))
    assert (result.state, result.reason, result.strategy) == (RunState.FINISHED, "", strategy)
    assert result.experiences == ("old", "new")
    assert len(result.matrix) == 2
    assert result.matrix[0] == (measure_auroc(champion, OLD_OTHERS), measure_auroc(champion, NEW_OTHERS))
    assert result.matrix[1] == (measure_auroc(adapter, OLD_OTHERS), measure_auroc(adapter, NEW_OTHERS))
    assert result.matrix[1][1] > result.matrix[0][1]  # type: ignore[operator]
    assert result.n_learned == len(NEW)
    assert result.memory_studies == (POLICY.memory.studies if strategy == "replay" else 0)
    assert len(result.losses) == POLICY.epochs
    assert result.losses[-1] < result.losses[0]
    assert told[-1][1:] == (4 * POLICY.epochs, 4 * POLICY.epochs)
    kept = load_adapter(tiny, tmp_path / f"{result.adapter_sha256}.safetensors", result.adapter_sha256)
    assert np.array_equal(score(kept, NEW.tokens), score(adapter, NEW.tokens))


def test_rehearsal_forgets_less_than_naive_training(champion: Adapter, tmp_path: Path) -> None:
    forgetting = {strategy: run(champion, tmp_path, strategy)[1].forgetting for strategy in ("naive", "replay")}
    assert forgetting["naive"] is not None
    assert forgetting["replay"] is not None
    assert forgetting["naive"] > 0.2
    assert forgetting["replay"] < forgetting["naive"] / 2


def distance(one: Adapter, other: Adapter) -> float:
    pairs = zip(one.network.trainable().values(), other.network.trainable().values(), strict=True)
    return sum(float(((a - b).detach() ** 2).sum()) for a, b in pairs)


def test_ewc_holds_the_numbers_back_the_more_the_stronger(champion: Adapter, tmp_path: Path) -> None:
    def moved(strength: float) -> tuple[float, float]:
        policy = POLICY.model_copy(update={"ewc_strength": strength})
        adapter, result = run(champion, tmp_path, "ewc", policy=policy)
        assert result.forgetting is not None
        return distance(adapter, champion), result.forgetting

    weak, strong = moved(1e-6), moved(1e7)
    naive, _ = run(champion, tmp_path, "naive")
    assert weak[0] == pytest.approx(distance(naive, champion), rel=0.02)
    assert strong[0] < weak[0]
    assert strong[1] < weak[1]


def test_ewc_weighs_the_trained_numbers_only(champion: Adapter) -> None:
    from continual.learner import Learner

    learner = Learner(champion.copy(), strategy="ewc", policy=POLICY)
    learner.recall(OLD)
    plugin = next(plugin for plugin in learner._avalanche.plugins if hasattr(plugin, "importances"))
    weighed = {name.removeprefix("network.") for name in plugin.importances[0]}
    assert weighed == set(champion.network.trainable())
    assert sum(float(importance.data.sum()) for importance in plugin.importances[0].values()) > 0


@pytest.mark.parametrize("strategy", ["naive", "replay", "ewc"])
def test_what_is_only_recalled_is_not_trained(champion: Adapter, strategy: str) -> None:
    from continual.learner import Learner

    adapter = champion.copy()
    Learner(adapter, strategy=strategy, policy=POLICY).recall(NEW)
    assert distance(adapter, champion) == 0


def test_the_memory_is_shared_between_stages(champion: Adapter) -> None:
    from continual.learner import Learner

    learner = Learner(champion.copy(), strategy="replay", policy=POLICY)
    learner.recall(OLD)
    assert learner.memory_studies == 40
    learner.recall(stage("short", 10, seed=7))
    assert learner.memory_studies == 40
    assert [len(rows[0]) for rows in learner._strategy.memory.kept] == [30, 10]


@pytest.mark.parametrize("strategy", ["naive", "replay", "ewc"])
def test_the_same_seed_gives_the_same_bytes(champion: Adapter, tmp_path: Path, strategy: str) -> None:
    torch.manual_seed(1)
    first = run(champion, tmp_path, strategy)[1]
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again = run(champion, tmp_path / "again", strategy)[1]
    assert torch.equal(torch.get_rng_state(), state), "training must leave the global generator alone"
    assert again.adapter_sha256 == first.adapter_sha256
    assert again.matrix == first.matrix
    other = run(champion, tmp_path, strategy, policy=POLICY.model_copy(update={"seed": 1}))[1]
    assert other.adapter_sha256 != first.adapter_sha256


def test_adapting_leaves_the_champion_as_it_is(champion: Adapter, tmp_path: Path) -> None:
    before = champion.copy()
    run(champion, tmp_path)
    assert distance(before, champion) == 0


def test_earlier_history_that_nobody_measured_is_none(champion: Adapter, tmp_path: Path) -> None:
    third, others = stage("third", seed=5, signs=(0, 1)), stage("third", seed=6, signs=(0, 1))
    _, result = run(
        champion,
        tmp_path,
        stream=[OLD, NEW, third],
        evaluation=[OLD_OTHERS, NEW_OTHERS, others],
        learned=2,
    )
    assert result.matrix[0] == (None, None, None)
    assert all(figure is not None for row in result.matrix[1:] for figure in row)
    assert result.n_learned == len(third)


def test_two_new_stages_give_a_row_each(champion: Adapter, tmp_path: Path) -> None:
    third, others = stage("third", seed=5, signs=(0, 1)), stage("third", seed=6, signs=(0, 1))
    _, result = run(champion, tmp_path, "replay", stream=[OLD, NEW, third], evaluation=[OLD_OTHERS, NEW_OTHERS, others])
    assert len(result.matrix) == 3
    assert len(result.losses) == 2 * POLICY.epochs
    assert result.forward_transfer is not None


def test_an_evaluation_stage_with_one_class_is_undefined_and_not_zero(champion: Adapter, tmp_path: Path) -> None:
    same = stage("new", seed=4, labels=np.ones(20))
    _, result = run(champion, tmp_path, evaluation=[OLD_OTHERS, same])
    assert result.state is RunState.FINISHED
    assert result.matrix[1][1] is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"stream": [OLD, stage("new", seed=3, labels=np.ones(20))]}, "same label"),
        ({"stream": [OLD, stage("new", seed=3, labels=np.full(20, np.nan))]}, "no labelled study"),
        ({"policy": POLICY.model_copy(update={"learning_rate": 1e30})}, "the loss became .* lower learning_rate"),
    ],
)
def test_a_run_that_fails_says_why_and_keeps_nothing(
    champion: Adapter, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    adapter, result = run(champion, tmp_path, **changes)
    assert result.state is RunState.FAILED
    assert re.search(reason, result.reason)
    assert (result.adapter_sha256, result.matrix, result.forgetting) == ("", (), None)
    assert adapter is champion
    assert not list(tmp_path.iterdir())


# ---- a training that is cut short


def stop_at(epoch: int, error: BaseException) -> Any:
    """Progress that lets an epoch end, and fails in the one after it."""

    def tell(what: str, done: int, total: int) -> None:
        if f"epoch {epoch + 1} of" in what:
            raise error

    return tell


class PowerCut(BaseException):
    """As if the machine were switched off: nothing of ours catches it."""


@pytest.mark.parametrize("strategy", ["naive", "replay", "ewc"])
@pytest.mark.parametrize("epoch", [1, 3])
def test_what_goes_on_after_an_epoch_ends_in_the_same_run(
    champion: Adapter, tmp_path: Path, strategy: str, epoch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two new stages, cut in the first and then in the second; seconds apart, every figure is the same."""
    monkeypatch.setattr(adapting, "TELL_SECONDS", 0.0)
    monkeypatch.setattr(adapting, "KEEPING_AT_MOST", 0)
    third, others = stage("third", seed=5, signs=(0, 1)), stage("third", seed=6, signs=(0, 1))
    stream = {"stream": [OLD, NEW, third], "evaluation": [OLD_OTHERS, NEW_OTHERS, others]}
    undisturbed = run(champion, tmp_path, strategy, **stream)[1]
    place = tmp_path / "checkpoint"
    for passed in (1, 2):
        cuts = iter([False] * (passed - 1) + [True])  # an epoch of this number comes once a stage

        def tell(what: str, done: int, total: int, cuts: Any = cuts) -> None:
            if f"epoch {epoch + 1} of" in what and done % 4 == 1 and next(cuts):
                raise PowerCut

        with pytest.raises(PowerCut):
            run(champion, tmp_path, strategy, **stream, checkpoint=place, progress=tell)
        found = load_checkpoint(place)
        assert found is not None
        assert found.standing is not None
        assert (found.standing.epoch, len(found.finished)) == (epoch, passed - 1)
    resumed = run(champion, tmp_path, strategy, **stream, checkpoint=place)[1]
    assert replace(resumed, seconds=0) == replace(undisturbed, seconds=0)


def test_a_checkpoint_of_another_run_is_written_over(champion: Adapter, tmp_path: Path) -> None:
    place = tmp_path / "checkpoint"
    with pytest.raises(PowerCut):
        run(champion, tmp_path, "ewc", checkpoint=place, progress=stop_at(3, PowerCut()))
    began = load_checkpoint(place)
    result = run(champion, tmp_path, "naive", checkpoint=place)[1]
    assert result.adapter_sha256 == run(champion, tmp_path, "naive")[1].adapter_sha256
    ended = load_checkpoint(place)
    assert began is not None
    assert ended is not None
    assert began.key.identity != ended.key.identity


def test_ctrl_c_is_a_stopped_run_that_says_how_far_it_came(champion: Adapter, tmp_path: Path) -> None:
    with pytest.raises(AdaptationInterrupted) as stopped:
        run(champion, tmp_path, progress=stop_at(3, KeyboardInterrupt()))
    result = stopped.value.run
    assert (result.state, result.adapter_sha256, result.matrix) == (RunState.STOPPED, "", ())
    assert re.match(r"a person stopped it after epoch \d of 4 of new; `wardround adapt --resume`", result.reason)
    assert not list(tmp_path.iterdir())


def test_at_a_limit_a_run_is_stopped_and_a_larger_limit_resumes_it(champion: Adapter, tmp_path: Path) -> None:
    place, short = tmp_path / "checkpoint", RunLimits(minutes=1e-6)
    adapter, result = run(champion, tmp_path, policy=POLICY.model_copy(update={"limits": short}), checkpoint=place)
    assert adapter is champion
    assert (result.state, result.adapter_sha256) == (RunState.STOPPED, "")
    assert re.search(r"raise minutes under \[adaptation.limits\]", result.reason)
    finished = run(champion, tmp_path, checkpoint=place)[1]
    assert finished.adapter_sha256 == run(champion, tmp_path)[1].adapter_sha256
    assert finished.recipe == result.recipe, "a limit is no part of the recipe, or nothing could be resumed"


@pytest.mark.parametrize(
    ("limits", "reason"),
    [(RunLimits(megabytes=1), "would be needed, 1 are allowed"), (RunLimits(epochs=3), "4 epochs are asked for")],
)
def test_what_is_too_large_never_begins(champion: Adapter, tmp_path: Path, limits: RunLimits, reason: str) -> None:
    result = run(champion, tmp_path, policy=POLICY.model_copy(update={"limits": limits}))[1]
    assert result.state is RunState.STOPPED
    assert reason in result.reason
    assert result.losses == ()


def test_a_full_disk_is_a_stopped_run_without_an_adapter(champion: Adapter, tmp_path: Path) -> None:
    """A folder that cannot be made stands in for the disk; tests/test_checkpoints.py fills a file to its limit."""
    (tmp_path / "file").write_text("in the way")
    for changes in ({"checkpoint": tmp_path / "file" / "x"}, {"directory": tmp_path / "file"}):
        adapter, result = run(champion, **({"directory": tmp_path} | changes))
        assert adapter is champion
        assert (result.state, result.adapter_sha256) == (RunState.STOPPED, "")
        assert "make room on the disk and run `wardround adapt --resume`" in result.reason
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_gradient_that_stays_too_long_is_a_clear_end(champion: Adapter, tmp_path: Path) -> None:
    policy = POLICY.model_copy(update={"gradient_bound": 1e-6, "epochs": 13})
    result = run(champion, tmp_path, policy=policy)[1]
    assert result.state is RunState.FAILED
    assert re.search(r"longer than 1e-06 in 50 steps in a row, .* in epoch 13; lower learning_rate", result.reason)


def test_a_batch_of_one_class_is_learned_from(champion: Adapter, tmp_path: Path) -> None:
    """Two of 120 studies say yes: nearly every batch is of one class."""
    rare = stage("new", seed=3, labels=np.r_[1.0, 1.0, np.zeros(118)])
    result = run(champion, tmp_path, stream=[OLD, rare])[1]
    assert result.state is RunState.FINISHED
    assert np.isfinite(result.losses).all()


# ---- early stopping


def test_the_epoch_that_was_best_for_patients_set_aside_is_kept(champion: Adapter, tmp_path: Path) -> None:
    stopping = EarlyStopping(share=0.25, minimum_patients=10, patience=1)
    noise = stage("new", seed=3, labels=np.random.default_rng(8).integers(0, 2, 120))
    policy = POLICY.model_copy(update={"epochs": 12, "early_stopping": stopping})
    result = run(champion, tmp_path, stream=[OLD, noise], policy=policy)[1]
    (note,) = result.notes
    told = re.fullmatch(
        r"new: stopped after epoch (\d+) of 12, epoch (\d+) was best for the 15 patients set aside and is kept", note
    )
    assert told
    stopped, kept = map(int, told.groups())
    assert (len(result.losses), kept) == (stopped, stopped - 1)
    assert result.n_learned == 90


def test_early_stopping_says_when_there_are_too_few_patients(champion: Adapter, tmp_path: Path) -> None:
    result = run(champion, tmp_path)[1]
    assert result.notes == (
        "new: every epoch was run; 60 patients are too few to set some aside for early stopping, 400 are needed",
    )


# ---- what makes no sense


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluation": [OLD_OTHERS]}, "an evaluation stage for each stage"),
        ({"learned": 2}, "at least one stage to learn"),
        ({"evaluation": [OLD_OTHERS, NEW]}, "60 patients are both learned from and evaluated on"),
        ({"strategy": "wish"}, "there are naive, replay, ewc"),
    ],
)
def test_a_stream_that_makes_no_sense_is_refused(
    champion: Adapter, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(champion, tmp_path, **changes)


def test_a_first_adapter_needs_two_classes(tiny: Backbone, tmp_path: Path) -> None:
    with pytest.raises(AdaptationFailed, match="same label"):
        train_first(
            tiny,
            stage("old", seed=1, labels=np.zeros(20)),
            task=Task.BINARY,
            classes=CLASSES,
            policy=POLICY,
            directory=tmp_path,
            progress=quiet,
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("strategy", ["naive", "replay", "ewc"])
@pytest.mark.parametrize("task", [Task.MULTI_CLASS, Task.MULTI_LABEL])
def test_every_task_is_learned_with_every_strategy(tiny: Backbone, tmp_path: Path, task: Task, strategy: str) -> None:
    def several(name: str, seed: int) -> Experience:
        generator = np.random.default_rng(seed)
        if task is Task.MULTI_CLASS:
            labels = generator.integers(0, 3, (120, 1)).astype(np.float64)
            present = np.eye(3)[labels[:, 0].astype(int)]
        else:
            labels = generator.integers(0, 2, (120, 3)).astype(np.float64)
            present = labels.copy()
            labels[generator.random(labels.shape) < 0.2] = np.nan  # some findings nobody looked for
        tokens = generator.normal(size=(120, 5, 48)) + (2 * present @ DIRECTIONS)[:, None]
        return Experience(
            name=name,
            tokens=tokens.astype(np.float16),
            labels=labels,
            patient_key=np.array([f"{seed}-{i}" for i in range(120)]),
        )

    start = new_adapter(tiny, task=task, classes=("a", "b", "c"), policy=POLICY, seed=0)
    _, result = run(
        start,
        tmp_path,
        strategy,
        stream=[several("old", 1), several("new", 2)],
        evaluation=[several("old", 3), several("new", 4)],
        learned=0,
    )
    assert result.state is RunState.FINISHED
    assert result.matrix[-1][0] is not None
    assert min(figure for figure in result.matrix[-1] if figure is not None) > 0.9


@pytest.mark.parametrize("strategy", ["naive", "ewc"])
def test_a_closed_form_learns_in_one_step_under_any_strategy(strategy: str) -> None:
    whole = load_backbone("tiny", source="random", image_size=28, blocks=0)
    policy = AdaptationPolicy(adapter="analytic", random_features=16)
    adapter = new_adapter(whole, task=Task.BINARY, classes=("no", "yes"), policy=policy, seed=0)
    embedded = replace(NEW, tokens=NEW.tokens[:, :1].astype(np.float32))
    learner, told = start_learner(adapter, strategy=strategy, policy=policy), []
    learner.recall(embedded.select(np.arange(20)))
    losses = learner.learn(embedded.select(np.arange(20, len(NEW))), lambda *epoch: told.append(epoch))
    assert told == [(1, 1, losses[0])]
    assert learner.memory_studies == 0
    assert (measure_auroc(adapter, embedded) or 0) > 0.9


def test_gradient_training_refuses_a_closed_form() -> None:
    from continual.learner import Learner

    whole = load_backbone("tiny", source="random", image_size=28, blocks=0)
    policy = AdaptationPolicy(adapter="analytic", random_features=16)
    adapter = new_adapter(whole, task=Task.BINARY, classes=("no", "yes"), policy=policy, seed=0)
    with pytest.raises(ValueError, match="start it with `start_learner`"):
        Learner(adapter, strategy="naive", policy=policy)
