"""What was kept and lost over a stream of experiences, from the task-by-task matrix. Pure.

``matrix[i][j]`` is the figure (AUROC, more is better) on experience j after learning experience i; None
where it is undefined or was never measured, as for a champion whose early history nobody recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp

Matrix = Sequence[Sequence[float | None]]


def measure_average(matrix: Matrix) -> float | None:
    """Average the figures on all experiences after the last was learned; None where one is unknown.

    Lopez-Paz and Ranzato, Gradient Episodic Memory for Continual Learning, 2017.
    """
    final = [figure for figure in (matrix[-1] if matrix else ()) if figure is not None]
    return _mean(final) if matrix and len(final) == len(matrix[-1]) else None


def measure_forgetting(matrix: Matrix) -> float | None:
    """Average over the earlier experiences how far each fell from its best earlier figure to the last.

    Above 0 is loss; below 0 means that everything improved. None where no earlier figure is known.
    Chaudhry et al., Riemannian Walk for Incremental Learning, 2018.
    """
    last = len(matrix) - 1
    drops = []
    for j in range(last):
        earlier = [row[j] for row in matrix[:last]]
        known = [figure for figure in earlier if figure is not None]
        final = matrix[last][j]
        if known and final is not None:
            drops.append(max(known) - final)
    return _mean(drops)


def measure_backward_transfer(matrix: Matrix) -> float | None:
    """Average over the earlier experiences the change since each was learned; below 0 is loss.

    Where the figure right after learning is unknown, the first known one after it stands in.
    Lopez-Paz and Ranzato, Gradient Episodic Memory for Continual Learning, 2017.
    """
    last = len(matrix) - 1
    changes = []
    for j in range(last):
        since = [matrix[i][j] for i in range(j, last)]
        learned = next((figure for figure in since if figure is not None), None)
        final = matrix[last][j]
        if learned is not None and final is not None:
            changes.append(final - learned)
    return _mean(changes)


def measure_forward_transfer(matrix: Matrix, *, chance: float = 0.5) -> float | None:
    """Average over the later experiences the figure just before each is learned, minus chance.

    Lopez-Paz and Ranzato, 2017, with the AUROC of guessing as the baseline.
    """
    gains = [figure - chance for j in range(1, len(matrix)) if (figure := matrix[j - 1][j]) is not None]
    return _mean(gains)


def measure_learning(matrix: Matrix) -> float | None:
    """Measure what the last step gained on what it learned; above 0 is gain.

    Burgon et al., Learning, Potential, and Retention, arXiv:2604.04878, 2026, as the two below.
    """
    if len(matrix) < 2:
        return None
    return _subtract(matrix[-1][-1], matrix[-2][-1])


def measure_potential(matrix: Matrix) -> float | None:
    """Measure what the newest data cost the model that had not learned them; above 0 there was something to gain."""
    if len(matrix) < 2:
        return None
    return _subtract(matrix[-2][-2], matrix[-2][-1])


def measure_retention(matrix: Matrix, *, decay: float) -> float | None:
    """Average the last model's figures on all earlier experiences, one t steps back weighing exp(-decay · t).

    A level, not a change: compare it with that of the model before.
    """
    earlier = matrix[-1][: len(matrix) - 1] if matrix else ()
    known = [figure for figure in earlier if figure is not None]
    if not known or len(known) < len(earlier):
        return None
    weights = weigh_stages(len(known), decay)
    return sum(weight * figure for weight, figure in zip(weights, known, strict=True))


def weigh_stages(earlier: int, decay: float) -> list[float]:
    """Weigh the earlier experiences, oldest first; the weights add up to 1."""
    weights = [exp(-decay * (earlier - 1 - place)) for place in range(earlier)]
    return [weight / sum(weights) for weight in weights]


def _subtract(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
