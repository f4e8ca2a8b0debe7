"""A small hospital's records, told as a story: quiet weeks, a new source, a proposal, and whatever the test adds.

Built only through ``registry.records``, so that pages are tested over what the product really stores.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pandas as pd
import pytest
from argon2 import PasswordHasher
from PIL import Image

from continual.kept import Change, Figure, Flips, KeptAndLost, LearningTriple, Reliability, TaskMatrix
from continual.plans import AdaptationPlan, AdaptationRun, RunState
from continual.policies import Treatment
from monitor.cohorts import Prediction, Window
from monitor.reliability import ReliabilityBin
from monitor.results import (
    Contribution,
    DriftKind,
    DriftResult,
    Harm,
    Source,
    SubgroupGap,
    Verdict,
    WindowReport,
)
from registry.decisions import GateCheck, GateDecision, GatePolicy
from registry.entries import ChampionRecord, QuarantinedRow
from registry.records import Records, open_records
from registry.settings import FILE_NAME, ModelSettings

# no test may fail because a machine is busy
hypothesis.settings.register_profile(
    "untimed",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize=bool(os.environ.get("CI")),
)
hypothesis.settings.load_profile("untimed")

MODEL, EMPTY_MODEL = "tumour-on-mri", "wrist-fracture"
ENGINEER, OFFICER, PASSWORD = "emma.engineer", "quinn.quality", "correct horse battery"
REFERENCE = Window(start=datetime(2026, 1, 5, tzinfo=UTC), end=datetime(2026, 3, 30, tzinfo=UTC))
WEEK = timedelta(days=7)
WEEKS = [Window(start=REFERENCE.end + i * WEEK, end=REFERENCE.end + (i + 1) * WEEK) for i in range(10)]
DRIFTED_WEEKS, THIN_WEEK, UNLABELLED_WEEK = (4, 5, 6), 1, 6
ADAPTERS = {"first": "a1" * 32, "naive": "b2" * 32, "replay": "c3" * 32, "ewc": "d4" * 32}

SETTINGS = f"""
[models.{MODEL}]
classes = ["no", "yes"]
attributes = ["source", "sex", "age"]
numeric_attributes = ["age"]
reference = "{REFERENCE.key}"

[models.{EMPTY_MODEL}]
classes = ["no", "yes"]
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hospital:
    """Where the story is kept, and the records to go on telling it."""

    directory: Path
    records: Records

    def decision(self, strategy: str) -> GateDecision:
        """Give the gate's decision on a strategy."""
        return next(d for d in self.records.decisions(MODEL) if d.run_id.endswith(f"{strategy}-0"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Tell where a store may lie."""
    return tmp_path / "wardround.db"


@pytest.fixture
def tell_story(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Hospital]:
    """Return a function that tells the first weeks of the story in an empty store, and points the dashboard at it."""

    def tell(weeks: int) -> Hospital:
        hospital = build_story(tmp_path / "ward", weeks)
        monkeypatch.setenv("WARDROUND_DIR", str(hospital.directory))
        return hospital

    return tell


@pytest.fixture
def empty_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hospital:
    """Give a store with models and people in which nothing has happened yet."""
    hospital = open_hospital(tmp_path / "ward")
    monkeypatch.setenv("WARDROUND_DIR", str(hospital.directory))
    return hospital


def open_hospital(directory: Path) -> Hospital:
    directory.mkdir(parents=True)
    (directory / FILE_NAME).write_text(SETTINGS, encoding="utf-8")
    records = open_records(f"sqlite:///{directory / 'wardround.db'}")
    attributes: tuple[str, ...] = ("source", "sex", "age")
    known = ModelSettings(attributes=attributes, numeric_attributes=("age",), reference=REFERENCE.key)
    records.register_model(MODEL, known, REFERENCE.start)
    records.register_model(EMPTY_MODEL, ModelSettings(), REFERENCE.start)
    cheap = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    for name, role in ((ENGINEER, "engineer"), (OFFICER, "quality officer")):
        records.add_user(name, role, cheap.hash(PASSWORD), REFERENCE.start)
    return Hospital(directory=directory, records=records)


def build_story(directory: Path, weeks: int) -> Hospital:
    """Tell ``weeks`` weeks; from the seventh on the gate has judged three adapters."""
    hospital = open_hospital(directory)
    records = hospital.records
    first = _champion(version="1", kind="first", sha256=ADAPTERS["first"], since=REFERENCE.start, actor=ENGINEER)
    records.move_champion(first, expected=None)
    for number, window in enumerate(WEEKS[:weeks]):
        _ingest(records, window, number)
        records.save_report(report_of(window, number), window.end + timedelta(hours=6))
    if weeks > max(DRIFTED_WEEKS):
        _treat(records, WEEKS[max(DRIFTED_WEEKS)].end + timedelta(hours=7))
    return hospital


def report_of(window: Window, number: int) -> WindowReport:
    """Tell one week: 4 to 6 have another source, 1 has hardly any patients, 6 has no labels yet."""
    drifted, thin = number in DRIFTED_WEEKS, number == THIN_WEEK
    generator = np.random.default_rng(number)
    results = tuple(_result(window, generator, drifted=drifted, thin=thin, row=row) for row in COMPARISONS)
    verdict = Verdict.DRIFT if drifted else Verdict.NOT_ENOUGH_DATA if thin else Verdict.NO_DRIFT
    patients = 9 if thin else 70 + number
    reasons = {
        Verdict.DRIFT: "Changed: appearance, acquisition, behaviour (embedding, source, score yes). AUROC 0.861 "
        "against 0.934 in the reference, surely worse. Most of it sits in source = large: "
        "8% of the reference, 64% now.",
        Verdict.NO_DRIFT: f"Nothing in {patients + 18} studies of {patients} patients differs from the reference "
        "beyond chance.",
        Verdict.NOT_ENOUGH_DATA: "11 studies of 9 patients are too few to judge: 9 patients in the window, 20 needed.",
    }
    return WindowReport(
        model=MODEL,
        window=window,
        verdict=verdict,
        reason=reasons[verdict],
        n=11 if thin else patients + 18,
        patients=patients,
        n_labelled=0 if number == UNLABELLED_WEEK else 11 if thin else patients + 18,
        results=results,
        evaluations=(),
        gaps=_gaps(window, generator, drifted=drifted, thin=thin),
        harms=_harms(window, generator, number),
        contributions=_contributions(window, drifted),
    )


COMPARISONS = (
    ("mmd", DriftKind.APPEARANCE, "embedding", "standardised distance", 0.62),
    ("alibi_lsdd", DriftKind.APPEARANCE, "embedding", "LSDD ratio", 0.41),
    ("alibi_classifier", DriftKind.APPEARANCE, "embedding", "AUROC above chance", 0.71),
    ("ks", DriftKind.BEHAVIOUR, "score yes", "KS distance", 0.33),
    ("ks", DriftKind.BEHAVIOUR, "uncertainty", "KS distance", 0.27),
    ("chi_square", DriftKind.ACQUISITION, "source", "Cramér's V", 0.57),
    ("chi_square", DriftKind.CASE_MIX, "sex", "Cramér's V", 0.05),
    ("ks", DriftKind.CASE_MIX, "age", "KS distance", 0.09),
    ("chi_square", DriftKind.CASE_MIX, "prevalence yes", "Cramér's V", 0.04),
)


def _result(
    window: Window,
    generator: np.random.Generator,
    *,
    drifted: bool,
    thin: bool,
    row: tuple[str, DriftKind, str, str, float],
) -> DriftResult:
    detector, kind, feature, effect_name, strong = row
    moved = drifted and strong > 0.2
    effect = strong * generator.uniform(0.9, 1.1) if moved else generator.uniform(0.01, 0.09)
    p_value = 0.0002 if moved else float(generator.uniform(0.05, 0.95))
    return DriftResult(
        window=window,
        detector=detector,
        kind=kind,
        feature=feature,
        verdict=Verdict.NOT_ENOUGH_DATA if thin else Verdict.DRIFT if moved else Verdict.NO_DRIFT,
        statistic=None if thin else effect * 1.7,
        effect=None if thin else effect,
        effect_name="" if thin else effect_name,
        p_value=None if thin else p_value,
        threshold=0.01 if thin else 0.01 / 9,
        n_reference=410,
        n_current=88,
        patients_reference=212,
        patients_current=9 if thin else 70,
        reason="9 patients in the window, 20 needed" if thin else f"{effect_name} {effect:.3f}, p = {p_value:.2g}",
    )


def _harms(window: Window, generator: np.random.Generator, number: int) -> tuple[Harm, ...]:
    harms = []
    for source in Source:
        for metric, before, worse in (("auroc", 0.934, 0.861), ("sensitivity", 0.88, 0.71), ("specificity", 0.9, 0.88)):
            labels = number != UNLABELLED_WEEK or source is Source.ESTIMATED
            known = labels and number != THIN_WEEK
            now = (worse if number in DRIFTED_WEEKS else before) + float(generator.uniform(-0.012, 0.012))
            if source is Source.ESTIMATED:
                now = (now + before) / 2
            reason = "" if known else "9 labelled patients, 20 are needed" if labels else "no study has a label yet"
            harms.append(
                Harm(
                    window=window,
                    metric=metric,
                    finding="yes",
                    source=source,
                    reference=before,
                    current=now if known else None,
                    loss=before - now if known else None,
                    low=before - now - 0.035 if known else None,
                    high=before - now + 0.035 if known else None,
                    level=0.95,
                    sure=known and before - now > 0.035,
                    n=88,
                    reason=reason,
                    current_low=now - 0.03 if known else None,
                    current_high=min(now + 0.03, 1.0) if known else None,
                    current_error=0.015 if known else None,
                )
            )
    return tuple(harms)


def _gaps(window: Window, generator: np.random.Generator, *, drifted: bool, thin: bool) -> tuple[SubgroupGap, ...]:
    groups = [("sex", "F"), ("sex", "M"), ("age", "18-39"), ("age", "40-64"), ("age", "65+"), ("source", "large")]
    gaps = []
    for metric in ("auroc", "sensitivity", "specificity", "selection_rate"):
        for attribute, value in groups:
            judged = not thin and (drifted or value != "large")
            moved = drifted and metric == "sensitivity" and value == "65+"
            before = float(generator.uniform(-0.03, 0.03))
            change = -0.21 if moved else float(generator.uniform(-0.04, 0.04))
            only_now = value == "large"
            verdict = Verdict.DRIFT if moved else Verdict.NO_DRIFT
            small = (
                "inside: 11 labelled studies, 20 are needed" if not judged else "reference: inside: 6 labelled studies"
            )
            unknown = not judged or only_now
            gaps.append(
                SubgroupGap(
                    window=window,
                    attribute=attribute,
                    value=value,
                    metric=metric,
                    finding="yes",
                    n=11 if not judged else 31,
                    patients=9 if not judged else 26,
                    inside=0.8 + before if judged else None,
                    outside=0.8 if judged else None,
                    gap=before + change if judged else None,
                    low=before + change - 0.08 if judged else None,
                    high=before + change + 0.08 if judged else None,
                    reference_gap=None if unknown else before,
                    change=None if unknown else change,
                    change_low=None if unknown else change - 0.1,
                    change_high=None if unknown else change + 0.1,
                    level=0.95,
                    verdict=Verdict.NOT_ENOUGH_DATA if unknown else verdict,
                    reason=small
                    if unknown
                    else "sensitivity of age 65+ moved against everyone else's by -0.210 since the reference, "
                    "beyond chance over 15 comparisons"
                    if moved
                    else "no change beyond chance over 15 comparisons",
                )
            )
    return tuple(gaps)


def _contributions(window: Window, drifted: bool) -> tuple[Contribution, ...]:
    rows = [
        ("source", "large", 0.08, 0.64 if drifted else 0.09, 2.1),
        ("source", "small", 0.92, 0.36 if drifted else 0.91, 0.1),
        ("age", "> 62", 0.25, 0.31, 0.3),
        ("age", "≤ 38", 0.25, 0.22, 0.2),
        ("sex", "F", 0.52, 0.49, 0.2),
        ("sex", "M", 0.48, 0.51, 0.2),
    ]
    return tuple(
        Contribution(
            window=window,
            attribute=attribute,
            value=value,
            n_current=round(88 * now),
            share_reference=before,
            share_current=now,
            shift=shift if drifted else 0.0,
            beyond_chance=drifted and abs(now - before) > 0.1,
        )
        for attribute, value, before, now, shift in rows
    )


def _ingest(records: Records, window: Window, number: int) -> None:
    batch = records.begin_batch(MODEL, f"week-{number + 1:02d}.csv", f"{number:064x}", window.end)
    predictions = [
        Prediction(
            model=MODEL,
            model_version="1",
            study_uid=f"study-{number}-{i}",
            patient_key=f"patient-{number}-{i // 2}",
            produced_at=window.start + timedelta(hours=i),
            scores=(0.5,),
            labels=(i % 2,),
            attributes={"source": "small", "sex": "F", "age": 50.0},
        )
        for i in range(12)
    ]
    records.add_predictions(batch, predictions, window.end)
    bad = [QuarantinedRow(line=7, reason="not_finite_score", detail="the score is NaN", content="study-x,…,NaN")]
    if number in DRIFTED_WEEKS:
        bad += [
            QuarantinedRow(line=i, reason="image_unreadable", detail="the file ends in the middle", content=f"row {i}")
            for i in (9, 10, 11)
        ]
    records.quarantine(batch, bad, window.end)
    records.finish_batch(batch, window.end)


def plan_of() -> AdaptationPlan:
    return AdaptationPlan(
        model=MODEL,
        windows=tuple(WEEKS[i] for i in DRIFTED_WEEKS),
        treatment=Treatment.UPDATE_ADAPTER,
        strategies=("naive", "replay", "ewc"),
        evidence=tuple(
            f"{WEEKS[i].key} {detector} {feature}"
            for i in DRIFTED_WEEKS
            for detector, feature in (("mmd", "embedding"), ("ks", "score yes"))
        ),
        reason="3 windows in a row drifted and the AUROC is surely worse (-0.073); "
        "watching longer would not bring it back.",
        proposed_by=ENGINEER,
        champion_version="1",
    )


def run_of(plan: AdaptationPlan, strategy: str, *, old: float, new: float) -> AdaptationRun:
    """Tell a run that ends with these AUROCs on the old and on the new weeks."""
    stages = (REFERENCE.key, f"{plan.windows[0].start.date()}/{plan.windows[-1].end.date()}")
    return AdaptationRun(
        plan_id=plan.plan_id,
        model=MODEL,
        strategy=strategy,
        adapter="lora",
        state=RunState.FINISHED,
        reason="",
        seed=0,
        recipe="abc123",
        backbone_sha256="e5" * 32,
        adapter_sha256=ADAPTERS[strategy],
        trainable_parameters=49_921,
        experiences=stages,
        matrix=((0.934, 0.852), (old, new)),
        forgetting=0.934 - old,
        backward_transfer=old - 0.934,
        forward_transfer=0.352,
        losses=(0.51, 0.38, 0.29, 0.24, 0.21, 0.2),
        memory_studies=0 if strategy == "naive" else 150,
        n_learned=181,
        seconds=41.0,
        kept=kept_of(
            (REFERENCE.key, f"{plan.windows[0].start.date()}/{plan.windows[-1].end.date()}"), old=old, new=new
        ),
    )


def _reliable_bins() -> tuple[ReliabilityBin, ...]:
    return tuple(
        ReliabilityBin(
            finding="yes", said=x, seen=x + 0.04, low=x - 0.06, high=min(x + 0.14, 1.0), studies=24, patients=20
        )
        for x in (0.1, 0.3, 0.5, 0.7, 0.9)
    )


def kept_of(stages: tuple[str, ...], *, old: float, new: float) -> KeptAndLost:
    """Tell what was kept where the AUROC goes from 0.934 to ``old`` and from 0.852 to ``new``; one site is small."""
    before, after = (0.934,) * (len(stages) - 1) + (0.852,), (old,) * (len(stages) - 1) + (new,)
    unknown = ((None,) * len(stages),) * (len(stages) - 2)

    def figure(value: float, reach: float = 0.016) -> Figure:
        return Figure(value=value, low=value - reach, high=value + reach)

    def change(place: int, metric: str, name: tuple[str, str], shift: float) -> Change:
        hidden = name[1] == "clinic"
        was, moved = (before[place], after[place] - before[place] + shift)
        if metric in ("brier", "ece_debiased"):
            was, moved = (1 - was) / 2, -moved / 2
        figures = (None,) * 5 if hidden else (was, was + moved, moved, moved - 0.016, moved + 0.016)
        return Change(
            **dict(zip(("champion", "challenger", "difference", "low", "high"), figures, strict=True)),
            **{"stage": stages[place], "metric": metric, "finding": "", "attribute": name[0], "value": name[1]},
            studies=None if hidden else 120,
            patients=None if hidden else 80,
            suppressed=hidden,
            reason="suppressed: fewer than 5 patients" if hidden else "",
        )

    def turned(place: int, name: tuple[str, str]) -> Flips:
        lost, won = (max(0.0, sign * (after[place] - before[place])) + 0.01 for sign in (-1, 1))
        nothing = Figure(value=None, low=None, high=None, reason="suppressed: fewer than 5 patients")
        shares = [nothing] * 2 if name[1] == "clinic" else [figure(lost, 0.009), figure(won, 0.009)]
        named = {"stage": stages[place], "attribute": name[0], "value": name[1]}
        return Flips(
            **named, negative=shares[0], positive=shares[1], studies=120, patients=80, suppressed=name[1] == "clinic"
        )

    bins = _reliable_bins()
    shifts = {("", ""): 0.0, ("sex", "F"): -0.03, ("sex", "M"): 0.03, ("site", "clinic"): 0.0}
    places = range(len(stages))
    metrics = ("auroc", "accuracy", "brier", "ece_debiased")
    rows = (*unknown, before, after)
    return KeptAndLost(
        stages=stages,
        level=0.95,
        matrices=(
            TaskMatrix(
                metric="auroc",
                values=rows,
                low=tuple(tuple(None if one is None else one - 0.02 for one in row) for row in rows),
                high=tuple(tuple(None if one is None else one + 0.02 for one in row) for row in rows),
            ),
        ),
        summaries=(),
        changes=tuple(change(p, m, name, s) for name, s in shifts.items() for p in places for m in metrics),
        flips=tuple(turned(p, name) for name in shifts for p in places),
        reliability=tuple(Reliability(stage=stage, before=bins, after=bins) for stage in stages),
        triple=LearningTriple(
            learning=figure(new - 0.852),
            potential=figure(0.082),
            retention=figure(old),
            retained_before=figure(0.934),
            retention_change=figure(old - 0.934),
        ),
    )


def decide(run: AdaptationRun, *, old: float, new: float) -> GateDecision:
    """Tell a gate decision with these differences of AUROC on the old and on the new cohort."""
    policy = GatePolicy()
    weeks, fresh = run.experiences

    def check(  # noqa: PLR0917
        name: str, cohort: str, metric: str, champion: float | None, difference: float, margin: float, ok: bool
    ) -> GateCheck:
        interval = None if name in ("forgetting",) else 0.016
        told = f"{name} of {metric}" + (f" on {cohort}" if cohort else "")
        return GateCheck(
            name=name,
            cohort=cohort,
            metric=metric,
            champion=champion,
            challenger=None if champion is None else champion + difference,
            difference=difference,
            low=None if interval is None else difference - interval,
            high=None if interval is None else difference + interval,
            margin=margin,
            passed=ok,
            reason=f"{told}: {difference:+.3f} against a limit of {margin:g}, {'within' if ok else 'beyond'} it.",
        )

    forgetting = run.forgetting or 0.0
    checks = (
        check("non-inferiority", weeks, "auroc", 0.931, old, 0.02, old - 0.016 > -0.02),
        check("calibration", weeks, "brier", 0.081, -old / 4, 0.03, True),
        check("subgroup gap", weeks, "auroc gap of sex F", 0.012, 0.011, 0.05, True),
        check("superiority", fresh, "auroc", 0.848, new, 0.0, new - 0.016 > 0),
        check("calibration", fresh, "brier", 0.142, -new / 2, 0.03, True),
        check("forgetting", "", "auroc", None, forgetting, 0.02, forgetting <= 0.02),
    )
    return GateDecision(
        model=MODEL,
        plan_id=run.plan_id,
        run_id=run.run_id,
        champion_version="1",
        adapter_sha256=run.adapter_sha256,
        cohort_digests=((weeks, "11" * 32), (fresh, "22" * 32)),
        promote=all(c.passed for c in checks),
        checks=checks,
        policy=policy,
    )


def _treat(records: Records, at: datetime) -> None:
    plan = plan_of()
    records.save_plan(plan, at)
    figures = {"naive": (0.871, 0.938), "replay": (0.933, 0.927), "ewc": (0.921, 0.902)}
    for minutes, (strategy, (old, new)) in enumerate(figures.items()):
        run = run_of(plan, strategy, old=old, new=new)
        records.save_run(run, at + timedelta(minutes=minutes))
        for cohort in run.experiences:
            records.look_at_held_out(MODEL, cohort, "11" * 32, run.run_id, at + timedelta(minutes=10 + minutes))
        records.save_decision(decide(run, old=old - 0.934, new=new - 0.852), at + timedelta(minutes=10 + minutes))


def _champion(*, version: str, kind: str, sha256: str, since: datetime, actor: str) -> ChampionRecord:
    return ChampionRecord(
        model=MODEL,
        number=0,
        version=version,
        adapter_sha256=sha256,
        decision_id="",
        kind=kind,
        actor=actor,
        reason="the adapter that was live already",
        since=since,
    )


# ---- a small ward that is real: images, features, a trained champion, drift that hurts

SMALL_MODEL = "bright-left"
SMALL_SETTINGS = f"""
[models.{SMALL_MODEL}]
attributes = ["kind", "site"]
window_days = 7
reference = "2026-01-05/2026-02-02"
[models.{SMALL_MODEL}.backbone]
name = "tiny"
source = "random"
image_size = 28
[roles]
learning = 0.4
held_out = 0.3
reference = 0.3
[drift]
alibi_detect = false
evidently = false
permutations = 199
resamples = 100
[adaptation]
strategies = ["naive", "replay"]
drifted_windows = 2
minimum_labels = 20
epochs = 12
learning_rate = 0.003
blocks = 2   # deep enough that training without rehearsal forgets the green images, and the gate refuses it
head_hold = 1e6   # a head that cannot move: most tests are about training the adapter, the last step before people
[adaptation.memory]
studies = 60
[gate]
margin = 0.1
maximum_forgetting = 0.1
maximum_calibration_loss = 0.1
minimum_patients = 12
minimum_each_class = 5
resamples = 200
subgroup_attributes = ["site"]
"""
SMALL_START = datetime(2026, 1, 5, tzinfo=UTC)
SMALL_WEEKS = [Window(start=SMALL_START + (4 + i) * WEEK, end=SMALL_START + (5 + i) * WEEK) for i in range(4)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallWard:
    """A folder with a ward whose history is ingested, and four weeks of exports: two quiet, two of another kind."""

    directory: Path

    @property
    def model(self) -> str:
        return SMALL_MODEL

    @property
    def weeks(self) -> list[Window]:
        return SMALL_WEEKS

    @property
    def ward(self) -> Any:
        from flows.ward import open_ward

        return open_ward(self.directory)

    def export(self, week: int) -> Path:
        return self.directory / "exports" / f"week-{week}.csv"

    def live(self, weeks: int, *, ward: Any = None) -> None:
        """Make the rounds of the first weeks."""
        from flows.rounds import RoundOrder, run_round

        for number, window in enumerate(SMALL_WEEKS[:weeks]):
            order = RoundOrder(model=SMALL_MODEL, exports=(self.export(number),), windows=(window,), proposer=ENGINEER)
            run_round(ward or self.ward, order, at=window.end + timedelta(hours=6))

    def rows(self) -> dict[str, list[dict[str, Any]]]:
        """Every row of every table, without the stop-watch of a training and the hashes that cover it."""
        with closing(sqlite3.connect(self.directory / "wardround.db")) as connection:
            connection.row_factory = sqlite3.Row
            names = [row["name"] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            tables = {name: list(map(dict, connection.execute(f"SELECT * FROM {name}"))) for name in sorted(names)}
        for run in tables["runs"]:
            run["content"] = {**json.loads(run["content"]), "seconds": None}
        for event in tables["events"]:
            del event["digest"], event["previous"]
            if event["kind"] == "adapter.trained":
                event["payload"] = {**json.loads(event["payload"]), "sha256": None}
        tables["meta"] = [row for row in tables["meta"] if row["key"] != "head"]
        return tables


@pytest.fixture(scope="session")
def small_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the small ward once."""
    return build_small_ward(tmp_path_factory.mktemp("small") / "ward")


@pytest.fixture(scope="session")
def small_treated_home(small_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Live the four weeks once: two adapters are trained and judged."""
    home = Path(shutil.copytree(small_home, tmp_path_factory.mktemp("treated") / "ward"))
    SmallWard(directory=home).live(4)
    return home


@pytest.fixture
def small(small_home: Path, tmp_path: Path) -> SmallWard:
    """Give a fresh copy of the small ward, four weeks before it."""
    return SmallWard(directory=Path(shutil.copytree(small_home, tmp_path / "ward")))


@pytest.fixture
def treated(small_treated_home: Path, tmp_path: Path) -> SmallWard:
    """Give a fresh copy of the small ward after its four weeks."""
    return SmallWard(directory=Path(shutil.copytree(small_treated_home, tmp_path / "treated")))


def build_small_ward(directory: Path, settings: str = SMALL_SETTINGS) -> Path:
    """Train a champion on four weeks of one kind of image, and write what it says of the weeks to come."""
    from continual.adapter_files import load_adapter
    from continual.adapters import KINDS, read_inputs, score
    from continual.adapting import Experience, train_first
    from flows.ingesting import embed_images, ingest_export
    from flows.ward import backbone_of, open_ward
    from monitor.tasks import Task
    from registry.held_out import PatientRole, roles_of
    from registry.promotion import install

    directory.mkdir(parents=True)
    (directory / FILE_NAME).write_text(settings, encoding="utf-8")
    ward = open_ward(directory)
    cheap = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    for name, role in ((ENGINEER, "engineer"), (OFFICER, "quality officer")):
        ward.records.add_user(name, role, cheap.hash(PASSWORD), SMALL_START)
    studies = _draw_studies(directory / "images")
    hashes = embed_images([directory / name for name in studies["image"]], ward=ward, model=SMALL_MODEL)
    reads = KINDS[ward.settings.adaptation.adapter].reads
    tokens = read_inputs(reads, ward.features_of(SMALL_MODEL), hashes)
    learn = np.asarray(studies["week"] < 0) & (
        roles_of(studies["patient_key"].to_numpy(str), ward.settings.roles) == PatientRole.LEARNING
    )
    first = train_first(
        backbone_of(ward, SMALL_MODEL),
        Experience(
            name="history",
            tokens=tokens[learn],
            labels=np.asarray(studies["label"] == "yes", dtype=float)[learn, None],
            patient_key=studies["patient_key"].to_numpy(str)[learn],
        ),
        task=Task.BINARY,
        classes=("no", "yes"),
        policy=ward.settings.adaptation,
        directory=ward.adapters,
        progress=lambda *told: None,
    )
    install(ward.records, ward.versions, SMALL_MODEL, adapter=first, actor=ENGINEER, at=SMALL_START)
    adapter = load_adapter(backbone_of(ward, SMALL_MODEL), first, first.stem)
    studies["score"] = score(adapter, tokens)[:, 0]
    (directory / "exports").mkdir()
    for week, part in studies.groupby("week"):
        path = directory / "exports" / (f"week-{week}.csv" if int(str(week)) >= 0 else "history.csv")
        part.drop(columns="week").to_csv(path, index=False)
    ingest_export(directory / "exports" / "history.csv", model=SMALL_MODEL, ward=ward, at=SMALL_WEEKS[0].start)
    return directory


def _draw_studies(folder: Path) -> pd.DataFrame:
    """Draw green images, where a bright left half says yes, and red ones, which come later, where a bright top does."""
    generator = np.random.default_rng(7)
    folder.mkdir()
    rows = []
    for week, count in ((-1, 160), *((week, 80) for week in range(4))):
        for i in range(count):
            red, yes = week >= 2 and i % 10 != 0, bool(generator.integers(2))
            pixels = generator.integers(0, 90, (28, 28, 3), dtype=np.uint8)
            pixels[..., 0 if red else 1] += 60
            side = slice(14) if yes else slice(14, None)
            pixels[(side, slice(None)) if red else (slice(None), side)] += 60
            name = f"{week + 1}-{i}"
            Image.fromarray(pixels).save(folder / f"{name}.png")
            begin = SMALL_START if week < 0 else SMALL_WEEKS[week].start
            rows.append(
                {
                    "study_uid": f"study-{name}",
                    "patient_key": f"patient-{name}",
                    "produced_at": (begin + timedelta(hours=2 * i)).isoformat(),
                    "label": "yes" if yes else "no",
                    "image": f"images/{name}.png",
                    "model_version": "1",
                    "kind": "red" if red else "green",
                    "site": "AB"[i % 2],
                    "week": week,
                }
            )
    return pd.DataFrame(rows)


# --- what tests of learning strategies share; torch is loaded by whom it serves alone -----------------------------


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Compute on one thread: tensors of tests are so small that threads only wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def vectors() -> Any:
    """Give a backbone that stores one vector a study: every strategy can train a head on it."""
    from continual.backbones import load_backbone

    return load_backbone("tiny", source="random", image_size=28, blocks=0)


def quiet(epoch: int, epochs: int, loss: float) -> None:
    """Be told of an epoch, and say nothing."""


def weights(adapter: Any) -> list[Any]:
    """Copy the trained tensors of an adapter."""
    return [value.detach().clone() for value in adapter.network.trainable().values()]


def same(first: list[Any], second: list[Any]) -> bool:
    """Tell whether two lists of tensors are equal to the bit."""
    import torch

    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
