"""What a person decides about watching."""

from pydantic import BaseModel, ConfigDict, Field


class DriftPolicy(BaseModel):
    """When a difference is called drift, and how much data a verdict needs.

    ``alpha`` is the false-alarm probability of a whole window over all its detectors and
    features; it is divided among them (Holm).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    alpha: float = Field(0.01, gt=0, lt=1)
    minimum_patients: int = Field(20, ge=2, description="below this a window answers NOT_ENOUGH_DATA")
    minimum_effect: float = Field(0.1, ge=0, description="smallest standardised effect that counts as drift")
    permutations: int = Field(999, ge=99)
    resamples: int = Field(1000, ge=100, description="patient-level bootstrap resamples for intervals")
    level: float = Field(0.95, gt=0.5, lt=1)
    embedding_detectors: tuple[str, ...] = ("mmd", "alibi_lsdd", "alibi_classifier")
    score_detector: str = "ks"
    acquisition: tuple[str, ...] = Field((), description="attributes tested as acquisition; empty: all but case_mix")
    case_mix: tuple[str, ...] = ("sex", "age")
    subgroup_attributes: tuple[str, ...] = Field((), description="attributes whose gaps are measured; empty: all")
    minimum_subgroup: int = Field(20, ge=2, description="studies, and 5 positives and negatives, for a gap")
    alibi_detect: bool = Field(True, description="False removes alibi-detect completely: nothing imports it")
    evidently: bool = True
    seed: int = 0
