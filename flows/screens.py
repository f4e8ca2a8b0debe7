"""What results look like on a terminal: few columns, verdicts in words and colour, sentences below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from continual.plans import AdaptationPlan, AdaptationRun
from flows.doctor import Finding
from flows.status import headline, plain
from monitor.results import Verdict, WindowReport
from registry.audit import ChainState
from registry.decisions import GateDecision
from registry.entries import BatchSummary

COLOURS = {Verdict.DRIFT: "bold yellow", Verdict.NO_DRIFT: "green", Verdict.NOT_ENOUGH_DATA: "blue"}


def show_findings(screen: Console, findings: Sequence[Finding]) -> None:
    """Show what the doctor found, with the cure for each thing that is wrong."""
    table = Table("", "what", "found", box=None, pad_edge=False)
    for finding in findings:
        mark = Text("ok", "green") if finding.ok else Text("!!", "bold red")
        table.add_row(mark, finding.name, finding.text if finding.ok else f"{finding.text}\n→ {finding.cure}")
    screen.print(table)


def show_batch(screen: Console, batch: BatchSummary) -> None:
    """Show how many rows of an export were accepted and why others were not."""
    screen.print(
        f"{batch.received} rows: {batch.accepted} accepted, {batch.duplicate} known already, "
        f"{batch.conflict} in conflict, {batch.quarantined} in quarantine.",
        highlight=False,
    )


def show_reports(screen: Console, reports: Sequence[WindowReport]) -> None:
    """Show each window's verdict with the realised performance."""
    if not reports:
        screen.print("No complete window is waiting to be watched.")
        return
    screen.print(windows_table([plain(headline(report)) for report in reports]))
    for report in reports:
        screen.print(Text(f"{report.window.key}: {report.reason}"))


def windows_table(windows: Sequence[dict[str, Any]]) -> Table:
    """Draw windows as rows: verdict, size, AUROC and its loss with the interval."""
    table = Table("window", "verdict", "studies", "patients", "AUROC", "loss against reference", title="Windows")
    for window in windows:
        verdict = Verdict(window["verdict"])
        table.add_row(
            window["window"],
            Text(verdict.value.replace("_", " "), COLOURS[verdict]),
            str(window["studies"]),
            str(window["patients"]),
            number(window["auroc"]),
            with_interval(window["auroc_loss"], window["auroc_loss_low"], window["auroc_loss_high"]),
        )
    return table


def show_plan(screen: Console, plan: AdaptationPlan | None) -> None:
    """Show what is proposed and on which evidence."""
    if plan is None:
        screen.print("Nothing to treat: no drift that the policy asks to act on.")
        return
    screen.print(Text(f"{plan.plan_id}: {plan.treatment}", "bold"))
    screen.print(Text(plan.reason))
    screen.print(Text("Evidence: " + "; ".join(plan.evidence), "dim"))


def show_runs(screen: Console, runs: Sequence[AdaptationRun]) -> None:
    """Show what each strategy learned and forgot."""
    screen.print(runs_table([{**plain(run), "run_id": run.run_id} for run in runs]))


def runs_table(runs: Sequence[dict[str, Any]]) -> Table:
    """Draw runs as rows: AUROC on each experience after learning, forgetting, transfer."""
    names = list(runs[0]["experiences"]) if runs else []
    table = Table(
        "run", "state", *(f"AUROC {name}" for name in names), "forgetting", "backward transfer", title="Adaptation"
    )
    for run in runs:
        last = run["matrix"][-1] if run["matrix"] else [None] * len(names)
        cells = [*map(number, last), number(run["forgetting"], "+.3f"), number(run["backward_transfer"], "+.3f")]
        table.add_row(run["run_id"], run["state"].lower(), *cells)
    return table


def show_decision(screen: Console, decision: GateDecision) -> None:
    """Show the gate's answer with every reason."""
    word, style = ("may be signed", "bold green") if decision.promote else ("refused", "bold red")
    screen.print(Text(f"{decision.decision_id}: {word}", style))
    for check in decision.checks:
        mark = Text("  pass  ", "green") if check.passed else Text("  FAIL  ", "red")
        screen.print(mark + Text(check.reason, ""))


def show_chain(screen: Console, state: ChainState) -> None:
    """Show how many events hold, or the first that does not."""
    if state.ok:
        screen.print(f"[green]{state.n} events hold.[/green] No row was changed, removed or reordered.")
    else:
        screen.print(Text(f"The record is broken at event {state.bad_row}: {state.reason}", "bold red"))


def show_status(screen: Console, status: dict[str, Any]) -> None:
    """Show every model: champion, windows, runs, decisions, and who must act."""
    for model, state in status.items():
        champion = state["champion"]
        live = f"version {champion['version']}, live since {champion['since'][:10]}" if champion else "none yet"
        screen.print(Text.assemble((f"\n{model}", "bold"), f"  champion: {live}"))
        screen.print(windows_table(state["windows"]) if state["windows"] else "No window has been watched yet.")
        if state["runs"]:
            screen.print(runs_table(state["runs"]))
        for decision in state["decisions"]:
            word, style = ("may be signed", "green") if decision["promote"] else ("refused", "red")
            failed = [check["reason"] for check in decision["checks"] if not check["passed"]]
            screen.print(Text.assemble((f"{decision['decision_id']} ", ""), (word, style), f"  {decision['run_id']}"))
            for reason in failed:
                screen.print(Text(f"    {reason}", "dim"))
        for signature in state["signatures"]:
            word = "approved" if signature["approved"] else "rejected"
            screen.print(Text(f"{signature['decision_id']} {word} by {signature['user']}: {signature['meaning']}"))
        screen.print(f"Quarantined rows: {state['quarantined']}")
        screen.print(Text.assemble(("Next: ", "bold"), state["next"]))


def number(value: float | None, form: str = ".3f") -> str:
    """Write a figure, or a dash where there is none."""
    return "–" if value is None else format(value, form)


def with_interval(value: float | None, low: float | None, high: float | None) -> str:
    """Write a figure with its interval."""
    return "–" if value is None else f"{value:+.3f} ({number(low, '+.3f')} to {number(high, '+.3f')})"
