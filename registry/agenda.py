"""Who must act now: one sentence from the records, for the terminal and the dashboard alike."""

from __future__ import annotations

from monitor.results import Verdict
from registry.records import Records


def next_step(records: Records, model: str) -> str:
    """Say in one sentence who must act on a model, and how."""
    champion = records.champion(model)
    if champion is None:
        return "An engineer installs the live adapter as first champion: wardround promote --first FILE --by NAME"
    offered = [d for d in records.decisions(model) if d.champion_version == champion.version and d.promote]
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
    if reports[-1].verdict is Verdict.DRIFT:
        return "The last window drifted; wardround plan says what the evidence asks for."
    return "Nobody needs to act."
