"""Nobody signs alone, for somebody else, without a password, twice, or for what the gate refused."""

import sqlite3
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from continual.plans import AdaptationPlan
from continual.policies import Treatment
from monitor.cohorts import Window
from registry.approvals import (
    SignatureRefused,
    approve,
    hash_password,
    reject,
    valid_approval,
    verify_password,
)
from registry.decisions import GateCheck, GateDecision, GatePolicy, Signature
from registry.entries import ChampionRecord
from registry.records import Records, RecordsError, open_records
from registry.settings import ModelSettings

AT = datetime(2026, 5, 4, 9, tzinfo=UTC)
WEEK = Window(start=datetime(2026, 4, 27, tzinfo=UTC), end=datetime(2026, 5, 4, tzinfo=UTC))
MEANING = "I have reviewed the held-out results and approve this adapter."
PEOPLE = {
    "emma": "engineer",
    "quinn": "quality officer",
    "carl": "clinician",
    "pia": "quality officer",
    "adam": "administrator",
}
PASSWORD = hash_password("a long enough password")


def plan_by(proposer: str) -> AdaptationPlan:
    return AdaptationPlan(
        model="tumour",
        windows=(WEEK,),
        treatment=Treatment.UPDATE_ADAPTER,
        strategies=("replay",),
        evidence=("mmd",),
        reason="drift",
        proposed_by=proposer,
        champion_version="1",
    )


def decision_on(plan: AdaptationPlan, *, passed: bool = True) -> GateDecision:
    check = GateCheck(
        name="forgetting",
        cohort="",
        metric="auroc",
        champion=None,
        challenger=None,
        difference=0.01,
        low=None,
        high=None,
        margin=0.02,
        passed=passed,
        reason="Little was forgotten.",
    )
    return GateDecision(
        model="tumour",
        plan_id=plan.plan_id,
        run_id=f"{plan.plan_id}-replay-0",
        champion_version="1",
        adapter_sha256="a" * 64,
        cohort_digests=(),
        promote=passed,
        checks=(check,),
        policy=GatePolicy(),
    )


def move(version: str, *, kind: str = "first", decision_id: str = "") -> ChampionRecord:
    return ChampionRecord(
        model="tumour",
        number=0,
        version=version,
        adapter_sha256=version * 64,
        decision_id=decision_id,
        kind=kind,
        actor="emma",
        reason="",
        since=AT,
    )


@pytest.fixture
def records(tmp_path: Path) -> Records:
    records = open_records(f"sqlite:///{tmp_path / 'wardround.db'}")
    records.register_model("tumour", ModelSettings(), AT)
    for name, role in PEOPLE.items():
        records.add_user(name, role, PASSWORD, AT)
    records.move_champion(move("1"), expected=None)
    return records


def judged(records: Records, *, proposer: str = "emma", passed: bool = True) -> GateDecision:
    plan = plan_by(proposer)
    decision = decision_on(plan, passed=passed)
    records.save_plan(plan, AT)
    records.save_decision(decision, AT)
    return decision


def sign(records: Records, decision: GateDecision, word=approve, **changes) -> Signature:
    entered = {"user": "quinn", "password": "a long enough password", "meaning": MEANING, "at": AT}
    return word(records, decision.decision_id, **entered | changes)


@pytest.mark.parametrize("user", ["quinn", "carl"])
def test_another_person_with_the_right_role_signs_exactly_what_was_decided(records, user):
    decision = judged(records)
    signature = sign(records, decision, user=user)
    assert (signature.user, signature.role, signature.digest) == (user, PEOPLE[user], decision.digest)
    assert records.signatures(decision.decision_id) == [signature]
    assert valid_approval(records, decision) == signature
    told = records.events("tumour")[-1]
    assert (told.kind, told.actor, told.subject) == ("decision.signed", user, decision.decision_id)
    assert records.verify_events().ok


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"user": "nobody"}, "user name or the password is wrong"),
        ({"password": "A long enough password"}, "user name or the password is wrong"),
        ({"password": ""}, "user name or the password is wrong"),
        ({"user": "emma"}, "emma is engineer; only a quality officer or a clinician"),
        ({"user": "adam"}, "adam is administrator; only"),
        ({"meaning": "  "}, "states its meaning"),
        ({"meaning": "x" * 4001}, "states its meaning"),
    ],
)
@pytest.mark.parametrize("word", [approve, reject])
def test_who_may_not_sign_is_refused_with_the_cure(records, changes, message, word):
    decision = judged(records)
    with pytest.raises(SignatureRefused, match=message):
        sign(records, decision, word, **changes)
    assert records.signatures(decision.decision_id) == []


@pytest.mark.parametrize("word", [approve, reject])
def test_the_proposer_never_signs(records, word):
    decision = judged(records, proposer="pia")
    with pytest.raises(SignatureRefused, match="pia proposed this change"):
        sign(records, decision, word, user="pia")


def test_what_the_gate_refused_cannot_be_approved_but_may_be_put_aside(records):
    decision = judged(records, passed=False)
    with pytest.raises(SignatureRefused, match=r"gate refused .* \(failed checks: 1\)"):
        sign(records, decision)
    assert not sign(records, decision, reject, meaning="No.").approved


def test_a_stale_decision_cannot_be_approved(records):
    first, second = judged(records, proposer="emma"), judged(records, proposer="pia")
    sign(records, first)
    promoted = move("2", kind="promote", decision_id=first.decision_id)
    records.move_champion(replace(promoted, adapter_sha256=first.adapter_sha256), expected="1")
    with pytest.raises(SignatureRefused, match="judged against version 1, but 2 is live now"):
        sign(records, second)


@pytest.mark.parametrize(("one", "other", "told"), [(approve, reject, "approved"), (reject, approve, "rejected")])
def test_the_first_final_word_stands(records, one, other, told):
    decision = judged(records)
    sign(records, decision, one)
    for word in (one, other):
        with pytest.raises(SignatureRefused, match=f"was {told} by quinn already"):
            sign(records, decision, word, user="carl")
    assert len(records.signatures(decision.decision_id)) == 1


def test_approving_and_rejecting_at_once_leaves_one_word(records, tmp_path):
    decision = judged(records)
    words: list[str] = []

    def speak(word, user: str) -> None:
        own = open_records(f"sqlite:///{tmp_path / 'wardround.db'}")
        try:
            sign(own, decision, word, user=user)
            words.append("kept")
        except SignatureRefused:
            words.append("refused")

    people = [(approve, "quinn"), (reject, "carl"), (approve, "carl"), (reject, "quinn")]
    threads = [threading.Thread(target=speak, args=person) for person in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(words) == ["kept", "refused", "refused", "refused"]
    assert len(records.signatures(decision.decision_id)) == 1


def test_wrong_passwords_are_told_and_five_lock_for_a_quarter_of_an_hour(records):
    decision = judged(records)
    for minute in range(5):
        with pytest.raises(SignatureRefused, match="wrong; enter both again"):
            sign(records, decision, password="wrong wrong wrong", at=AT + timedelta(minutes=minute))
    told = [event for event in records.events("tumour") if event.kind == "signature.wrong_password"]
    assert [event.actor for event in told] == ["quinn"] * 5
    assert not any("wrong wrong" in event.payload for event in told)
    with pytest.raises(SignatureRefused, match="5 wrong passwords for quinn; try again in 15 minutes"):
        sign(records, decision, at=AT + timedelta(minutes=5))
    assert sign(records, decision, at=AT + timedelta(minutes=15)).approved


def test_a_person_who_left_does_not_sign(records, tmp_path):
    decision = judged(records)
    with sqlite3.connect(tmp_path / "wardround.db") as connection:
        connection.execute("UPDATE users SET active = 0 WHERE name = 'quinn'")
    with pytest.raises(SignatureRefused, match="quinn may not act any more"):
        sign(records, decision)


def test_an_approval_is_proved_again_from_what_is_stored(records):
    decision = judged(records)
    with pytest.raises(SignatureRefused, match="nobody has approved"):
        valid_approval(records, decision)
    sign(records, decision)
    edited = replace(decision, checks=(replace(decision.checks[0], difference=0.0),))
    with pytest.raises(SignatureRefused, match="nobody has approved"):
        valid_approval(records, edited)


def test_a_decision_edited_in_the_database_is_not_what_was_signed(records, tmp_path):
    decision = judged(records)
    sign(records, decision)
    with sqlite3.connect(tmp_path / "wardround.db") as connection:
        connection.execute("DROP TRIGGER decisions_refuse_update")
        connection.execute("UPDATE decisions SET content = replace(content, '0.01', '0.00')")
    edited = records.decision(decision.decision_id)
    assert edited.digest != decision.digest
    with pytest.raises(SignatureRefused, match="nobody has approved"):
        valid_approval(records, edited)


def test_a_refusal_is_no_approval(records):
    decision = judged(records)
    sign(records, decision, reject, meaning="The old cohort is too small for me.")
    with pytest.raises(SignatureRefused, match=r"quinn refused .*: The old cohort is too small for me\."):
        valid_approval(records, decision)


@pytest.mark.parametrize(("user", "message"), [("emma", "emma is engineer"), ("pia", "pia proposed this change")])
def test_an_approval_that_went_round_this_file_does_not_count(records, user, message):
    decision = judged(records, proposer="pia")
    signature = Signature(
        decision_id=decision.decision_id,
        digest=decision.digest,
        user=user,
        role=PEOPLE[user],
        approved=True,
        meaning=MEANING,
        at=AT,
    )
    records.save_signature(signature, AT)
    with pytest.raises(SignatureRefused, match=message):
        valid_approval(records, decision)


def test_an_unknown_decision_says_where_to_look(records):
    with pytest.raises(RecordsError, match="wardround status"):
        approve(records, "gate-unknown", user="quinn", password="x", meaning=MEANING, at=AT)


def test_passwords_are_salted_argon2_and_never_short():
    first, second = hash_password("a long enough password"), hash_password("a long enough password")
    assert first != second
    assert first.startswith("$argon2id$")
    assert verify_password(first, "a long enough password")
    assert not verify_password(first, "a long enough passwore")
    assert not verify_password("not a hash", "a long enough password")
    with pytest.raises(ValueError, match="at least 12 characters"):
        hash_password("short")
