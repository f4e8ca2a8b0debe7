"""Evidently's report of a window, as a file a person opens. The one file that may import Evidently.

Our verdicts never come from it. Its HTML would run markup found in names, so every text is mapped to
safe characters before it goes in; a missing column is filled, because Evidently would drop it silently.
"""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from monitor.cohorts import Cohort
from monitor.tasks import TASKS

UNSAFE = re.compile(r"[^\w .,:;%+\-–≤≥/()]")
MINIMUM_ROWS = 5


def write_report(reference: Cohort, current: Cohort, path: Path) -> Path | None:
    """Write Evidently's data drift and data summary, and classification quality where labels exist, as one HTML file.

    The file appears whole or not at all. Returns None, and writes nothing, when a side has fewer than five studies.
    """
    if min(len(reference), len(current)) < MINIMUM_ROWS:
        return None
    before, now = (_frame(cohort, current) for cohort in (reference, current))
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # Evidently divides by zero on constant columns and says so at length
        shared = [name for name in now if name in before]  # all but labels that one side alone has
        html = _run(before[shared], now[shared], current)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(html)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    return path


def safe_text(value: object) -> str:
    """Replace every character that could be markup or script in a report."""
    return UNSAFE.sub("_", str(value))


def _run(before: pd.DataFrame, now: pd.DataFrame, current: Cohort) -> str:
    from evidently import BinaryClassification, DataDefinition, Dataset, MulticlassClassification, Report
    from evidently.presets import ClassificationPreset, DataDriftPreset, DataSummaryPreset

    numeric = [name for name in now if now[name].dtype.kind == "f"]
    definition: dict[str, Any] = {
        "numerical_columns": numeric,
        "categorical_columns": [name for name in now if name not in numeric],
    }
    known = [name for name in now if before[name].notna().any() and now[name].notna().any()]
    presets: list[Any] = [DataDriftPreset(columns=known), DataSummaryPreset()]  # it refuses to compare nothing
    if _can_classify(before, now, current):
        score = f"score {safe_text(current.findings[0])}"
        definition["classification"] = [
            BinaryClassification(target="label", prediction_probas=score, pos_label=safe_text(current.classes[1]))
            if len(current.findings) == 1
            else MulticlassClassification(target="label", prediction_labels="predicted")
        ]
        presets.append(ClassificationPreset())
    sides = [Dataset.from_pandas(frame, data_definition=DataDefinition(**definition)) for frame in (now, before)]
    snapshot = Report(presets).run(sides[0], sides[1])
    return str(snapshot.get_html_str(as_iframe=False))


def _can_classify(before: pd.DataFrame, now: pd.DataFrame, current: Cohort) -> bool:
    if TASKS[current.task].label_per_finding or "label" not in now:
        return False
    return all(frame["label"].notna().all() and frame["label"].nunique() > 1 for frame in (before, now))


def _frame(cohort: Cohort, like: Cohort) -> pd.DataFrame:
    columns: dict[str, Any] = {
        f"score {safe_text(finding)}": cohort.scores[:, column] for column, finding in enumerate(cohort.findings)
    }
    for name, values in like.attributes.items():
        own = cohort.attributes.get(name)
        if own is None:
            own = np.full(len(cohort), np.nan) if values.dtype.kind == "f" else np.full(len(cohort), "missing")
        columns[safe_text(name)] = own if own.dtype.kind == "f" else [safe_text(value) for value in own]
    if not TASKS[cohort.task].label_per_finding and cohort.labelled.all():
        names = [safe_text(name) for name in cohort.classes]
        columns["label"] = [names[int(label)] for label in cohort.labels[:, 0]]
        if len(cohort.findings) > 1:
            columns["predicted"] = [names[i] for i in cohort.scores.argmax(axis=1)]
    return pd.DataFrame(columns)
