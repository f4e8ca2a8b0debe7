"""Roles are for ever, locks notice every change, and leakage is refused."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, chi2_contingency

from monitor.cohorts import Cohort
from monitor.tasks import Task
from registry.held_out import (
    HeldOutChanged,
    HeldOutCohort,
    Leakage,
    PatientRole,
    check_disjoint,
    digest_of,
    lock_cohort,
    role_of,
    roles_of,
    verify_lock,
)
from registry.settings import RoleShares

SHARES = RoleShares(learning=0.5, held_out=0.3, reference=0.2)


def cohort_of(n: int = 12, *, images: bool = True) -> Cohort:
    generator = np.random.default_rng(3)
    return Cohort(
        task=Task.BINARY,
        classes=("no", "yes"),
        study_uid=np.array([f"study-{i}" for i in range(n)]),
        patient_key=np.array([f"patient-{i // 2}" for i in range(n)]),
        times=np.full(n, np.datetime64(datetime(2026, 1, 5, tzinfo=UTC).replace(tzinfo=None), "us")),
        scores=generator.random((n, 1)),
        labels=(np.arange(n) % 2).astype(float)[:, None],
        images=np.array([f"{i:064d}" for i in range(n)]) if images else None,
    )


def test_roles_are_written_in_stone():
    """These answers may never change: a patient who was learned from would become a judge."""
    known = {"p1": "reference", "p2": "learning", "p3": "held out", "p4": "learning", "p5": "reference"}
    assert {patient: role_of(patient, SHARES).value for patient in known} == known


def test_roles_come_in_the_asked_shares_and_independent_of_the_key():
    patients = np.array([f"patient-{i}" for i in range(4000)])
    roles = roles_of(patients, SHARES)
    for role, share in zip(PatientRole, (0.5, 0.3, 0.2), strict=True):
        assert binomtest(int((roles == role).sum()), 4000, share).pvalue > 1e-4
    other = roles_of(patients, SHARES, b"another key")
    table = [[int(((roles == a) & (other == b)).sum()) for b in PatientRole] for a in PatientRole]
    assert chi2_contingency(table).pvalue > 1e-4


@given(st.lists(st.text(min_size=1, max_size=8).filter(lambda text: "\x00" not in text), max_size=30))
def test_a_patient_has_one_role_in_every_cohort(patients):
    keys = np.array(patients, dtype=np.str_)
    roles = roles_of(keys, SHARES, b"key")
    assert roles.tolist() == [role_of(str(patient), SHARES, b"key").value for patient in keys]


def test_larger_share_of_learning_never_takes_a_learning_patient_away():
    patients = np.array([f"patient-{i}" for i in range(500)])
    before = roles_of(patients, SHARES) == PatientRole.LEARNING
    after = roles_of(patients, RoleShares(learning=0.6, held_out=0.3, reference=0.1)) == PatientRole.LEARNING
    assert (after | ~before).all()
    assert after.sum() > before.sum()


def test_lock_does_not_depend_on_order_or_scores():
    cohort = cohort_of()
    locked = lock_cohort(cohort, name="old", kind="old")
    assert len(locked.manifest) == 12
    assert locked.patients == set(cohort.patient_key)
    shuffled = cohort.select(np.random.default_rng(1).permutation(12))
    verify_lock(locked, replace(shuffled, scores=np.full((12, 1), 0.5)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.select(np.arange(11)), r"1 removed \(study-11\)"),
        (lambda c: replace(c, labels=np.where(np.arange(12)[:, None] == 4, 1.0, c.labels)), r"1 changed \(study-4\)"),
        (lambda c: replace(c, images=np.where(np.arange(12) < 5, "0", c.images)), r"5 changed \(study-0, .*, …\)"),
        (lambda c: replace(c, patient_key=np.where(np.arange(12) == 0, "x", c.patient_key)), "1 changed"),
        (lambda c: replace(c, study_uid=np.where(np.arange(12) == 0, "x", c.study_uid)), "1 removed .* 1 added"),
        (lambda c: c.select(np.array([*range(12), 0])), r"1 added \(study-0\)"),
    ],
)
def test_lock_notices_every_change(change, message):
    locked = lock_cohort(cohort_of(), name="old", kind="old")
    with pytest.raises(HeldOutChanged, match=message):
        verify_lock(locked, change(cohort_of()))


def test_lock_refuses_what_cannot_judge():
    with pytest.raises(ValueError, match="no study"):
        lock_cohort(cohort_of().select(slice(0, 0)), name="old", kind="old")
    unlabelled = replace(cohort_of(), labels=np.where(np.arange(12)[:, None] < 3, np.nan, 1.0))
    with pytest.raises(ValueError, match="3 of 12 studies"):
        lock_cohort(unlabelled, name="old", kind="old")


def test_held_out_cohort_is_complete_when_made():
    locked = lock_cohort(cohort_of(images=False), name="old", kind="old")
    with pytest.raises(ValueError, match="hash"):
        replace(locked, manifest=locked.manifest[1:])
    with pytest.raises(ValueError, match="old, new"):
        replace(locked, kind="older")
    assert HeldOutCohort(name="a", kind="new", manifest=(), digest=digest_of(())).patients == set()


def test_leakage_is_refused_and_named():
    check_disjoint(["a", "b"], ["c"])
    with pytest.raises(Leakage, match=r"2 patients .*\(a, b\)"):
        check_disjoint(np.array(["a", "b", "d"]), np.array(["b", "a", "c"]))
    with pytest.raises(Leakage, match="1 images"):
        check_disjoint(["x"], ["x"], what="images")
