"""Every page over every part of the story, who gets to see them, and signing from the form to the record."""

from __future__ import annotations

import functools
import hashlib
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import streamlit as st
from streamlit.components.v2 import manifest_scanner
from streamlit.testing.v1 import AppTest
from streamlit.util import calc_hash

from dashboard.approvals_page import APPROVE, REFUSE
from dashboard.signing_in import LONGEST_PAUSE, LONGEST_VISIT, VISITOR, Visitor
from registry.approvals import WRONG_PASSWORDS, approve
from registry.decisions import GateDecision
from registry.entries import ChampionRecord
from registry.held_out import HeldOutCohort, digest_of
from registry.records import open_records
from registry.settings import FILE_NAME
from tests.conftest import ENGINEER, MODEL, OFFICER, PASSWORD, WEEKS, Hospital, build_story, decide, plan_of, run_of

PAGES = ("overview", "drift", "fairness", "adaptation", "approvals", "audit")
APP = Path(__file__).resolve().parents[1] / "dashboard" / "app.py"
TEXTS = ("title", "subheader", "markdown", "caption", "error", "info", "success")
OFFICER_ROLE = "quality officer"
MEANING = "I have read every reason."
Story = Callable[[int], Hospital]
scan_once = functools.cache(manifest_scanner.scan_component_manifests)


@pytest.fixture(scope="session")
def told(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Return a function that tells the first weeks of the story once, for copies to be taken of it."""
    folder = tmp_path_factory.mktemp("told")

    def tell(weeks: int) -> Path:
        directory = folder / str(weeks)
        return directory if directory.is_dir() else build_story(directory, weeks).directory

    return tell


@pytest.fixture
def tell_story(told: Callable[[int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Story:
    """Return a function that gives a store of its own after the first weeks, and points the dashboard at it."""

    def tell(weeks: int) -> Hospital:
        directory = Path(shutil.copytree(told(weeks), tmp_path / "ward"))
        monkeypatch.setenv("WARDROUND_DIR", str(directory))
        return Hospital(directory=directory, records=open_records(f"sqlite:///{directory / 'wardround.db'}"))

    return tell


@pytest.fixture(autouse=True)
def one_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Streamlit look for components among all installed packages once, not for each AppTest (a quarter second)."""
    monkeypatch.setattr(manifest_scanner, "scan_component_manifests", scan_once)


@pytest.fixture(autouse=True)
def fresh_cache() -> Iterator[None]:
    """Open every store anew."""
    yield
    st.cache_resource.clear()


def page(name: str, *, person: str = OFFICER, role: str = OFFICER_ROLE) -> AppTest:
    """Open one page as a person who has signed in."""

    def show(name: str) -> None:
        import importlib

        importlib.import_module(f"dashboard.{name}_page").show()

    app = AppTest.from_function(show, kwargs={"name": name}, default_timeout=30)
    at = datetime.now(UTC)
    app.session_state[VISITOR] = Visitor(name=person, role=role, since=at, seen=at)
    return app.run()


def sound_page(name: str) -> AppTest:
    """Open one page as the quality officer; nothing on it has failed."""
    app = page(name)
    assert not app.exception, app.exception
    return app


def whole_app(path: str = "") -> AppTest:
    """Open the whole dashboard, side bar and all, at an address; as a visitor whom nobody knows yet."""
    app = AppTest.from_file(APP, default_timeout=30)
    app._page_hash = calc_hash(path) if path else ""  # AppTest.switch_page knows files only, ours are functions
    return app.run()


def whole_app_of(person: str, role: str, path: str) -> AppTest:
    """Open the whole dashboard as a person who has signed in."""
    app = AppTest.from_file(APP, default_timeout=30)
    app._page_hash = calc_hash(path)
    at = datetime.now(UTC)
    app.session_state[VISITOR] = Visitor(name=person, role=role, since=at, seen=at)
    return app.run()


def said(app: AppTest) -> str:
    """Give every sentence on a page as a reader sees it, without the marks that keep data from being markup."""
    assert not app.exception, app.exception
    lines = [str(element.value) for kind in TEXTS for element in app.get(kind)]
    return "\n".join(lines).replace("\\", "").replace("\u2060", "")


def press(app: AppTest, label: str) -> AppTest:
    return next(button for button in app.button if button.label == label).click().run()


def has_button(app: AppTest, label: str) -> bool:
    return any(button.label == label for button in app.button)


def sign_in(app: AppTest, name: str, password: str) -> AppTest:
    app.text_input(key="name").input(name)
    app.text_input(key="password").input(password)
    return press(app, "Sign in")


def sign(
    app: AppTest, decision: GateDecision, answer: str, *, meaning: str = MEANING, password: str = PASSWORD
) -> AppTest:
    key = decision.decision_id
    app.radio(key=f"answer {key}").set_value(answer)
    app.text_area(key=f"meaning {key}").input(meaning)
    app.text_input(key=f"password {key}").input(password)
    return press(app, "Sign")


def wrong_passwords(hospital: Hospital) -> int:
    return sum(event.kind == "signature.wrong_password" for event in hospital.records.events())


# --- the pages


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("weeks", [8, *(pytest.param(weeks, marks=pytest.mark.slow) for weeks in (1, 2, 5))])
def test_every_page_tells_every_part_of_the_story(tell_story: Story, name: str, weeks: int) -> None:
    tell_story(weeks)
    app = page(name)
    assert app.title[0].value == name.capitalize()
    text = said(app)
    assert "None" not in text
    assert "nan" not in text.lower().split()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("overview", "No window has been watched yet"),
        ("drift", "No window has been watched yet"),
        ("fairness", "No window has been watched yet"),
        ("adaptation", "no drift asked for a treatment"),
        ("approvals", "Nothing waits for you"),
        ("audit", "The record holds"),
    ],
)
def test_every_page_of_an_empty_store_says_what_is_missing(empty_store: Hospital, name: str, sentence: str) -> None:
    assert sentence in said(page(name))


def test_overview_of_quiet_weeks_is_green(tell_story: Story) -> None:
    tell_story(1)
    app = page("overview")
    assert "Nothing unusual. No drift since 30 March 2026" in app.success[0].value.replace("\\", "")
    assert not app.error


def test_overview_of_a_thin_week_is_no_all_clear(tell_story: Story) -> None:
    tell_story(2)
    app = page("overview")
    assert "That is not an all-clear" in app.info[0].value.replace("\\", "")
    assert not app.success


def test_overview_of_drifted_weeks_answers_the_six_questions(tell_story: Story) -> None:
    tell_story(6)
    app = page("overview")
    assert "Drift since 27 April 2026: for 2 windows in a row" in app.error[0].value.replace("\\", "")
    text = said(app)
    for question in ("Since when?", "For whom?", "How bad is it?", "How sure are we?", "What is proposed?"):
        assert question in text
    assert "Who must act?" in text
    assert "6 of 9 comparisons differ beyond chance" in text
    assert "worse, beyond chance" in text


def test_overview_counts_what_came_in_and_why_rows_were_kept_out(tell_story: Story) -> None:
    tell_story(5)
    expected = (
        "68 rows in 5 exports, 60 accepted, 8 in quarantine: score is not a number (5), image cannot be read (3)."
    )
    shown = said(page("overview"))
    assert expected in shown
    # labels come with the export at the end of the week, and the studies every hour from its beginning
    assert "60 of 60 studies are labelled (100%). Half of them are after 6.8 days, nine in ten after 7.0 days." in shown


def test_a_rehearsal_is_named_on_the_overview(tell_story: Story) -> None:
    hospital = tell_story(1)
    assert not page("overview").warning
    hospital.records.mark_rehearsal(WEEKS[1].start)
    assert "This is a rehearsal" in page("overview").warning[0].value


def test_drift_page_shows_the_window_that_is_picked(tell_story: Story) -> None:
    tell_story(8)
    app = page("drift")
    assert "18 – 24 May 2026: no drift" in app.success[0].value.replace("\\", "")
    app.selectbox(key="window").select(WEEKS[4].key).run()
    assert "27 Apr – 3 May 2026: drift" in app.error[0].value.replace("\\", "")
    app.selectbox(key="window").select(WEEKS[1].key).run()
    assert "9 of 9 comparisons could not be made" in [expander.label for expander in app.expander]


def test_fairness_page_names_the_subgroup_that_fell_and_opens_its_figure(tell_story: Story) -> None:
    tell_story(5)
    app = page("fairness")
    assert "Sensitivity of age 65+ fell against everyone else's by 0.210" in app.error[0].value.replace("\\", "")
    assert app.get("button_group")[0].value == "sensitivity"


def test_fairness_page_of_a_thin_week_says_why_nothing_was_judged(tell_story: Story) -> None:
    tell_story(2)
    text = said(page("fairness"))
    assert "That is not an all-clear" in text
    assert "in the group 11 labelled studies, 20 are needed" in text


def test_adaptation_page_says_what_each_strategy_kept_and_what_the_gate_said(tell_story: Story) -> None:
    tell_story(7)
    text = said(page("adaptation"))
    assert "Naive (learns from the new studies alone) went from 0.852 to 0.938 on the new, and lost 0.063" in text
    assert "and lost 0.001 on what was known before (AUROC). **The gate passed it.**" in text


def test_proposals_that_look_alike_can_each_be_opened(tell_story: Story) -> None:
    hospital = tell_story(7)
    again = replace(plan_of(), evidence=("2026-05-11/2026-05-18 mmd embedding",), reason="Asked for once more.")
    hospital.records.save_plan(again, WEEKS[6].end + timedelta(days=1))
    app = page("adaptation")
    choices = app.selectbox(key="plan").options
    assert len(set(choices)) == len(choices) == 2
    assert "Asked for once more." in said(app)
    app.selectbox(key="plan").select(plan_of().plan_id).run()
    assert "Asked for once more." not in said(app)


@pytest.mark.parametrize("name", ["overview", "drift", "fairness", "approvals"])
def test_tables_leave_what_is_missing_empty(tell_story: Story, name: str) -> None:
    tell_story(8)
    app = page(name)
    if name == "drift":
        app.selectbox(key="window").select(WEEKS[1].key).run()
    table = app.dataframe[0]
    assert table.value.isna().any(axis=None)
    assert table.proto.placeholder == "–"


def test_a_run_that_failed_is_told_with_its_reason(tell_story: Story) -> None:
    hospital = tell_story(7)
    run = run_of(plan_of(), "replay", old=0.9, new=0.9)
    failed = replace(run, seed=1, state=type(run.state).FAILED, reason="the disk is full", matrix=(), forgetting=None)
    hospital.records.save_run(failed, WEEKS[6].end + timedelta(days=1))
    assert "Replay did not finish: the disk is full. The champion was not touched." in said(page("adaptation"))


def test_audit_page_finds_what_a_person_looks_for(tell_story: Story) -> None:
    tell_story(7)
    app = page("audit")
    everything = len(app.dataframe[0].value)
    app.text_input(key="wanted").input("quinn").run()
    assert list(app.dataframe[0].value["what"]) == ["person added"]
    app.text_input(key="wanted").input("")
    app.multiselect(key="kinds").select("gate.decided").run()
    assert len(app.dataframe[0].value) == 3 < everything


def test_audit_page_says_that_a_record_was_forged(tell_story: Story) -> None:
    hospital = tell_story(3)
    with sqlite3.connect(hospital.directory / "wardround.db") as connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute("UPDATE events SET actor = 'somebody else' WHERE seq = 3")
    connection.close()
    app = page("audit")
    assert "The record is broken at event 3" in app.error[0].value
    assert not app.success


# --- who gets to see them


@pytest.mark.parametrize("path", ["", *PAGES[1:]])
def test_nobody_who_has_not_signed_in_sees_a_page_or_has_a_record_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setenv("WARDROUND_DIR", str(tmp_path / "no store: reading it would fail"))
    app = whole_app(path)
    assert not app.exception
    assert [title.value for title in app.title] == ["Wardround"]
    assert [button.label for button in app.button] == ["Sign in"]
    assert not app.dataframe
    assert not app.get("plotly_chart")
    assert not app.sidebar.selectbox
    sign_in(app, OFFICER, PASSWORD)
    assert app.exception, "signing in reads the store; had the page before read it, it would have failed as well"


@pytest.mark.parametrize("path", ["", *PAGES[1:]])
def test_who_signs_in_sees_the_page_they_came_for(tell_story: Story, path: str) -> None:
    tell_story(8)
    app = sign_in(whole_app(path), OFFICER, PASSWORD)
    assert not app.exception
    assert [title.value for title in app.title] == [(path or "overview").capitalize()]
    press(app, "Sign out")
    assert [title.value for title in app.title] == ["Wardround"]


@pytest.mark.parametrize(
    ("name", "password"), [(OFFICER, "wrong"), ("nobody", PASSWORD), ("", ""), (OFFICER, ""), (OFFICER + " ", PASSWORD)]
)
def test_a_wrong_name_or_password_is_refused_alike_and_noted(tell_story: Story, name: str, password: str) -> None:
    hospital = tell_story(1)
    app = sign_in(whole_app(), name, password)
    assert "the user name or the password is wrong" in app.error[0].value
    assert [title.value for title in app.title] == ["Wardround"]
    assert wrong_passwords(hospital) == 1


def test_five_wrong_passwords_lock_a_name_even_for_the_right_one(tell_story: Story) -> None:
    hospital = tell_story(1)
    app = whole_app()
    for _ in range(WRONG_PASSWORDS):
        sign_in(app, OFFICER, "wrong")
    sign_in(app, OFFICER, PASSWORD)
    assert "5 wrong passwords" in app.error[0].value.replace("\\", "")
    assert [title.value for title in app.title] == ["Wardround"]
    assert wrong_passwords(hospital) == WRONG_PASSWORDS
    sign_in(app, ENGINEER, PASSWORD)
    assert [title.value for title in app.title] == ["Overview"]


@pytest.mark.parametrize(
    ("since", "seen"), [(LONGEST_PAUSE, LONGEST_PAUSE), (LONGEST_VISIT, timedelta(0))], ids=["pause", "day"]
)
def test_a_long_pause_or_a_long_day_ends_a_visit(tell_story: Story, since: timedelta, seen: timedelta) -> None:
    tell_story(1)
    at = datetime.now(UTC) - timedelta(seconds=1)
    app = AppTest.from_file(APP, default_timeout=30)
    app.session_state[VISITOR] = Visitor(name=OFFICER, role=OFFICER_ROLE, since=at - since, seen=at - seen)
    assert [title.value for title in app.run().title] == ["Wardround"]


# --- signing


def test_approving_writes_what_was_entered_and_nothing_else_is_live(tell_story: Story) -> None:
    hospital = tell_story(8)
    decision = hospital.decision("replay")
    app = sign(page("approvals"), decision, APPROVE)
    (signature,) = hospital.records.signatures(decision.decision_id)
    assert (signature.user, signature.role, signature.approved) == (OFFICER, OFFICER_ROLE, True)
    assert (signature.meaning, signature.digest) == (MEANING, decision.digest)
    text = said(app)
    assert "Your signature stands in the record." in text
    assert f"Approved by {OFFICER} (quality officer) on" in text
    assert has_button(app, "Make it the champion")
    assert hospital.records.champion(MODEL).version == "1"
    assert hospital.records.verify_events().ok


def test_refusing_is_final(tell_story: Story) -> None:
    hospital = tell_story(8)
    decision = hospital.decision("replay")
    app = sign(page("approvals"), decision, REFUSE, meaning="Too few patients of the new source.")
    (signature,) = hospital.records.signatures(decision.decision_id)
    assert not signature.approved
    app.selectbox(key="decision").select(decision.decision_id).run()
    assert "Too few patients of the new source." in said(app)
    assert not has_button(app, "Sign")
    assert not has_button(app, "Make it the champion")


@pytest.mark.parametrize("name", ["naive", "ewc"])
def test_what_the_gate_refused_cannot_be_signed(tell_story: Story, name: str) -> None:
    hospital = tell_story(8)
    app = page("approvals")
    app.selectbox(key="decision").select(hospital.decision(name).decision_id).run()
    assert "The gate refused this challenger" in app.error[0].value
    assert "nobody can approve" in said(app)
    assert not has_button(app, "Sign")


def test_a_second_submission_of_the_same_form_changes_nothing(tell_story: Story) -> None:
    hospital = tell_story(8)
    decision = hospital.decision("replay")
    here, there = page("approvals"), page("approvals")
    sign(here, decision, APPROVE)
    sign(there, decision, REFUSE)
    assert f"Approved by {OFFICER}" in said(there)
    assert not has_button(there, "Sign")
    assert [signature.approved for signature in hospital.records.signatures(decision.decision_id)] == [True]


@pytest.mark.parametrize(
    ("answer", "meaning", "password", "reason"),
    [
        (APPROVE, MEANING, "not the password", "the password is wrong"),
        (APPROVE, MEANING, "", "the password is wrong"),
        (APPROVE, "   ", PASSWORD, "states its meaning"),
        (REFUSE, "", PASSWORD, "states its meaning"),
        (APPROVE, "x" * 4001, PASSWORD, "states its meaning"),
    ],
)
def test_a_signature_without_password_or_meaning_is_refused(
    tell_story: Story, answer: str, meaning: str, password: str, reason: str
) -> None:
    hospital = tell_story(8)
    decision = hospital.decision("replay")
    app = sign(page("approvals"), decision, answer, meaning=meaning, password=password)
    assert reason in app.error[0].value
    assert not hospital.records.signatures(decision.decision_id)
    assert wrong_passwords(hospital) == (password != PASSWORD)


def test_an_answer_must_be_chosen(tell_story: Story) -> None:
    hospital = tell_story(8)
    decision = hospital.decision("replay")
    app = page("approvals")
    app.text_area(key=f"meaning {decision.decision_id}").input(MEANING)
    app.text_input(key=f"password {decision.decision_id}").input(PASSWORD)
    press(app, "Sign")
    assert "whether you approve or refuse" in app.error[0].value
    assert not hospital.records.signatures(decision.decision_id)


def test_the_password_of_signing_in_is_not_that_of_signing(tell_story: Story) -> None:
    hospital = tell_story(8)
    app = sign_in(whole_app("approvals"), OFFICER, PASSWORD)
    assert app.text_input(key=f"password {hospital.decision('replay').decision_id}").value == ""


def test_who_proposed_is_offered_no_form(tell_story: Story) -> None:
    _change_user(tell_story(8), ENGINEER, "role", OFFICER_ROLE)
    app = page("approvals", person=ENGINEER, role=OFFICER_ROLE)
    assert "You proposed this change, so another person signs." in said(app)
    assert not has_button(app, "Sign")


def test_other_roles_are_offered_no_form(tell_story: Story) -> None:
    hospital = tell_story(8)
    _change_user(hospital, OFFICER, "role", "auditor")
    app = page("approvals", person=OFFICER, role="auditor")
    assert "You are here as auditor" in said(app)
    assert not has_button(app, "Sign")


def test_the_role_in_the_records_counts_not_the_one_of_the_visit(tell_story: Story) -> None:
    _change_user(tell_story(8), OFFICER, "role", "auditor")
    app = whole_app_of(OFFICER, OFFICER_ROLE, "approvals")
    assert "You are here as auditor" in said(app)
    assert not has_button(app, "Sign")


def test_disabling_a_person_ends_the_visit(tell_story: Story) -> None:
    _change_user(tell_story(8), OFFICER, "active", 0)
    app = whole_app_of(OFFICER, OFFICER_ROLE, "approvals")
    assert [title.value for title in app.title] == ["Wardround"]


def _change_user(hospital: Hospital, name: str, column: str, value: object) -> None:
    with closing(sqlite3.connect(hospital.directory / "wardround.db")) as connection, connection:
        connection.execute(f"UPDATE users SET {column} = ? WHERE name = ?", (value, name))


def test_a_decision_against_a_champion_that_is_not_live_any_more_cannot_be_signed(tell_story: Story) -> None:
    hospital = tell_story(8)
    decision = hospital.decision("replay")
    open_form = page("approvals")
    _let_another_go_live(hospital)
    sign(open_form, decision, APPROVE)
    assert not hospital.records.signatures(decision.decision_id)
    app = page("approvals")
    app.selectbox(key="decision").select(decision.decision_id).run()
    for shown in (open_form, app):
        assert "Another version is live by now" in said(shown)
        assert not has_button(shown, "Sign")


def test_what_was_rolled_back_is_not_offered_to_go_live_again(tell_story: Story) -> None:
    hospital = tell_story(8)
    other = _let_another_go_live(hospital)
    first, second = hospital.records.champion_history(MODEL)
    back = replace(first, kind="rollback", actor=OFFICER, reason="Reads badly.", since=second.since)
    hospital.records.move_champion(back, expected="2")
    app = page("approvals")
    app.selectbox(key="decision").select(other.decision_id).run()
    assert any("was live, is not any more" in option for option in app.selectbox(key="decision").options)
    assert not has_button(app, "Make it the champion")
    assert not has_button(app, "Sign")


def test_a_promotion_whose_evidence_is_gone_is_refused_with_the_reason(tell_story: Story) -> None:
    hospital = tell_story(8)
    decision = hospital.decision("replay")
    app = sign(page("approvals"), decision, APPROVE)
    app.text_input(key="promotion password").input(PASSWORD)
    press(app, "Make it the champion")
    assert "is not locked as it was judged" in app.error[0].value.replace("\\", "")
    assert hospital.records.champion(MODEL).version == "1"


def test_a_promotion_asks_for_the_password_again(tell_story: Story) -> None:
    hospital = tell_story(8)
    app = sign(page("approvals"), hospital.decision("replay"), APPROVE)
    app.text_input(key="promotion password").input("wrong")
    press(app, "Make it the champion")
    assert "the password is wrong" in app.error[0].value
    assert wrong_passwords(hospital) == 1
    assert hospital.records.champion(MODEL).version == "1"


@pytest.mark.slow
@pytest.mark.filterwarnings(
    # MLflow's own tables use a loader strategy that SQLAlchemy 2.1 deprecates
    "ignore:The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning"
)
def test_from_signature_to_champion_on_one_page(tell_story: Story, tmp_path_factory: pytest.TempPathFactory) -> None:
    hospital = tell_story(8)
    mlflow = tmp_path_factory.getbasetemp() / "mlflow"
    mlflow.mkdir(exist_ok=True)
    path = hospital.directory / FILE_NAME
    path.write_text(f'tracking = "sqlite:///{mlflow / "mlflow.db"}"\n' + path.read_text(encoding="utf-8"))
    decision = _judge_a_real_file(hospital)
    app = page("approvals")
    app.selectbox(key="decision").select(decision.decision_id).run()
    sign(app, decision, APPROVE)
    app.text_input(key="promotion password").input(PASSWORD)
    next(button for button in app.button if button.label == "Make it the champion").click().run(timeout=120)
    assert "It is the champion now." in said(app)
    live = hospital.records.champion(MODEL)
    assert (live.version, live.kind, live.actor) == ("2", "promote", OFFICER)
    assert (live.decision_id, live.adapter_sha256) == (decision.decision_id, decision.adapter_sha256)
    assert "Version 2 since" in said(app)
    app.text_input(key="rollback reason").input("The readers do not like it.")
    app.text_input(key="rollback password").input(PASSWORD)
    next(button for button in app.button if button.label == "Go back").click().run(timeout=120)
    assert "is not in" in app.error[0].value.replace("\\", ""), "version 1's file was never in this store"
    assert hospital.records.champion(MODEL).version == "2"


def _let_another_go_live(hospital: Hospital) -> GateDecision:
    """Let another challenger of the same champion be judged, approved and promoted, beside the dashboard."""
    at = WEEKS[7].end
    run = replace(run_of(plan_of(), "ewc", old=0.934, new=0.93), seed=1)
    other = decide(run, old=0.0, new=0.078)
    assert other.promote
    hospital.records.save_run(run, at)
    hospital.records.save_decision(other, at)
    approve(hospital.records, other.decision_id, user=OFFICER, password=PASSWORD, meaning="Better.", at=at)
    hospital.records.move_champion(
        ChampionRecord(
            model=MODEL,
            number=0,
            version="2",
            adapter_sha256=other.adapter_sha256,
            decision_id=other.decision_id,
            kind="promote",
            actor=OFFICER,
            reason="approved",
            since=at,
        ),
        expected="1",
    )
    return other


def _judge_a_real_file(hospital: Hospital) -> GateDecision:
    """Let the gate pass an adapter whose file is there, on cohorts that are locked."""
    at = WEEKS[7].end
    content = b"weights"
    sha256 = hashlib.sha256(content).hexdigest()
    folder = hospital.directory / "mlartifacts"
    run = replace(run_of(plan_of(), "replay", old=0.934, new=0.93), seed=1, adapter_sha256=sha256)
    manifest = ('["study","patient",[1.0],""]',)
    for name, kind in zip(run.experiences, ("old", "new"), strict=True):
        cohort = HeldOutCohort(name=name, kind=kind, manifest=manifest, digest=digest_of(manifest))
        hospital.records.lock_held_out(MODEL, cohort, at)
    decision = replace(
        decide(run, old=0.0, new=0.078),
        cohort_digests=tuple((name, digest_of(manifest)) for name in run.experiences),
    )
    from registry.model_versions import ModelVersions

    file = ModelVersions(tracking_uri="", artifact_root=folder).adapter(sha256)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    file.with_suffix(".json").write_text('{"adapter": "lora"}', encoding="utf-8")
    hospital.records.save_run(run, at)
    hospital.records.save_decision(decision, at)
    return decision
