"""Learning strategies by name: what each adds to Avalanche's plain loop, and the rehearsal memory they share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.utils import concat_datasets
from avalanche.training.plugins import EWCPlugin, ReplayPlugin
from avalanche.training.storage_policy import ExemplarsBuffer
from numpy.typing import NDArray

from continual.experiences import Experience, share_memory
from continual.memory_selection import rank_for_rehearsal
from continual.plans import AdaptationPolicy


class PatientBalancedMemory(ExemplarsBuffer):  # type: ignore[misc]
    """A rehearsal memory shared evenly over stages, balanced over labels and patients within each."""

    def __init__(self, max_size: int) -> None:
        super().__init__(max_size)
        self._kept: list[tuple[AvalancheDataset, NDArray[np.intp]]] = []
        self._next: NDArray[np.intp] = np.empty(0, dtype=np.intp)

    def expect(
        self,
        experience: Experience,
        generator: np.random.Generator,
        selection: str = "reservoir",
        difficulty: NDArray[np.float64] | None = None,
    ) -> None:
        """Rank the studies of the stage that is shown next; see ``rank_for_rehearsal``."""
        self._next = rank_for_rehearsal(experience, generator, selection, difficulty, most=self.max_size)

    def update(self, strategy: Any, **kwargs: Any) -> None:
        """Take in the stage that was shown, after its training."""
        self._kept.append((strategy.experience.dataset, self._next))
        self.resize(strategy, self.max_size)

    def resize(self, strategy: Any, new_size: int) -> None:
        """Keep the best ranked studies of every stage within the new size."""
        self.max_size = new_size
        shares = share_memory([len(ranking) for _, ranking in self._kept], new_size)
        self.buffer = concat_datasets(
            [
                dataset.subset(ranking[:share].tolist())
                for (dataset, ranking), share in zip(self._kept, shares, strict=True)
            ]
        )


def _replay(policy: AdaptationPolicy, memory: PatientBalancedMemory | None) -> list[Any]:
    return [ReplayPlugin(mem_size=policy.memory_size, storage_policy=memory)]


def _ewc(policy: AdaptationPolicy, memory: PatientBalancedMemory | None) -> list[Any]:
    return [EWCPlugin(ewc_lambda=policy.ewc_strength)]


def _naive(policy: AdaptationPolicy, memory: PatientBalancedMemory | None) -> list[Any]:
    return []


STRATEGIES: dict[str, Callable[[AdaptationPolicy, Any], list[Any]]] = {
    "naive": _naive,
    "replay": _replay,
    "ewc": _ewc,
}
