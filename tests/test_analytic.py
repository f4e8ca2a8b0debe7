"""The analytic adapter: exact whatever the order, unlearning to the bit, calibrated on patients unseen."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from continual.adapter_files import load_adapter, save_adapter
from continual.adapters import Adapter, new_adapter, score, serialise
from continual.adapting import adapt
from continual.analytic_learner import AnalyticLearner, accumulate, analytic_head, remove, without_sums
from continual.backbones import Backbone, load_backbone
from continual.experiences import Experience
from continual.plans import RunState
from continual.policies import AdaptationPolicy
from continual.ridge import Sums, decompose, solve
from monitor.tasks import TASKS, Task

CLASSES = {Task.BINARY: ("no", "yes"), Task.MULTI_CLASS: ("a", "b", "c"), Task.MULTI_LABEL: ("a", "b", "c")}
WHOLE = load_backbone("tiny", source="random", image_size=28, blocks=0)
DIRECTIONS = np.random.default_rng(7).normal(size=(48, 3))


def make(task: Task, backbone: Backbone = WHOLE) -> Adapter:
    policy = AdaptationPolicy(adapter="analytic", random_features=16)
    return new_adapter(backbone, task=task, classes=CLASSES[task], policy=policy, seed=0)


def draw(task: Task, n: int = 80, seed: int = 0, *, unknown: float = 0.2, first_patient: int = 0) -> Experience:
    generator = np.random.default_rng(seed)
    embeddings = generator.normal(size=(n, 1, 48)).astype(np.float32)
    hidden = embeddings[:, 0] @ DIRECTIONS + generator.normal(size=(n, 3))
    if TASKS[task].label_per_finding:
        labels = (hidden > 0).astype(np.float64)
    else:
        labels = (hidden.argmax(axis=1) if TASKS[task].scores_sum_to_one else hidden[:, 0] > 0)[:, None].astype(float)
    labels[generator.random(labels.shape) < unknown] = np.nan
    patients = np.array([f"p{first_patient + i // 3}" for i in range(n)])
    return Experience(name="drawn", tokens=embeddings, labels=labels, patient_key=patients)


@settings(max_examples=12, deadline=None)
@given(task=st.sampled_from(list(Task)), seed=st.integers(0, 1000), cuts=st.lists(st.integers(0, 80), max_size=3))
def test_order_and_portions_do_not_matter_to_the_bit(task: Task, seed: int, cuts: list[int]) -> None:
    studies = draw(task, seed=seed)
    at_once, in_parts = make(task), make(task)
    accumulate(at_once, studies)
    shuffled = studies.select(np.random.default_rng(seed).permutation(80))
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), 80], strict=True):
        if end > start:
            accumulate(in_parts, shuffled.select(np.arange(start, end)))
    assert serialise(in_parts) == serialise(at_once)


@settings(max_examples=12, deadline=None)
@given(task=st.sampled_from(list(Task)), seed=st.integers(0, 1000), patient=st.integers(0, 26))
def test_an_unlearned_patient_was_never_there_to_the_bit(task: Task, seed: int, patient: int) -> None:
    studies = draw(task, seed=seed)
    theirs = studies.patient_key == f"p{patient}"
    without, unlearned = make(task), make(task)
    accumulate(without, studies.select(~theirs))
    accumulate(unlearned, studies)
    remove(unlearned, studies.select(theirs))
    assert serialise(unlearned) == serialise(without)


@pytest.mark.parametrize("task", list(Task))
def test_with_everybody_unlearned_nothing_is_left(task: Task) -> None:
    adapter, studies = make(task), draw(task)
    accumulate(adapter, studies)
    assert serialise(adapter) != serialise(make(task))
    remove(adapter, studies)
    assert serialise(adapter) == serialise(make(task))


def test_what_was_not_learned_is_not_unlearned() -> None:
    adapter, studies = make(Task.MULTI_LABEL), draw(Task.MULTI_LABEL, unknown=0.0)
    accumulate(adapter, studies)
    before = serialise(adapter)
    strangers = [
        draw(Task.MULTI_LABEL, n=100, seed=1, unknown=0.0),  # more than were learned
        replace(studies.select(np.arange(60)), labels=1 - studies.labels[:60]),  # other labels
        replace(studies, tokens=studies.tokens * np.linspace(1, 2, 48, dtype=np.float32)),  # other images
    ]
    for stranger in strangers:
        with pytest.raises(ValueError, match="not all learned by this adapter"):
            remove(adapter, stranger)
    assert serialise(adapter) == before


def test_each_finding_learns_from_the_studies_that_know_it() -> None:
    studies = draw(Task.MULTI_LABEL, n=120)
    adapter = make(Task.MULTI_LABEL)
    accumulate(adapter, studies)
    for column in range(3):
        known = ~np.isnan(studies.labels[:, column])
        alone = make(Task.BINARY)
        accumulate(alone, replace(studies.select(known), labels=studies.labels[known, column : column + 1]))
        together = score(adapter, studies.tokens)[:, column]
        np.testing.assert_allclose(together, score(alone, studies.tokens)[:, 0], atol=1e-9)


def test_regression_and_cross_validation_are_those_of_a_ridge_on_the_studies_themselves() -> None:
    """Parity with scikit-learn: refit without each fold, the moments of its answers, the discriminant by hand."""
    generator = np.random.default_rng(3)
    x, fold = generator.normal(size=(90, 6)), np.arange(90) % 3
    y = (x[:, 0] + generator.normal(size=90) > 0.3).astype(float)
    sums = Sums(
        count=np.bincount(fold).astype(float),
        total=np.stack([x[fold == f].sum(0) for f in range(3)]),
        gram=np.stack([x[fold == f].T @ x[fold == f] for f in range(3)]),
    )
    of_class = np.stack([[x[(fold == f) & (y == c)].sum(0) for f in range(3)] for c in (0, 1)])
    counts = np.array([[((fold == f) & (y == c)).sum() for f in range(3)] for c in (0, 1)], dtype=float)
    weights, bias = solve(decompose(sums), of_class, counts, 2.0)
    logit = x @ (weights[1] - weights[0]) + bias[1] - bias[0]

    def fit(rows: np.ndarray) -> Ridge:
        centred = x[rows] - x[rows].mean(axis=0)
        return Ridge(alpha=2.0 * np.square(centred).sum() / 6).fit(x[rows], y[rows])

    unseen = np.empty(90)
    for f in range(3):
        unseen[fold == f] = fit(fold != f).predict(x[fold == f])
    n, positive = 90, y.mean()
    means = np.array([unseen[y == 0].mean(), unseen[y == 1].mean()])
    within = np.square(unseen - means[y.astype(int)]).sum() + positive * (1 - positive)
    slope = (means[1] - means[0]) / (within / (n - 1))
    answers = fit(np.full(90, True)).predict(x)
    prior = np.log((y.sum() + 1) / ((1 - y).sum() + 1))
    np.testing.assert_allclose(logit, slope * (answers - means.mean()) + prior, atol=1e-8)


def test_probabilities_can_be_used_as_they_are() -> None:
    adapter = make(Task.BINARY)
    accumulate(adapter, draw(Task.BINARY, n=600, seed=1, unknown=0.0))
    unseen = draw(Task.BINARY, n=4000, seed=2, unknown=0.0)
    said, truth = score(adapter, unseen.tokens)[:, 0], unseen.labels[:, 0]
    assert abs(said.mean() - truth.mean()) < 0.02
    for low, high in ((0.0, 0.2), (0.4, 0.6), (0.8, 1.0)):
        inside = (said >= low) & (said < high)
        assert inside.sum() > 100
        assert abs(said[inside].mean() - truth[inside].mean()) < 0.05


def test_noise_is_answered_with_the_prevalence() -> None:
    generator = np.random.default_rng(5)
    studies = replace(draw(Task.BINARY, n=200), labels=(generator.random((200, 1)) < 0.3).astype(float))
    adapter = make(Task.BINARY)
    accumulate(adapter, studies)
    said = score(adapter, draw(Task.BINARY, n=200, seed=9).tokens)
    np.testing.assert_allclose(said, studies.labels.mean(), atol=0.1)


@pytest.mark.parametrize("task", list(Task))
def test_a_class_never_seen_gets_little_and_one_class_alone_settles_nothing(task: Task) -> None:
    studies = draw(task, unknown=0.0)
    adapter = make(task)
    only = np.flatnonzero(studies.labels[:, 0] == 0)
    accumulate(adapter, studies.select(only))
    said = score(adapter, studies.tokens)
    assert np.isfinite(said).all()
    if task is Task.MULTI_CLASS:
        np.testing.assert_allclose(said, [[(len(only) + 1) / (len(only) + 3), *[1 / (len(only) + 3)] * 2]] * 80)
    else:
        np.testing.assert_allclose(said[:, 0], 1 / (len(only) + 2))


def test_without_its_sums_it_scores_the_same_and_learns_nothing_more(tmp_path: Path) -> None:
    adapter, studies = make(Task.BINARY), draw(Task.BINARY)
    accumulate(adapter, studies)
    bare = without_sums(adapter)
    sha256 = save_adapter(bare, tmp_path)
    loaded = load_adapter(WHOLE, tmp_path / f"{sha256}.safetensors", sha256)
    assert np.array_equal(score(loaded, studies.tokens), score(adapter, studies.tokens))
    for change in (accumulate, remove):
        with pytest.raises(ValueError, match="saved without its sums"):
            change(loaded, studies)
    assert not any(bare.network.stored()[f"head.{name}"].any() for name in ("gram", "total", "sums", "count"))


def test_sums_that_all_findings_share_are_written_once(tmp_path: Path) -> None:
    sizes = {}
    for unknown in (0.0, 0.2):
        adapter, studies = make(Task.MULTI_LABEL), draw(Task.MULTI_LABEL, unknown=unknown)
        accumulate(adapter, studies)
        sha256 = save_adapter(adapter, tmp_path)
        path = tmp_path / f"{sha256}.safetensors"
        sizes[unknown] = path.stat().st_size
        loaded = load_adapter(WHOLE, path, sha256)
        for each in (adapter, loaded):
            accumulate(each, draw(Task.MULTI_LABEL, seed=1))
        assert serialise(loaded) == serialise(adapter)
    assert sizes[0.0] < 0.5 * sizes[0.2]


def test_only_an_analytic_adapter_learns_in_closed_form() -> None:
    policy = AdaptationPolicy(adapter="head")
    head = new_adapter(WHOLE, task=Task.BINARY, classes=("no", "yes"), policy=policy, seed=0)
    with pytest.raises(ValueError, match=r'only adapter = "analytic" .* this is head'):
        analytic_head(head)


@pytest.mark.parametrize("strategy", ["naive", "replay"])
def test_any_strategy_comes_to_the_solution_of_all_stages_at_once(tmp_path: Path, strategy: str) -> None:
    old, new = draw(Task.BINARY, seed=1), draw(Task.BINARY, seed=2, first_patient=100)
    judged = [draw(Task.BINARY, seed=seed, first_patient=200) for seed in (3, 4)]
    champion = make(Task.BINARY)
    accumulate(champion, old.labelled())
    adapted, run = adapt(
        start=champion,
        stream=[old, new],
        evaluation=judged,
        learned=1,
        strategy=strategy,
        policy=AdaptationPolicy(adapter="analytic"),
        plan_id="plan",
        model="m",
        directory=tmp_path,
        progress=lambda *told: None,
    )
    at_once = make(Task.BINARY)
    accumulate(at_once, old.labelled())
    accumulate(at_once, new.labelled())
    assert run.state is RunState.FINISHED
    assert (run.adapter, run.memory_studies, len(run.losses)) == ("analytic", 0, 1)
    assert serialise(adapted) == serialise(at_once)


def test_recalling_fills_an_empty_adapter_and_adds_nothing_to_another() -> None:
    studies, one, other = draw(Task.BINARY), make(Task.BINARY), make(Task.BINARY)
    learner = AnalyticLearner(one)
    learner.recall(studies.select(np.arange(40)))
    learner.recall(studies.select(np.arange(40, 80)))
    accumulate(other, studies)
    assert serialise(one) == serialise(other)
    AnalyticLearner(one).recall(studies)
    assert serialise(one) == serialise(other)


def test_gradients_pass_the_grid() -> None:
    adapter = make(Task.BINARY)
    accumulate(adapter, draw(Task.BINARY))
    embedding = torch.from_numpy(draw(Task.BINARY, seed=1).tokens).requires_grad_()
    adapter.network(embedding).sum().backward()
    assert embedding.grad is not None
    assert embedding.grad.abs().sum() > 0
