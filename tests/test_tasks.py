"""The table of tasks: shapes of scores and labels that the rest of the house relies on."""

import pytest

from monitor.tasks import TASKS, Task


def test_every_task_has_a_row():
    assert set(TASKS) == set(Task)


@pytest.mark.parametrize(
    ("task", "scores", "labels", "levels", "findings"),
    [
        (Task.BINARY, 1, 1, 2, ("b",)),
        (Task.MULTI_CLASS, 2, 1, 2, ("a", "b")),
        (Task.MULTI_LABEL, 2, 2, 2, ("a", "b")),
    ],
)
def test_two_classes_have_another_shape_for_each_task(task, scores, labels, levels, findings):
    shape, classes = TASKS[task], ("a", "b")
    assert (shape.score_columns(classes), shape.label_columns(classes)) == (scores, labels)
    assert (shape.label_levels(classes), shape.findings(classes)) == (levels, findings)


def test_a_multi_label_model_may_have_one_finding_and_a_multi_class_model_many_levels():
    assert TASKS[Task.MULTI_LABEL].findings(("effusion",)) == ("effusion",)
    assert TASKS[Task.MULTI_CLASS].label_levels(("a", "b", "c")) == 3
    assert TASKS[Task.MULTI_LABEL].label_levels(("a", "b", "c")) == 2
