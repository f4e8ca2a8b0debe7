"""Remove a patient everywhere, and say what cannot be removed and who learned from them.

The tombstone comes first, so that nothing brings the patient back meanwhile; files that are found through
the records go next, then the rows, then the free space of the database. Every step may be repeated: a process
killed at any moment is gone on with by the same command.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from continual.feature_store import FeatureStore
from continual.files import write_atomically
from continual.memory_store import MemoryRefused, list_memories, read_manifest, remove_memory, sweep_columns
from continual.plans import AdaptationRun, RunState
from flows.reading_files import without_rows
from flows.remembering import memories_in, rewrite_memory
from flows.ward import StepRefused, Ward, windows_of
from monitor.cohorts import Window
from registry.entries import ChampionRecord, Purge
from registry.held_out import PatientRole, role_of
from registry.promotion import lineage
from registry.purging import DONE, WORD, Subject

EXACT = ("analytic",)
"""Kinds of adapter from which a patient can be taken out exactly."""

OURS = ("wardround.db", "mlflow.db", "adapters", "features", "memories", "mlartifacts", "references", "reports")
MOST_BYTES = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Learner:
    """An adapter that learned from the patient, and what can be done about it.

    ``version`` is empty of one that was never live; ``how`` says by what it is known.
    """

    model: str
    run_id: str
    adapter_sha256: str
    kind: str
    version: str
    live: bool
    how: str
    offer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PurgeOutcome:
    """What was removed, by place; who learned from the patient; and what still names the patient.

    ``images`` are the hospital's image files of the patient, as exports named them, and ``remaining`` other files
    of its own in the ward's folder; ``still_ours`` are files of ours that should not hold a trace any more,
    ``events`` the numbers of events that name the patient, ``rejudge`` runs to be judged again. ``before`` says that
    the removal was complete already.
    """

    patient_hmac: str
    removed: dict[str, int]
    learners: tuple[Learner, ...]
    images: tuple[str, ...] = ()
    remaining: tuple[str, ...] = ()
    still_ours: tuple[str, ...] = ()
    events: tuple[int, ...] = ()
    rejudge: tuple[str, ...] = field(default=())
    before: bool = False


def purge_patient(ward: Ward, patient: str, *, actor: str, reason: str, at: datetime) -> PurgeOutcome:
    """Remove a patient from everything that Wardround keeps; safe to repeat and to interrupt.

    Nothing else should run in the ward meanwhile.

    Raises:
        StepRefused: nothing of such a patient is stored.
        RecordsError: the reason names the patient, or the database is busy.
    """
    records = ward.records
    subject, learners, known = foresee(ward, patient)
    patient, images = subject.patient, records.image_paths(sorted(subject.images))
    purge = records.begin_purge(patient, actor=actor, reason=reason, adapters=[_note(one) for one in learners], at=at)
    rejudge = _judged_on(ward, subject)
    done = purge.state == DONE and not subject.studies
    removed = {} if done else _remove(ward, subject, actor=actor, at=at)
    ward.progress("Looking for what still names the patient", 0, 0)
    found = list(find_names(ward.settings.directory, subject))
    ours = tuple(path for path in found if Path(path).parts[0].startswith(OURS))
    purge = records.finish_purge(patient, removed, actor=actor, at=at)
    return PurgeOutcome(
        patient_hmac=purge.patient_hmac,
        removed={name: count for name, count in removed.items() if count},
        learners=_with_stored(ward, purge, learners),
        images=tuple(sorted(images.values())),
        remaining=tuple(path for path in found if path not in ours),
        still_ours=ours,
        events=tuple(records.events_naming(subject.names)),
        rejudge=rejudge,
        before=known is not None and known.state == DONE,
    )


def foresee(ward: Ward, patient: str) -> tuple[Subject, tuple[Learner, ...], Purge | None]:
    """Say who would be removed, who learned from them, and whether a removal was begun already; changes nothing.

    Raises:
        StepRefused: nothing of such a patient is stored.
    """
    subject = ward.records.subject_of(patient.strip())
    known = ward.records.purge_of(subject.patient)
    learners = find_learners(ward, subject)
    if known is None and not subject.studies and not learners:
        raise StepRefused("no study of such a patient is stored here; give the key as the exports write it")
    return subject, learners, known


def find_learners(ward: Ward, subject: Subject) -> tuple[Learner, ...]:
    """Find every adapter whose stages or memory held the patient, as far as the records still tell."""
    return tuple(learner for model in ward.settings.models for learner in _learners_of(ward, model, subject))


def find_names(directory: Path, subject: Subject) -> Iterator[str]:
    """Name every file under a folder, relative to it, that holds the patient's key, a study or an image's hash."""
    texts = _whole({subject.patient, *subject.studies})
    pattern = re.compile("|".join([*texts, *map(re.escape, sorted(subject.own_images))]).encode())
    for path in sorted(directory.rglob("*")):
        if not path.is_file() or path.is_symlink():
            continue
        relative = path.relative_to(directory)
        if pattern.search(str(relative).encode()) or (
            path.stat().st_size <= MOST_BYTES and pattern.search(path.read_bytes())
        ):
            yield str(relative)


def _whole(names: Collection[str]) -> list[str]:
    """Give patterns that find names, and none where it is a part of another's."""
    return [rf"(?<!{WORD}){re.escape(name)}(?!{WORD})" for name in sorted(names)]


def _remove(ward: Ward, subject: Subject, *, actor: str, at: datetime) -> dict[str, int]:
    removed: dict[str, int] = {}
    for name, remove in PLACES.items():
        ward.progress(f"Removing from {name}", 0, 0)
        removed[name] = remove(ward, subject, actor, at)
    removed |= ward.records.remove_rows(subject, actor=actor, at=at)
    ward.progress("Rebuilding the database without what was deleted", 0, 0)
    ward.records.compact()
    return removed


def _learners_of(ward: Ward, model: str, subject: Subject) -> Iterator[Learner]:
    """Tell of each finished run, and of a first adapter that was live before, whether it learned from the patient."""
    records = ward.records
    history = records.champion_history(model)
    times = _learning_times(ward, model, subject)
    remembered = _remembering(ward, model, subject)

    def tell(run_id: str, sha256: str, kind: str, how: str) -> Learner:
        note = {"model": model, "run_id": run_id, "adapter_sha256": sha256, "kind": kind, "how": how}
        return _learner(history, note)

    first = next((move for move in history if move.kind == "first"), None)
    if first is not None:
        if times and (
            not ward.settings.model(model).reference or _within(times, windows_of(ward, model, first.version))
        ):
            yield tell("", first.adapter_sha256, "unknown", "live before Wardround; may know the reference window")
        elif first.adapter_sha256 in remembered:
            yield tell("", first.adapter_sha256, "unknown", "its memory holds the patient")
    for run in records.runs(model):
        if run.state is not RunState.FINISHED:
            continue
        if _within(times, _windows_learned(ward, run)):
            yield tell(run.run_id, run.adapter_sha256, run.adapter, "the windows that it learned from hold the patient")
        elif run.adapter_sha256 in remembered:
            yield tell(run.run_id, run.adapter_sha256, run.adapter, "its memory holds the patient")


def _learner(history: Sequence[ChampionRecord], note: dict[str, str]) -> Learner:
    """Tell of an adapter that learned from the patient, as a note has it, whether it is or was live, and what to do."""
    sha256 = note["adapter_sha256"]
    version = next((move.version for move in reversed(history) if move.adapter_sha256 == sha256), "")
    live = bool(history) and history[-1].adapter_sha256 == sha256
    return Learner(**note, version=version, live=live, offer=_offer(note["kind"], is_live=live, version=version))


def _offer(kind: str, *, is_live: bool, version: str) -> str:
    """Say what can be done about an adapter that learned from somebody who was removed."""
    if kind in EXACT:
        return "unlearn exactly: adapt again, and the solution without the patient is found in closed form"
    if is_live:
        return "live: plan and adapt again without the patient, or roll back to a version that did not learn from them"
    return "do not promote again; train anew without the patient" if version else "do not promote; adapt again"


def _learning_times(ward: Ward, model: str, subject: Subject) -> list[datetime]:
    """Give the moments of the labelled studies that the patient could be learned from."""
    if role_of(subject.patient, ward.settings.roles) is not PatientRole.LEARNING or model not in ward.records.models():
        return []
    cohort = ward.records.load_cohort(model)
    mine = cohort.select((cohort.patient_key == subject.patient) & cohort.labelled)
    return [moment.item() for moment in mine.times.astype("datetime64[us]")]


def _within(times: Sequence[datetime], windows: Sequence[Window]) -> bool:
    utc = [moment.replace(tzinfo=UTC) for moment in times]
    return any(window.contains(moment) for window in windows for moment in utc)


def _windows_learned(ward: Ward, run: AdaptationRun) -> list[Window]:
    """List the windows that a run learned from: those of its plan and of every version it stands on."""
    plan = ward.records.plan(run.plan_id)
    history = ward.records.champion_history(run.model)
    places = [place for place, move in enumerate(history) if move.version == plan.champion_version]
    stands_on = lineage(history[: places[0] + 1]) if places else []
    return [*(one for move in stands_on for one in windows_of(ward, run.model, move.version)), *plan.windows]


def _remembering(ward: Ward, model: str, subject: Subject) -> set[str]:
    """Name the adapters of which some version of the memory, if it still lies there, holds the patient."""
    folder, found = memories_in(ward), set()
    there = set(list_memories(folder))
    for version in ward.records.memories(model):
        if version.sha256 in there and subject.patient in _patients(folder, version.sha256):
            found.add(version.adapter_sha256)
    return found


def _patients(folder: Path, name: str) -> frozenset[str]:
    try:
        return read_manifest(folder, name).patients
    except MemoryRefused:
        return frozenset()


# --- one line a place: how a patient is removed from it, and how many items that were


def _from_memories(ward: Ward, subject: Subject, actor: str, at: datetime) -> int:
    folder, removed = memories_in(ward), 0
    for name in list(list_memories(folder)):
        try:
            items = read_manifest(folder, name).items
        except MemoryRefused:  # nobody can tell whom a damaged memory holds, and nothing may be learned from it
            remove_memory(folder, name)
            continue
        gone = sum(_is_of(item.patient, item.image, subject) for item in items)
        if gone:
            why = f"a patient was removed ({gone} of {len(items)} studies)"
            rewrite_memory(
                ward, name, lambda item: not _is_of(item.patient, item.image, subject), why=why, at=at, actor=actor
            )
            removed += gone
    sweep_columns(folder)
    return removed


def _is_of(patient: str, image: str, subject: Subject) -> bool:
    return patient == subject.patient or image in subject.own_images


def _from_features(ward: Ward, subject: Subject, actor: str, at: datetime) -> int:
    folders = sorted(path for path in (ward.settings.directory / "features").glob("*") if path.is_dir())
    return sum(FeatureStore(folder).forget(sorted(subject.own_images)) for folder in folders)


def _from_references(ward: Ward, subject: Subject, actor: str, at: datetime) -> int:
    """Take away what was fitted to references, patients by name in it; the next watch fits it anew from who is left."""
    return _remove_files((ward.settings.directory / "references").glob("*"))


def _from_pages(ward: Ward, subject: Subject, actor: str, at: datetime) -> int:
    """Take away pages that name the patient or a study; Evidently's hold pooled counts and name nobody."""
    folder = ward.settings.directory / "reports"
    return _remove_files([folder / name for name in find_names(folder, subject)] if folder.is_dir() else [])


def _from_checkpoints(ward: Ward, subject: Subject, actor: str, at: datetime) -> int:
    """Take away trainings that were interrupted: what they had seen so far is another stream than that without."""
    if not subject.studies:
        return 0
    return _remove_files(ward.settings.directory.rglob("*.checkpoint.safetensors*"))  # half-written ones too


def _from_worklists(ward: Ward, subject: Subject, actor: str, at: datetime) -> int:
    """Take a patient's rows out of the worklists that lie in the ward, filled in or not; remarks that name them too."""
    folder, removed = ward.settings.directory / "worklists", 0
    _remove_files(folder.glob(".*.partial"))
    for path in sorted(folder.glob("*.csv")):
        left, gone = without_rows(path.read_bytes(), re.compile("|".join(_whole(subject.names))))
        if gone:
            write_atomically(path, left)
            removed += gone
    return removed


def _remove_files(paths: Any) -> int:
    files = [path for path in paths if path.is_file()]
    for path in files:
        path.unlink(missing_ok=True)
    return len(files)


PLACES: dict[str, Callable[[Ward, Subject, str, datetime], int]] = {
    "memories": _from_memories,
    "features": _from_features,
    "references": _from_references,
    "pages": _from_pages,
    "checkpoints": _from_checkpoints,
    "worklist files": _from_worklists,
}
"""Where a patient is removed from beside the records' own tables (``registry.purging``); add a place here."""


def _judged_on(ward: Ward, subject: Subject) -> tuple[str, ...]:
    """Name the runs whose unsigned decisions rest on a held-out cohort that the patient leaves: judge them again."""
    runs: dict[str, None] = {}
    for model in ward.settings.models:
        left = {lock.digest for lock in ward.records.held_out(model) if subject.patient in lock.patients}
        for decision in ward.records.decisions(model):
            judged_on = {digest for _, digest in decision.cohort_digests}
            if left & judged_on and not ward.records.signatures(decision.decision_id):
                runs[decision.run_id] = None
    return tuple(runs)


def _note(learner: Learner) -> dict[str, Any]:
    names = ("model", "run_id", "adapter_sha256", "kind", "how")
    return {name: getattr(learner, name) for name in names}


def _with_stored(ward: Ward, purge: Purge, learners: tuple[Learner, ...]) -> tuple[Learner, ...]:
    """Add the adapters that were found when the removal began: by the time it is resumed the rows may be gone."""
    known = {(one.model, one.adapter_sha256, one.run_id): one for one in learners}
    for note in json.loads(purge.adapters):
        learner = _learner(ward.records.champion_history(note["model"]), note)
        known.setdefault((learner.model, learner.adapter_sha256, learner.run_id), learner)
    return tuple(known.values())
