"""Planted, reproducible changes of real cohorts, so that alarms can be rehearsed before they are needed.

A ``Scenario`` says what changes, how strongly and when; the same scenario on the same cohort gives the same result.
Strength 0 changes nothing, exactly, and more strength is more of the same change: whoever is met at one strength is
met at every higher one. Nothing is invented: case mix and prevalence change because whole patients are left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from monitor.cohorts import Cohort
from monitor.synthetic_cohorts import COHORT_CHANGES, Aim, CohortChange, mark_value
from monitor.synthetic_images import IMAGE_CHANGES, ImageChange

Floats = NDArray[np.float64]

SIMULATED = "simulated-"
"""How the study_uid and patient_key of every simulated study begin."""


class Course(StrEnum):
    """How the strength of a change goes with time."""

    SUDDEN = "sudden"
    GRADUAL = "gradual"
    SEASONAL = "seasonal"


def _to_utc(value: object) -> object:
    """Read a day or a moment; without an offset it is UTC, as windows are."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    return value


Moment = Annotated[AwareDatetime, BeforeValidator(_to_utc)]


class ChangeRequest(BaseModel):
    """One change that a person asks for.

    ``start`` and ``until`` are moments after any shift of the scenario. Sudden: full strength in [start, until), an
    open end where one is left out. Gradual: from nothing at start to full strength at until, and so on for ever.
    Seasonal: from start on up and down, nothing at start and full strength half a period later, until ``until``.
    ``only`` is ATTRIBUTE=VALUE: nobody else is changed. ``attribute`` and ``value`` are what the change acts on; for a
    numeric attribute a value means that value and above.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    change: str
    strength: float = Field(1.0, ge=0, le=1)
    course: Course = Course.SUDDEN
    start: Moment | None = None
    until: Moment | None = None
    period_days: float = Field(365.25, gt=0, allow_inf_nan=False)
    attribute: str = ""
    value: str = ""
    only: str = ""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.change not in CHANGES:
            raise ValueError(f"there is no change {self.change!r}; choose one of {', '.join(CHANGES)}")
        change = CHANGES[self.change]
        for name in ("attribute", "value"):
            if name in change.asks and not getattr(self, name):
                raise ValueError(f"{self.change} needs {' and '.join(change.asks)}")
            if getattr(self, name) and name not in (*change.asks, *change.takes):
                raise ValueError(f"{self.change} takes no {name}")
        if self.course is Course.GRADUAL and (self.start is None or self.until is None):
            raise ValueError("a gradual change needs the moment it begins and the moment it is complete")
        if self.course is Course.SEASONAL and self.start is None:
            raise ValueError("a seasonal change needs a moment at which its strength is nothing")
        if self.start is not None and self.until is not None and self.until <= self.start:
            raise ValueError("a change ends after it starts")
        if self.only and not all(self.only.partition("=")):
            raise ValueError(f"only must be ATTRIBUTE=VALUE, got {self.only!r}")
        return self


class Scenario(BaseModel):
    """What happens to a cohort: changes in their order, a seed, and by how many days its studies are moved."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    changes: tuple[ChangeRequest, ...] = ()
    seed: int = Field(0, ge=0)
    shift_days: int = 0

    @property
    def digest(self) -> str:
        """Hash of everything asked for."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Planted:
    """A changed cohort (n studies), which row of the original each study is (n,), and how strongly each change
    was asked of it, shape (n, changes), 0 to 1.

    Images are only named in a cohort: ``strengths`` says how to change them. Embeddings and image statistics
    of images that change are dropped.
    """

    cohort: Cohort
    rows: NDArray[np.intp]
    strengths: Floats

    def select(self, kept: NDArray[np.bool_]) -> Planted:
        """Keep some studies."""
        return Planted(cohort=self.cohort.select(kept), rows=self.rows[kept], strengths=self.strengths[kept])


def plant_changes(cohort: Cohort, scenario: Scenario, *, answer: Callable[[Planted], Floats] | None = None) -> Planted:
    """Plant the changes of a scenario one after another; those of scores come last.

    Args:
        cohort: n studies; left as it is.
        scenario: what changes.
        answer: gives the scores, shape (studies, score columns), of what was planted so far, where a model can
            answer changed images; without it scores stay.

    Raises:
        ValueError: the cohort lacks what a change needs.
    """
    planted = Planted(
        cohort=replace(cohort, times=cohort.times + np.timedelta64(scenario.shift_days, "D")),
        rows=np.arange(len(cohort)),
        strengths=np.zeros((len(cohort), len(scenario.changes))),
    )
    last = [number for number, request in enumerate(scenario.changes) if CHANGES[request.change].needs == "scores"]
    for number in (number for number in range(len(scenario.changes)) if number not in last):
        planted = _plant(planted, scenario, number)
    if answer is not None:
        planted = replace(planted, cohort=replace(planted.cohort, scores=answer(planted)))
    for number in last:
        planted = _plant(planted, scenario, number)
    return planted


def strengths_at(request: ChangeRequest, times: NDArray[np.datetime64]) -> Floats:
    """Tell how strong a change is at each moment; shape of ``times``, 0 to ``request.strength``."""
    start, until = (None if moment is None else _stamp(moment) for moment in (request.start, request.until))
    inside = np.ones(times.shape, dtype=np.bool_)
    if start is not None:
        inside &= times >= start
    if until is not None and request.course is not Course.GRADUAL:
        inside &= times < until
    share = inside.astype(np.float64)
    if request.course is Course.GRADUAL:
        share *= np.minimum((times - start) / (until - start), 1)  # type: ignore[operator]
    if request.course is Course.SEASONAL:
        turns = (times - start) / np.timedelta64(timedelta(days=request.period_days))  # type: ignore[operator]
        share *= (1 - np.cos(2 * np.pi * turns)) / 2
    return request.strength * share


def mark_simulated(cohort: Cohort, scenario: Scenario) -> Cohort:
    """Give every study and patient a new name that begins with SIMULATED; the same in the same scenario, else another.

    So no simulated study can be taken for a real one, and two rehearsals do not meet.
    """

    def rename(kind: str, names: NDArray[np.str_]) -> NDArray[np.str_]:
        digests = [hashlib.sha256(f"{scenario.digest}\x1f{kind}\x1f{name}".encode()).hexdigest() for name in names]
        return np.array([SIMULATED + digest[:24] for digest in digests], dtype=np.str_)

    study, patient = rename("study", cohort.study_uid), rename("patient", cohort.patient_key)
    return replace(cohort, study_uid=study, patient_key=patient)


def image_generator(scenario: Scenario, number: int, study_uid: str) -> np.random.Generator:
    """Make the generator of one change, by its place in the scenario, in one study: whatever else is simulated."""
    digest = hashlib.sha256(study_uid.encode()).digest()
    return np.random.default_rng([scenario.seed, number, int.from_bytes(digest[:16], "big")])


def _plant(planted: Planted, scenario: Scenario, number: int) -> Planted:
    request, cohort = scenario.changes[number], planted.cohort
    strengths = strengths_at(request, cohort.times)
    if request.only:
        attribute, _, value = request.only.partition("=")
        strengths = np.where(mark_value(cohort, attribute, value), strengths, 0.0)
    planted.strengths[:, number] = strengths
    _check_needs(cohort, request)
    change, generator = CHANGES[request.change], np.random.default_rng([scenario.seed, number])
    if isinstance(change, ImageChange):
        stale = strengths.any()
        return replace(planted, cohort=replace(cohort, embeddings=None, image_statistics={})) if stale else planted
    aim = Aim(attribute=request.attribute, value=request.value)
    if change.keep is not None:
        planted = planted.select(change.keep(cohort, aim, strengths, generator))
    if change.rewrite is not None:
        planted = replace(planted, cohort=change.rewrite(planted.cohort, aim, strengths, generator))
    return planted


def _check_needs(cohort: Cohort, request: ChangeRequest) -> None:
    needs = CHANGES[request.change].needs
    if needs == "images" and (cohort.images is None or not (cohort.images != "").any()):
        raise ValueError(f"{request.change} changes images, and these studies have none; ingest an image column")
    if needs == "labels" and np.isnan(cohort.labels).all():
        raise ValueError(f"{request.change} needs labels, and no study has one yet; ingest them first")


def _stamp(moment: datetime) -> np.datetime64:
    return np.datetime64(moment.replace(tzinfo=None), "us")


CHANGES: Mapping[str, ImageChange | CohortChange] = {**IMAGE_CHANGES, **COHORT_CHANGES}
"""Every change by name, and what a person must know before asking for it."""
