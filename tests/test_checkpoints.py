"""Checkpoints: what is written is read back to the bit, and only an earlier part of the same run is gone on with."""

import errno
import os
import re
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from continual.adapters import Adapter, new_adapter
from continual.backbones import Backbone, load_backbone
from continual.checkpoints import (
    Checkpoint,
    RunKey,
    StageStanding,
    identify,
    load_checkpoint,
    put_weights,
    read_key,
    save_checkpoint,
)
from continual.early_stopping import BestSoFar, set_aside, why_not_early
from continual.experiences import Experience
from continual.limits import RunStopped, RunWatch, check_request, check_room, estimate_megabytes, resident_megabytes
from continual.policies import AdaptationPolicy, EarlyStopping, RunLimits
from monitor.tasks import Task

KEY = RunKey(plan_id="plan-1", model="m", strategy="replay", identity="ab" * 32)
POLICY = AdaptationPolicy()


def standing() -> StageStanding:
    tensors = {
        "weights/head.weight": torch.arange(6.0).reshape(2, 3),
        "optimizer/head.weight/step": torch.tensor(7.0),
        "best/head.weight": torch.tensor([[0.1, -0.0, 1e-40]]),
        "strategy/a/b": torch.tensor([True, False]),
    }
    return StageStanding(epoch=3, losses=(0.5, 1 / 3, 1e-9), best_loss=0.25, waited=1, tensors=tensors)


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) and value.dtype == second[name].dtype for name, value in first.items()
    )


# ---- the file


@given(
    losses=st.lists(st.floats(allow_nan=False, allow_infinity=False)),
    row=st.lists(st.none() | st.floats(0, 1)),
    seconds=st.floats(0, 1e6),
    finished=st.integers(0, 3),
    begun=st.booleans(),
)
def test_what_is_written_is_read_back_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory,
    losses: list[float],
    row: list[float | None],
    seconds: float,
    finished: int,
    begun: bool,
) -> None:
    path = tmp_path_factory.getbasetemp() / "round" / "x.safetensors"
    written = Checkpoint(
        key=KEY,
        seconds=seconds,
        losses=tuple(losses),
        matrix=(tuple(row), ()),
        notes=("ä", ""),
        finished=tuple({"w": torch.full((2,), float(i))} for i in range(finished)),
        standing=standing() if begun else None,
    )
    save_checkpoint(written, path)
    read = load_checkpoint(path)
    assert read is not None
    names = ("key", "seconds", "losses", "matrix", "notes")
    assert [getattr(read, name) for name in names] == [getattr(written, name) for name in names]
    assert all(same(a, b) for a, b in zip(read.finished, written.finished, strict=True))
    assert (read.standing is None) == (not begun)
    if read.standing is not None:
        assert same(read.standing.tensors, standing().tensors)
        told = (read.standing.epoch, read.standing.losses, read.standing.best_loss, read.standing.waited)
        assert told == (3, (0.5, 1 / 3, 1e-9), 0.25, 1)
        assert list(read.standing.part("strategy")) == ["a/b"]
    assert read_key(path) == KEY
    assert [entry.name for entry in path.parent.iterdir()] == [path.name], "nothing half written is left"


def test_weights_that_share_memory_are_written(tmp_path: Path) -> None:
    value = torch.arange(4.0)
    save_checkpoint(Checkpoint(key=KEY, finished=({"a": value, "b": value},)), tmp_path / "x")
    read = load_checkpoint(tmp_path / "x")
    assert read is not None
    assert torch.equal(read.finished[0]["b"], value)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 64, b"\x10\0\0\0\0\0\0\0{}              "])
def test_a_damaged_file_is_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    assert load_checkpoint(tmp_path / "x") is None
    assert read_key(tmp_path / "x") is None
    assert load_checkpoint(tmp_path / "absent") is None


def test_every_way_of_cutting_a_file_short_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x"
    save_checkpoint(Checkpoint(key=KEY, standing=standing()), path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        assert load_checkpoint(path) is None


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    """The limit on the size of a file stands in for the end of the disk; it is set in a process of its own."""
    path = tmp_path / "x"
    save_checkpoint(Checkpoint(key=KEY, seconds=1.0), path)
    code = f"""
        import resource, torch
        from pathlib import Path
        from continual.checkpoints import Checkpoint, RunKey, save_checkpoint
        key = RunKey(plan_id="plan-1", model="m", strategy="replay", identity="")
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        try:
            save_checkpoint(Checkpoint(key=key, finished=({{"w": torch.zeros(10_000)}},)), Path({str(path)!r}))
        except OSError as error:
            raise SystemExit(error.errno)
    """
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)], check=False, env=os.environ)
    assert done.returncode == errno.EFBIG
    read = load_checkpoint(path)
    assert read is not None
    assert read.seconds == 1.0
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_weights_of_another_adapter_are_not_put() -> None:
    with pytest.raises(ValueError, match=r"do not fit the adapter: \['a', 'b'\]"):
        put_weights({"a": torch.nn.Parameter(torch.zeros(1))}, {"b": torch.zeros(1)})


# ---- the identity of a run


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return load_backbone("tiny", source="random", image_size=28)


def stage(name: str, seed: int = 0, patients: int = 20, label: float | None = None) -> Experience:
    generator = np.random.default_rng(seed)
    labels = (
        generator.integers(0, 2, (2 * patients, 1)).astype(float)
        if label is None
        else np.full((2 * patients, 1), label)
    )
    return Experience(
        name=name,
        tokens=generator.normal(size=(2 * patients, 5, 48)).astype(np.float16),
        labels=labels,
        patient_key=np.array([f"{name}-{i // 2}" for i in range(2 * patients)]),
    )


def adapter(tiny: Backbone, policy: AdaptationPolicy = POLICY, seed: int = 0) -> Adapter:
    return new_adapter(tiny, task=Task.BINARY, classes=("no", "yes"), policy=policy, seed=seed)


def test_all_that_shapes_a_result_is_in_the_identity_and_a_limit_is_not(tiny: Backbone) -> None:
    old, new, others = stage("old", 1), stage("new", 2), stage("others", 3)

    def name(start: Adapter, **changes: Any) -> str:
        known: dict[str, Any] = {"stream": [old, new], "evaluation": [others], "learned": 1, "strategy": "naive"}
        return identify(start, **(known | {"policy": POLICY} | changes))

    moved = new.tokens.copy()
    moved[-1, -1, -1] += 0.5
    relabelled = new.labels.copy()
    relabelled[0] = 1 - relabelled[0]
    start = adapter(tiny)
    changed = [
        name(adapter(tiny, seed=1)),
        name(adapter(tiny, AdaptationPolicy(rank=4))),
        name(start, strategy="ewc"),
        name(start, learned=0),
        name(start, stream=[new, old]),
        name(start, stream=[old, replace(new, tokens=moved)]),
        name(start, stream=[old, replace(new, labels=relabelled)]),
        name(start, stream=[old, replace(new, patient_key=new.patient_key[::-1].copy())]),
        name(start, evaluation=[stage("others", 4)]),
        name(start, policy=AdaptationPolicy(epochs=7)),
        name(start, policy=AdaptationPolicy(seed=1)),
        name(start, policy=AdaptationPolicy(early_stopping=EarlyStopping(patience=1))),
    ]
    assert len({name(start), *changed}) == len(changed) + 1
    assert name(adapter(tiny), policy=AdaptationPolicy(limits=RunLimits(minutes=1))) == name(start)


# ---- early stopping


def test_the_best_epoch_is_remembered_and_waiting_ends() -> None:
    best, weight = BestSoFar(patience=2), torch.zeros(1)
    for loss, value in ((0.5, 1.0), (0.4, 2.0), (0.4, 3.0)):
        weight.fill_(value)
        best.look(loss, {"w": weight})
    assert (best.loss, best.waited, best.is_over) == (0.4, 1, False)
    assert best.weights["w"] == 2
    best.look(0.41, {"w": weight})
    assert best.is_over


def test_patients_are_set_aside_whole_and_by_the_seed() -> None:
    experience, policy = stage("new", patients=200), EarlyStopping(share=0.2, minimum_patients=40)

    def divide(seed: int) -> tuple[Experience, Experience | None]:
        return set_aside(experience, policy, task=Task.BINARY, classes=("no", "yes"), seed=seed)

    learning, aside = divide(0)
    assert aside is not None
    assert len(set(aside.patient_key)) == 40
    assert not set(learning.patient_key) & set(aside.patient_key)
    assert len(learning) + len(aside) == len(experience)
    again, other = divide(0)[1], divide(1)[1]
    assert again is not None
    assert other is not None
    assert np.array_equal(again.patient_key, aside.patient_key)
    assert set(other.patient_key) != set(aside.patient_key)


@pytest.mark.parametrize(
    ("experience", "policy", "reason"),
    [
        (stage("new", patients=100), EarlyStopping(share=0.2, minimum_patients=40), "100 patients are too few .*, 200"),
        (stage("new", patients=100), EarlyStopping(patience=0, minimum_patients=2), "off"),
        (stage("new", patients=100, label=1.0), EarlyStopping(share=0.5, minimum_patients=2), "of one class"),
    ],
)
def test_with_too_few_patients_all_are_learned_from_and_it_says_so(
    experience: Experience, policy: EarlyStopping, reason: str
) -> None:
    learning, aside = set_aside(experience, policy, task=Task.BINARY, classes=("no", "yes"), seed=0)
    assert aside is None
    assert learning is experience
    assert re.search(reason, why_not_early(experience, policy))


# ---- limits


def test_the_limits_on_time_and_memory_stop_and_name_the_cure() -> None:
    RunWatch(RunLimits()).check()
    with pytest.raises(RunStopped, match=r"time limit of 1 minutes .* raise minutes under \[adaptation.limits\]"):
        RunWatch(RunLimits(minutes=1), earlier=61.0).check()
    with pytest.raises(RunStopped, match=r"MB of memory are in use, 1 are allowed; lower batch_size"):
        RunWatch(RunLimits(megabytes=1), earlier=1.0).check()
    assert 10 < resident_megabytes() < 1e6


def test_what_is_sure_to_break_a_limit_is_refused_before_it_begins() -> None:
    asked = {"stages": 2, "tokens_a_study": 65 * 384, "parameters": 50_000}
    check_request(POLICY, **asked)
    with pytest.raises(RunStopped, match="12 epochs are asked for, 11 are allowed; lower epochs"):
        check_request(POLICY.model_copy(update={"limits": RunLimits(epochs=11)}), **asked)
    with pytest.raises(RunStopped, match="MB of memory would be needed"):
        check_request(POLICY, **(asked | {"parameters": 10**13}))
    with pytest.raises(RunStopped, match="MB of memory would be needed"):
        check_room(RunLimits(), 2**50)
    larger = POLICY.model_copy(update={"batch_size": 64})
    few, many = (estimate_megabytes(p, tokens_a_study=65 * 384, parameters=0) for p in (POLICY, larger))
    assert many == pytest.approx(2 * few)
