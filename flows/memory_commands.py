"""`wardround memory`: look at what is kept for rehearsal, and remove a patient everywhere."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from flows.terminal import AsJson, Directory, Model, Who, model_named, opened, screen
from flows.terminal import show as show_result

memory = typer.Typer(help="What is kept of the past for rehearsal, and how a patient is removed.")


@memory.command("show")
def show(model: Model = "", directory: Directory = Path(), as_json: AsJson = False) -> None:
    """Show each rehearsal memory: studies by group, size, age, and when they go. Groups of few patients stay blank."""
    with opened(directory) as ward:
        from flows.memory_views import show_memories, view_memories

        show_result(as_json, view_memories(ward, model_named(ward, model)), show_memories)


@memory.command("purge")
def purge(
    patient: Annotated[str, typer.Option(help="The patient's key, as exports write it.")],
    by: Who,
    reason: Annotated[str, typer.Option(help="Why; it stands in the record, so do not name the patient.")] = (
        "the patient asked for it"
    ),
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask again; for scripts.")] = False,
    directory: Directory = Path(),
    as_json: AsJson = False,
) -> None:
    """Remove a patient from everything that is stored, for ever, and list every adapter that learned from them.

    Safe to run again: interrupted at any moment, the same command goes on. Run nothing else in the ward meanwhile.
    Exit code 5 when a file of Wardround still names the patient.
    """
    with opened(directory) as ward:
        from flows.memory_views import show_foreseen, show_outcome
        from flows.purging import foresee, purge_patient
        from registry.promotion import check_actor

        check_actor(ward.records, by)
        if not yes:
            subject, learners, _ = foresee(ward, patient)
            show_foreseen(screen, subject, learners)
            typer.confirm("Remove the patient for ever?", abort=True)
        done = purge_patient(ward, patient, actor=by, reason=reason, at=datetime.now(UTC))
        show_result(as_json, done, show_outcome)
        if done.still_ours:
            raise typer.Exit(5)
