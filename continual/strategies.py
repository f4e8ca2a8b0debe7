"""Learning strategies by name: the plugins that each adds to Avalanche's plain loop.

What each stores, costs and is good for stands in ``continual.strategy_cards``, under the same names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from continual.adapters import Adapter
from continual.generative import GenerativeReplay
from continual.policies import AdaptationPolicy
from continual.regularisers import Distillation, ElasticWeights, PathIntegral
from continual.rehearsal import (
    Cumulative,
    DarkExperience,
    Everything,
    GradientEpisodicMemory,
    GreedyMemory,
    PatientBalancedMemory,
    Rehearsal,
)
from continual.task_training import TRAINING

__all__ = ["STRATEGIES", "PatientBalancedMemory", "Setting", "Strategy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a strategy is made for: an adapter, and the policy with its strengths."""

    adapter: Adapter
    policy: AdaptationPolicy


@dataclass(frozen=True, slots=True)
class Strategy:
    """Plugins in the order in which Avalanche asks them, and the memory that they share, if any."""

    plugins: tuple[Any, ...] = ()
    memory: PatientBalancedMemory | None = None


def _replay(setting: Setting) -> Strategy:
    memory = _memory(setting)
    return Strategy((Rehearsal(memory),), memory)


def _ewc(setting: Setting) -> Strategy:
    return Strategy((ElasticWeights(setting.policy.ewc_strength),))


def _lwf(setting: Setting) -> Strategy:
    distance = TRAINING[setting.adapter.card.task].distance
    return Strategy((Distillation(setting.policy.lwf_strength, distance),))


def _agem(setting: Setting) -> Strategy:
    memory = _memory(setting)
    return Strategy((GradientEpisodicMemory(memory, setting.policy.agem_sample),), memory)


def _der(setting: Setting) -> Strategy:
    memory = _memory(setting)
    return Strategy((DarkExperience(memory, setting.policy.der_alpha, 0.0),), memory)


def _derpp(setting: Setting) -> Strategy:
    memory = _memory(setting)
    return Strategy((DarkExperience(memory, setting.policy.der_alpha, setting.policy.der_beta),), memory)


def _gdumb(setting: Setting) -> Strategy:
    memory = _memory(setting)
    return Strategy((GreedyMemory(memory, setting.adapter.network.untrained()),), memory)


def _cumulative(setting: Setting) -> Strategy:
    memory = Everything()
    return Strategy((Cumulative(memory),), memory)


def _both(first: Callable[[Setting], Strategy], second: Callable[[Setting], Strategy]) -> Callable[[Setting], Strategy]:
    """Put the plugins of two strategies into one; only the first may have a memory."""

    def make(setting: Setting) -> Strategy:
        one, other = first(setting), second(setting)
        return Strategy((*one.plugins, *other.plugins), one.memory)

    return make


def _memory(setting: Setting) -> PatientBalancedMemory:
    return PatientBalancedMemory(setting.policy.memory.studies, setting.policy.memory.selection)


STRATEGIES: dict[str, Callable[[Setting], Strategy]] = {
    "naive": lambda setting: Strategy(),
    "replay": _replay,
    "ewc": _ewc,
    "lwf": _lwf,
    "si": lambda setting: Strategy((PathIntegral(setting.policy.si_strength),)),
    "agem": _agem,
    "der": _der,
    "derpp": _derpp,
    "gdumb": _gdumb,
    "cumulative": _cumulative,
    "generative": lambda setting: Strategy((GenerativeReplay(),)),
    "replay_ewc": _both(_replay, _ewc),
    "replay_lwf": _both(_replay, _lwf),
}
