"""Rows about rehearsal memories and about patients who were removed."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, Column, ForeignKey, String, UniqueConstraint
from sqlmodel import Field, SQLModel

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
    """One patient who is removed, under a keyed hash: a row when it begins and one when it is done."""

    __tablename__ = "purges"
    __table_args__ = (
        UniqueConstraint("patient_hmac", "state"),
        CheckConstraint("state IN ('begun', 'done')", name="known_state"),
    )
    mirrored = Purge
    id: int | None = Field(default=None, primary_key=True)
    patient_hmac: str
    state: str
    actor: str
    reason: str
    adapters: str
    counts: str
    at: datetime = utc_column()


class RemovingRow(SQLModel, table=True):
    """The mark under which a patient's rows may be deleted: it cannot be committed, for what it refers to never is.

    So it stands inside one transaction of one writer, and no process that is killed can leave it behind.
    """

    __tablename__ = "removing"
    id: int | None = Field(default=None, primary_key=True)
    ends: str = Field(
        sa_column=Column(String, ForeignKey("meta.key", deferrable=True, initially="DEFERRED"), nullable=False)
    )
