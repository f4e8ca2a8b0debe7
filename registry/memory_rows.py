"""Rows about rehearsal memories and about patients who were removed."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, UniqueConstraint
from sqlmodel import Field

from registry.entries import MemoryVersion, Purge
from registry.rows import _Mirror, utc_column


class MemoryRow(_Mirror, table=True):
    """One version of the memory beside an adapter; the newest row of an adapter is in force."""

    __tablename__ = "memories"
    __table_args__ = (UniqueConstraint("model", "adapter_sha256", "sha256"),)
    mirrored = MemoryVersion
    id: int | None = Field(default=None, primary_key=True)
    model: str = Field(index=True)
    adapter_sha256: str = Field(index=True)
    made_by: str
    sha256: str
    why: str
    studies: int
    patients: int
    bytes: int
    at: datetime = utc_column()


class PurgeRow(_Mirror, table=True):
    """One patient who was removed, under a keyed hash.

    ``removing`` is 1 inside the one transaction that may delete what is append-only, and never outside of it.
    """

    __tablename__ = "purges"
    __table_args__ = (CheckConstraint("state IN ('begun', 'done')", name="known_state"),)
    mirrored = Purge
    id: int | None = Field(default=None, primary_key=True)
    patient_hmac: str = Field(unique=True)
    state: str
    actor: str
    reason: str
    adapters: str
    counts: str
    at: datetime = utc_column()
    removing: int = 0
