"""The records: one SQL database that is the authority on everything that happened.

Every change and the event that tells of it are one transaction. Events are chained by digest, and
triggers refuse to change or delete them.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select

from continual.plans import AdaptationPlan, AdaptationRun, RunState
from monitor.cohorts import Window
from monitor.results import WindowReport
from registry.database import wal_is_safe
from registry.decisions import GateDecision, Signature
from registry.entries import ROLES, AlarmEntry, ChampionRecord, Look, RecordsError, StaleChampion, User
from registry.held_out import HeldOutCohort
from registry.ledger import SYSTEM
from registry.reading_room import ReadingRoom
from registry.rows import (
    AlarmRow,
    ChampionRow,
    DecisionRow,
    DriftResultRow,
    HeldOutRow,
    LookRow,
    PlanRow,
    ReportRow,
    RunRow,
    SignatureRow,
    UserRow,
    sha256,
)

__all__ = ["Records", "RecordsError", "StaleChampion", "open_records", "wal_is_safe"]

Document = TypeVar("Document", PlanRow, RunRow, DecisionRow)


def open_records(url: str) -> Records:
    """Open the database, creating the tables in an empty one.

    Raises:
        RecordsError: the database has another schema version, or cannot be opened.
    """
    return Records(url)


class Records(ReadingRoom):
    """Everything that is kept, and the only way to it. Open with ``open_records``."""

    # --- reports, plans, runs, decisions

    def save_report(self, report: WindowReport, at: datetime) -> None:
        """Keep a report; a later one of the same window takes its place in what is shown, the earlier stays stored."""
        with self._writing() as session:
            row, last = ReportRow.of(report, at), self._report_row(session, report.model, report.window)
            if last is not None and last.content == row.content:
                return
            session.add(row)
            session.flush()
            session.add_all(DriftResultRow.of(result, report_id=row.id) for result in report.results)
            payload = {"verdict": row.verdict, "studies": row.n, "labels": row.n_labels, "sha256": sha256(row.content)}
            subject = report.window.key
            self._append(session, at=at, kind="window.watched", model=report.model, subject=subject, payload=payload)

    def reports(self, model: str, *, since: datetime | None = None) -> list[WindowReport]:
        """List the report in force of every watched window, in order of time; of those that start from ``since`` on."""
        with self._reading() as session:
            query = select(ReportRow).where(ReportRow.model == model).order_by(col(ReportRow.id))
            if since is not None:
                query = query.where(col(ReportRow.window_start) >= since)
            newest = {(row.window_start, row.window_end): row for row in session.exec(query)}
            return [newest[window].value() for window in sorted(newest)]

    def report(self, model: str, window: Window) -> WindowReport | None:
        """Give the report in force of one window."""
        with self._reading() as session:
            row = self._report_row(session, model, window)
            return None if row is None else row.value()

    def watched(self, model: str) -> dict[Window, tuple[int, int]]:
        """Tell of every watched window how many studies and known labels the report in force has seen."""
        columns: list[Any] = [ReportRow.window_start, ReportRow.window_end, ReportRow.n, ReportRow.n_labels]
        with self._reading() as session:
            rows = session.exec(select(*columns).where(ReportRow.model == model).order_by(col(ReportRow.id)))
            return {Window(start=start, end=end): (n, n_labels) for start, end, n, n_labels in rows}

    def save_alarm(self, entry: AlarmEntry, at: datetime) -> None:
        """Keep where the alarm stands after a window; one raised in it, or closed since the last, is an event."""
        with self._writing() as session:
            row, known = AlarmRow.of(entry, at), self._alarm_rows(session, entry.model)
            stored = known.get((row.window_start, row.window_end))
            if stored is not None and stored.content == row.content:
                return
            earlier = [known[window] for window in sorted(known) if window[0] < row.window_start]
            was_open = bool(earlier) and earlier[-1].open
            session.add(row)
            if row.open != was_open and (stored is None or stored.open != row.open):
                state = entry.state
                payload = {"version": entry.version, "log_evidence": state.log_evidence, "leading": state.leading}
                self._append(
                    session,
                    at=at,
                    kind="alarm.raised" if row.open else "alarm.closed",
                    model=entry.model,
                    subject=entry.window.key,
                    payload=payload,
                )

    def alarms(self, model: str) -> list[AlarmEntry]:
        """List where the alarm stood after every watched window, in order of time."""
        with self._reading() as session:
            rows = self._alarm_rows(session, model)
            return [rows[window].value() for window in sorted(rows)]

    def save_plan(self, plan: AdaptationPlan, at: datetime) -> None:
        """Keep a plan, once."""
        payload = {"treatment": plan.treatment.value, "reason": plan.reason, "evidence": list(plan.evidence)}
        self._save(PlanRow, plan, at, kind="plan.made", actor=plan.proposed_by, payload=payload)

    def plans(self, model: str) -> list[AdaptationPlan]:
        """List the plans of a model, oldest first."""
        return [row.value() for row in self._documents(PlanRow, model)]

    def plan(self, plan_id: str) -> AdaptationPlan:
        """Look up one plan."""
        return self._document(PlanRow, plan_id, "plan").value()

    def save_run(self, run: AdaptationRun, at: datetime) -> None:
        """Keep a run, once; a run that failed or was stopped gives way to the next try."""
        payload = {"state": run.state.value, "adapter_sha256": run.adapter_sha256, "forgetting": run.forgetting}
        self._save(RunRow, run, at, kind="adapter.trained", actor=SYSTEM, payload=payload)

    def runs(self, model: str) -> list[AdaptationRun]:
        """List the runs of a model, oldest first."""
        return [row.value() for row in self._documents(RunRow, model)]

    def run(self, run_id: str) -> AdaptationRun:
        """Look up one run."""
        return self._document(RunRow, run_id, "run").value()

    def save_decision(self, decision: GateDecision, at: datetime) -> None:
        """Keep a gate decision, once."""
        payload = {"promote": decision.promote, "digest": decision.digest, "reasons": list(decision.reasons)}
        self._save(DecisionRow, decision, at, kind="gate.decided", actor=SYSTEM, payload=payload)

    def decisions(self, model: str) -> list[GateDecision]:
        """List the gate decisions of a model, oldest first."""
        return [row.value() for row in self._documents(DecisionRow, model)]

    def decision(self, decision_id: str) -> GateDecision:
        """Look up one gate decision."""
        return self._document(DecisionRow, decision_id, "gate decision").value()

    # --- held-out cohorts

    def lock_held_out(self, model: str, cohort: HeldOutCohort, at: datetime) -> None:
        """Lock a held-out cohort for ever; a second lock of the same name is refused unless it is the same."""
        with self._writing() as session:
            query = select(HeldOutRow).where(HeldOutRow.model == model, HeldOutRow.name == cohort.name)
            row = session.exec(query).first()
            if row is not None and row.digest != cohort.digest:
                raise RecordsError(
                    f"held-out cohort {cohort.name!r} is locked with another content; choose another name"
                )
            if row is None:
                session.add(HeldOutRow.of(model, cohort, at))
                payload = {"digest": cohort.digest, "kind": cohort.kind, "studies": len(cohort.manifest)}
                self._append(session, at=at, kind="held_out.locked", model=model, subject=cohort.name, payload=payload)

    def held_out(self, model: str) -> list[HeldOutCohort]:
        """List the locked held-out cohorts, oldest first."""
        with self._reading() as session:
            query = select(HeldOutRow).where(HeldOutRow.model == model).order_by(col(HeldOutRow.id))
            return [row.value() for row in session.exec(query)]

    def look_at_held_out(self, model: str, name: str, digest: str, run_id: str, at: datetime) -> None:
        """Enter one look at a held-out cohort into the ledger."""
        look = Look(model=model, name=name, digest=digest, run_id=run_id, at=at)
        with self._writing() as session:
            session.add(LookRow.of(look))
            payload = {"digest": digest, "run": run_id}
            self._append(session, at=at, kind="held_out.looked_at", model=model, subject=name, payload=payload)

    def looks(self, model: str) -> list[Look]:
        """List every look at the held-out cohorts of a model."""
        with self._reading() as session:
            query = select(LookRow).where(LookRow.model == model).order_by(col(LookRow.id))
            return [row.value() for row in session.exec(query)]

    # --- people, signatures, champions

    def add_user(self, name: str, role: str, password_hash: str, at: datetime) -> None:
        """Add a person; a name is given once.

        Raises:
            RecordsError: the name is taken or empty, or there is no such role.
        """
        if not name.strip():
            raise RecordsError("a person has a name; it stands under signatures")
        if role not in ROLES:
            raise RecordsError(f"there is no role {role!r}; choose one of {', '.join(ROLES)}")
        with self._writing() as session:
            if session.get(UserRow, name) is not None:
                raise RecordsError(f"there is a user {name!r} already; choose another name")
            session.add(UserRow(name=name, role=role, password_hash=password_hash, active=True))
            self._append(session, at=at, kind="user.added", model="", subject=name, payload={"role": role})

    def user(self, name: str) -> User | None:
        """Look up a person."""
        with self._reading() as session:
            row = session.get(UserRow, name)
            return None if row is None else row.value()

    def users(self) -> list[User]:
        """List the people."""
        with self._reading() as session:
            return [row.value() for row in session.exec(select(UserRow).order_by(col(UserRow.name)))]

    def save_signature(self, signature: Signature, at: datetime) -> None:
        """Keep a signature; the first final word on a decision stands.

        Raises:
            RecordsError: the decision is signed or refused already, the digest is not the decision's, or
                nobody has that name.
        """
        with self._writing() as session:
            decision = self._get(session, DecisionRow, signature.decision_id, "gate decision")
            if decision.digest != signature.digest:
                raise RecordsError("what was signed is not what the gate decided; open the decision again")
            if session.get(UserRow, signature.user) is None:
                raise RecordsError(f"{signature.user} is not a user; add the person first")
            query = select(SignatureRow).where(SignatureRow.decision_id == signature.decision_id)
            if (row := session.exec(query).first()) is not None:
                word = "approved" if row.approved else "rejected"
                raise RecordsError(f"{signature.decision_id} was {word} by {row.user} already")
            session.add(SignatureRow.of(signature))
            payload = {"approved": signature.approved, "meaning": signature.meaning, "digest": signature.digest}
            self._append(
                session,
                at=at,
                kind="decision.signed",
                model=decision.model,
                subject=signature.decision_id,
                payload=payload,
                actor=signature.user,
            )

    def signatures(self, decision_id: str) -> list[Signature]:
        """List the signatures under a decision."""
        with self._reading() as session:
            query = select(SignatureRow).where(SignatureRow.decision_id == decision_id).order_by(col(SignatureRow.id))
            return [row.value() for row in session.exec(query)]

    def champion(self, model: str) -> ChampionRecord | None:
        """Give the version that is live."""
        history = self.champion_history(model)
        return history[-1] if history else None

    def champion_history(self, model: str) -> list[ChampionRecord]:
        """List every move of the champion, oldest first."""
        with self._reading() as session:
            query = select(ChampionRow).where(ChampionRow.model == model).order_by(col(ChampionRow.number))
            return [row.value() for row in session.exec(query)]

    def move_champion(self, to: ChampionRecord, *, expected: str | None) -> ChampionRecord:
        """Make a version live, if the one that is live is ``expected``: the one commit point of a promotion.

        ``to.number`` is given here. Triggers refuse a promotion without an approval under its decision by a
        person who did not propose it, a second first, and a rollback to what was never live.

        Raises:
            StaleChampion: another version is live.
            RecordsError: one of the triggers refused.
        """
        with self._writing() as session:
            query = select(ChampionRow).where(ChampionRow.model == to.model).order_by(col(ChampionRow.number).desc())
            last = session.exec(query).first()
            if (last.version if last else None) != expected:
                live = last.version if last else "none"
                raise StaleChampion(f"version {expected or 'none'} was expected to be live, but {live} is; look again")
            to = replace(to, number=last.number + 1 if last else 1)
            session.add(ChampionRow.of(to))
            try:
                session.flush()
            except IntegrityError as error:
                raise RecordsError(f"version {to.version} was not promoted: {error.orig}") from None
            payload = {"kind": to.kind, "from": expected, "to": to.version, "adapter_sha256": to.adapter_sha256}
            payload |= {"decision": to.decision_id, "reason": to.reason}
            self._append(
                session,
                at=to.since,
                kind="champion.moved",
                model=to.model,
                subject=to.version,
                payload=payload,
                actor=to.actor,
            )
            return to

    # --- inside

    def _save(
        self, table: type[Document], value: Any, at: datetime, *, kind: str, actor: str, payload: dict[str, Any]
    ) -> None:
        with self._writing() as session:
            row = table.of(value, at)
            known = self._newest(session, table, row.id)
            if known is None or (isinstance(known, RunRow) and _may_replace(known, row)):
                session.add(row)
                payload = {**payload, "sha256": sha256(row.content)}
                self._append(session, at=at, kind=kind, model=row.model, subject=row.id, payload=payload, actor=actor)

    def _documents(self, table: type[Document], model: str) -> list[Document]:
        with self._reading() as session:
            newest: dict[str, Document] = {}
            for row in session.exec(select(table).where(table.model == model).order_by(col(table.number))):
                newest[row.id] = row
            return sorted(newest.values(), key=lambda row: row.number or 0)

    def _document(self, table: type[Document], key: str, what: str) -> Document:
        with self._reading() as session:
            return self._get(session, table, key, what)

    def _get(self, session: Session, table: type[Document], key: str, what: str) -> Document:
        row = self._newest(session, table, key)
        if row is None:
            raise RecordsError(f"there is no {what} {key!r}; `wardround status` lists what there is")
        return row

    def _newest(self, session: Session, table: type[Document], key: str) -> Document | None:
        return session.exec(select(table).where(table.id == key).order_by(col(table.number).desc())).first()

    def _report_row(self, session: Session, model: str, window: Window) -> ReportRow | None:
        query = select(ReportRow).where(
            ReportRow.model == model, ReportRow.window_start == window.start, ReportRow.window_end == window.end
        )
        return session.exec(query.order_by(col(ReportRow.id).desc())).first()

    def _alarm_rows(self, session: Session, model: str) -> dict[tuple[datetime, datetime], AlarmRow]:
        query = select(AlarmRow).where(AlarmRow.model == model).order_by(col(AlarmRow.id))
        return {(row.window_start, row.window_end): row for row in session.exec(query)}


def _may_replace(known: RunRow, row: PlanRow | RunRow | DecisionRow) -> bool:
    """Tell whether a run is tried again: one that failed or was stopped is, one that finished stands."""
    return known.state != RunState.FINISHED.value and known.content != row.content
