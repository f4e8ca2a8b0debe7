"""Who must act now: one sentence from the records, for the terminal and the dashboard alike."""

from __future__ import annotations

from continual.policies import Treatment
from monitor.results import Verdict
from registry.records import Records


def next_step(records: Records, model: str) -> str:
    """Say in one sentence who must act on a model, and how."""
    champion = records.champion(model)
    if champion is None:
        return "An engineer installs the live adapter as first champion: wardround promote --first FILE --by NAME"
    was_live = {move.decision_id for move in records.champion_history(model)}  # promoted once, for good or rolled back
    offered = [
        d
        for d in records.decisions(model)
        if d.promote and d.champion_version == champion.version and d.decision_id not in was_live
    ]
    waiting = []
    for decision in offered:
        signatures = records.signatures(decision.decision_id)
        if any(signature.approved for signature in signatures):
            return (
                f"{decision.decision_id} is approved and waits to be promoted: wardround promote {decision.decision_id}"
            )
        if not signatures:
            waiting.append(decision.decision_id)
    if waiting:
        return f"A person who did not propose it signs or refuses: {', '.join(waiting)}"
    reports = records.reports(model)
    if not reports:
        return "No window has been watched yet: wardround watch"
    if reports[-1].verdict is Verdict.DRIFT and reports[-1].window.middle >= champion.since:
        return _after_drift(records, model, champion.version)
    return "Nobody needs to act."


def _after_drift(records: Records, model: str, live: str) -> str:
    """Say what follows a drift for which no adapter waits: the gate or a person may have refused them all."""
    plans = [plan for plan in records.plans(model) if plan.champion_version == live]
    if plans and plans[-1].treatment is Treatment.NEW_BACKBONE:
        return "People look for another model or backbone: no step of the ladder is enough, or all were refused."
    if plans and any(decision.plan_id == plans[-1].plan_id for decision in records.decisions(model)):
        return "An engineer looks into it: every adapter for this drift was refused, with reasons."
    return "The last window drifted; wardround plan says what the evidence asks for."
