"""Early stopping: patients set aside from learning say which epoch was best, and when to stop waiting for a better one.

Prechelt, Early Stopping - But When?, 1998.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from continual.experiences import Experience, why_not_learnable
from continual.policies import EarlyStopping
from monitor.tasks import Task


@dataclass(slots=True)
class BestSoFar:
    """The best epoch of a stage so far: its loss on the patients set aside, and its weights by name."""

    patience: int
    loss: float | None = None
    waited: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)

    def look(self, loss: float, weights: Mapping[str, Tensor]) -> None:
        """Compare an epoch with the best one; the weights are copied if it is better."""
        if self.loss is None or loss < self.loss:
            self.loss, self.waited = loss, 0
            self.weights = {name: value.detach().clone() for name, value in weights.items()}
        else:
            self.waited += 1

    @property
    def is_over(self) -> bool:
        """Tell whether waiting for a better epoch has lasted long enough."""
        return self.waited >= self.patience


def set_aside(
    experience: Experience, policy: EarlyStopping, *, task: Task, classes: tuple[str, ...], seed: int
) -> tuple[Experience, Experience | None]:
    """Divide a stage into what is learned from and what says when to stop; no patient is in both.

    The second is None where early stopping is off, or where too few patients, or those of one class
    only, would be on either side: then everything is learned from.
    """
    patients = np.unique(experience.patient_key)
    count = round(policy.share * len(patients))
    if policy.patience == 0 or count < policy.minimum_patients:
        return experience, None
    chosen = np.random.default_rng([seed, len(patients)]).permutation(patients)[:count]
    aside = np.isin(experience.patient_key, chosen)
    learning, judging = experience.select(~aside), experience.select(aside)
    if why_not_learnable(learning, task, classes) or why_not_learnable(judging, task, classes):
        return experience, None
    return learning, judging


def why_not_early(experience: Experience, policy: EarlyStopping) -> str:
    """Say why no epoch of a stage is judged."""
    if policy.patience == 0:
        return "early stopping is off (patience 0)"
    patients = len(np.unique(experience.patient_key))
    needed = int(np.ceil(policy.minimum_patients / policy.share))
    if patients < needed:
        return f"{patients} patients are too few to set some aside for early stopping, {needed} are needed"
    return "the patients who would be set aside for early stopping, or the others, are of one class"
