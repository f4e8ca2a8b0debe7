"""Patients have a role for ever; held-out cohorts are locked by hash and apart from everything learned."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from monitor.cohorts import Cohort
from registry.settings import RoleShares

KINDS = ("old", "new")
SHOWN = 3


class PatientRole(StrEnum):
    """What a patient's studies may be used for, for ever; windows are watched with all patients."""

    LEARNING = "learning"
    HELD_OUT = "held out"
    REFERENCE = "reference"


class HeldOutChanged(ValueError):
    """A locked cohort is not what it was, so nothing may be judged on it."""


class Leakage(ValueError):
    """Something that was learned from also stands in a held-out cohort."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutCohort:
    """A locked cohort that the gate alone looks at.

    ``kind`` says what it was when it was locked: "old" (learned before) or "new" (the drifted
    windows). ``manifest`` has one line a study, sorted: a JSON list of study, patient, labels and
    image hash. ``digest`` is the hash of the manifest.

    Raises:
        ValueError: another kind, or a manifest that does not hash to the digest.
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

    @property
    def patients(self) -> frozenset[str]:
        """Name the patients in the cohort."""
        return frozenset(json.loads(line)[1] for line in self.manifest)


def role_of(patient_key: str, shares: RoleShares, key: bytes = b"") -> PatientRole:
    """Tell a patient's role from a keyed hash of the pseudonym: the same on every machine and in every year.

    A patient who comes back therefore never crosses from learning to held out. With ``key`` nobody
    without it can tell, or choose, on which side a pseudonym falls.
    """
    digest = hmac.digest(key, b"wardround role\x00" + patient_key.encode(), "sha256")
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < shares.learning:
        return PatientRole.LEARNING
    return PatientRole.HELD_OUT if place < shares.learning + shares.held_out else PatientRole.REFERENCE


def roles_of(patient_keys: NDArray[np.str_], shares: RoleShares, key: bytes = b"") -> NDArray[np.str_]:
    """Tell the role of each row's patient; shape (n,); compare with a ``PatientRole`` to get a mask."""
    patients, rows = np.unique(patient_keys, return_inverse=True)
    roles = [role_of(str(patient), shares, key).value for patient in patients]
    return np.array(roles, dtype=np.str_)[rows] if roles else np.array([], dtype=np.str_)


def lock_cohort(cohort: Cohort, *, name: str, kind: str) -> HeldOutCohort:
    """Freeze which studies a held-out cohort consists of, with their labels and images.

    Raises:
        ValueError: the cohort is empty or has studies without a label, on which nothing can be judged.
    """
    if not len(cohort):
        raise ValueError(f"held-out cohort {name} has no study; ingest labelled studies of held-out patients first")
    if unlabelled := int((~cohort.labelled).sum()):
        raise ValueError(
            f"{unlabelled} of {len(cohort)} studies of held-out cohort {name} have no label; leave them out"
        )
    manifest = manifest_of(cohort)
    return HeldOutCohort(name=name, kind=kind, manifest=manifest, digest=digest_of(manifest))


def verify_lock(locked: HeldOutCohort, cohort: Cohort) -> None:
    """Prove that a cohort is exactly what was locked.

    Raises:
        HeldOutChanged: a study was changed, added or removed; the message counts and names them.
    """
    now = manifest_of(cohort)
    if digest_of(now) == locked.digest:
        return
    lost, gained = Counter(locked.manifest) - Counter(now), Counter(now) - Counter(locked.manifest)
    before, after = ({json.loads(line)[0] for line in side} for side in (lost, gained))
    parts = {"changed": before & after, "removed": before - after, "added": after - before}
    told = ", ".join(f"{len(studies)} {what} ({_name(studies)})" for what, studies in parts.items() if studies)
    raise HeldOutChanged(
        f"held-out cohort {locked.name} is not what was locked: {told}. "
        "Bring the studies back as they were, or lock a new cohort under another name."
    )


def check_disjoint(held_out: Iterable[str], learned: Iterable[str], *, what: str = "patients") -> None:
    """Prove that nothing learned from stands in a held-out cohort; ``what`` names the keys (patients, images).

    Raises:
        Leakage: some keys stand on both sides.
    """
    if both := {str(key) for key in held_out} & {str(key) for key in learned}:
        raise Leakage(
            f"{len(both)} {what} were learned from and are held out too ({_name(both)}); "
            "judge on others, or train again without them"
        )


def manifest_of(cohort: Cohort) -> tuple[str, ...]:
    """List a cohort's studies as sorted lines: study, patient, labels and image hash as a JSON list."""
    images = cohort.images if cohort.images is not None else np.full(len(cohort), "")
    rows = zip(cohort.study_uid, cohort.patient_key, cohort.labels, images, strict=True)
    return tuple(
        sorted(
            json.dumps([str(study), str(patient), [_label(label) for label in labels], str(image)])
            for study, patient, labels, image in rows
        )
    )


def digest_of(manifest: Iterable[str]) -> str:
    """Hash a manifest."""
    return hashlib.sha256("\n".join(manifest).encode()).hexdigest()


def _label(value: float) -> int | None:
    return None if np.isnan(value) else int(value)


def _name(keys: Iterable[str]) -> str:
    names = sorted(keys)
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
