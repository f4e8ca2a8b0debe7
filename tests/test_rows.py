"""Rows: whatever is stored comes back as it was, through a real SQLite database."""

import types
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from datetime import UTC, datetime, timedelta, timezone
from enum import Enum
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import DateTime, create_engine
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session, SQLModel, select

from continual.plans import AdaptationPlan, AdaptationRun
from continual.worklists import LabelPolicy, Worklist
from monitor.cohorts import Prediction, Window
from monitor.results import DriftResult, WindowReport
from registry.audit import Event
from registry.decisions import GateCheck, GateDecision, GatePolicy, Signature
from registry.entries import BatchSummary, ChampionRecord, Look, QuarantinedRow, StudyReading, User
from registry.held_out import HeldOutCohort, digest_of
from registry.rows import (
    BatchRow,
    ChampionRow,
    DecisionRow,
    DriftResultRow,
    EventRow,
    HeldOutRow,
    LookRow,
    PlanRow,
    PredictionRow,
    QuarantineRow,
    ReadingRow,
    ReportRow,
    RunRow,
    SignatureRow,
    UserRow,
    UtcTime,
    WorklistRow,
    prediction_content,
)

AT = datetime(2026, 3, 30, 6, tzinfo=UTC)
ENGINE = create_engine("sqlite://")
SQLModel.metadata.create_all(ENGINE)

zones = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
moments = st.datetimes(datetime(1970, 1, 2), datetime(9999, 12, 30), timezones=zones)
windows = st.tuples(moments, st.timedeltas(timedelta(microseconds=1), timedelta(days=400))).map(
    lambda drawn: Window(
        start=(start := min(drawn[0].astimezone(UTC), datetime(9998, 1, 1, tzinfo=UTC))), end=start + drawn[1]
    )
)
SIMPLE: dict[Any, st.SearchStrategy[Any]] = {
    float: st.floats(allow_nan=False, allow_infinity=False),
    int: st.integers(-(2**63), 2**63 - 1),
    str: st.text(max_size=12),
    bool: st.booleans(),
    type(None): st.none(),
    datetime: moments,
    Window: windows,
    LabelPolicy: st.builds(LabelPolicy, random_share=st.floats(0, 0.9), subgroups=st.just(("sex",))),
    GatePolicy: st.builds(GatePolicy, margin=st.floats(1e-6, 1), seed=st.integers(0, 9)),
}


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Draw any value of a type of ours, from its annotations."""
    if kind in SIMPLE:
        return SIMPLE[kind]
    if get_origin(kind) is tuple:
        first, *rest = get_args(kind)
        if rest == [...]:
            return st.lists(values(first), max_size=2).map(tuple)
        return st.tuples(values(first), *map(values, rest))
    if get_origin(kind) is types.UnionType:
        return st.one_of([values(option) for option in get_args(kind)])
    if issubclass(kind, Enum):
        return st.sampled_from(kind)
    assert is_dataclass(kind)
    hints = get_type_hints(kind)
    return st.builds(kind, **{field.name: values(hints[field.name]) for field in fields(kind)})


def count(value: DriftResult) -> DriftResult:
    """Give a comparison its counts: only where results are shown some may be taken away, never where they are kept."""
    names = ("n_reference", "n_current", "patients_reference", "patients_current")
    return replace(value, **{name: getattr(value, name) or 0 for name in names})


def stored(row: Any) -> Any:
    """Write a row, forget it, read it."""
    with Session(ENGINE) as session:
        session.add(row)
        session.flush()
        session.expunge_all()
        return session.exec(select(type(row))).one().value()


def held_out(name: str, kind: str, manifest: tuple[str, ...]) -> HeldOutCohort:
    return HeldOutCohort(name=name, kind=kind, manifest=manifest, digest=digest_of(manifest))


def summary(parts: list[int], **more: Any) -> BatchSummary:
    names = ("accepted", "labelled", "duplicate", "conflict", "quarantined")
    return BatchSummary(received=sum(parts), **dict(zip(names, parts, strict=True)), **more)


def batch_row(value: BatchSummary) -> BatchRow:
    columns = {field.name: getattr(value, field.name) for field in fields(value) if field.name != "batch_id"}
    return BatchRow(id=value.batch_id, **columns)


text, ids = st.text(min_size=1, max_size=12), st.integers(1, 2**40)
predictions = st.builds(
    Prediction,
    model=text,
    model_version=st.text(max_size=5),
    study_uid=text,
    patient_key=text,
    produced_at=moments,
    scores=st.lists(SIMPLE[float], max_size=4).map(tuple),
    labels=st.just(()),  # the truth stands in rows of its own
    attributes=st.dictionaries(text, st.text(max_size=5) | SIMPLE[float] | st.none(), max_size=3),
    image=st.text(max_size=12),
    image_sha256=st.text(max_size=12),
)
summaries = st.builds(
    summary,
    st.lists(st.integers(0, 2**40), min_size=5, max_size=5),
    batch_id=ids,
    model=text,
    source=text,
    content_sha256=text,
    at=moments,
)
KINDS: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], Any]]] = {
    "prediction": (predictions, lambda value: PredictionRow.of(value, batch_id=1)),
    "drift result": (values(DriftResult).map(count), lambda value: DriftResultRow.of(value, report_id=1)),
    "report": (values(WindowReport), lambda value: ReportRow.of(value, AT)),
    "plan": (values(AdaptationPlan), lambda value: PlanRow.of(value, AT)),
    "run": (values(AdaptationRun), lambda value: RunRow.of(value, AT)),
    "decision": (values(GateDecision), lambda value: DecisionRow.of(value, AT)),
    "signature": (values(Signature), SignatureRow.of),
    "user": (values(User), UserRow.of),
    "champion": (
        st.tuples(values(ChampionRecord), st.sampled_from(["first", "promote", "rollback"])).map(
            lambda drawn: replace(drawn[0], kind=drawn[1])
        ),
        ChampionRow.of,
    ),
    "worklist": (values(Worklist), lambda value: WorklistRow.of(value, AT)),
    "reading": (values(StudyReading), lambda value: ReadingRow.of(value, batch_id=1, at=AT)),
    "look": (values(Look), LookRow.of),
    "event": (values(Event), EventRow.of),
    "held-out cohort": (
        st.builds(held_out, text, st.sampled_from(["old", "new"]), st.lists(text, max_size=3).map(tuple)),
        lambda value: HeldOutRow.of("m", value, AT),
    ),
    "quarantined row": (
        values(QuarantinedRow),
        lambda value: QuarantineRow(
            batch_id=1, model="m", at=AT, **{field.name: getattr(value, field.name) for field in fields(value)}
        ),
    ),
    "batch": (summaries, batch_row),
}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_what_is_stored_comes_back_as_it_was(kind: str, data: st.DataObject) -> None:
    strategy, row_of = KINDS[kind]
    value = data.draw(strategy)
    assert stored(row_of(value)) == value


@given(values(GateDecision))
def test_a_decision_that_comes_back_has_the_digest_that_was_signed(decision: GateDecision) -> None:
    back = stored(DecisionRow.of(decision, AT))
    assert (back.digest, back.decision_id) == (decision.digest, decision.decision_id)


@pytest.mark.parametrize("figure", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", ["report", "run", "decision"])
def test_a_figure_that_is_not_finite_is_refused(kind: str, figure: float) -> None:
    made: dict[str, Callable[[float], Any]] = {
        "report": lambda x: ReportRow.of(replace(REPORT, results=(replace(RESULT, effect=x),)), AT),
        "run": lambda x: RunRow.of(replace(RUN, losses=(0.5, x)), AT),
        "decision": lambda x: DecisionRow.of(replace(DECISION, checks=(replace(CHECK, low=x),)), AT),
    }
    assert made[kind](0.5) is not None
    with pytest.raises(ValueError, match="not JSON compliant"):
        made[kind](figure)


def example(kind: Any) -> Any:
    """Build one plain value of a type of ours."""
    plain: dict[Any, Any] = {float: 0.5, int: 1, str: "x", bool: True, datetime: AT, GatePolicy: GatePolicy()}
    plain[Window] = Window(start=AT, end=AT + timedelta(days=7))
    if kind in plain:
        return plain[kind]
    if get_origin(kind) is tuple:
        return ()
    if get_origin(kind) is types.UnionType:
        return None
    if issubclass(kind, Enum):
        return next(iter(kind))
    hints = get_type_hints(kind)
    return kind(**{field.name: example(hints[field.name]) for field in fields(kind)})


RESULT, REPORT, RUN = example(DriftResult), example(WindowReport), example(AdaptationRun)
DECISION, CHECK = example(GateDecision), example(GateCheck)


def test_the_same_prediction_from_another_folder_says_the_same_and_other_content_does_not() -> None:
    plain: dict[str, Any] = {"model": "m", "study_uid": "s", "patient_key": "p", "produced_at": AT}
    one = Prediction(**plain, scores=(0.5,), labels=(1,), attributes={"a": 1.0, "b": "x"}, image="a/1.png")
    moved = one.model_copy(update={"image": "b/1.png", "attributes": {"b": "x", "a": 1.0}})
    assert prediction_content(moved) == prediction_content(one)
    untold = one.model_copy(update={"labels": (None,), "labelled_at": None})
    assert prediction_content(untold) == prediction_content(one)
    for change in (
        {"scores": (0.25,)},
        {"patient_key": "q"},
        {"attributes": {"a": 1.0}},
        {"image_sha256": "1"},
    ):
        assert prediction_content(one.model_copy(update=change)) != prediction_content(one)


# ---- moments


@given(moments)
def test_moments_come_back_in_utc_on_both_engines(moment: datetime) -> None:
    for dialect in (sqlite.dialect(), postgresql.dialect()):
        column = UtcTime()
        back = column.process_result_value(column.process_bind_param(moment, dialect), dialect)
        assert back == moment
        assert back is not None
        assert back.utcoffset() == timedelta(0)


def test_a_naive_moment_is_refused_and_none_stays_none() -> None:
    column, dialect = UtcTime(), sqlite.dialect()
    with pytest.raises(ValueError, match="time zone"):
        column.process_bind_param(datetime(2026, 1, 1), dialect)
    assert column.process_bind_param(None, dialect) is None
    assert column.process_result_value(None, dialect) is None


def test_no_table_has_a_column_of_moments_that_forgets_the_time_zone() -> None:
    columns = [column for table in SQLModel.metadata.tables.values() for column in table.columns]
    assert not [column for column in columns if isinstance(column.type, DateTime)]
    assert [column for column in columns if isinstance(column.type, UtcTime)]
