"""What to learn and why (the plan), and what came of it (the run). Pure: no torch here."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from continual.kept import KeptAndLost
from monitor.cohorts import Window


class Treatment(StrEnum):
    """The ladder, smallest step first."""

    WATCH_LONGER = "watch longer"
    UPDATE_ADAPTER = "update the adapter"


class RunState(StrEnum):
    """How a run ended."""

    FINISHED = "FINISHED"
    FAILED = "FAILED"


class AdaptationPolicy(BaseModel):
    """When to adapt, and the recipe of the training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategies: tuple[str, ...] = ("naive", "replay", "ewc")
    drifted_windows: int = Field(2, ge=1, description="consecutive windows with DRIFT before a plan is made")
    minimum_labels: int = Field(60, ge=2, description="labelled studies to learn from; below: watch longer")
    adapter: str = "lora"
    blocks: int = Field(2, ge=1, description="last transformer blocks that carry the adapter")
    rank: int = Field(8, ge=1)
    epochs: int = Field(6, ge=1)
    batch_size: int = Field(32, ge=2)
    learning_rate: float = Field(1e-3, gt=0)
    memory_size: int = Field(150, ge=1, description="studies kept for rehearsal")
    ewc_strength: float = Field(
        10_000.0, gt=0, description="EWC's lambda; importances are squared gradients of batch means, hence its size"
    )
    seed: int = 0

    @property
    def recipe(self) -> str:
        """Identify what shapes a training, apart from strategy and data, by six hexadecimal digits."""
        shaping = self.model_dump(mode="json", exclude={"strategies", "drifted_windows", "minimum_labels"})
        return hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()[:6]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptationPlan:
    """What is proposed after a drift, on which evidence, and by whom.

    ``evidence`` names the drift results and harms behind it, as "window-key detector feature".
    """

    model: str
    windows: tuple[Window, ...]
    treatment: Treatment
    strategies: tuple[str, ...]
    evidence: tuple[str, ...]
    reason: str
    proposed_by: str
    champion_version: str

    @property
    def plan_id(self) -> str:
        """Identify the plan by its content, so that making it twice makes one plan."""
        content = [
            self.model,
            [window.key for window in self.windows],
            self.treatment,
            self.strategies,
            self.evidence,
            self.proposed_by,
            self.champion_version,
        ]
        return "plan-" + hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptationRun:
    """One adapter trained with one strategy, and what was kept and lost.

    ``matrix[i][j]`` is the AUROC on experience j after learning experience i (None where
    undefined); ``experiences`` names them. ``forgetting`` is the largest drop from the best
    earlier figure, averaged over the earlier experiences; ``backward_transfer`` the average
    change of earlier experiences since they were learned; ``forward_transfer`` the average
    figure on an experience before it is learned, minus 0.5. ``kept`` holds all that was measured against
    the champion, with intervals; None for a run that failed or that an earlier Wardround recorded.
    """

    plan_id: str
    model: str
    strategy: str
    adapter: str
    state: RunState
    reason: str
    seed: int
    recipe: str
    backbone_sha256: str
    adapter_sha256: str
    trainable_parameters: int
    experiences: tuple[str, ...]
    matrix: tuple[tuple[float | None, ...], ...]
    forgetting: float | None
    backward_transfer: float | None
    forward_transfer: float | None
    losses: tuple[float, ...]
    memory_studies: int
    n_learned: int
    seconds: float
    kept: KeptAndLost | None = None

    @property
    def run_id(self) -> str:
        """Identify the run by plan, recipe, strategy and seed: another recipe is another run."""
        return f"{self.plan_id}-{self.recipe}-{self.strategy}-{self.seed}"
