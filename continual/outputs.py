"""What becomes of logits after the head: calibration, a shift to a new prevalence, thresholds. Pure: no torch here.

An adapter carries one ``Outputs``. By default it is the identity and changes no bit of a score or of a file. All that
it does to a yes/no question is strictly monotone, so that the order of studies, and with it the AUROC, stays exactly
(scores that float64 cannot tell from 0 or 1 aside).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, log_expit, logit, logsumexp, softmax

from monitor.measures import THRESHOLD
from monitor.tasks import TASKS, Task

Floats = NDArray[np.float64]
Table = tuple[tuple[float, ...], tuple[float, ...]]

PREFIX = "outputs."
TABLE = "table."
MIX = 1e-3
"""Part of the plain score in an isotonic one: studies on one step keep their order, and no chance is 0 or 1."""

MOST_LOGIT = 60.0
TEMPERATURES = (0.02, 50.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """How logits become chances and answers; at most one way of calibrating, then the shift, then thresholds.

    ``temperature`` divides all logits (Guo et al. 2017). ``slopes`` and ``intercepts`` are Platt's (1999), one a
    finding. ``tables`` hold, one a finding, rising log-odds and the chances there, read off by straight lines between
    (isotonic regression, Zadrozny and Elkan 2002). ``shift`` is added to the log-odds of each finding, or to the
    log-chances of each class (Saerens, Latinne and Decaestecker 2002). ``thresholds`` are chances, one a finding, from
    which on the answer is yes; none: 0.5. Empty tuples mean that nothing is done.

    Raises:
        ValueError: a number is not finite or out of range, a table falls, or two ways of calibrating are given.
    """

    temperature: float = 1.0
    slopes: tuple[float, ...] = ()
    intercepts: tuple[float, ...] = ()
    tables: tuple[Table, ...] = ()
    shift: tuple[float, ...] = ()
    thresholds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if (self.temperature != 1) + bool(self.slopes) + bool(self.tables) > 1:
            raise ValueError("outputs are calibrated in one way: by a temperature, by slopes or by tables")
        numbers = [self.temperature, *self.slopes, *self.intercepts, *self.shift, *self.thresholds]
        if not np.isfinite(numbers).all():
            raise ValueError("outputs hold a number that is not finite")
        if not TEMPERATURES[0] <= self.temperature <= TEMPERATURES[1]:
            raise ValueError(f"a temperature lies in {TEMPERATURES[0]:g} to {TEMPERATURES[1]:g}: {self.temperature:g}")
        if len(self.slopes) != len(self.intercepts) or min(self.slopes, default=1.0) <= 0:
            raise ValueError("slopes are above 0 and each has an intercept")
        if not all(0 < one < 1 for one in self.thresholds):
            raise ValueError(f"a threshold lies between 0 and 1, got {self.thresholds}")
        for table in self.tables:
            _check_table(table)

    @property
    def changes_scores(self) -> bool:
        """Tell whether a score differs from the plain one; thresholds alone change none."""
        return replace(self, thresholds=()) != IDENTITY

    @property
    def calibration(self) -> str:
        """Name the way of calibrating, empty if there is none."""
        if self.slopes or self.tables:
            return "platt" if self.slopes else "isotonic"
        return "temperature" if self.temperature != 1 else ""

    def check_for(self, task: Task, columns: int) -> None:
        """Prove that everything there is has one entry a score column, and that the task knows thresholds.

        Raises:
            ValueError: it does not fit.
        """
        for name in ("slopes", "intercepts", "tables", "shift", "thresholds"):
            if len(getattr(self, name)) not in (0, columns):
                raise ValueError(f"outputs need {columns} {name}, one a score column, got {len(getattr(self, name))}")
        if self.thresholds and TASKS[task].scores_sum_to_one:
            raise ValueError("a model that chooses one of several classes has no thresholds")

    def apply(self, logits: Floats, task: Task) -> Floats:
        """Turn logits (n, score columns) into chances (n, score columns)."""
        one_of = TASKS[task].scores_sum_to_one
        values = self._calibrate(np.asarray(logits, dtype=np.float64), one_of=one_of)
        if self.shift:
            values = values + np.asarray(self.shift)
        return np.asarray(softmax(values, axis=1) if one_of else expit(values))

    def cuts(self, columns: int) -> Floats:
        """Give, for yes/no questions, the logit from which on the answer is yes; shape (columns,)."""
        wanted = np.asarray(self.thresholds or (THRESHOLD,) * columns)
        low, high = np.full(columns, -MOST_LOGIT), np.full(columns, MOST_LOGIT)
        for _ in range(100):  # bisection: every step is monotone, whatever the calibration
            middle = (low + high) / 2
            yes = self.apply(middle[None], Task.MULTI_LABEL)[0] >= wanted
            low, high = np.where(yes, low, middle), np.where(yes, middle, high)
        return np.asarray(high)

    def keep_answers_of(self, other: Outputs, task: Task, columns: int) -> Outputs:
        """Set the thresholds so that every study is answered as under other outputs on the same logits.

        Where scores sum to one there are no thresholds, and the most probable class is what it is.
        """
        if TASKS[task].scores_sum_to_one:
            return self
        cuts = other.cuts(columns)
        found = self.apply(cuts[None], Task.MULTI_LABEL)[0]
        same = np.abs(found - THRESHOLD) < 1e-12
        thresholds = tuple(float(one) for one in np.clip(found, 1e-9, 1 - 1e-9))
        return replace(self, thresholds=() if same.all() else thresholds)

    def after_training(self) -> Outputs:
        """Give what stays once the head is trained anew on what is true now: thresholds, no calibration, no shift."""
        return Outputs(thresholds=self.thresholds)

    def describe(self, findings: tuple[str, ...]) -> str:
        """Say in words what is done, for a person who signs it."""
        parts = []
        if self.temperature != 1:
            parts.append(f"logits divided by {self.temperature:.3g} (temperature)")
        lines = zip(findings, self.slopes, self.intercepts, strict=False)
        parts += [f"log-odds of {name} times {slope:.3g} plus {offset:+.3g} (Platt)" for name, slope, offset in lines]
        if self.tables:
            parts.append(f"chances read off a rising table of {sum(len(table[0]) for table in self.tables)} steps")
        parts += [f"log-odds of {name} shifted by {by:+.3g}" for name, by in zip(findings, self.shift, strict=False)]
        cuts = zip(findings, self.thresholds, strict=False)
        parts += [f"yes to {name} from a score of {cut:.3g} on" for name, cut in cuts]
        return "; ".join(parts) or "nothing but chances"

    def tensors(self) -> dict[str, Floats]:
        """Write what there is as named arrays of float64; none for the identity."""
        found: dict[str, Floats] = {}
        if self.temperature != 1:
            found["temperature"] = np.asarray([self.temperature])
        for name in ("slopes", "intercepts", "shift", "thresholds"):
            if getattr(self, name):
                found[name] = np.asarray(getattr(self, name), dtype=np.float64)
        for column, table in enumerate(self.tables):
            found[f"{TABLE}{column}"] = np.asarray(table, dtype=np.float64)
        return {PREFIX + name: value for name, value in found.items()}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Floats]) -> Outputs:
        """Read back what ``tensors`` wrote; names without the prefix are left alone.

        Raises:
            ValueError: an unknown name, a wrong shape or type, or numbers that no outputs may hold.
        """
        mine = {name.removeprefix(PREFIX): value for name, value in tensors.items() if name.startswith(PREFIX)}
        tables = sorted((name for name in mine if name.startswith(TABLE)), key=lambda name: (len(name), name))
        vectors = {name: value for name, value in mine.items() if name not in tables}
        known = {"temperature", "slopes", "intercepts", "shift", "thresholds"}
        if not set(vectors) <= known or tables != [f"{TABLE}{column}" for column in range(len(tables))]:
            raise ValueError(f"outputs hold unknown tensors: {', '.join(sorted(mine))}")
        if any(value.dtype != np.float64 for value in mine.values()):
            raise ValueError("outputs are stored as float64")
        if any(value.ndim != 1 for value in vectors.values()) or any(mine[name].ndim != 2 for name in tables):
            raise ValueError("outputs hold a tensor of a wrong shape")
        temperature = vectors.pop("temperature", np.ones(1))
        if len(temperature) != 1 or any(len(mine[name]) != 2 for name in tables):
            raise ValueError("outputs hold a tensor of a wrong shape")
        return cls(
            temperature=float(temperature[0]),
            tables=tuple((tuple(mine[name][0].tolist()), tuple(mine[name][1].tolist())) for name in tables),
            **{name: tuple(value.tolist()) for name, value in vectors.items()},
        )

    def _calibrate(self, logits: Floats, *, one_of: bool) -> Floats:
        """Give calibrated log-odds of each finding, or log-chances of each class but for their sum."""
        if not (self.slopes or self.tables):
            return logits / self.temperature
        odds = odds_of(logits) if one_of else logits
        if self.slopes:
            odds = odds * np.asarray(self.slopes) + np.asarray(self.intercepts)
            return np.asarray(log_expit(odds)) if one_of else odds
        chances = np.stack([read_table(table, odds[:, column]) for column, table in enumerate(self.tables)], axis=1)
        return np.asarray(np.log(chances) if one_of else logit(chances))


IDENTITY = Outputs()


def odds_of(logits: Floats) -> Floats:
    """Give the log-odds of each class against all others; (n, classes) to (n, classes)."""
    others = [logsumexp(np.delete(logits, column, axis=1), axis=1) for column in range(logits.shape[1])]
    return np.asarray(logits - np.stack(others, axis=1))


def read_table(table: Table, odds: Floats) -> Floats:
    """Read chances (n,) off a rising table at log-odds (n,), a thousandth of the plain chance mixed in."""
    held = np.clip(odds, -MOST_LOGIT / 2, MOST_LOGIT / 2)
    return np.asarray((1 - MIX) * np.interp(odds, *table) + MIX * expit(held))


def _check_table(table: Table) -> None:
    odds, chances = (np.asarray(column) for column in table)
    if odds.shape != chances.shape or not len(odds):
        raise ValueError("a table has as many chances as log-odds, and at least one")
    if not (np.isfinite(odds).all() and np.isfinite(chances).all()):
        raise ValueError("outputs hold a number that is not finite")
    if (np.diff(odds) <= 0).any() or (np.diff(chances) < 0).any():
        raise ValueError("a table of outputs must rise: its log-odds strictly, its chances never falling")
    if chances[0] < 0 or chances[-1] > 1:
        raise ValueError("the chances of a table lie in 0 to 1")
