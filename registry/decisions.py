"""The gate's policy, checks and decision, and the signature under it. Pure types."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field


class GatePolicy(BaseModel):
    """What a challenger must prove on the held-out cohorts before a person may sign it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str = "auroc"
    margin: float = Field(0.02, gt=0, description="largest loss on an old cohort that still passes (non-inferiority)")
    minimum_gain: float = Field(0.0, ge=0, description="gain on the drifted cohort must be surely above this")
    maximum_forgetting: float = Field(0.02, ge=0)
    maximum_calibration_loss: float = Field(0.03, ge=0, description="allowed rise of the Brier score")
    maximum_gap_increase: float = Field(0.05, ge=0, description="allowed widening of a subgroup's gap")
    subgroup_attributes: tuple[str, ...] | None = Field(
        None,
        description="attributes whose gaps are judged; left out: all; an empty list: none, and every decision says so",
    )
    minimum_patients: int = Field(20, ge=2)
    minimum_each_class: int = Field(10, ge=1, description="patients with, and patients without, the finding")
    level: float = Field(0.95, gt=0.5, lt=1, description="two-sided; each one-sided test runs at (1-level)/2")
    resamples: int = Field(2000, ge=100)
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GateCheck:
    """One test of the gate with its figures; ``difference`` is challenger minus champion."""

    name: str
    cohort: str
    metric: str
    champion: float | None
    challenger: float | None
    difference: float | None
    low: float | None
    high: float | None
    margin: float
    passed: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GateDecision:
    """May the challenger be offered for signature? Every check, passed or not, is kept."""

    model: str
    plan_id: str
    run_id: str
    champion_version: str
    adapter_sha256: str
    cohort_digests: tuple[tuple[str, str], ...]
    promote: bool
    checks: tuple[GateCheck, ...]
    policy: GatePolicy

    @property
    def digest(self) -> str:
        """Hash of exactly what a person is shown and signs."""
        content = asdict(self) | {"policy": self.policy.model_dump()}
        return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()

    @property
    def decision_id(self) -> str:
        """Identify the decision by its content."""
        return "gate-" + self.digest[:12]

    @property
    def reasons(self) -> tuple[str, ...]:
        """Every check in a sentence."""
        return tuple(check.reason for check in self.checks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """One person's final word on one decision: ``digest`` is the decision's digest that was shown and signed."""

    decision_id: str
    digest: str
    user: str
    role: str
    approved: bool
    meaning: str
    at: datetime
