"""Which rehearsal memory lies beside which adapter, version by version."""

from __future__ import annotations

from datetime import datetime

from sqlmodel import col, select

from registry.entries import MemoryVersion
from registry.intake import Intake
from registry.ledger import SYSTEM
from registry.memory_rows import MemoryRow

WRITTEN, REWRITTEN = "memory.written", "memory.rewritten"


class Memories(Intake):
    """The versions of every memory; the newest of an adapter is in force."""

    def save_memory(self, version: MemoryVersion, at: datetime, *, actor: str = SYSTEM) -> None:
        """Note a memory beside an adapter, once."""
        with self._writing() as session:
            query = select(MemoryRow).where(MemoryRow.adapter_sha256 == version.adapter_sha256)
            query = query.where(MemoryRow.model == version.model).order_by(col(MemoryRow.id).desc())
            known = session.exec(query).all()
            if version.sha256 in {row.sha256 for row in known}:
                return
            session.add(MemoryRow.of(version))
            payload = {"sha256": version.sha256, "adapter_sha256": version.adapter_sha256, "why": version.why}
            payload |= {"before": known[0].sha256} if known else {}
            self._append(
                session,
                at=at,
                kind=REWRITTEN if known else WRITTEN,
                model=version.model,
                subject=version.made_by,
                payload=payload | {"studies": version.studies, "patients": version.patients},
                actor=actor,
            )

    def memories(self, model: str | None = None) -> list[MemoryVersion]:
        """List every version of every memory, of one model or of all, oldest first."""
        with self._reading() as session:
            query = select(MemoryRow).order_by(col(MemoryRow.id))
            if model is not None:
                query = query.where(MemoryRow.model == model)
            return [row.value() for row in session.exec(query)]

    def memory_of(self, model: str, adapter_sha256: str) -> MemoryVersion | None:
        """Give the memory in force beside an adapter; None where none was made."""
        own = [version for version in self.memories(model) if version.adapter_sha256 == adapter_sha256]
        return own[-1] if own else None
