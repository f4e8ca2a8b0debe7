"""Planning: the smallest treatment that the evidence carries, and the evidence named."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from continual.ladder import AtHand
from continual.planning import plan_adaptation
from continual.plans import AdaptationPlan
from continual.policies import AdaptationPolicy, Treatment
from monitor.cohorts import Window
from monitor.results import DriftKind, DriftResult, Harm, Source, Verdict, WindowReport

POLICY = AdaptationPolicy(drifted_windows=2, minimum_labels=60)
START = datetime(2026, 4, 6, tzinfo=UTC)
D, N, U = Verdict.DRIFT, Verdict.NO_DRIFT, Verdict.NOT_ENOUGH_DATA


def week(number: int) -> Window:
    return Window(start=START + number * timedelta(days=7), end=START + (number + 1) * timedelta(days=7))


def harm(number: int, low: float | None, *, source: Source = Source.REALISED, metric: str = "auroc") -> Harm:
    loss, high = (None, None) if low is None else (low + 0.05, low + 0.1)
    return Harm(
        window=week(number),
        metric=metric,
        finding="tumour",
        source=source,
        reference=0.95,
        current=None if loss is None else 0.95 - loss,
        loss=loss,
        low=low,
        high=high,
        level=0.95,
        sure=low is not None and low > 0,
        n=100,
        reason="",
    )


def report(number: int, verdict: Verdict, *harms: Harm, model: str = "mri") -> WindowReport:
    drifted = verdict is D
    result = DriftResult(
        window=week(number),
        detector="mmd",
        kind=DriftKind.APPEARANCE,
        feature="embeddings",
        verdict=verdict,
        statistic=None if verdict is U else 0.4,
        effect=None if verdict is U else 0.6 * drifted,
        effect_name="mmd",
        p_value=None if verdict is U else 0.001 if drifted else 0.6,
        threshold=0.005,
        n_reference=300,
        n_current=100,
        patients_reference=150,
        patients_current=50,
        reason="",
    )
    return WindowReport(
        model=model,
        window=week(number),
        verdict=verdict,
        reason="",
        n=100,
        patients=50,
        n_labelled=80,
        results=(result,),
        evaluations=(),
        gaps=(),
        harms=harms,
        contributions=(),
    )


def plan(reports: Sequence[WindowReport], **changes: Any) -> AdaptationPlan | None:
    at_hand = AtHand(labelled=changes.pop("labelled", 100), **changes.pop("at_hand", {}))
    arguments: dict[str, Any] = {"model": "mri", "champion_version": "1", "policy": POLICY, "proposed_by": "emma"}
    return plan_adaptation(reports, at_hand=at_hand, **(arguments | changes))


def sure(reports: Sequence[WindowReport], **changes: Any) -> AdaptationPlan:
    made = plan(reports, **changes)
    assert made is not None
    return made


def test_without_drift_there_is_nothing_to_do() -> None:
    assert plan([]) is None
    assert plan([report(0, N), report(1, N)]) is None
    assert plan([report(0, D), report(1, D), report(2, N)]) is None
    assert plan([report(0, U)]) is None


def test_persistent_drift_with_sure_harm_and_labels_updates_the_adapter() -> None:
    made = sure([report(0, N), report(1, D, harm(1, 0.02)), report(2, D, harm(2, 0.01))])
    assert made.treatment is Treatment.UPDATE_ADAPTER
    assert made.strategies == POLICY.strategies
    assert made.windows == (week(1), week(2))
    assert made.evidence == (
        "2026-04-13/2026-04-20 mmd embeddings",
        "2026-04-20/2026-04-27 mmd embeddings",
        "2026-04-13/2026-04-20 realised loss auroc tumour",
        "2026-04-20/2026-04-27 realised loss auroc tumour",
    )
    assert "2 consecutive windows (2026-04-13 to 2026-04-27)" in made.reason
    assert "Realised auroc for tumour is lower by 0.070 (95% interval 0.020 to 0.120, 100 studies" in made.reason
    assert "Watching longer is not enough" in made.reason
    assert (made.champion_version, made.proposed_by) == ("1", "emma")


def test_one_window_of_drift_is_watched_longer() -> None:
    made = sure([report(0, N), report(1, D, harm(1, 0.02))])
    assert made.treatment is Treatment.WATCH_LONGER
    assert made.strategies == ()
    assert "2 consecutive windows with drift are asked for" in made.reason


def test_drift_without_sure_harm_is_watched_longer() -> None:
    made = sure([report(0, D, harm(0, -0.01)), report(1, D, harm(1, None))])
    assert made.treatment is Treatment.WATCH_LONGER
    assert "no loss of performance is sure" in made.reason
    assert all("loss" not in line for line in made.evidence)


def test_too_few_labels_are_watched_longer() -> None:
    made = sure([report(0, D, harm(0, 0.02)), report(1, D)], labelled=59)
    assert made.treatment is Treatment.WATCH_LONGER
    assert "59 of 60 labels to learn from are there; request 1 more" in made.reason
    assert sure([report(0, D, harm(0, 0.02)), report(1, D)], labelled=60).treatment is Treatment.UPDATE_ADAPTER


def test_an_estimate_counts_only_where_the_truth_is_not_known() -> None:
    estimated = harm(1, 0.03, source=Source.ESTIMATED)
    alone = sure([report(0, D), report(1, D, estimated)])
    assert alone.treatment is Treatment.UPDATE_ADAPTER
    assert "Estimated auroc" in alone.reason
    contradicted = sure([report(0, D), report(1, D, estimated, harm(1, -0.02))])
    assert contradicted.treatment is Treatment.WATCH_LONGER
    unknown = sure([report(0, D), report(1, D, estimated, harm(1, None))])
    assert unknown.treatment is Treatment.UPDATE_ADAPTER


def test_a_window_without_enough_data_neither_breaks_nor_counts() -> None:
    reports = [report(0, D, harm(0, 0.02)), report(1, U), report(2, D)]
    made = sure(reports)
    assert made.treatment is Treatment.UPDATE_ADAPTER
    assert made.windows == (week(0), week(2))
    assert sure([report(0, D, harm(0, 0.02)), report(1, U)]).treatment is Treatment.WATCH_LONGER


def test_another_models_reports_are_not_evidence() -> None:
    assert plan([report(0, D, model="ct"), report(1, D, model="ct")]) is None


verdicts = st.lists(st.sampled_from([D, N, U]), max_size=8)


@given(verdicts, st.randoms(use_true_random=False), st.integers(0, 200))
def test_the_order_of_reports_does_not_matter_and_the_plan_is_stable(
    history: list[Verdict], random: Any, labelled: int
) -> None:
    reports = [report(i, verdict, harm(i, 0.02)) for i, verdict in enumerate(history)]
    shuffled = list(reports)
    random.shuffle(shuffled)
    first, second = plan(reports, labelled=labelled), plan(shuffled, labelled=labelled)
    assert first == second
    if first is not None:
        assert second is not None
        assert first.plan_id == second.plan_id


@given(verdicts, st.integers(0, 200))
def test_more_evidence_never_makes_the_treatment_smaller(history: list[Verdict], labelled: int) -> None:
    reports = [report(i, verdict, harm(i, 0.02)) for i, verdict in enumerate(history)]
    before = plan(reports, labelled=labelled)
    after = plan([*reports, report(len(history), D, harm(len(history), 0.02))], labelled=labelled + 50)
    assert after is not None
    if before is not None and before.treatment is Treatment.UPDATE_ADAPTER:
        assert after.treatment is Treatment.UPDATE_ADAPTER
