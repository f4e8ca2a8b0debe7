"""What `wardround adapt` does: a plan's trainings one after another, taking up what was cut short before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime

from continual.plans import AdaptationPlan, AdaptationRun
from flows.treating import treat
from flows.unfinished import announce, find_unfinished, forget_checkpoints
from flows.ward import StepRefused, Ward


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a person asked for; no plan: whatever is unfinished; no strategies: all that the plan names."""

    plan_id: str = ""
    strategies: tuple[str, ...] = ()
    resume: bool = False
    anew: bool = False


def adapt_all(ward: Ward, request: Request, *, at: datetime, tell: Callable[[str], None]) -> list[AdaptationRun]:
    """Train what was asked for, and give the runs. Going on is safe: it ends in the same bytes as beginning again.

    Raises:
        StepRefused: no plan was named and nothing is to be resumed, or the options contradict each other.
    """
    if request.anew and (request.resume or not request.plan_id):
        raise StepRefused("--anew begins a plan again: name the plan, and leave out --resume")
    runs = []
    for plan, strategies in _work(ward, request, tell):
        announce(ward, plan, strategies)
        runs += [_treat(ward, plan, strategy, at) for strategy in strategies or ("",)]
    return runs


def _treat(ward: Ward, plan: AdaptationPlan, strategy: str, at: datetime) -> AdaptationRun:
    """Treat; what is refused as it was asked for is nothing to be resumed."""
    try:
        return treat(ward, plan, strategy, at=at)
    except (StepRefused, ValueError):
        forget_checkpoints(ward, plan, strategy)
        raise


def _work(
    ward: Ward, request: Request, tell: Callable[[str], None]
) -> Iterator[tuple[AdaptationPlan, tuple[str, ...]]]:
    """List plans with what is to be trained for each, and say what goes on instead of beginning."""
    if request.plan_id:
        plan = ward.records.plan(request.plan_id)
        strategies = request.strategies or plan.strategies
        if request.anew:
            for strategy in strategies:
                forget_checkpoints(ward, plan, strategy)
        cut = [name for other in find_unfinished(ward) if other.plan == plan for name in other.strategies]
        if going_on := [name for name in strategies if name in cut]:
            tell(f"Cut short before, goes on: {', '.join(going_on)} (--anew begins again).")
        yield plan, strategies
        return
    if not request.resume:
        raise StepRefused("name a plan, as `wardround plan` named it, or say --resume to finish what was cut short")
    if not (unfinished := find_unfinished(ward)):
        tell("Nothing was cut short; there is nothing to resume.")
    for other in unfinished:
        strategies = tuple(name for name in other.strategies if name in request.strategies or not request.strategies)
        tell(f"{other.plan.plan_id} goes on: {', '.join(strategies)}.")
        yield other.plan, strategies
