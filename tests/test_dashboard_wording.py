"""Sentences by hand: what a quality officer reads is what the records say, no more and no less."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from continual.plans import RunState
from continual.policies import Treatment
from dashboard.event_wording import EVENT_SENTENCES, EVENT_WORDS, tell_event, tell_move
from dashboard.names import (
    DETECTOR_WORDS,
    METRIC_MEANINGS,
    METRIC_WORDS,
    days,
    distinct,
    feature_words,
    number,
    plural,
    reword,
    value_words,
)
from dashboard.palette import KIND_WORDS, VERDICT_WORDS
from dashboard.wording import (
    REASON_WORDS,
    name_plan,
    tell_arrivals,
    tell_change,
    tell_consequence,
    tell_evidence,
    tell_for_whom,
    tell_gap,
    tell_headline,
    tell_how_bad,
    tell_how_sure,
    tell_other_losses,
    tell_proposal,
    tell_run,
    tell_since_when,
    tell_unjudged,
)
from flows.sources import Reason
from monitor.cohorts import Window
from monitor.detectors import DETECTORS
from monitor.results import DriftKind, Harm, Source, Verdict
from registry.audit import Event
from registry.entries import BatchSummary, ChampionRecord, QuarantinedRow
from tests.conftest import MODEL, WEEKS, decide, plan_of, report_of, run_of

REPORTS = [report_of(window, number) for number, window in enumerate(WEEKS)]
HARM = Harm(
    window=WEEKS[4],
    metric="auroc",
    finding="yes",
    source=Source.REALISED,
    reference=0.934,
    current=0.861,
    loss=0.073,
    low=0.038,
    high=0.108,
    level=0.95,
    sure=True,
    n=88,
    reason="",
)
RUN = run_of(plan_of(), "replay", old=0.933, new=0.927)


def window(start: str, end: str) -> Window:
    return Window.from_key(f"{start}/{end}")


# --- names


@pytest.mark.parametrize(
    ("start", "end", "said"),
    [
        ("2026-05-04", "2026-05-11", "4 – 10 May 2026"),
        ("2026-04-27", "2026-05-04", "27 Apr – 3 May 2026"),
        ("2025-12-29", "2026-01-05", "29 Dec 2025 – 4 Jan 2026"),
        ("2026-05-04", "2026-05-05", "4 May 2026"),
    ],
)
def test_a_window_is_named_by_its_first_and_last_day(start: str, end: str, said: str) -> None:
    assert days(window(start, end)) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("On 2026-01-05/2026-03-30 the auroc rose", "On 5 Jan – 29 Mar 2026 the AUROC rose"),
        ("within 2026-04-27/2026-05-04: yes", "within 27 Apr – 3 May 2026: yes"),
        ("(2026-04-27 to 2026-05-18);", "(27 Apr – 17 May 2026);"),
        ("native_px = > 251", "native_px > 251"),
        ("the brier of chi_square", "the Brier score of chi-square"),
        ("2026-13-01/2026-14-01", "2026-13-01/2026-14-01"),
        ("2026-04-27/2026-04-27", "2026-04-27/2026-04-27"),
        ("a macaurocky word, study 2026-04-27", "a macaurocky word, study 2026-04-27"),
    ],
)
def test_a_reason_is_reworded_and_nothing_else_of_it_changes(text: str, said: str) -> None:
    assert reword(text) == said


@pytest.mark.parametrize(
    ("n", "word", "said"), [(0, "row", "0 rows"), (1, "study", "1 study"), (2398, "study", "2,398 studies")]
)
def test_counts_agree_with_their_nouns(n: int, word: str, said: str) -> None:
    assert plural(n, word) == said


def test_what_is_missing_is_a_dash_and_zero_is_zero() -> None:
    assert (number(None), number(0.0)) == ("–", "0.000")


def test_choices_never_share_a_name() -> None:
    assert distinct(["a", "b", "a"]) == ["a", "b", "a (2)"]
    for names in (["a", "a", "a (2)"], ["", ""], ["x"] * 5):
        assert len(set(distinct(names))) == len(names)


def test_features_and_values_read_like_words() -> None:
    assert [feature_words(name) for name in ("embedding", "score yes", "prevalence yes", "native_px")] == [
        "image embedding",
        "score for yes",
        "share labelled yes",
        "native_px",
    ]
    assert [value_words("age", value) for value in ("> 62", "≤ 38", "38 to 62")] == [
        "age > 62",
        "age ≤ 38",
        "age = 38 to 62",
    ]


def test_everything_that_can_come_has_a_word() -> None:
    assert set(KIND_WORDS) == set(DriftKind)
    assert set(VERDICT_WORDS) == set(Verdict)
    assert set(METRIC_MEANINGS) == set(METRIC_WORDS)
    assert {str(reason) for reason in Reason} <= set(REASON_WORDS)
    assert set(DETECTORS) <= set(DETECTOR_WORDS)
    assert set(EVENT_SENTENCES) <= set(EVENT_WORDS)


# --- what is wrong today


def test_headline_counts_the_windows_of_one_verdict() -> None:
    assert tell_headline(REPORTS[:1]) == "Nothing unusual. No drift since 30 March 2026, in the newest window."
    assert tell_headline(REPORTS[:4]) == "Nothing unusual. No drift since 13 April 2026: for 2 windows in a row."
    assert tell_headline(REPORTS[:5]) == (
        "Something changed. Drift since 27 April 2026: this is the first window of it."
    )
    assert tell_headline(REPORTS[:7]) == "Something changed. Drift since 27 April 2026: for 3 windows in a row."
    assert tell_headline(REPORTS[:2]) == ("The newest window holds too little data to judge. That is not an all-clear.")


def test_since_when_tells_what_was_before() -> None:
    assert tell_since_when(REPORTS[:6]) == "Drift since 27 April 2026, 2 windows so far. Before that: no drift."
    assert tell_since_when(REPORTS[:1]) == (
        "No drift since 30 March 2026, 1 window so far. Nothing was watched before."
    )


def test_change_names_the_kinds_in_words() -> None:
    assert tell_change(REPORTS[4]) == (
        "Changed: how images look (image embedding), how images are taken (source), "
        "how the model answers (score for yes, uncertainty)."
    )
    assert tell_change(REPORTS[0]) == REPORTS[0].reason
    assert tell_change(REPORTS[1]) == REPORTS[1].reason


def test_for_whom_names_the_subgroup_or_else_where_the_change_sits() -> None:
    assert tell_for_whom(REPORTS[4]) == "The gap to everyone else changed for age 65+ (sensitivity)."
    quiet = tuple(gap for gap in REPORTS[4].gaps if gap.verdict is Verdict.NO_DRIFT)
    assert tell_for_whom(replace(REPORTS[4], gaps=quiet)) == (
        "Mostly studies with source = large: 8% of the reference, 64% now. No subgroup fell behind beyond chance."
    )
    assert tell_for_whom(replace(REPORTS[4], gaps=(), contributions=())) == (
        "Whether a subgroup fell behind could not be judged."
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "AUROC 0.861, in the reference 0.934: 0.073 worse, beyond chance."),
        ({"low": -0.01}, "AUROC 0.861, in the reference 0.934: 0.073 worse, within chance."),
        ({"low": None}, "AUROC 0.861, in the reference 0.934: 0.073 worse, within chance."),
        (
            {"current": 0.95, "loss": -0.016, "low": -0.02, "high": -0.01},
            "AUROC 0.950, in the reference 0.934: 0.016 better, beyond chance.",
        ),
        ({"current": 0.934, "loss": 0.0}, "AUROC 0.934, in the reference 0.934: the same."),
    ],
)
def test_harm_is_told_with_its_certainty(change: dict[str, float | None], said: str) -> None:
    harm = replace(HARM, **change)
    assert tell_how_bad(replace(harm, sure=harm.low is not None and harm.low > 0), None) == said


def test_an_estimate_is_called_one_and_no_figure_is_no_zero() -> None:
    unknown = replace(HARM, current=None, loss=None, low=None, high=None, reason="no study has a label yet")
    estimate = replace(HARM, source=Source.ESTIMATED)
    assert tell_how_bad(unknown, estimate) == (
        "AUROC 0.861, in the reference 0.934: 0.073 worse, beyond chance. That is an estimate: labels are missing."
    )
    assert tell_how_bad(unknown, None) == "The harm cannot be told yet: no study has a label yet."
    assert tell_how_bad(None, None) == "The harm cannot be told yet."


def test_other_losses_are_told_where_they_are_sure_and_measured() -> None:
    harms = [
        replace(HARM, metric="accuracy", loss=0.2),
        replace(HARM, metric="sensitivity", low=-0.1, sure=False),
        replace(HARM, metric="specificity", source=Source.ESTIMATED),
        HARM,
    ]
    assert tell_other_losses(harms, "auroc") == "Surely worse: accuracy by 0.200."
    assert tell_other_losses([], "auroc") == ""


def test_how_sure_counts_comparisons_and_patients() -> None:
    assert tell_how_sure(REPORTS[4], 1) == (
        "6 of 9 comparisons differ beyond chance. Of a year of quiet windows about 1 may be called drift. "
        "74 patients, 92 of 92 studies labelled."
    )
    assert tell_how_sure(REPORTS[1], 1) == (
        "Not at all: no comparison could be made. 9 patients, 11 of 11 studies labelled."
    )


def test_gaps_are_told_with_both_sides() -> None:
    gap = next(gap for gap in REPORTS[4].gaps if gap.verdict is Verdict.DRIFT)
    gap = replace(gap, reference_gap=0.01, gap=-0.2)
    assert tell_gap(gap) == (
        "Sensitivity of age 65+ fell against everyone else's by 0.210 since the reference "
        "(from +0.010 to -0.200), beyond chance."
    )
    small = replace(gap, reason="reference: outside: 6 labelled studies, 20 are needed")
    assert tell_unjudged(small) == "in the reference, outside it 6 labelled studies, 20 are needed"


# --- what is proposed, and what happens if I sign


def test_a_plan_is_named_by_what_it_proposes_and_for_when() -> None:
    assert name_plan(plan_of()) == "Update the adapter for 27 Apr – 17 May 2026, against version 1"
    watch = replace(plan_of(), treatment=Treatment.WATCH_LONGER, windows=())
    assert name_plan(watch) == "Watch longer, against version 1"


def test_the_evidence_is_told_window_by_window() -> None:
    lines = ("2026-04-27/2026-05-04 mmd embedding", "2026-04-27/2026-05-04 ks score yes")
    lines += ("2026-05-04/2026-05-11 realised loss accuracy yes", "something else")
    assert tell_evidence(replace(plan_of(), evidence=lines)) == [
        "27 Apr – 3 May 2026: image embedding (MMD); score for yes (KS)",
        "4 – 10 May 2026: measured with labels, accuracy of yes is worse",
        "something: else",
    ]


def test_a_proposal_against_an_older_champion_is_none() -> None:
    plan, decision = plan_of(), decide(RUN, old=-0.001, new=0.075)
    assert tell_proposal([plan], [], "1") == "Update the adapter, proposed by emma.engineer."
    assert tell_proposal([plan], [decision], "1") == (
        "Update the adapter, proposed by emma.engineer. The gate judged 1 adapter: 1 passed."
    )
    assert tell_proposal([plan], [decision], "2") == tell_proposal([], [], "1") == "Nothing is proposed."


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "went from 0.852 to 0.927 on the new, and lost 0.001 on what was known before (AUROC)."),
        (
            {"forgetting": -0.01},
            "went from 0.852 to 0.927 on the new, and lost nothing on what was known before (AUROC).",
        ),
        ({"forgetting": None}, "went from 0.852 to 0.927 on the new; what it forgot could not be measured."),
        (
            {"matrix": ((0.9, 0.8), (0.9, None))},
            "could not be compared on the new, and lost 0.001 on what was known before (AUROC).",
        ),
    ],
)
def test_a_run_is_told_by_what_it_gained_and_lost(change: dict[str, object], said: str) -> None:
    name = "Replay (rehearses older studies while it learns the new ones)"
    assert tell_run(replace(RUN, **change)) == f"{name} {said}"  # type: ignore[arg-type]


def test_a_failed_run_touched_nothing() -> None:
    failed = replace(RUN, state=RunState.FAILED, strategy="ewc", reason="out of memory")
    assert tell_run(failed) == "EWC did not finish: out of memory. The champion was not touched."


def test_a_stopped_run_can_be_resumed() -> None:
    stopped = replace(RUN, state=RunState.STOPPED, strategy="ewc", reason="the disk is full")
    assert tell_run(stopped) == "EWC was stopped and can be resumed: the disk is full. The champion was not touched."


def test_the_consequence_names_both_answers() -> None:
    told = tell_consequence(decide(RUN, old=0, new=0.1))
    assert "If you approve" in told
    assert "If you refuse" in told
    assert "version 1 stays" in told


# --- what came in, and what happened


def test_arrivals_count_rows_and_reasons() -> None:
    batch = BatchSummary(
        batch_id=1,
        model=MODEL,
        source="week.csv",
        content_sha256="",
        at=WEEKS[0].end,
        received=1200,
        accepted=1100,
        duplicate=98,
        conflict=0,
        quarantined=2,
    )
    bad = [QuarantinedRow(line=i, reason=reason, detail="", content="") for i, reason in enumerate(("bad_time", "odd"))]
    assert tell_arrivals([batch], bad) == (
        "1,200 rows in 1 export, 1,100 accepted, 98 known already, 2 in quarantine: time cannot be read (1), odd (1)."
    )
    assert tell_arrivals([], []) == "No export has been read yet."
    assert tell_arrivals([batch], []).endswith("None is in quarantine.")
    late = replace(batch, accepted=0, labelled=1100)
    assert "0 accepted, 1,100 brought labels later, 98 known already" in tell_arrivals([late], bad)


@pytest.mark.parametrize(
    ("kind", "subject", "payload", "said"),
    [
        (
            "window.watched",
            "2026-04-27/2026-05-04",
            {"verdict": "DRIFT", "studies": 92},
            "27 Apr – 3 May 2026: drift, 92 studies",
        ),
        (
            "adapter.trained",
            "plan-0a-ewc-0",
            {"state": "FINISHED", "forgetting": 0.0242},
            "EWC of plan-0a learned and forgot 0.024",
        ),
        (
            "adapter.trained",
            "plan-0a-naive-0",
            {"state": "FINISHED", "forgetting": None},
            "Naive of plan-0a learned; what it forgot was not measured",
        ),
        ("adapter.trained", "plan-0a-replay-0", {"state": "FAILED"}, "Replay of plan-0a did not finish"),
        ("rows.quarantined", "week.csv", {"reasons": {"bad_row": 2}}, "week.csv: row cannot be read (2)"),
        ("ingest.finished", "week.csv", {"accepted": 12, "received": 13}, "week.csv: 12 of 13 rows accepted"),
        ("labels.added", "truth.csv", {"batch": 2, "labelled": 31}, "truth.csv: 31 studies"),
        ("plan.made", "plan-0a", {"treatment": "watch longer", "reason": "Once."}, "Watch longer. Once."),
        ("gate.decided", "gate-0a", {"promote": False}, "gate-0a: refused"),
        ("gate.decided", "gate-0a", {"promote": True}, "gate-0a: passed, a person may sign"),
        ("decision.signed", "gate-0a", {"approved": True, "meaning": "Read."}, "Approved gate-0a: Read."),
        ("champion.moved", "2", {"from": "1", "reason": "better"}, "From version 1 to 2: better"),
        ("champion.moved", "1", {"from": None, "reason": "was live"}, "Version 1 is the first: was live"),
        ("held_out.looked_at", "old", {"run": "plan-0a-ewc-0"}, "old, to judge EWC of plan-0a"),
        ("user.added", "quinn", {"role": "clinician"}, "quinn, clinician"),
        ("something.new", "what it is about", {}, "what it is about"),
    ],
)
def test_events_are_sentences(kind: str, subject: str, payload: dict[str, object], said: str) -> None:
    event = Event(
        seq=1,
        at=WEEKS[0].start,
        actor="emma",
        kind=kind,
        model=MODEL,
        subject=subject,
        payload=json.dumps(payload),
        previous="",
        digest="",
    )
    assert tell_event(event) == said


@pytest.mark.parametrize("kind", sorted(EVENT_WORDS))
def test_an_event_with_an_empty_payload_is_told_all_the_same(kind: str) -> None:
    event = Event(
        seq=1, at=WEEKS[0].start, actor="", kind=kind, model="", subject="s", payload="{}", previous="", digest=""
    )
    assert tell_event(event)


def test_moves_of_the_champion_read_as_history() -> None:
    move = ChampionRecord(
        model=MODEL,
        number=2,
        version="2",
        adapter_sha256="",
        decision_id="",
        kind="promote",
        actor="quinn",
        reason="approved by quinn",
        since=datetime(2026, 5, 18, 9, tzinfo=UTC),
    )
    assert tell_move(move) == "18 May 2026: version 2 promoted by quinn. Approved by quinn"
    back = replace(move, kind="rollback", version="1", since=move.since + timedelta(days=1), reason="reads badly")
    assert tell_move(back) == "19 May 2026: rolled back to version 1 by quinn. Reads badly"
