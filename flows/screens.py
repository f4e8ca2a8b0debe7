"""What results look like on a terminal: few columns, verdicts in words and colour, sentences below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from continual.plans import AdaptationPlan, AdaptationRun
from continual.policies import Treatment
from flows.doctor import Finding
from flows.kept_screens import show_kept
from flows.simulating import Simulation
from flows.status import headline, plain
from monitor.cohorts import Window
from monitor.explaining import LONGEST, Delay, PolicyExplanation
from monitor.labels import LabelArrival, tell_arrival
from monitor.online import StreamReport
from monitor.policies import DriftPolicy
from monitor.results import Verdict, WindowReport
from monitor.severity import GRADE_WORDS, Grade
from monitor.streams import ALIKE
from registry.audit import ChainState
from registry.decisions import GateDecision
from registry.entries import BatchSummary

COLOURS = {Verdict.DRIFT: "bold yellow", Verdict.NO_DRIFT: "green", Verdict.NOT_ENOUGH_DATA: "blue"}

GRADE_COLOURS = {
    Grade.QUIET: "green",
    Grade.NOT_ENOUGH_DATA: "blue",
    Grade.WATCH: "yellow",
    Grade.ACT: "bold yellow",
    Grade.STOP: "bold red",
}
RUNG_WORDS = {True: ("needed", "bold yellow"), False: ("not enough", "yellow"), None: ("", "dim")}
GATE_WORDS = {True: ("may be signed", "bold green"), False: ("refused", "bold red")}


def show_findings(screen: Console, findings: Sequence[Finding]) -> None:
    """Show what the doctor found, with the cure for each thing that is wrong."""
    table = Table("", "what", "found", box=None, pad_edge=False)
    for finding in findings:
        mark = Text("ok", "green") if finding.ok else Text("!!", "bold red")
        table.add_row(mark, finding.name, finding.text if finding.ok else f"{finding.text}\n→ {finding.cure}")
    screen.print(table)


def show_batch(screen: Console, batch: BatchSummary) -> None:
    """Show how many rows of an export were accepted and why others were not."""
    late = f"labels added to {batch.labelled}, " if batch.labelled else ""
    screen.print(
        f"{batch.received} rows: {batch.accepted} accepted, {late}{batch.duplicate} known already, "
        f"{batch.conflict} in conflict, {batch.quarantined} in quarantine.",
        highlight=False,
    )


def show_changes(screen: Console, changes: Mapping[str, Mapping[str, Any]]) -> None:
    """Show what can be simulated, what each change needs and must be told, and what its strength means."""
    table = _table("change", "what happens", "strength 0 to 1", "needs")
    for name, told in changes.items():
        options = [*(f"--{word}" for word in told["asks"]), *(f"[--{word}]" for word in told["takes"])]
        table.add_row(name, told["description"], told["strength"], Text("\n".join([told["needs"], *options])))
    screen.print(table)


def show_simulation(screen: Console, done: Simulation) -> None:
    """Show what was written, what was planted in it, and what to know before relying on it."""
    screen.print(
        Text(
            f"Wrote {done.export}: {done.studies} studies of {done.patients} patients, {done.images_changed} images "
            f"changed, {done.rescored} of them scored anew."
        ),
        soft_wrap=True,
    )
    for change in done.changes:
        screen.print(Text(f"Planted: {change}"))
    for note in done.notes:
        screen.print(Text(f"Note: {note}", "yellow"))
    screen.print(
        Text(f"Next: wardround ingest {done.export} --dir A-COPY-OF-THE-WARD --rehearsal, then watch there.", "dim")
    )


def show_reports(screen: Console, reports: Sequence[WindowReport], policy: DriftPolicy) -> None:
    """Show each window's verdict with the realised performance."""
    if not reports:
        screen.print("No complete window is waiting to be watched.")
        return
    screen.print(windows_table([plain(headline(report, policy)) for report in reports]))
    for report in reports:
        screen.print(Text(f"{report.window.key}: {report.reason}"))


def show_streams(screen: Console, streams: Sequence[StreamReport]) -> None:
    """Show what was seen between windows, warnings first."""
    for report in sorted(streams, key=lambda report: report.since is None):
        screen.print(Text(report.reason, "" if report.since is None else COLOURS[Verdict.DRIFT]))


def windows_table(windows: Sequence[dict[str, Any]]) -> Table:
    """Draw windows as rows: verdict, size, AUROC, and the loss to name first with its interval. Fits 80 columns."""
    table = _table("window", "verdict", "patients", "AUROC", "loss against reference")
    for window in windows:
        verdict = Verdict(window["verdict"])
        table.add_row(
            short_window(window["window"]),
            Text(verdict.value.replace("_", " "), COLOURS[verdict]),
            str(window["patients"]),
            number(window["auroc"]),
            loss_text(window["harm"]),
        )
    return table


def show_plan(screen: Console, plan: AdaptationPlan | None) -> None:
    """Show what is proposed and on which evidence."""
    if plan is None:
        screen.print("Nothing to treat: no drift that the policy asks to act on.")
        return
    screen.print(Text(f"{plan.plan_id}: {plan.treatment}", "bold"))
    screen.print(Text(plan.reason))
    if plan.rungs:
        screen.print(ladder_table(plan))
    screen.print(Text("Evidence: " + "; ".join(plan.evidence), "dim"))


def ladder_table(plan: AdaptationPlan) -> Table:
    """Draw the ladder from the lowest step up: taken, not enough or not asked, and why. Fits 80 columns."""
    verdicts = {verdict.treatment: verdict for verdict in plan.rungs}
    table = _table("step", "", "why")
    for treatment in Treatment:
        verdict, taken = verdicts.get(treatment), treatment is plan.treatment
        word, style = ("taken", "bold green") if taken else RUNG_WORDS[verdict.enough if verdict else None]
        told = verdict.sentence if verdict else "not asked"
        table.add_row(Text(treatment.value, style if taken else ""), Text(word, style), Text(told))
    return table


def show_runs(screen: Console, runs: Sequence[AdaptationRun]) -> None:
    """Show what each strategy learned and forgot, and then for each what it kept and lost, and whose."""
    screen.print(runs_table([plain(run) for run in runs]))
    for run in runs:
        told = ": ".join(filter(None, (run.state.lower(), run.reason or run.told)))
        screen.print(Text(f"{run.run_id} {told}"))
    for run in runs:
        if run.kept is not None:
            screen.print(Text(f"\nWhat {run.name} kept and lost against the champion", "bold"))
            show_kept(screen, run.kept)


def runs_table(runs: Sequence[dict[str, Any]]) -> Table:
    """Draw runs as rows: AUROC on each experience after learning, forgetting, transfer. Fits 80 columns."""
    names = list(runs[0]["experiences"]) if runs else []
    headings = (f"AUROC on\n{short_window(name)}" for name in names)
    table = _table(
        "strategy" if any(run["strategy"] for run in runs) else "step", *headings, "forgetting", "backward\ntransfer"
    )
    for run in runs:
        last = run["matrix"][-1] if run["matrix"] else [None] * len(names)
        cells = [*map(number, last), number(run["forgetting"], "+.3f"), number(run["backward_transfer"], "+.3f")]
        table.add_row(run["strategy"] or run["treatment"], *cells)
    return table


def show_decision(screen: Console, decision: GateDecision) -> None:
    """Show the gate's answer with every reason."""
    word, style = GATE_WORDS[decision.promote]
    screen.print(Text(f"{decision.decision_id}: {word}", style))
    for check in decision.checks:
        mark = Text("  pass  ", "green") if check.passed else Text("  FAIL  ", "red")
        screen.print(mark + Text(check.reason, ""))


def show_explanation(screen: Console, told: PolicyExplanation) -> None:
    """Show what a policy means: a sentence on false alarms, and a row for each size of change."""
    where, days = told.situation, told.situation.window.total_seconds() / 86_400
    screen.print(
        Text(
            f"With windows of {days:g} days, {where.patients} patients each, a reference of {where.patients_reference} "
            f"patients and {where.comparisons} comparisons a window:\n"
            f"at most {told.false_alarms:.2g} false alarms a year are expected, and as often a single quiet window is "
            f"called DRIFT; what the policy leaves over belongs to subgroups."
        )
    )
    for quiet, delays in groupby(told.delays, key=lambda delay: delay.quiet_before):
        group = [*delays]
        screen.print(Text(f"\n{_begins(quiet, group, days)}", "bold"))
        table = _table("change of one column", "seen after, median", "9 of 10 within", f"seen within {LONGEST} windows")
        for delay in group:
            name = f"{delay.shift} ({delay.size:g} standard deviations)"
            table.add_row(name, *(_waited(n, days) for n in (delay.median, delay.late)), f"{delay.found:.0%}")
        screen.print(table)
    screen.print(
        Text(
            "Simulated: the column moves at once, all else stays quiet. While no alarm is open windows join what later "
            "ones are compared with, as in operation; so may those of a change that is not seen.",
            "dim",
        )
    )


def _begins(quiet: int, delays: Sequence[Delay], days: float) -> str:
    compared = f"compared with {delays[0].compared} patients"
    if not quiet:
        return f"A change that is there from the first window on, {compared}:"
    return f"A change that begins after {_waited(quiet, days)}, {compared}:"


def _waited(windows: int | None, days: float) -> str:
    return "–" if windows is None else f"{windows} window{'s' * (windows != 1)}, {windows * days:g} days"


def show_chain(screen: Console, state: ChainState) -> None:
    """Show how many events hold, or the first that does not."""
    if state.ok:
        screen.print(f"[green]{state.n} events hold.[/green] No row was changed, removed or reordered.")
    else:
        screen.print(Text(f"The record is broken at event {state.bad_row}: {state.reason}", "bold red"))


def show_status(screen: Console, status: dict[str, Any]) -> None:
    """Show every model: champion, windows, the newest plan with its runs and decisions, and who must act."""
    for model, state in status.items():
        champion = state["champion"]
        live = f"version {champion['version']}, live since {champion['since'][:10]}" if champion else "none yet"
        rehearsal = "  a rehearsal: studies may be simulated" if state["rehearsal"] else ""
        screen.print(Text.assemble((f"\n{model}", "bold"), f"  champion: {live}", (rehearsal, "bold yellow"), "\n"))
        if state["windows"]:
            screen.print(windows_table(state["windows"]))
            screen.print()
            screen.print(streams_table(state["windows"]))
            _show_newest_window(screen, state["windows"][-1])
        else:
            screen.print("No window has been watched yet.")
        if state["alarms"]:
            screen.print(Text.assemble("\n", alarms_text(state["alarms"])))
        for warning in state["warnings"]:
            screen.print(Text(f"Early warning: {warning['reason']}", COLOURS[Verdict.DRIFT]))
        if state["labels"]:
            arrival = LabelArrival(**state["labels"] | {"window": Window.from_key(state["labels"]["window"])})
            screen.print(Text(f"\n{tell_arrival(arrival)}"))
        for worklist in state["worklists"]:
            screen.print(Text(worklist_text(worklist)))
        if state["labels_needed"]:
            screen.print(Text.assemble(("Labels: ", "bold"), state["labels_needed"]))
        if state["plans"]:
            _show_newest_plan(screen, state)
        for signature in state["signatures"]:
            word = "approved" if signature["approved"] else "rejected"
            screen.print(
                Text(
                    f"\n{signature['decision_id']} {word} by {signature['user']}, {signature['role']}, "
                    f"{signature['at'][:16].replace('T', ' ')} UTC: {signature['meaning']}"
                )
            )
        if state["quarantined"]:
            screen.print(f"\nQuarantined rows: {state['quarantined']}")
        screen.print(Text.assemble(("\nNext: ", "bold"), state["next"]))


def streams_table(windows: Sequence[dict[str, Any]]) -> Table:
    """Draw windows as rows: the headline score and that of each stream, of 100. Fits 80 columns."""
    names = [stream["name"].replace(" ", "\n") for stream in windows[-1]["streams"]]
    table = _table("of 100", "headline", *names)
    for window in windows:
        scores = [window["headline"]["score"], *(stream["score"] for stream in window["streams"])]
        table.add_row(short_window(window["window"]), *map(score_text, scores))
    return table


def score_text(score: float | None) -> Text:
    """Write a score with a bar; one that is missing is said in words, never drawn as 0 or 100."""
    if score is None:
        return Text("not judged", "blue")
    bar = "▁▂▃▄▅▆▇█"[min(int(score / 12.5), 7)]
    return Text(f"{bar} {score:.0f}", "green" if score == ALIKE else "bold yellow")


def _show_newest_window(screen: Console, window: dict[str, Any]) -> None:
    """Show how grave the newest window is with every reason, and what sets the score of each stream."""
    grade = Grade(window["severity"]["grade"])
    name = short_window(window["window"])
    screen.print(Text.assemble(f"\n{name}: ", (GRADE_WORDS[grade], GRADE_COLOURS[grade])))
    for reason in window["severity"]["reasons"]:
        screen.print(Text(f"  {reason}"))
    table = _table("stream", "what sets its score")
    for stream in window["streams"]:
        table.add_row(stream["name"], stream["told"])
    screen.print(table)


def alarms_text(alarms: dict[str, Any]) -> Text:
    """Say how many alarms a year had beside how many false ones are borne, and whether one is open."""
    borne = alarms["false_alarms_per_year"]
    told = f"Alarms in the year up to now: {alarms['of_a_year']}; false ones the policy bears with: {borne:g} a year."
    if alarms["open_since"] is None:
        return Text(told)
    return Text(f"{told} One is open since {short_window(alarms['open_since'])}.", COLOURS[Verdict.DRIFT])


def worklist_text(worklist: dict[str, Any]) -> str:
    """Say how much of an open worklist has come back, and how old it is."""
    return (
        f"Worklist {worklist['worklist_id']}, {worklist['days']} days old: {worklist['returned']} of "
        f"{worklist['asked']} studies have come back ({worklist['return_rate']:.0%})."
    )


def _show_newest_plan(screen: Console, state: dict[str, Any]) -> None:
    """Show the plan that something came of most lately; older ones stand in `status --json` and on the dashboard."""
    treated = {run["plan_id"] for run in state["runs"]}
    shown = next((plan for plan in reversed(state["plans"]) if plan["plan_id"] in treated), state["plans"][-1])
    screen.print(Text.assemble((f"\n{shown['plan_id']}: {shown['treatment']}", "bold"), f"\n{shown['reason']}\n"))
    runs = [run for run in state["runs"] if run["plan_id"] == shown["plan_id"]]
    if runs:
        screen.print(runs_table(runs))
    for run in runs:
        for decision in state["decisions"]:
            if decision["run_id"] == run["run_id"]:
                screen.print(decision_text(decision, run["strategy"] or run["treatment"]))
    if more := len(state["plans"]) - 1:
        screen.print(f"{more} other plan{'s' * (more > 1)}: wardround status --json, or the dashboard", style="dim")


def decision_text(decision: dict[str, Any], strategy: str) -> Text:
    """Write the gate's answer on one adapter, and below it what it could not pass."""
    word, style = GATE_WORDS[decision["promote"]]
    text = Text.assemble(f"{strategy}: ", (word, style), (f"  {decision['decision_id']}", "dim"))
    for check in decision["checks"]:
        if not check["passed"]:
            text.append(f"\n  {check['reason']}", "dim")
    return text


def short_window(key: str) -> str:
    """Write a window's key for a narrow column: 2026-03-30/2026-04-06 becomes 2026-03-30 – 04-06."""
    start, _, end = key.partition("/")
    return f"{start} – {end.removeprefix(start[:5])}" if end else key


def number(value: float | None, form: str = ".3f") -> str:
    """Write a figure, or a dash where there is none."""
    return "–" if value is None else format(value, form)


def loss_text(harm: dict[str, Any] | None) -> Text:
    """Write a loss with its metric and interval; one that is surely there stands out."""
    if harm is None:
        return Text("–")
    metric = "AUROC" if harm["metric"] == "auroc" else harm["metric"]
    told = f"{metric} {with_interval(harm['loss'], harm['low'], harm['high'])}"
    return Text(told, COLOURS[Verdict.DRIFT] if harm["sure"] else "")


def _table(*headings: str) -> Table:
    return Table(*headings, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))


def with_interval(value: float | None, low: float | None, high: float | None) -> str:
    """Write a figure with its interval."""
    return "–" if value is None else f"{value:+.3f} ({number(low)} to {number(high)})"
