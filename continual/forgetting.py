"""What was kept and lost over a stream of experiences, from the task-by-task matrix. Pure.

``matrix[i][j]`` is the figure (AUROC, more is better) on experience j after learning experience i; None
where it is undefined or was never measured, as for a champion whose early history nobody recorded.
"""

from __future__ import annotations

from collections.abc import Sequence

Matrix = Sequence[Sequence[float | None]]


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


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
