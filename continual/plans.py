"""What to learn and why (the plan), and what came of it (the run). Pure: no torch here."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from enum import StrEnum

from continual.backbone_cards import BackboneCard
from continual.kept import KeptAndLost
from continual.policies import Treatment
from monitor.cohorts import Window


class RunState(StrEnum):
    """How a run ended: with an adapter; because nothing could be learned; or cut short, so that it can be resumed."""

    FINISHED = "FINISHED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedHarm:
    """What a step is expected to leave lost against the reference, by cross-validation over patients.

    ``loss`` is reference minus what is expected, > 0 is worse; of "calibration" the Brier score that is given away
    because scores do not mean what they say. ``low`` and ``high`` bound it; ``sure``: beyond chance over all losses of
    the step. ``patients`` carry the figure.
    """

    metric: str
    finding: str
    loss: float
    low: float
    high: float
    sure: bool
    patients: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What one step would leave, and whether it is shown to mend what it is for.

    ``gain`` in ``mends`` is against the champion on the same studies, > 0 is better, with its interval; None of a step
    that changes nothing.
    """

    treatment: Treatment
    harms: tuple[ExpectedHarm, ...]
    mends: str = ""
    gain: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RungVerdict:
    """Whether a step of the ladder is enough, and why in one sentence; ``remaining`` is what it would leave."""

    treatment: Treatment
    enough: bool
    sentence: str
    remaining: tuple[ExpectedHarm, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptationPlan:
    """What is proposed after a drift, on which evidence, and by whom.

    ``evidence`` names the drift results and harms behind it, as "window-key detector feature". ``rungs`` are the steps
    of the ladder up to the one taken, each with its verdict; no step above it was asked for.
    """

    model: str
    windows: tuple[Window, ...]
    treatment: Treatment
    strategies: tuple[str, ...]
    evidence: tuple[str, ...]
    reason: str
    proposed_by: str
    champion_version: str
    rungs: tuple[RungVerdict, ...] = ()

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
    """One adapter made by one treatment (and strategy, where it is trained), and what was kept and lost.

    ``matrix[i][j]`` is the AUROC on experience j after learning experience i (None where
    undefined); ``experiences`` names them. ``forgetting`` is the largest drop from the best
    earlier figure, averaged over the earlier experiences; ``backward_transfer`` the average
    change of earlier experiences since they were learned; ``forward_transfer`` the average
    figure on an experience before it is learned, minus 0.5. ``notes`` tell what a reader should know of
    the training, a sentence each. ``backbone`` is what all of it stood on (None in runs from before cards
    were kept). ``memory_studies`` counts the studies rehearsed while training. ``memory_sha256`` names the
    memory that the run left for the next one: ``memory_kept`` studies of ``memory_patients`` patients in
    ``memory_bytes`` bytes. ``mends`` names the figure that the treatment is for, in which
    the gate asks for a gain; empty: the one of the gate's policy. ``told`` says in words what was made. ``kept``
    holds all that was measured against the champion, with intervals; None for a run that failed.
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
    notes: tuple[str, ...] = ()
    backbone: BackboneCard | None = None
    memory_sha256: str = ""
    memory_kept: int = 0
    memory_patients: int = 0
    memory_bytes: int = 0
    treatment: Treatment = Treatment.UPDATE_ADAPTER
    mends: str = ""
    told: str = ""
    kept: KeptAndLost | None = None

    @property
    def name(self) -> str:
        """Name what was done: the strategy, or the treatment where there is none."""
        return self.strategy or self.treatment.value

    @property
    def run_id(self) -> str:
        """Identify the run by plan, recipe, strategy (or treatment) and seed: another recipe is another run."""
        return f"{self.plan_id}-{self.recipe}-{self.strategy or self.treatment.slug}-{self.seed}"
