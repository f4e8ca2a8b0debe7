"""Everything in monitor/ that depends on the task stands in this one table."""

from dataclasses import dataclass
from enum import StrEnum


class Task(StrEnum):
    """What a model answers about one study."""

    BINARY = "binary"
    MULTI_CLASS = "multi-class"
    MULTI_LABEL = "multi-label"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskShape:
    """The shape of scores and labels, and the metrics, of one task.

    Scores are always (n, score_columns). Labels are always (n, label_columns): a class index for
    binary and multi-class, 0 or 1 per finding for multi-label; NaN means "not known yet".
    """

    label_per_finding: bool
    scores_sum_to_one: bool
    minimum_classes: int

    def score_columns(self, classes: tuple[str, ...]) -> int:
        """Count the score columns: one for binary (probability of classes[1]), else one a class."""
        return 1 if self.minimum_classes == 2 and not self.scores_sum_to_one else len(classes)

    def label_columns(self, classes: tuple[str, ...]) -> int:
        """Count the label columns: one a finding for multi-label, else one."""
        return len(classes) if self.label_per_finding else 1

    def label_levels(self, classes: tuple[str, ...]) -> int:
        """Count the values that one label may take."""
        return 2 if self.label_per_finding else len(classes)

    def findings(self, classes: tuple[str, ...]) -> tuple[str, ...]:
        """Name each yes/no question the scores answer, one for each score column."""
        return classes[-self.score_columns(classes) :]


TASKS: dict[Task, TaskShape] = {
    Task.BINARY: TaskShape(label_per_finding=False, scores_sum_to_one=False, minimum_classes=2),
    Task.MULTI_CLASS: TaskShape(label_per_finding=False, scores_sum_to_one=True, minimum_classes=2),
    Task.MULTI_LABEL: TaskShape(label_per_finding=True, scores_sum_to_one=False, minimum_classes=1),
}
