"""Who may sign a gate decision, and the signature: four eyes, a password entered again, a stated meaning."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import cache

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from registry.decisions import GateDecision, Signature
from registry.entries import User
from registry.records import Records, RecordsError

SIGNERS = ("quality officer", "clinician")
MINIMUM_PASSWORD = 12
MAXIMUM_MEANING = 4000
MAXIMUM_NAME = 200
WRONG_PASSWORDS, LOCK = 5, timedelta(minutes=15)
WRONG_PASSWORD = "signature.wrong_password"

_hasher = PasswordHasher()


class SignatureRefused(RecordsError):
    """The signature is not valid; the message says why and what to do."""


def hash_password(password: str) -> str:
    """Hash a password with argon2id and a fresh salt.

    Raises:
        ValueError: the password is too short to keep anybody out.
    """
    if len(password) < MINIMUM_PASSWORD:
        raise ValueError(f"a password has at least {MINIMUM_PASSWORD} characters; choose a longer one")
    return _hasher.hash(password)


def verify_password(password_hash: str, password: str) -> bool:
    """Tell whether a password is the one behind a hash."""
    try:
        return _hasher.verify(password_hash, password)
    except (VerificationError, InvalidHashError):
        return False


def approve(records: Records, decision_id: str, *, user: str, password: str, meaning: str, at: datetime) -> Signature:
    """Sign a decision of the gate, so that its challenger may be promoted.

    The signer is a known, active quality officer or clinician other than who proposed the plan, and
    enters the password again. The gate must have passed, the champion must still be the one it was
    judged against, and nobody may have signed or refused before: the first final word stands.

    Raises:
        SignatureRefused: one of these does not hold.
        RecordsError: there is no such decision.
    """
    decision = records.decision(decision_id)
    person = _identify_signer(records, decision, user, password, at)
    if not decision.promote:
        failed = sum(not check.passed for check in decision.checks)
        raise SignatureRefused(f"the gate refused {decision_id} (failed checks: {failed}); it cannot be approved")
    check_fresh(records, decision)
    return _sign(records, decision, person, approved=True, meaning=meaning, at=at)


def reject(records: Records, decision_id: str, *, user: str, password: str, meaning: str, at: datetime) -> Signature:
    """Refuse a decision of the gate for good, with the reason as meaning; who may do so is as for ``approve``.

    Raises:
        SignatureRefused: the person may not sign, or somebody signed or refused before.
        RecordsError: there is no such decision.
    """
    decision = records.decision(decision_id)
    person = _identify_signer(records, decision, user, password, at)
    return _sign(records, decision, person, approved=False, meaning=meaning, at=at)


def check_fresh(records: Records, decision: GateDecision) -> None:
    """Prove that the champion is still the one that the challenger was judged against.

    Raises:
        SignatureRefused: another version is live by now.
    """
    champion = records.champion(decision.model)
    live = champion.version if champion else "none"
    if live != decision.champion_version:
        raise SignatureRefused(
            f"{decision.decision_id} was judged against version {decision.champion_version}, but {live} is live now; "
            "adapt and judge again"
        )


def valid_approval(records: Records, decision: GateDecision) -> Signature:
    """Give the approval under a decision, after proving it again from what is stored.

    Raises:
        SignatureRefused: it is missing, a refusal, by the proposer, by a wrong role or of another content.
    """
    signatures = records.signatures(decision.decision_id)
    if not signatures:
        raise SignatureRefused(
            f"nobody has approved {decision.decision_id}; a person who did not propose it signs first"
        )
    for signature in signatures:
        if not signature.approved:
            raise SignatureRefused(f"{signature.user} refused {decision.decision_id}: {signature.meaning}")
        if signature.digest != decision.digest:
            raise SignatureRefused(f"{decision.decision_id} is not what {signature.user} signed; judge and sign again")
        _check_may_sign(records, decision, signature.user, signature.role)
    return signatures[0]


def identify(records: Records, name: str, password: str, *, at: datetime, model: str = "", subject: str = "") -> User:
    """Find the active person behind a name and password; every wrong one is an event, five lock for a while.

    ``model`` and ``subject`` say in that event what was to be done. An unknown name takes as long as a known one.

    Raises:
        SignatureRefused: wrong, locked, or the person may not act any more.
    """
    recent = [e for e in records.events(kind=WRONG_PASSWORD) if e.actor == name and at - e.at < LOCK]
    if len(recent) >= WRONG_PASSWORDS:
        minutes = int(LOCK.total_seconds() // 60)
        raise SignatureRefused(f"{len(recent)} wrong passwords for {name}; try again in {minutes} minutes")
    person = records.user(name)
    known = verify_password(person.password_hash if person else _nobodys_hash(), password)
    if person is None or not known:
        actor = name[:MAXIMUM_NAME]
        records.tell(at=at, kind=WRONG_PASSWORD, model=model, subject=subject, payload={}, actor=actor)
        raise SignatureRefused("the user name or the password is wrong; enter both again")
    if not person.active:
        raise SignatureRefused(f"{name} may not act any more; another person signs")
    return person


@cache
def _nobodys_hash() -> str:
    """Hash a password to check when there is no such person, so that the time it takes does not tell who exists."""
    return _hasher.hash("the password of nobody")


def _identify_signer(records: Records, decision: GateDecision, name: str, password: str, at: datetime) -> User:
    person = identify(records, name, password, at=at, model=decision.model, subject=decision.decision_id)
    _check_may_sign(records, decision, person.name, person.role)
    return person


def _check_may_sign(records: Records, decision: GateDecision, name: str, role: str) -> None:
    if role not in SIGNERS:
        raise SignatureRefused(f"{name} is {role}; only a {' or a '.join(SIGNERS)} may sign")
    if name == records.plan(decision.plan_id).proposed_by:
        raise SignatureRefused(f"{name} proposed this change; another person signs")


def _sign(
    records: Records, decision: GateDecision, person: User, *, approved: bool, meaning: str, at: datetime
) -> Signature:
    if not meaning.strip() or len(meaning) > MAXIMUM_MEANING:
        raise SignatureRefused(f"a signature states its meaning in 1 to {MAXIMUM_MEANING} characters")
    signature = Signature(
        decision_id=decision.decision_id,
        digest=decision.digest,
        user=person.name,
        role=person.role,
        approved=approved,
        meaning=meaning.strip(),
        at=at,
    )
    try:
        records.save_signature(signature, at)
    except RecordsError as error:
        raise SignatureRefused(str(error)) from None
    return signature
