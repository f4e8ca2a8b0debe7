"""When to adapt and how: the ladder's treatments, and the policy that people write. Pure: no torch here."""

from __future__ import annotations

import hashlib
import json
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from continual.memory_selection import MemoryPolicy
from continual.worklists import LabelPolicy


class Treatment(StrEnum):
    """The ladder, smallest step first."""

    WATCH_LONGER = "watch longer"
    RECALIBRATE = "recalibrate"
    CORRECT_PREVALENCE = "correct for new prevalence"
    MOVE_THRESHOLD = "move the threshold"
    REFIT_HEAD = "refit the head"
    UPDATE_ADAPTER = "update the adapter"
    NEW_BACKBONE = "ask for a new backbone"

    @property
    def rung(self) -> int:
        """Tell how high on the ladder it stands, from 0."""
        return list(Treatment).index(self)

    @property
    def makes_an_adapter(self) -> bool:
        """Tell whether something is made that the gate can judge; else people watch, or look for another model."""
        return self not in (Treatment.WATCH_LONGER, Treatment.NEW_BACKBONE)

    @property
    def keeps_network(self) -> bool:
        """Tell whether only what becomes of the logits changes."""
        return self in (Treatment.RECALIBRATE, Treatment.CORRECT_PREVALENCE, Treatment.MOVE_THRESHOLD)

    @property
    def slug(self) -> str:
        """Name it in identities and on one line."""
        return self.value.replace(" ", "-")


class RunLimits(BaseModel):
    """How much a run may take. Beyond a limit it is STOPPED and keeps nothing, but can be resumed with a larger one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    minutes: float = Field(120, gt=0, description="of training, counted over every resumption")
    megabytes: int = Field(16_000, ge=1, description="of this process; estimated before the start and watched after it")
    epochs: int = Field(1_000, ge=1, description="over all stages that are learned")


class EarlyStopping(BaseModel):
    """Stop a stage that no longer gets better for patients set aside from learning, and keep its best weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    share: float = Field(0.15, gt=0, lt=1, description="of a stage's patients that are set aside")
    minimum_patients: int = Field(
        60, ge=2, description="set aside, or all are learned from and every epoch is run: fewer would choose by chance"
    )
    patience: int = Field(3, ge=0, description="epochs without a better loss before it stops; 0: never, nobody aside")


AdapterKind = Literal["head", "lora", "bottleneck", "prompt", "norm", "analytic"]


RECIPES: dict[str, dict[str, float]] = {"head": {"epochs": 30, "learning_rate": 1e-2}}
"""What a kind of adapter learns by where the policy does not say: a head is cheap, and learns little in small steps."""


ThresholdAim = Literal["sensitivity", "youden", "cost"]

TOLERATED = ("auroc", "sensitivity", "specificity", "accuracy", "calibration")
"""Figures whose loss a policy may bear."""

NOT_SHAPING = {
    "strategies",
    "drifted_windows",
    "minimum_labels",
    "limits",
    "labels",
    "labels_to_recalibrate",
    "labels_to_move",
    "labels_to_refit",
    "highest",
    "tolerated_loss",
    "headroom",
}
"""Fields of the policy that decide whether something is done, not what comes out."""


class AdaptationPolicy(BaseModel):
    """When to adapt, and the recipe of the training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategies: tuple[str, ...] = ("replay_lwf", "replay", "lwf")
    drifted_windows: int = Field(2, ge=1, description="consecutive windows with DRIFT before a plan is made")
    minimum_labels: int = Field(60, ge=2, description="labelled studies that updating the adapter needs")
    labels_to_recalibrate: int = Field(
        30, ge=2, description="labelled studies that recalibrating, or a prevalence, needs"
    )
    labels_to_move: int = Field(40, ge=2, description="labelled studies that a new threshold needs")
    labels_to_refit: int = Field(50, ge=2, description="labelled studies that a new head needs")
    highest: Treatment = Field(Treatment.NEW_BACKBONE, description="no step above this one is proposed")
    tolerated_loss: dict[str, float] = Field(
        {"auroc": 0.03, "sensitivity": 0.05, "specificity": 0.05, "accuracy": 0.05, "calibration": 0.01},
        description="harm that is borne, by figure: losses against the reference; calibration: Brier score given away",
    )
    threshold_aim: ThresholdAim = Field(
        "sensitivity", description="a new threshold restores the reference's sensitivity, or youden, or cost"
    )
    cost_ratio: float = Field(5.0, gt=0, description="threshold_aim = cost: false alarms that one missed finding costs")
    head_hold: float = Field(2.0, gt=0, description="how strongly a refitted head is held to the champion's")
    headroom: float = Field(0.1, ge=0, description="AUROC that training the last blocks may add to a new linear head")
    adapter: AdapterKind = Field(
        "lora",
        description="what is learned: head (a linear head alone), lora (low-rank additions to attention), bottleneck "
        "(narrow networks behind the MLPs), prompt (extra tokens), norm (norms and biases), analytic (closed form, "
        "cannot forget)",
    )
    blocks: int = Field(
        1,
        ge=0,
        description="last transformer blocks whose entering tokens are stored, and that carry the adapter; "
        "0: embeddings alone are stored, which head and analytic need",
    )
    rank: int = Field(8, ge=1, le=10_000, description="lora: width of the low-rank additions")
    bottleneck: int = Field(32, ge=1, le=10_000, description="bottleneck: width of the narrow networks")
    prompts: int = Field(8, ge=1, le=10_000, description="prompt: tokens added to each adapted block")
    random_features: int = Field(
        256, ge=0, le=10_000, description="analytic: random features beside the embedding's own"
    )
    ridge: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        "auto", description="analytic: strength of the penalty, relative to the mean variance; auto: chosen from data"
    )
    epochs: int = Field(6, ge=1, description="times that each study is learned from; left out: as RECIPES has it")
    batch_size: int = Field(32, ge=2)
    learning_rate: float = Field(3e-3, gt=0, description="left out: as RECIPES has it for the adapter")
    memory: MemoryPolicy = MemoryPolicy()
    ewc_strength: float = Field(0.3, gt=0, description="EWC: weight of holding a weight of average importance")
    lwf_strength: float = Field(2.0, gt=0, description="LwF: weight of keeping the earlier answers")
    si_strength: float = Field(0.1, gt=0, description="SI: weight of holding what moving a weight has won")
    der_alpha: float = Field(0.2, gt=0, description="DER: weight of the old logits of rehearsed studies")
    der_beta: float = Field(0.5, gt=0, description="DER++: weight of the labels of rehearsed studies")
    agem_sample: int = Field(64, ge=1, description="A-GEM: remembered studies that each step is checked against")
    gradient_bound: float = Field(
        100.0, gt=0, description="a longer gradient is cut to this length; 50 such steps in a row: FAILED"
    )
    seed: int = 0
    early_stopping: EarlyStopping = EarlyStopping()
    limits: RunLimits = RunLimits()
    labels: LabelPolicy = LabelPolicy()

    @model_validator(mode="before")
    @classmethod
    def _fill_in_recipe(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        kind = given.get("adapter", cls.model_fields["adapter"].default)
        return RECIPES.get(kind, {}) | given

    @model_validator(mode="after")
    def _check(self) -> Self:
        if unknown := set(self.tolerated_loss) - set(TOLERATED):
            raise ValueError(f"tolerated_loss knows {', '.join(TOLERATED)}, not {', '.join(sorted(unknown))}")
        return self

    def labels_for(self, treatment: Treatment) -> int:
        """Tell how many labelled studies a step needs; a smaller step never more than the adapter's update."""
        asked = {
            Treatment.RECALIBRATE: self.labels_to_recalibrate,
            Treatment.CORRECT_PREVALENCE: self.labels_to_recalibrate,
            Treatment.MOVE_THRESHOLD: self.labels_to_move,
            Treatment.REFIT_HEAD: self.labels_to_refit,
            Treatment.UPDATE_ADAPTER: self.minimum_labels,
        }
        return min(asked.get(treatment, 0), self.minimum_labels)

    @property
    def recipe(self) -> str:
        """Identify what shapes a training, apart from strategy and data, by six hexadecimal digits."""
        shaping = self.model_dump(mode="json", exclude=NOT_SHAPING)
        return hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()[:6]
