"""What was kept and lost: exact values, an unchanged model, every task, small cells, and the coverage of intervals."""

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import TypeAdapter
from scipy.stats import binom, norm
from sklearn.metrics import brier_score_loss, roc_auc_score

from continual.kept import Change, KeptAndLost
from continual.retention import StageScores, measure_kept
from monitor.cohorts import Cohort
from monitor.policies import DriftPolicy
from monitor.tasks import TASKS, Task
from registry.rows import to_json

POLICY = DriftPolicy(resamples=200)
CLASSES = {
    Task.BINARY: ("no", "yes"),
    Task.MULTI_CLASS: ("flu", "cold", "none"),
    Task.MULTI_LABEL: ("edema", "mass"),
}


def cohort(scores: Any, labels: Any, *, task: Task = Task.BINARY, name: str = "a", **attributes: Any) -> Cohort:
    values, truth = np.asarray(scores, dtype=float), np.asarray(labels, dtype=float)
    n = len(values)
    return Cohort(
        task=task,
        classes=CLASSES[task],
        study_uid=np.array([f"{name}-{i}" for i in range(n)]),
        patient_key=np.array([f"{name}-{i // 2}" for i in range(n)]),
        times=np.full(n, np.datetime64("2026-01-05", "us")),
        scores=values.reshape(n, -1),
        labels=truth.reshape(n, -1),
        attributes={key: np.asarray(value) for key, value in attributes.items()},
    )


def drawn(name: str, n: int, seed: int, *, task: Task = Task.BINARY, skill: float = 1.0, **attributes: Any) -> Cohort:
    """Draw studies, two a patient, and scores that know the truth the better the higher the skill."""
    generator, classes = np.random.default_rng(seed), CLASSES[task]
    columns = TASKS[task].score_columns(classes)
    if TASKS[task].label_per_finding:
        truth = generator.integers(0, 2, (n, columns)).astype(float)
        answers = truth
    else:
        truth = generator.integers(0, len(classes), (n, 1)).astype(float)
        answers = (truth == np.arange(len(classes))[-columns:]).astype(float)
    logits = skill * (2 * answers - 1) + generator.normal(size=(n, columns))
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    if not TASKS[task].scores_sum_to_one:
        scores = 1 / (1 + np.exp(-logits))
    return cohort(scores, truth, task=task, name=name, **attributes)


def stage(name: str, *models: Cohort) -> StageScores:
    return StageScores(name=name, models=models)


def measure(*stages: StageScores, policy: DriftPolicy = POLICY) -> KeptAndLost:
    return measure_kept(stages, policy=policy, generator=np.random.default_rng(3))


def two_stages(task: Task, n: int = 120, **attributes: Any) -> tuple[StageScores, ...]:
    made = []
    for place, name in enumerate(("old", "new")):
        first = drawn(name, n, 10 * place, task=task, skill=0.8, **attributes)
        second = drawn(name, n, 10 * place, task=task, skill=1.6, **attributes)
        made.append(stage(name, first, replace(second, labels=first.labels)))
    return tuple(made)


def change(kept: KeptAndLost, on: str, metric: str, *, group: tuple[str, str] = ("", ""), finding: str = "") -> Change:
    wanted = (on, metric, *group, finding)
    (found,) = [c for c in kept.changes if (c.stage, c.metric, c.attribute, c.value, c.finding) == wanted]
    return found


# --- exact values


def test_figures_are_those_of_scikit_learn() -> None:
    old, new = two_stages(Task.BINARY)
    kept = measure(old, new)
    for each in (old, new):
        for model, side in zip(each.models, ("champion", "challenger"), strict=True):
            truth, scores = model.labels[:, 0], model.scores[:, 0]
            assert getattr(change(kept, each.name, "auroc"), side) == pytest.approx(roc_auc_score(truth, scores))
            assert getattr(change(kept, each.name, "brier"), side) == pytest.approx(brier_score_loss(truth, scores))
            right = np.mean((scores >= 0.5) == truth)
            assert getattr(change(kept, each.name, "accuracy"), side) == pytest.approx(right)
    assert change(kept, "old", "auroc").difference == pytest.approx(
        roc_auc_score(old.cohort.labels, old.models[1].scores) - roc_auc_score(old.cohort.labels, old.models[0].scores)
    )


def test_the_matrix_has_a_row_a_model_and_none_for_what_nobody_recorded() -> None:
    old, new = two_stages(Task.BINARY)
    oldest = stage("oldest", drawn("oldest", 80, 5), drawn("oldest", 80, 5))
    matrix = measure(oldest, old, new).matrix("auroc")
    assert matrix is not None
    assert matrix.values[0] == (None, None, None)
    assert matrix.values[1][2] == pytest.approx(roc_auc_score(new.cohort.labels, new.models[0].scores))
    assert matrix.values[2][1] == pytest.approx(roc_auc_score(old.cohort.labels, old.models[1].scores))
    for values, low, high in zip(matrix.values[1:], matrix.low[1:], matrix.high[1:], strict=True):
        for figures in zip(low, values, high, strict=True):
            assert all(a < b for a, b in pairwise(figures))


def test_learning_potential_and_retention_by_hand() -> None:
    old, new = two_stages(Task.BINARY)
    oldest = stage("oldest", drawn("oldest", 80, 5), drawn("oldest", 80, 5, skill=1.5))
    kept = measure(oldest, old, new)
    area = {
        (each.name, place): roc_auc_score(each.cohort.labels, each.models[place].scores)
        for each in (oldest, old, new)
        for place in (0, 1)
    }
    weight = np.exp(-0.5) / (1 + np.exp(-0.5))
    triple = kept.triple
    assert triple.learning.value == pytest.approx(area["new", 1] - area["new", 0])
    assert triple.potential.value == pytest.approx(area["old", 0] - area["new", 0])
    assert triple.retention.value == pytest.approx(weight * area["oldest", 1] + (1 - weight) * area["old", 1])
    assert triple.retained_before.value == pytest.approx(weight * area["oldest", 0] + (1 - weight) * area["old", 0])
    for figure in (triple.learning, triple.potential, triple.retention, triple.retention_change):
        assert figure.low is not None
        assert figure.low < figure.value < figure.high  # type: ignore[operator]


def test_the_summary_is_that_of_the_matrix() -> None:
    kept = measure(*two_stages(Task.BINARY))
    matrix = kept.matrix("auroc")
    assert matrix is not None
    (first, second), (third, fourth) = matrix.values
    summary = kept.summaries[0]
    assert summary.average.value == pytest.approx((third + fourth) / 2)  # type: ignore[operator]
    assert summary.forgetting.value == pytest.approx(first - third)  # type: ignore[operator]
    assert summary.backward_transfer.value == pytest.approx(third - first)  # type: ignore[operator]
    assert summary.forward_transfer.value == pytest.approx(second - 0.5)  # type: ignore[operator]


# --- every task


@pytest.mark.parametrize("task", list(Task))
def test_every_task_is_measured_for_each_finding_and_over_all(task: Task) -> None:
    old, new = two_stages(task, site=["A", "B"] * 60)
    kept = measure(old, new)
    findings = TASKS[task].findings(CLASSES[task])
    if len(findings) > 1:
        parts = [change(kept, "new", "auroc", finding=finding).champion for finding in findings]
        assert change(kept, "new", "auroc").champion == pytest.approx(np.mean(parts))  # type: ignore[arg-type]
        assert not [c for c in kept.changes if c.metric == "calibration_slope" and not c.finding]
    labels, scores = new.cohort.labels, [model.scores for model in new.models]
    if TASKS[task].scores_sum_to_one:
        right = [one.argmax(axis=1) == labels[:, 0] for one in scores]
    else:
        right = [((one >= 0.5) == labels) for one in scores]
    assert change(kept, "new", "accuracy").champion == pytest.approx(right[0].mean())
    flips = next(f for f in kept.flips if (f.stage, f.attribute) == ("new", ""))
    assert flips.negative.value == pytest.approx((right[0] & ~right[1]).mean())
    assert flips.positive.value == pytest.approx((~right[0] & right[1]).mean())
    assert {one.finding for one in kept.reliability[0].after} == set(findings)
    assert json.loads(to_json(kept))["stages"] == ["old", "new"]
    assert TypeAdapter(KeptAndLost).validate_json(to_json(kept)) == kept


# --- what must hold


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(list(Task)))
def test_an_unchanged_model_loses_nothing_and_flips_nothing(seed: int, task: Task) -> None:
    names = ("old", "new")
    stages = [stage(name, *[drawn(name, 60, seed + place, task=task)] * 2) for place, name in enumerate(names)]
    kept = measure(*stages, policy=DriftPolicy(resamples=100))
    for row in kept.changes:
        if row.difference is not None:
            assert row.difference == 0
            assert row.low is None or row.low <= 0 <= row.high  # type: ignore[operator]
    assert all(f.negative.value == 0 and f.positive.value == 0 for f in kept.flips)
    if kept.triple.learning.value is not None:
        assert kept.triple.learning.value == 0
    if kept.triple.retention_change.value is not None:
        assert (kept.triple.retention_change.value, kept.summaries[0].forgetting.value) == (0, 0)


def test_the_same_seed_gives_the_same_figures() -> None:
    stages = two_stages(Task.BINARY, site=["A", "B"] * 60)
    assert measure(*stages) == measure(*stages)


def test_stages_and_models_must_fit() -> None:
    old, new = two_stages(Task.BINARY)
    with pytest.raises(ValueError, match="between two models"):
        stage("alone", old.cohort)
    with pytest.raises(ValueError, match="the same studies"):
        stage("mixed", old.cohort, new.cohort)
    with pytest.raises(ValueError, match="at least as many as models"):
        measure(old)
    with pytest.raises(ValueError, match="stages of one task"):
        measure(old, two_stages(Task.MULTI_LABEL)[1])


# --- subgroups and small cells


def sited(counts: dict[str, int], name: str, seed: int) -> StageScores:
    sites = [site for site, patients in counts.items() for _ in range(2 * patients)]
    first = drawn(name, len(sites), seed, skill=1, site=sites)
    return stage(name, first, replace(drawn(name, len(sites), seed, skill=2, site=sites), labels=first.labels))


def test_a_subgroup_is_measured_on_its_own_studies() -> None:
    old, new = sited({"A": 40, "B": 50}, "old", 1), sited({"A": 40, "B": 50}, "new", 2)
    kept = measure(old, new)
    inside = old.cohort.attributes["site"] == "A"
    found = change(kept, "old", "auroc", group=("site", "A"))
    assert found.champion == pytest.approx(roc_auc_score(old.cohort.labels[inside], old.cohort.scores[inside]))
    assert (found.studies, found.patients) == (80, 40)


def test_small_cells_are_not_stored_and_cannot_be_computed() -> None:
    kept = measure(sited({"A": 40, "B": 30, "C": 3}, "old", 1), sited({"A": 40, "B": 30, "C": 20}, "new", 2))
    rows = {(row.stage, row.value): row for row in kept.changes if row.metric == "auroc" and row.attribute}
    for name in ("old", "new"):
        for value in ("B", "C"):  # C is small on one stage; B is what C could be computed from
            row = rows[name, value]
            assert row.suppressed
            assert (row.champion, row.challenger, row.studies, row.patients) == (None,) * 4
        assert not rows[name, "A"].suppressed
    assert rows["old", "C"].reason == "suppressed: fewer than 5 patients"
    assert rows["old", "B"].reason == "suppressed: a group of few patients could be computed from it"
    flips = [f for f in kept.flips if f.value in ("B", "C")]
    assert len(flips) == 4
    assert all(f.negative.value is None and f.positive.value is None and f.studies is None for f in flips)


def test_few_patients_of_a_class_give_no_area() -> None:
    generator = np.random.default_rng(1)
    labels = np.zeros(60)
    labels[:6] = 1  # three patients
    few = cohort(generator.random(60), labels, name="old")
    kept = measure(stage("old", few, few), two_stages(Task.BINARY)[1])
    row = change(kept, "old", "auroc")
    assert (row.champion, row.reason) == (None, "fewer than 5 patients with or without yes")
    assert change(kept, "old", "brier").champion is not None
    assert kept.triple.retention.value is None
    assert kept.summaries[0].forgetting.value is None


def test_numbers_are_cut_alike_on_all_stages() -> None:
    ages: NDArray[np.float64] = np.linspace(20, 89, 120)
    old, new = two_stages(Task.BINARY, age=ages)
    kept = measure(old, new)
    named = {(row.stage, row.value) for row in kept.changes if row.attribute == "age"}
    assert {value for name, value in named if name == "old"} == {"18-39", "40-64", "65+"}
    assert {value for name, value in named if name == "new"} == {"18-39", "40-64", "65+"}


# --- intervals


@pytest.mark.slow
@pytest.mark.parametrize("gain", [0.0, 0.5])
def test_intervals_of_a_subgroups_change_hold_the_truth(gain: float) -> None:
    """Forty patients of a subgroup, two studies each: the paired change of AUROC, nominal 95 %."""
    before, after = 1.5, 1.5 + gain
    truth = float(norm.cdf(after / np.sqrt(2)) - norm.cdf(before / np.sqrt(2)))
    generator, rounds, held = np.random.default_rng(11), 200, 0
    policy = DriftPolicy(resamples=200)
    for turn in range(rounds):
        stages = []
        for name in ("old", "new"):
            n, label = 160, generator.integers(0, 2, 160)
            patient = np.repeat(generator.normal(scale=0.6, size=n // 2), 2)
            noise = patient + generator.normal(scale=0.7, size=n)
            own = generator.normal(scale=np.sqrt(0.15), size=(2, n))  # all three together of variance 1
            skills = zip((before, after), own, strict=True)
            scores = [1 / (1 + np.exp(-(skill * (label - 0.5) + noise + more))) for skill, more in skills]
            sites = np.repeat(["A", "B"], n // 2)
            stages.append(stage(name, *(cohort(one, label, name=f"{name}{turn}", site=sites) for one in scores)))
        kept = measure_kept(stages, policy=policy, generator=generator)
        row = change(kept, "old", "auroc", group=("site", "A"))
        assert row.low is not None
        assert row.high is not None
        held += row.low <= truth <= row.high
    assert held >= binom.ppf(0.001, rounds, 0.95)
    print(f"gain {gain}: {held / rounds:.3f} of {rounds} intervals hold the truth")  # noqa: T201
