"""Ask the reading room: which studies of the drifted windows to read, as a record and as a CSV for readers."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from continual.choosing import Pool, name_subgroups
from continual.files import write_atomically
from continual.label_uses import LabelNeed, OpenWorklist, look_at_worklists, missing_labels, tell_missing
from continual.plans import AdaptationPlan
from continual.worklists import Part, Worklist, draw_worklist, studies_to_ask, waiting_on
from flows.features import load_features
from flows.sources import label_columns
from flows.ward import StepRefused, Ward, score_with
from monitor.cohorts import Cohort, Window, concatenate
from monitor.suppression import Cell, find_blank
from monitor.tasks import TASKS
from monitor.uncertainty import margin
from registry.held_out import PatientRole, roles_of
from registry.ledger import SYSTEM
from registry.promotion import check_actor
from registry.reading_room import open_worklist
from registry.settings import ModelSettings

FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")
"""What a spreadsheet may take for the beginning of a formula, and the apostrophe that keeps it from doing so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestedLabels:
    """A worklist as it was written; ``asked`` of its studies were wanted.

    ``subgroups`` counts the studies chosen from each subgroup, None where that would point at a few patients.
    """

    worklist_id: str
    path: Path
    windows: tuple[Window, ...]
    asked: int
    studies: int
    random: int
    chosen: int
    frame: int
    subgroups: dict[str, int | None]
    columns: tuple[str, ...]
    answers: tuple[str, ...]


def request_labels(  # noqa: PLR0913 - what a person may say about it
    ward: Ward, model: str, *, n: int | None, windows: Sequence[Window], out: Path | None, by: str, at: datetime
) -> RequestedLabels:
    """Draw a worklist, keep it, and write it for the reading room; without windows from those of the current plan.

    Without ``n`` as many studies as bring the labels that are missing to learn from.

    Raises:
        StepRefused: no window is known to have drifted, no study is left to ask for, or nothing is missing.
        FileExistsError: there is a file at ``out`` already; a filled worklist is never overwritten.
    """
    if by:
        check_actor(ward.records, by)
    chosen_windows = tuple(windows) or _planned_windows(ward, model)
    wanted = _count_wanted(ward, model, chosen_windows, at) if n is None else n
    if wanted < 1:
        raise ValueError(f"a worklist asks for at least one study, got --n {wanted}")
    if out is not None and out.exists():
        raise ValueError(f"{out} exists already and may hold readings; choose another --out")
    pool, learning = _pool(ward, model, chosen_windows, at)
    policy, before = ward.settings.adaptation.labels, ward.records.worklists(model)
    generator = np.random.default_rng([policy.seed, len(before)])
    items, frame = draw_worklist(pool, learning, wanted, policy=policy, generator=generator)
    if not items:
        raise StepRefused(
            "every study of these windows is labelled or on an open worklist; import what came back with "
            "`wardround labels import`, or name other windows with --window"
        )
    champion = ward.records.champion(model)
    worklist = Worklist(
        model=model,
        windows=chosen_windows,
        champion_version=champion.version if champion else "",
        asked=wanted,
        policy=policy,
        frame=frame,
        requested_at=at,
        items=items,
        before=len(before),
    )
    ward.records.save_worklist(worklist, at, actor=by or SYSTEM)
    return _write(ward, worklist, out, pool)


def write_again(ward: Ward, model: str, worklist_id: str, out: Path | None) -> RequestedLabels:
    """Write a worklist once more, of the studies that have no label yet.

    Raises:
        RecordsError: there is no such worklist.
        StepRefused: all of it is labelled.
    """
    worklist = open_worklist(ward.records.worklists(model), worklist_id)
    labelled = ward.records.labelled_studies(model, worklist.studies())
    left = replace(worklist, items=tuple(item for item in worklist.items if item.study_uid not in labelled))
    if not left.items:
        raise StepRefused(f"every study of {worklist_id} is labelled; there is nothing left to read")
    return _write(ward, worklist, out, _cohort(ward, model, worklist.windows), shown=left)


def labels_to_learn_from(ward: Ward, model: str, windows: Sequence[Window]) -> int:
    """Count the labelled studies of learning patients in some windows that an adapter could learn from."""
    cohort = concatenate([ward.records.load_cohort(model, window=window) for window in windows])
    usable = cohort.labelled if cohort.images is None else cohort.labelled & (cohort.images != "")
    return int((usable & _learning(ward, cohort)).sum())


def open_worklists(ward: Ward, model: str, *, at: datetime) -> tuple[OpenWorklist, ...]:
    """List the worklists that have not come back whole, with their age and return."""
    worklists = ward.records.worklists(model)
    asked = frozenset[str]().union(*(one.studies() for one in worklists))
    return look_at_worklists(worklists, ward.records.labelled_studies(model, asked), at) if worklists else ()


def labels_needed(ward: Ward, model: str, windows: Sequence[Window], *, at: datetime) -> LabelNeed:
    """Say how many labels to learn from there are in some windows, and how many are missing."""
    there, needed = labels_to_learn_from(ward, model, windows), ward.settings.adaptation.minimum_labels
    return missing_labels(there, needed, open_worklists(ward, model, at=at))


def tell_need(ward: Ward, model: str, *, at: datetime) -> str:
    """Say in a sentence what the current plan lacks to learn from; empty where it lacks nothing or there is none."""
    if (plan := current_plan(ward, model)) is None:
        return ""
    need = labels_needed(ward, model, plan.windows, at=at)
    return "" if need.enough else tell_missing(need, ward.settings.adaptation.labels)


def current_plan(ward: Ward, model: str) -> AdaptationPlan | None:
    """Give the newest plan that was made for the live version."""
    champion = ward.records.champion(model)
    plans = [p for p in ward.records.plans(model) if champion is not None and p.champion_version == champion.version]
    return plans[-1] if plans else None


def escape_formula(text: str) -> str:
    """Keep a spreadsheet from running a cell as a formula: an apostrophe before what could begin one (OWASP)."""
    return f"'{text}" if text.startswith(FORMULA) else text


def answers_of(settings: ModelSettings) -> tuple[str, ...]:
    """List what a reader may write into a label column."""
    return ("0", "1") if TASKS[settings.task].label_per_finding else settings.classes


def _planned_windows(ward: Ward, model: str) -> tuple[Window, ...]:
    if (plan := current_plan(ward, model)) is None:
        raise StepRefused(
            f"no plan names drifted windows of {model} yet; run `wardround plan`, or name windows with --window"
        )
    return plan.windows


def _count_wanted(ward: Ward, model: str, windows: Sequence[Window], at: datetime) -> int:
    need = labels_needed(ward, model, windows, at=at)
    if not need.missing:
        told = tell_missing(need, ward.settings.adaptation.labels)
        raise StepRefused(f"no label to learn from needs to be asked for ({told}); name how many you want with --n")
    return studies_to_ask(need.missing, ward.settings.adaptation.labels)


def _cohort(ward: Ward, model: str, windows: Sequence[Window]) -> Cohort:
    """Load the studies of some windows with their features, each study once: its newest answer."""
    cohort = concatenate([ward.records.load_cohort(model, window=window) for window in windows])
    backwards = np.unique(cohort.study_uid[::-1], return_index=True)[1]
    return load_features(cohort.select(np.sort(len(cohort) - 1 - backwards)), ward.features_of(model))


def _pool(ward: Ward, model: str, windows: Sequence[Window], at: datetime) -> tuple[Pool, NDArray[np.bool_]]:
    """Give the studies of some windows to draw from, and which are of learning patients."""
    cohort = _scored_by_champion(ward, model, windows, _cohort(ward, model, windows))
    policy = ward.settings.adaptation.labels
    labelled = ward.records.labelled_studies(model)
    known = labelled | waiting_on(ward.records.worklists(model), labelled, at)
    pool = Pool(
        study_uid=cohort.study_uid,
        patient_key=cohort.patient_key,
        subgroup=name_subgroups(cohort.attributes, policy.subgroups, len(cohort)),
        uncertainty=1 - margin(cohort.scores, cohort.task),
        free=np.ones(len(cohort), dtype=np.bool_),
        known=np.isin(cohort.study_uid, sorted(known)),
        embeddings=cohort.embeddings,
    )
    return pool, _learning(ward, cohort)


def _scored_by_champion(ward: Ward, model: str, windows: Sequence[Window], cohort: Cohort) -> Cohort:
    """Give the scores that the live version gave, or would give, so that what is asked is what it is unsure of."""
    champion = ward.records.champion(model)
    if champion is None or cohort.images is None:
        return cohort
    own = [ward.records.load_cohort(model, window=w, model_version=champion.version).study_uid for w in windows]
    if set(cohort.study_uid) <= set(np.concatenate(own)):
        return cohort
    return score_with(ward, model, cohort, champion.adapter_sha256)


def _learning(ward: Ward, cohort: Cohort) -> NDArray[np.bool_]:
    return np.asarray(roles_of(cohort.patient_key, ward.settings.roles) == PatientRole.LEARNING)


def _write(
    ward: Ward, worklist: Worklist, out: Path | None, studies: Pool | Cohort, *, shown: Worklist | None = None
) -> RequestedLabels:
    settings = ward.settings.model(worklist.model)
    path = out or ward.settings.directory / "worklists" / f"{worklist.worklist_id}.csv"
    if path.exists():
        raise ValueError(f"{path} exists already and may hold readings; choose another --out")
    shown = shown or worklist
    write_atomically(path, _as_csv(ward, shown, settings))
    return RequestedLabels(
        worklist_id=worklist.worklist_id,
        path=path,
        windows=worklist.windows,
        asked=worklist.asked,
        studies=len(shown.items),
        random=len(shown.studies(Part.RANDOM)),
        chosen=len(shown.studies(Part.CHOSEN)),
        frame=worklist.frame,
        subgroups=_count_subgroups(shown, studies, ward.settings.drift.smallest_cell),
        columns=label_columns(settings),
        answers=answers_of(settings),
    )


def _as_csv(ward: Ward, worklist: Worklist, settings: ModelSettings) -> bytes:
    """Write what a reader sees: neither score nor reason, for both would sway the reading. Excel needs the BOM."""
    images = _image_paths(ward, worklist)
    text = io.StringIO()
    labels = label_columns(settings)
    writer = csv.writer(text)
    writer.writerow(["study_uid", "image", *labels, "reader", "read_at", "comment"])
    for item in worklist.items:
        told = [item.study_uid, images.get(item.study_uid, ""), *[""] * (len(labels) + 3)]
        writer.writerow([escape_formula(cell) for cell in told])
    return text.getvalue().encode("utf-8-sig")


def _image_paths(ward: Ward, worklist: Worklist) -> dict[str, str]:
    cohort = concatenate([ward.records.load_cohort(worklist.model, window=window) for window in worklist.windows])
    if cohort.images is None:
        return {}
    paths = ward.records.image_paths(cohort.images.tolist())
    return {str(study): paths.get(str(image), "") for study, image in zip(cohort.study_uid, cohort.images, strict=True)}


def _count_subgroups(worklist: Worklist, studies: Pool | Cohort, smallest: int) -> dict[str, int | None]:
    """Count what was chosen from each subgroup; counts that point at few patients are taken away, as everywhere."""
    patient = dict(zip(studies.study_uid.tolist(), studies.patient_key.tolist(), strict=True))
    chosen = [item for item in worklist.items if item.part is Part.CHOSEN and item.subgroup]
    counts = Counter(item.subgroup for item in chosen)
    crowds = {name: {patient.get(item.study_uid) for item in chosen if item.subgroup == name} for name in counts}
    cells = [Cell(name=("subgroup", name), patients=len(crowd), table="chosen") for name, crowd in crowds.items()]
    blank = find_blank(cells, smallest)
    return {name: None if ("subgroup", name) in blank else n for name, n in sorted(counts.items())}
