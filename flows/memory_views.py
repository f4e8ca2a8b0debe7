"""What rehearsal memories hold, as it may be shown: counts by stage and stratum, without small cells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from continual.memory_store import MemoryItem, MemoryManifest, read_manifest
from flows.purging import Learner, PurgeOutcome
from flows.remembering import in_force, memories_in
from flows.screens import short_window
from flows.ward import Ward
from monitor.suppression import Cell, find_blank
from registry.entries import MemoryVersion
from registry.purging import Subject


@dataclass(frozen=True, slots=True, kw_only=True)
class StratumCount:
    """Studies and patients of a stratum in a stage; None where they are few, or would give few away."""

    stage: str
    stratum: str
    studies: int | None
    patients: int | None
    suppressed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTimes:
    """When the studies of a stage were made, and when the first and the last of them go."""

    stage: str
    oldest: datetime
    newest: datetime
    first_goes: datetime
    last_goes: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryView:
    """One memory in force: whose it is, its size and limits, and its history as (moment, reason) of each version."""

    model: str
    made_by: str
    live: bool
    adapter_sha256: str
    sha256: str
    holds: str
    studies: int
    patients: int
    bytes: int
    studies_limit: int
    megabytes_limit: float
    selection: str
    strata: tuple[StratumCount, ...]
    stages: tuple[StageTimes, ...]
    versions: tuple[tuple[datetime, str], ...]


def view_memories(ward: Ward, model: str) -> list[MemoryView]:
    """Describe every memory in force of a model, oldest first."""
    champion = ward.records.champion(model)
    live = champion.adapter_sha256 if champion else ""
    return [_view(ward, version, live=version.adapter_sha256 == live) for version in in_force(ward, model)]


def count_strata(items: Sequence[MemoryItem], smallest: int) -> tuple[StratumCount, ...]:
    """Count studies and patients by stage and stratum; small cells are blank, and enough beside them."""
    studies = Counter((item.stage, item.stratum) for item in items)
    patients = Counter(key for key, _ in {((item.stage, item.stratum), item.patient) for item in items})
    cells = [Cell(name=name, patients=count, table="memory") for name, count in patients.items()]
    blank = find_blank(cells, smallest)
    return tuple(
        StratumCount(
            stage=name[0],
            stratum=name[1],
            studies=None if name in blank else count,
            patients=None if name in blank else patients[name],
            suppressed=name in blank,
        )
        for name, count in sorted(studies.items())
    )


def show_memories(screen: Console, views: Sequence[MemoryView]) -> None:
    """Show each memory: what it is, what is in it, when it goes, and why its versions were made."""
    if not views:
        screen.print("No memory yet; the first `wardround adapt` makes one.")
        return
    for view in views:
        screen.print(_heading(view))
        screen.print(_strata_table(view))
        for stage in view.stages:
            oldest, newest, first, last = (
                moment.date().isoformat() for moment in (stage.oldest, stage.newest, stage.first_goes, stage.last_goes)
            )
            screen.print(Text(f"{short_window(stage.stage)}: made {oldest} to {newest}, go {first} to {last}"))
        for moment, why in view.versions:
            screen.print(Text(f"{moment:%Y-%m-%d %H:%M} UTC: {why}", "dim"))


def show_foreseen(screen: Console, subject: Subject, learners: Sequence[Learner]) -> None:
    """Show what a removal would take away and who learned from the patient, before anybody confirms it."""
    screen.print(
        Text(
            f"{_many(len(subject.studies), 'study', 'studies')} of the patient will be removed, with predictions, "
            f"labels, features, and the patient's place in memories and held-out cohorts. This cannot be undone."
        )
    )
    _show_learners(screen, learners)


def show_outcome(screen: Console, done: PurgeOutcome) -> None:
    """Show what was removed, who learned from the patient, and what a person still has to do."""
    if done.before and not done.removed:
        screen.print("The patient had been removed already; nothing was left to remove.")
    else:
        places = ", ".join(f"{count} from {name.replace('_', ' ')}" for name, count in sorted(done.removed.items()))
        screen.print(Text(f"Removed: {places or 'nothing was left'}.", "green"))
    _show_learners(screen, done.learners)
    for run in done.rejudge:
        screen.print(Text(f"Judged on the patient and not signed yet, judge again: wardround gate {run}", "yellow"))
    if done.still_ours:
        screen.print(Text(f"Still names the patient: {', '.join(done.still_ours)}. Run the command again.", "bold red"))
    if done.events:
        told = ", ".join(map(str, done.events[:5]))
        screen.print(Text(f"Events that name the patient or a study and are never changed: {told}.", "yellow"))
    for files, what in ((done.images, "image files"), (done.remaining, "other files")):
        if files:
            shown = ", ".join(files[:5]) + (", …" if len(files) > 5 else "")
            screen.print(Text(f"The hospital's own {what} stay: {shown}", "yellow"))
    screen.print(
        Text(
            "Not reached from here: backups, exports outside the ward's folder, copies sent to others, an MLflow or "
            "Prefect server elsewhere. Remove the patient there too. Rows that bring the patient back are quarantined.",
            "dim",
        )
    )


def _view(ward: Ward, version: MemoryVersion, *, live: bool) -> MemoryView:
    manifest = read_manifest(memories_in(ward), version.sha256)
    own = [one for one in ward.records.memories(version.model) if one.adapter_sha256 == version.adapter_sha256]
    policy = ward.settings.adaptation.memory
    return MemoryView(
        model=version.model,
        made_by=version.made_by,
        live=live,
        adapter_sha256=version.adapter_sha256,
        sha256=version.sha256,
        holds=manifest.holds,
        studies=version.studies,
        patients=version.patients,
        bytes=version.bytes,
        studies_limit=policy.studies,
        megabytes_limit=policy.megabytes,
        selection=manifest.policy.selection,
        strata=count_strata(manifest.items, ward.settings.drift.smallest_cell),
        stages=tuple(_times(manifest, ward)),
        versions=tuple((one.at, one.why) for one in own),
    )


def _times(manifest: MemoryManifest, ward: Ward) -> Iterable[StageTimes]:
    policy = ward.settings.adaptation.memory
    for stage in dict.fromkeys(item.stage for item in manifest.items):
        items = [item for item in manifest.items if item.stage == stage]
        made, goes = [item.produced_at for item in items], [item.expires(policy) for item in items]
        yield StageTimes(stage=stage, oldest=min(made), newest=max(made), first_goes=min(goes), last_goes=max(goes))


def _heading(view: MemoryView) -> Text:
    of = "the live adapter" if view.live else "an adapter that is not live"
    return Text.assemble(
        (f"\n{view.model}: {view.made_by}", "bold"),
        f"\nmemory {view.sha256[:12]} of {of}; holds {view.holds}, no image; chosen by {view.selection}\n"
        f"{view.studies} studies (limit {view.studies_limit}) of {view.patients} patients, "
        f"{_size(view.bytes)} (limit {view.megabytes_limit:g} MB)\n",
    )


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MB" if count >= 2**20 else f"{count / 2**10:.0f} kB"


def _strata_table(view: MemoryView) -> Table:
    table = Table("stage", "group", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("studies", "patients"):
        table.add_column(heading, justify="right")
    for row in view.strata:
        counts: list[Any] = ["few", "few"] if row.suppressed else [str(row.studies), str(row.patients)]
        table.add_row(short_window(row.stage), row.stratum, *counts)
    return table


def _show_learners(screen: Console, learners: Sequence[Learner]) -> None:
    if not learners:
        screen.print("No adapter learned from the patient.")
        return
    screen.print(Text(f"{_many(len(learners), 'adapter', 'adapters')} learned from the patient:", "bold"))
    for one in learners:
        name = f"version {one.version}" if one.version else "never live"
        screen.print(
            Text.assemble(
                f"  {one.model}, {name}",
                (" (live)" if one.live else "", "bold yellow"),
                f", {one.run_id or 'taken over'}: {one.how}.\n    → {one.offer}",
            )
        )


def _many(count: int, one: str, more: str) -> str:
    return f"{count} {one if count == 1 else more}"
