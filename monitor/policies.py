"""What a person decides about watching."""

from datetime import timedelta

from pydantic import BaseModel, ConfigDict, Field

from monitor.cohorts import Window
from monitor.multiplicity import Multiplicity

YEAR = timedelta(days=365.25)
MOST_ALPHA = 0.05
"""No window is judged more leniently than this, however long it is and however large the budget."""


class DriftPolicy(BaseModel):
    """When a difference is called drift, and how much data a verdict needs.

    ``false_alarms_per_year`` is what a person bears with for one model: how often a year a window may be called
    drifted, and how often an alarm may be raised, though nothing has changed. The part ``fairness_share`` of it goes
    to changes between subgroups, the rest to all other comparisons. A window gets the part of a year's budget
    that it is of a year; inside, that is divided among its comparisons (Holm).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    false_alarms_per_year: float = Field(1.0, gt=0, le=365, description="false alarms a year and model that are borne")
    fairness_share: float = Field(0.25, gt=0, lt=1, description="part of the false alarms that subgroups may use")
    persistence: int = Field(1, ge=1, description="windows in a row over the threshold before an alarm is raised")
    quiet_windows: int = Field(2, ge=1, description="quiet windows in a row before an alarm closes")
    cool_down: int = Field(0, ge=0, description="windows after an alarm closed in which none is raised")
    minimum_patients: int = Field(20, ge=2, description="below this a window answers NOT_ENOUGH_DATA")
    tolerated_loss: float = Field(0.05, gt=0, lt=1, description="a sure loss of this size asks for action")
    stop_loss: float = Field(0.15, gt=0, lt=1, description="a sure loss of this size asks to stop using the model")
    minimum_effect: float = Field(0.1, ge=0, description="smallest standardised effect that counts as drift")
    effect_quantile: float = Field(
        0.9, ge=0.5, lt=1, description="part of the reference's own stretches whose effects stay below what counts"
    )
    join_after: int = Field(7, ge=0, description="windows that a quiet one waits before it joins the comparison set")
    warm_up: int = Field(50, ge=0, description="quiet windows join the comparison set up to so many times their size")
    permutations: int = Field(999, ge=99)
    resamples: int = Field(1000, ge=100, description="patient-level bootstrap resamples for intervals")
    level: float = Field(0.95, gt=0.5, lt=1)
    embedding_detectors: tuple[str, ...] = ("embedding_shift",)
    online_detectors: tuple[str, ...] = Field(
        (), description="tests between windows: alibi_online_mmd, _cvm, _fet; as many false warnings a year as alarms"
    )
    score_detector: str = "ks"
    acquisition: tuple[str, ...] = Field((), description="attributes tested as acquisition; empty: all but case_mix")
    case_mix: tuple[str, ...] = ("sex", "age")
    subgroup_attributes: tuple[str, ...] = Field((), description="attributes whose gaps are measured; empty: all")
    intersection_depth: int = Field(1, ge=1, le=4, description="attributes combined to a subgroup: 2 adds sex F & 65+")
    multiplicity: Multiplicity = Field(Multiplicity.HOLM, description="correction over subgroups: holm or bh")
    smallest_cell: int = Field(5, ge=2, description="figures on 1 to this many less one patients do not leave; CMS: 11")
    minimum_subgroup: int = Field(20, ge=2, description="studies, and 5 positives and negatives, for a gap")
    alibi_detect: bool = Field(True, description="False removes alibi-detect completely: nothing imports it")
    evidently: bool = True
    seed: int = 0

    @property
    def online_tests(self) -> tuple[str, ...]:
        """The tests between windows that are run: none where alibi-detect, whose they are, is switched off."""
        return self.online_detectors if self.alibi_detect else ()

    def drift_alpha(self, window: Window) -> float:
        """Give the probability of a false DRIFT in one window, over all comparisons but those of subgroups."""
        return (1 - self.fairness_share) * self._budget(window)

    def fairness_alpha(self, window: Window) -> float:
        """Give the probability of a false change of a subgroup's gap in one window, over all subgroups."""
        return self.fairness_share * self._budget(window)

    def _budget(self, window: Window) -> float:
        return min(self.false_alarms_per_year * ((window.end - window.start) / YEAR), MOST_ALPHA)
