"""Patients have a role for ever; held-out cohorts are locked by hash and apart from everything learned."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutCohort:
    """A locked cohort that the gate alone looks at.

    ``kind`` is "old" (something learned before) or "new" (the drifted windows). ``manifest`` has one
    sorted line a study: study, patient, label and image hash. ``digest`` is their hash.
    """

    name: str
    kind: str
    manifest: tuple[str, ...]
    digest: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"a held-out cohort is one of {', '.join(KINDS)}, got {self.kind!r}")
        if digest_of(self.manifest) != self.digest:
            raise ValueError(f"the manifest of held-out cohort {self.name!r} does not hash to its digest")


KINDS = ("old", "new")


def digest_of(manifest: tuple[str, ...]) -> str:
    """Hash a manifest."""
    return hashlib.sha256("\x1e".join(manifest).encode()).hexdigest()
