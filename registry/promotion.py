"""Who is champion: one commit in our records, then MLflow's alias as its projection.

A process may be killed at any line. Before the commit nothing has happened; after it the version is
live, whether MLflow knows or not, and running the same step again, or ``reconcile``, brings MLflow after.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from math import isfinite
from pathlib import Path
from typing import Any

from continual.files import content_sha256, write_atomically
from registry.approvals import check_fresh, valid_approval
from registry.decisions import GateDecision
from registry.entries import ChampionRecord
from registry.model_versions import ModelVersions, Release, VersionsUnavailable
from registry.records import Records, RecordsError

PROJECTED, PENDING, MOVED_OUTSIDE = "champion.projected", "champion.projection_pending", "alias.moved_outside"
FIRST, PROMOTE, ROLLBACK = "first", "promote", "rollback"
CARD = ".json"
ONLY_LOOKS = "auditor"


class PromotionRefused(RecordsError):
    """The champion was not moved; the message says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """Who is live, and as which MLflow version; ``pending`` says why MLflow does not know it yet."""

    champion: ChampionRecord
    mlflow_version: str
    pending: str = ""


def promote(records: Records, versions: ModelVersions, decision_id: str, *, actor: str, at: datetime) -> Promotion:
    """Make an approved challenger the champion. Repeating it is harmless: the champion moves once.

    Everything that the approval rests on is proved again: the signature covers this decision, the
    cohorts are locked as judged, the adapter's file is the one judged, and the champion is still the
    one it was judged against.

    Raises:
        RecordsError: one of these does not hold (SignatureRefused, PromotionRefused, StaleChampion).
    """
    decision = records.decision(decision_id)
    check_actor(records, actor)
    live = records.champion(decision.model)
    if live is None or live.decision_id != decision_id:
        approval = valid_approval(records, decision)
        _check_evidence(records, versions, decision)
        live = records.move_champion(
            ChampionRecord(
                model=decision.model,
                number=0,
                version=_next_version(records.champion_history(decision.model)),
                adapter_sha256=decision.adapter_sha256,
                decision_id=decision_id,
                kind=PROMOTE,
                actor=actor,
                reason=f"approved by {approval.user}, {approval.role}: {approval.meaning}",
                since=at,
            ),
            expected=decision.champion_version,
        )
    return project(records, versions, live, at=at)


def install(
    records: Records, versions: ModelVersions, model: str, *, adapter: Path, actor: str, at: datetime
) -> Promotion:
    """Take over an adapter that is live already as the first champion; its file is copied to the store.

    Raises:
        PromotionRefused: the model has another champion already.
        RecordsError: the actor is not known.
        OSError: the file cannot be read or copied.
    """
    check_actor(records, actor)
    sha256, live = content_sha256(adapter), records.champion(model)
    if live is not None and (live.kind, live.adapter_sha256) != (FIRST, sha256):
        raise PromotionRefused(f"{model} has a champion already, version {live.version}; another one needs the gate")
    _adopt(adapter, versions.adapter(sha256))
    if live is None:
        live = records.move_champion(
            ChampionRecord(
                model=model,
                number=0,
                version="1",
                adapter_sha256=sha256,
                decision_id="",
                kind=FIRST,
                actor=actor,
                reason="live before Wardround watched it",
                since=at,
            ),
            expected=None,
        )
    return project(records, versions, live, at=at)


def rollback(
    records: Records, versions: ModelVersions, model: str, *, actor: str, reason: str, at: datetime
) -> Promotion:
    """Make the version before the live one champion again; needs no gate and no running MLflow.

    Running it again by the same person for the same reason, after a crash before MLflow was told,
    does not go back a second step.

    Raises:
        PromotionRefused: there is nothing to go back to, no reason, or the earlier adapter's file is gone.
    """
    check_actor(records, actor)
    if not reason.strip():
        raise PromotionRefused("a rollback states its reason; it stands in the record")
    history = records.champion_history(model)
    line = lineage(history)
    if history and history[-1].kind == ROLLBACK and not _was_projected(records, history[-1]):
        last = history[-1]
        if (last.actor, last.reason) == (actor, reason.strip()):
            return project(records, versions, last, at=at)
    if len(line) < 2:
        raise PromotionRefused(f"{model} has no earlier version to go back to")
    target = line[-2]
    _check_file(versions.adapter(target.adapter_sha256), target.adapter_sha256)
    moved = records.move_champion(
        ChampionRecord(
            model=model,
            number=0,
            version=target.version,
            adapter_sha256=target.adapter_sha256,
            decision_id=target.decision_id,
            kind=ROLLBACK,
            actor=actor,
            reason=reason.strip(),
            since=at,
        ),
        expected=line[-1].version,
    )
    return project(records, versions, moved, at=at)


def reconcile(records: Records, versions: ModelVersions, *, at: datetime) -> tuple[Promotion, ...]:
    """Bring MLflow after for every model: register what is missing, repair an alias that is elsewhere.

    An alias that was right and was moved outside Wardround is an event of its own before it is repaired.
    """
    done = []
    for model in records.models():
        champion = records.champion(model)
        if champion is not None:
            _notice_outside_move(records, versions, champion, at)
            done.append(project(records, versions, champion, at=at))
    return tuple(done)


def project(records: Records, versions: ModelVersions, champion: ChampionRecord, *, at: datetime) -> Promotion:
    """Tell MLflow who is champion, and enter it once as an event; an unreachable MLflow leaves it pending."""
    path = versions.adapter(champion.adapter_sha256)
    try:
        version = versions.find(champion.model, champion.adapter_sha256)
        if version is None:
            _check_file(path, champion.adapter_sha256)
            version = versions.register(_release(records, versions, champion))
        if versions.champion(champion.model) != version:
            versions.set_champion(champion.model, version)
    except (VersionsUnavailable, PromotionRefused) as error:
        payload = {"number": champion.number, "reason": str(error)}
        _tell_once(records, champion, PENDING, payload, at)
        return Promotion(champion=champion, mlflow_version="", pending=str(error))
    _tell_once(records, champion, PROJECTED, {"number": champion.number, "mlflow_version": version}, at)
    return Promotion(champion=champion, mlflow_version=version)


def check_actor(records: Records, actor: str) -> None:
    """Prove that somebody is a known person who may act.

    Raises:
        PromotionRefused: nobody of that name may.
    """
    person = records.user(actor)
    if person is None or not person.active:
        raise PromotionRefused(f"{actor or 'nobody'} is not a person who may act here; `wardround user add` adds one")
    if person.role == ONLY_LOOKS:
        raise PromotionRefused(f"{actor} is an {ONLY_LOOKS} and only looks; another person does it")


def lineage(history: Iterable[ChampionRecord]) -> list[ChampionRecord]:
    """List the versions that the live one stands on, itself last: what was rolled back is not among them."""
    line: list[ChampionRecord] = []
    for move in history:
        if move.kind == ROLLBACK:
            while line and line[-1].version != move.version:
                line.pop()
        else:
            line.append(move)
    return line


def _check_evidence(records: Records, versions: ModelVersions, decision: GateDecision) -> None:
    """Prove that what the approval rests on is still so."""
    check_fresh(records, decision)
    history = records.champion_history(decision.model)
    if any(move.decision_id == decision.decision_id for move in history):
        raise PromotionRefused(f"{decision.decision_id} was promoted and rolled back; plan, adapt and judge again")
    locks = {lock.name: lock.digest for lock in records.held_out(decision.model)}
    for name, digest in decision.cohort_digests:
        if locks.get(name) != digest:
            raise PromotionRefused(f"held-out cohort {name} is not locked as it was judged; judge and sign again")
    _check_file(versions.adapter(decision.adapter_sha256), decision.adapter_sha256)


def _check_file(path: Path, sha256: str) -> None:
    if not path.is_file():
        raise PromotionRefused(f"{path.name} is not in {path.parent}; restore it from MLflow's artifacts or a backup")
    if (found := content_sha256(path)) != sha256:
        raise PromotionRefused(
            f"{path.name} has sha256 {found[:12]}…, not the one judged; restore it from MLflow's artifacts or a backup"
        )


def _adopt(adapter: Path, target: Path) -> None:
    card = adapter.with_suffix(CARD)
    if card.is_file() and not target.with_suffix(CARD).exists():
        write_atomically(target.with_suffix(CARD), card.read_bytes())
    if not target.exists():
        write_atomically(target, adapter.read_bytes())


def _next_version(history: Sequence[ChampionRecord]) -> str:
    return str(max((int(move.version) for move in history), default=0) + 1)


def _was_projected(records: Records, champion: ChampionRecord) -> bool:
    return _was_told(records, champion, PROJECTED)


def _was_told(records: Records, champion: ChampionRecord, kind: str) -> bool:
    told = (event for event in records.events(champion.model) if event.kind == kind)
    return any(json.loads(event.payload)["number"] == champion.number for event in told)


def _tell_once(records: Records, champion: ChampionRecord, kind: str, payload: dict[str, Any], at: datetime) -> None:
    if not _was_told(records, champion, kind):
        records.tell(
            at=at, kind=kind, model=champion.model, subject=champion.version, payload=payload, actor=champion.actor
        )


def _notice_outside_move(records: Records, versions: ModelVersions, champion: ChampionRecord, at: datetime) -> None:
    if not _was_projected(records, champion):
        return
    try:
        alias, meant = versions.champion(champion.model), versions.find(champion.model, champion.adapter_sha256)
    except VersionsUnavailable:
        return
    if alias != meant or alias is None:
        records.tell(
            at=at,
            kind=MOVED_OUTSIDE,
            model=champion.model,
            subject=champion.version,
            payload={"found": alias or "none", "meant": meant or "none", "number": champion.number},
            actor="wardround",
        )


def _release(records: Records, versions: ModelVersions, champion: ChampionRecord) -> Release:
    """Gather what MLflow keeps beside the adapter: its card, plan, run, decision, signatures and reports."""
    adapter = versions.adapter(champion.adapter_sha256)
    files, documents, metrics = [adapter.with_suffix(CARD)], {"champion.json": _json(asdict(champion))}, {}
    tags = {"wardround.version": champion.version, "wardround.kind": champion.kind}
    if champion.decision_id:
        decision = records.decision(champion.decision_id)
        plan, run = records.plan(decision.plan_id), records.run(decision.run_id)
        signatures = [asdict(signature) for signature in records.signatures(decision.decision_id)]
        documents |= {
            "plan.json": _json(asdict(plan)),
            "run.json": _json(asdict(run)),
            "decision.json": _json(asdict(decision) | {"policy": decision.policy.model_dump()}),
            "signatures.json": _json(signatures),
        }
        files += [versions.report(champion.model, window) for window in plan.windows]
        metrics = _metrics(decision) | ({} if run.forgetting is None else {"forgetting": run.forgetting})
        tags |= {"wardround.decision_id": decision.decision_id, "wardround.decision_digest": decision.digest}
        tags |= {"wardround.strategy": run.strategy, "wardround.treatment": run.treatment.value}
    return Release(
        model=champion.model,
        adapter=adapter,
        adapter_sha256=champion.adapter_sha256,
        files=tuple(path for path in files if path.is_file()),
        documents=documents,
        metrics=metrics,
        tags=tags,
    )


def _metrics(decision: GateDecision) -> dict[str, float]:
    """Name each checked figure as MLflow allows it: letters, digits and _ - . space : /."""
    named = {
        f"{check.metric} {side} on {check.cohort}": getattr(check, side)
        for check in decision.checks
        if check.cohort
        for side in ("champion", "challenger", "difference", "low", "high")
    }
    return {
        re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)[:240]: float(value)
        for name, value in named.items()
        if value is not None and isfinite(value)
    }


def _json(content: Any) -> str:
    return json.dumps(content, indent=2, sort_keys=True, default=_plain)


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else str(value)
