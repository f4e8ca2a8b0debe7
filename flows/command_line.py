"""The command line. Thin: every command opens the ward, calls one function and shows the result."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from continual.strategy_cards import CARDS
from flows.label_commands import labels
from flows.memory_commands import memory
from flows.terminal import (
    FIRST,
    LOOK,
    ROUND,
    SIGN,
    TREAT,
    AsJson,
    Directory,
    Model,
    Who,
    screen,
    warnings_screen,
)
from flows.terminal import errors_in_one_line as _errors_in_one_line
from flows.terminal import escape as _escape
from flows.terminal import model_named as _model
from flows.terminal import opened as _opened
from flows.terminal import plain as _plain
from flows.terminal import print_json as _print_json
from flows.terminal import show as _show

HELP = """Ward rounds for deployed medical-imaging AI.

Wardround watches what a model predicts on live studies, says what changed, how badly and for whom, trains a small
adapter when drift hurts, proves it on patients it never learned from, and lets a person sign before anything goes live.

Start with [bold]wardround demo[/bold]; for your own model: init, ingest, watch, status.
"""

application = typer.Typer(
    help=HELP,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
audit = typer.Typer(help="Check the record: the append-only, hash-chained list of everything that happened.")
user = typer.Typer(help="People who may sign.")
policy = typer.Typer(help="What the policy in wardround.toml means in practice.")
application.add_typer(audit, name="audit")
application.add_typer(user, name="user")
application.add_typer(policy, name="policy")
application.add_typer(memory, name="memory")
application.add_typer(labels, name="labels")


def main() -> None:
    """Run the command line; a user sees one line that names the cure, never a traceback."""
    sys.excepthook = _tell_unexpected
    typer.main.get_command(application)()  # not application(): that would put its own excepthook in place


@application.command(rich_help_panel=FIRST)
def demo(
    directory: Annotated[Path, typer.Option("--dir", help="Where the demo writes; it writes nowhere else.")] = Path(
        "wardround-demo"
    ),
    fast: Annotated[bool, typer.Option("--fast", help="A shorter story: six weeks instead of ten.")] = False,
    prefect: Annotated[
        bool,
        typer.Option("--prefect/--no-prefect", help="Run rounds as Prefect flow runs, or call the same functions."),
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Live through ten weeks with real brain MRI slices: a new source arrives, and the loop closes. About 3 minutes."""
    from flows.demo_home import keep_inside

    keep_inside(directory)
    with _errors_in_one_line():
        from flows.demo import run_demo

        summary = run_demo(directory, fast=fast, prefect=prefect, screen=warnings_screen if as_json else screen)
        if as_json:
            _print_json(summary)


@application.command(rich_help_panel=FIRST)
def init(
    directory: Directory = Path(),
    name: Annotated[str, typer.Option("--model", "-m", help="Name of the first model.")] = "my-model",
) -> None:
    """Write a commented wardround.toml to start from, and create the database beside it."""
    with _errors_in_one_line():
        from flows.starting import start_ward

        path = start_ward(directory, name, at=datetime.now(UTC))
        screen.print(f"Wrote {path}. Edit it, then run: wardround ingest EXPORT --dir {directory}", highlight=False)


@application.command(rich_help_panel=FIRST)
def doctor(directory: Directory = Path(), as_json: AsJson = False) -> None:
    """Check versions, telemetry switches, licences, database, chain of events, MLflow store and disk."""
    with _errors_in_one_line():
        from flows.doctor import examine
        from flows.screens import show_findings
        from registry.settings import FILE_NAME, read_settings

        settings = read_settings(directory) if (directory / FILE_NAME).exists() else None
        findings = examine(settings)
        if as_json:
            _print_json([_plain(finding) for finding in findings])
        else:
            show_findings(screen, findings)
        if not all(finding.ok for finding in findings):
            raise typer.Exit(1)


@application.command(rich_help_panel=ROUND)
def ingest(
    export: Annotated[Path, typer.Argument(help="CSV, Parquet or JSONL export of predictions.")],
    rehearsal: Annotated[
        bool, typer.Option("--rehearsal", help="Mark this ward, for ever, as a copy that may hold simulated studies.")
    ] = False,
    model: Model = "",
    directory: Directory = Path(),
    as_json: AsJson = False,
) -> None:
    """Read an export of predictions. Reading it twice changes nothing; bad rows are quarantined with a reason.

    Labels may come later: the same rows again, with labels that were missing, add them.

    Columns: study_uid, patient_key, produced_at (ISO 8601 with offset), score (binary) or score_CLASS (one a class),
    and where you have them label (class name) or label_CLASS (0/1), labelled_at (when the truth was known), image
    (path), model_version, attributes.
    """
    with _opened(directory) as ward:
        from flows.ingesting import ingest_export
        from flows.screens import show_batch

        summary = ingest_export(export, model=_model(ward, model), ward=ward, at=datetime.now(UTC), rehearsal=rehearsal)
        _show(as_json, summary, show_batch)


@application.command(rich_help_panel=ROUND)
def watch(
    model: Model = "",
    window: Annotated[
        str,
        typer.Option(
            help="One window as 2026-03-30/2026-04-06; without it every complete one that was not watched yet, or got "
            "studies or labels since."
        ),
    ] = "",
    directory: Directory = Path(),
    as_json: AsJson = False,
) -> None:
    """Compare windows with the reference: what changed, how badly, for whom. Exit code 3 when there is DRIFT.

    Without --window it also follows what arrived since the last complete window, where the policy names
    online_detectors; an early warning is shown here and by `wardround status`.
    """
    with _opened(directory) as ward:
        from flows.between import follow
        from flows.screens import show_reports, show_streams
        from flows.watching import watch as watch_one
        from flows.watching import windows_to_watch
        from monitor.results import Verdict
        from monitor.suppression import suppress_report
        from registry.settings import read_window

        name, now = _model(ward, model), datetime.now(UTC)
        windows = [read_window(window)] if window else windows_to_watch(ward, name, until=now)
        reports = [watch_one(ward, name, one, at=now) for one in windows]
        rules = ward.settings.drift
        streams = () if window else follow(ward, name, at=now)
        shown = [suppress_report(report, rules.smallest_cell) for report in reports]
        _show(as_json, shown, partial(show_reports, policy=rules))
        if not as_json:
            show_streams(screen, streams)
        if any(report.verdict is Verdict.DRIFT for report in reports):
            raise typer.Exit(3)


@application.command(rich_help_panel=ROUND)
def simulate(  # noqa: PLR0913, PLR0917 - one parameter an option
    change: Annotated[
        list[str] | None, typer.Option(help="What changes, as NAME or NAME=STRENGTH; may be given several times.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A new folder, outside the ward, for the export and images.")] = None,
    show: Annotated[bool, typer.Option("--list", help="List the changes, what they need and mean, and stop.")] = False,
    strength: Annotated[float, typer.Option(help="0 (nothing) to 1; what it means, --list tells.")] = 1.0,
    course: Annotated[str, typer.Option(help="sudden, gradual or seasonal.")] = "sudden",
    start: Annotated[str, typer.Option("--from", help="Day or moment the change begins, after any shift.")] = "",
    until: Annotated[str, typer.Option(help="When it ends; gradual: when it is complete.")] = "",
    period_days: Annotated[float, typer.Option(help="Seasonal: days from one low to the next.")] = 365.25,
    attribute: Annotated[str, typer.Option(help="The attribute that changes, as --list tells.")] = "",
    value: Annotated[str, typer.Option(help="The value or class that it is about, as --list tells.")] = "",
    only: Annotated[str, typer.Option(help="Change a subgroup alone, as ATTRIBUTE=VALUE.")] = "",
    scenario: Annotated[
        Path | None, typer.Option(help="TOML file with every change, instead of these options.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same export.")] = 0,
    shift_days: Annotated[int, typer.Option(help="Move all studies by so many days.")] = 0,
    window: Annotated[str, typer.Option(help="Start from the studies of 2026-03-30/2026-04-06; else from all.")] = "",
    from_export: Annotated[Path | None, typer.Option(help="Start from an export instead of the ward.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder that the ingested exports lay in.")] = None,
    no_images: Annotated[bool, typer.Option("--no-images", help="Leave images out of the export.")] = False,
    model: Model = "",
    directory: Directory = Path(),
    as_json: AsJson = False,
) -> None:
    """Rehearse alarms: write an export of real studies with a planted change. The ward itself is not touched.

    Studies and patients get new names that begin with "simulated-". Ingest the export into a copy of the ward with
    --rehearsal, then watch there.
    """
    if show:
        from flows.screens import show_changes
        from monitor.synthetic import CHANGES

        _show(as_json, {name: _told(told) for name, told in CHANGES.items()}, show_changes)
        return
    with _opened(directory) as ward:
        from flows.screens import show_simulation
        from flows.simulating import ask_for, read_scenario
        from flows.simulating import simulate as write_simulation
        from flows.studies import read_export_studies, read_ward_studies
        from registry.settings import read_window

        if out is None:
            raise ValueError("name a new folder for what is simulated with --out")
        if scenario is not None and change:
            raise ValueError("give either --scenario or --change, not both")
        shared = {"strength": strength, "course": course, "start": start, "until": until, "period_days": period_days}
        shared |= {"attribute": attribute, "value": value, "only": only}
        asked = read_scenario(scenario) if scenario else ask_for(change or (), shared, seed=seed, shift_days=shift_days)
        name, wanted = _model(ward, model), not no_images
        if from_export is not None:
            studies = read_export_studies(ward, name, from_export, images=wanted)
        else:
            chosen = read_window(window) if window else None
            studies = read_ward_studies(ward, name, window=chosen, folder=images, images=wanted)
        _show(as_json, write_simulation(ward, name, studies, asked, out), show_simulation)


@application.command(rich_help_panel=LOOK)
def status(directory: Directory = Path(), as_json: AsJson = False) -> None:
    """Show every window's verdict, the adaptation runs, gate decisions, signatures and who is champion."""
    with _opened(directory) as ward:
        from flows.screens import show_status
        from flows.status import status_of

        _show(as_json, status_of(ward), show_status)


@application.command(rich_help_panel=TREAT)
def plan(by: Who, model: Model = "", directory: Directory = Path(), as_json: AsJson = False) -> None:
    """Propose the smallest treatment that the evidence asks for, and say why each smaller step is not enough.

    The proposer cannot sign it later.
    """
    with _opened(directory) as ward:
        from flows.screens import show_plan
        from flows.treating import propose
        from registry.promotion import check_actor

        check_actor(ward.records, by)
        _show(as_json, propose(ward, _model(ward, model), by=by, at=datetime.now(UTC)), show_plan)


@application.command(rich_help_panel=TREAT)
def adapt(
    plan_id: Annotated[
        str, typer.Argument(help="The plan, as `wardround plan` named it; may be left out with --resume.")
    ] = "",
    strategy: Annotated[
        list[str] | None,
        typer.Option(
            help=f"{', '.join(CARDS)}; README says which when. Default: all the plan names; other steps take none."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Finish whatever was cut short by a crash, a limit or Ctrl-C.")
    ] = False,
    anew: Annotated[bool, typer.Option("--anew", help="Forget what was cut short, and begin again.")] = False,
    directory: Directory = Path(),
    as_json: AsJson = False,
) -> None:
    """Take the step that a plan proposes: other outputs, a new head, or an adapter trained with each strategy.

    What was kept and lost is measured on patients that nothing learned from. The champion is not touched.
    A training that was cut short goes on after its last whole epoch and ends in the very same adapter.
    Exit code 5 when a training failed or was stopped.
    """
    with _opened(directory) as ward:
        from flows.adapting import Request, adapt_all
        from flows.screens import ladder_table, show_runs

        request = Request(plan_id=plan_id, strategies=tuple(strategy or ()), resume=resume, anew=anew)
        runs = adapt_all(ward, request, at=datetime.now(UTC), tell=_tell_aside)
        proposed = [ward.records.plan(name) for name in dict.fromkeys(run.plan_id for run in runs)]
        if not as_json:
            for one in proposed:
                screen.print(ladder_table(one))
        _show(as_json, runs, show_runs)
        if any(run.state != "FINISHED" for run in runs):
            raise typer.Exit(5)


@application.command(rich_help_panel=TREAT)
def gate(
    run_id: Annotated[str, typer.Argument(help="The adaptation run, as `wardround adapt` named it.")],
    directory: Directory = Path(),
    as_json: AsJson = False,
) -> None:
    """Judge a run's adapter on the locked held-out cohorts. Exit code 4 when it is refused."""
    with _opened(directory) as ward:
        from flows.screens import show_decision
        from flows.treating import judge

        decision = judge(ward, ward.records.run(run_id), at=datetime.now(UTC))
        _show(as_json, decision, show_decision)
        if not decision.promote:
            raise typer.Exit(4)


@application.command(rich_help_panel=SIGN)
def approve(
    decision_id: Annotated[str, typer.Argument(help="The gate decision, as `wardround gate` named it.")],
    by: Who,
    meaning: Annotated[str, typer.Option(help="What your signature means.")] = (
        "I have reviewed the evidence and approve this adapter for clinical use."
    ),
    directory: Directory = Path(),
) -> None:
    """Sign a gate decision. Asks for your password again; refused to the person who proposed the plan."""
    _sign(directory, decision_id, by, meaning, approved=True)


@application.command(rich_help_panel=SIGN)
def reject(
    decision_id: Annotated[str, typer.Argument(help="The gate decision.")],
    by: Who,
    meaning: Annotated[str, typer.Option(help="Why you refuse.")],
    directory: Directory = Path(),
) -> None:
    """Refuse a gate decision for good, with a reason. Asks for your password again."""
    _sign(directory, decision_id, by, meaning, approved=False)


@application.command(rich_help_panel=SIGN)
def promote(
    decision_id: Annotated[str, typer.Argument(help="An approved gate decision.")] = "",
    by: Who = "",
    first: Annotated[
        Path | None, typer.Option(help="Take over an adapter file that is live already, as the first champion.")
    ] = None,
    model: Model = "",
    directory: Directory = Path(),
) -> None:
    """Make a signed challenger the champion, in our records first and then in MLflow. Safe to repeat."""
    with _opened(directory) as ward:
        from registry.promotion import install
        from registry.promotion import promote as promote_signed

        now = datetime.now(UTC)
        if first is not None:
            done = install(ward.records, ward.versions, _model(ward, model), adapter=first, actor=by, at=now)
        else:
            done = promote_signed(ward.records, ward.versions, decision_id, actor=by, at=now)
        _tell_promotion(done)


@application.command(rich_help_panel=SIGN)
def rollback(
    by: Who,
    reason: Annotated[str, typer.Option(help="Why; it stands in the record.")],
    model: Model = "",
    directory: Directory = Path(),
) -> None:
    """Make the previous champion live again. Needs no gate and no MLflow."""
    with _opened(directory) as ward:
        from registry.promotion import rollback as roll_back

        name, now = _model(ward, model), datetime.now(UTC)
        _tell_promotion(roll_back(ward.records, ward.versions, name, actor=by, reason=reason, at=now))


@audit.command("verify")
def verify(directory: Directory = Path(), as_json: AsJson = False) -> None:
    """Recompute the chain over every event. Exit code 1 and the first bad row when it does not hold."""
    with _opened(directory) as ward:
        from flows.screens import show_chain

        state = ward.records.verify_events()
        _show(as_json, state, show_chain)
        if not state.ok:
            raise typer.Exit(1)


@policy.command("explain")
def explain(model: Model = "", directory: Directory = Path(), as_json: AsJson = False) -> None:
    """Say how many false alarms a year the policy allows, and how long a small, medium or large change goes unseen.

    Patients a window and comparisons are taken from the windows watched last; before the first, from the reference.
    """
    with _opened(directory) as ward:
        from flows.explaining import explain as explain_policy_of
        from flows.screens import show_explanation

        _show(as_json, explain_policy_of(ward, _model(ward, model)), show_explanation)


@user.command("add")
def add_user(
    name: Annotated[str, typer.Argument(help="User name, as it will stand under signatures.")],
    role: Annotated[str, typer.Option(help="engineer, quality officer, clinician, administrator or auditor.")],
    directory: Directory = Path(),
) -> None:
    """Add a person. Asks for a password twice; there is never a default one."""
    with _opened(directory) as ward:
        from registry.approvals import hash_password

        password = os.environ.get("WARDROUND_PASSWORD") or typer.prompt(
            "Password", hide_input=True, confirmation_prompt=True
        )
        ward.records.add_user(name, role, hash_password(password), datetime.now(UTC))
        screen.print(f"Added {name}, {role}.", highlight=False)


@application.command(rich_help_panel=ROUND)
def serve(directory: Directory = Path()) -> None:
    """Run rounds on schedule through Prefect until interrupted: one deployment a model, on its cron line."""
    with _errors_in_one_line():
        from flows.rounds import serve as serve_rounds

        serve_rounds(directory)


@application.command(rich_help_panel=LOOK)
def dashboard(
    directory: Directory = Path("wardround-demo"),
    port: Annotated[int, typer.Option(help="Port on this machine; the dashboard listens on 127.0.0.1 only.")] = 8501,
) -> None:
    """Open the quality officer's dashboard in a browser on this machine."""
    with _errors_in_one_line():
        from registry.settings import read_settings

        read_settings(directory)
        command = [sys.executable, "-m", "dashboard.serving", "--dir", str(directory.resolve()), "--port", str(port)]
        raise typer.Exit(subprocess.call(command))


def _told(change: Any) -> dict[str, Any]:
    return {name: getattr(change, name) for name in ("description", "strength", "needs", "asks", "takes")}


def _tell_aside(text: str) -> None:
    warnings_screen.print(text, markup=False, highlight=False)


def _tell_promotion(done: Any) -> None:
    screen.print(f"Champion is version {done.champion.version} ({done.champion.adapter_sha256[:12]}).", highlight=False)
    if done.pending:
        warnings_screen.print(
            f"MLflow does not know it yet: {_escape(done.pending)}. Nothing is lost; run the same command again later.",
            highlight=False,
        )


def _sign(directory: Path, decision_id: str, by: str, meaning: str, *, approved: bool) -> None:
    with _errors_in_one_line():
        from flows.ward import open_ward
        from registry import approvals

        ward = open_ward(directory)
        password = os.environ.get("WARDROUND_PASSWORD") or typer.prompt(f"Password of {by}", hide_input=True)
        sign = approvals.approve if approved else approvals.reject
        sign(ward.records, decision_id, user=by, password=password, meaning=meaning, at=datetime.now(UTC))
        screen.print(f"{'Approved' if approved else 'Rejected'} by {by}: {meaning}", markup=False, highlight=False)


def _tell_unexpected(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Keep the traceback in a file and tell one line: a person at a hospital cannot use the rest."""
    path = Path(os.environ.get("WARDROUND_LOG", "wardround-error.log"))
    path.write_text("".join(traceback.format_exception(kind, error, trace)), encoding="utf-8")
    text = " ".join(str(error).split())
    warnings_screen.print(
        f"[bold red]Error:[/bold red] unexpected {kind.__name__}: {_escape(text)}. "
        f"Send the file {_escape(str(path.resolve()))} to who looks after Wardround, with what you did.",
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    main()
