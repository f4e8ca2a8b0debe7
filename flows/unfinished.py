"""Trainings that were cut short: where their checkpoints lie, and which can be taken up again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from continual.checkpoints import SUFFIX, Checkpoint, RunKey, read_key, save_checkpoint
from continual.files import partials_of
from continual.plans import AdaptationPlan
from flows.ward import Ward


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfinished:
    """A plan, and the strategies whose training for it was begun or announced and has not ended."""

    plan: AdaptationPlan
    strategies: tuple[str, ...]


def checkpoint_of(ward: Ward, plan: AdaptationPlan, strategy: str) -> Path:
    """Tell where the checkpoint of a training under the policy in force lies; named as its run will be."""
    policy = ward.settings.adaptation
    return _folder(ward) / f"{plan.plan_id}-{policy.recipe}-{strategy}-{policy.seed}{SUFFIX}"


def announce(ward: Ward, plan: AdaptationPlan, strategies: Sequence[str]) -> None:
    """Write down what is about to be trained, so that `adapt --resume` finishes all of it, whenever it is killed."""
    for strategy in strategies:
        if not (path := checkpoint_of(ward, plan, strategy)).exists():
            key = RunKey(plan_id=plan.plan_id, model=plan.model, strategy=strategy, identity="")
            save_checkpoint(Checkpoint(key=key), path)


def find_unfinished(ward: Ward) -> list[Unfinished]:
    """List what can be taken up again, plan by plan; what belongs to a version that is not live any more is removed."""
    found: dict[str, list[str]] = {}
    for path in sorted(_folder(ward).glob(f"*{SUFFIX}")):
        if (key := read_key(path)) is None or not _is_live(ward, key):
            path.unlink(missing_ok=True)
        elif key.strategy not in found.setdefault(key.plan_id, []):
            found[key.plan_id].append(key.strategy)
    plans = [ward.records.plan(plan_id) for plan_id in found]
    return [Unfinished(plan=plan, strategies=_in_order(plan, found[plan.plan_id])) for plan in plans]


def forget_checkpoints(ward: Ward, plan: AdaptationPlan, strategy: str) -> None:
    """Remove the checkpoint of a training that has ended, those of the same under other recipes, and halves of them."""
    name = f"{plan.plan_id}-*-{strategy}-*{SUFFIX}"
    for path in (*_folder(ward).glob(name), *_folder(ward).glob(partials_of(name))):
        path.unlink(missing_ok=True)


def _folder(ward: Ward) -> Path:
    return ward.settings.directory / "checkpoints"


def _is_live(ward: Ward, key: RunKey) -> bool:
    plan = next((plan for plan in ward.records.plans(key.model) if plan.plan_id == key.plan_id), None)
    champion = ward.records.champion(key.model)
    return plan is not None and champion is not None and plan.champion_version == champion.version


def _in_order(plan: AdaptationPlan, strategies: Sequence[str]) -> tuple[str, ...]:
    """Order strategies as the plan names them; those that a person added come last."""
    return tuple(sorted(strategies, key=lambda name: (*plan.strategies, name).index(name)))
