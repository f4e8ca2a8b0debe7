"""Four streams and a headline: each one number from 0 to 100, with the parts it is made of.

A part that does not differ from the reference beyond chance scores 100. One that does scores 100 x least / size, at
most 100: the least size that counts is 100, twice that is 50, ten times is 10. A stream is as good as its worst part
and the headline as its worst stream: an average would let nine quiet parts hide a tenth that shouts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from monitor.policies import DriftPolicy
from monitor.results import DriftKind, DriftResult, Harm, Source, Verdict, WindowReport

ALIKE = 100.0
"""The score of what does not differ from the reference beyond chance."""


class Stream(StrEnum):
    """What is watched."""

    ACQUISITION = "acquisition"
    APPEARANCE = "appearance"
    BEHAVIOUR = "behaviour"
    PERFORMANCE = "realised performance"


STREAM_OF = {
    DriftKind.ACQUISITION: Stream.ACQUISITION,
    DriftKind.CASE_MIX: Stream.ACQUISITION,
    DriftKind.APPEARANCE: Stream.APPEARANCE,
    DriftKind.BEHAVIOUR: Stream.BEHAVIOUR,
    DriftKind.CONCEPT: Stream.PERFORMANCE,
}
"""The stream that a kind of drift belongs to: who was imaged and how are both acquisition."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One comparison of a stream; ``score`` 0 to 100, None where it could not be judged; ``told`` says why."""

    name: str
    score: float | None
    told: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamScore:
    """One stream, or the headline over all: the score of its worst part, None where no part could be judged."""

    name: str
    score: float | None
    parts: tuple[Part, ...]

    @property
    def worst(self) -> Part | None:
        """The part that sets the score."""
        judged = [part for part in self.parts if part.score is not None]
        return min(judged, key=lambda part: part.score or 0.0, default=None)

    @property
    def told(self) -> str:
        """The score in words: its worst part, or that nothing differs; and how many parts, if any, were not judged."""
        missing = [part for part in self.parts if part.score is None]
        if self.worst is None or self.worst.score is None:
            why = missing[0].told.removeprefix("window: ") if missing else "nothing was compared"
            return f"not judged: {why}" if why else "not judged"
        alike = "nothing differs from the reference beyond chance"
        said = alike if self.worst.score >= ALIKE else f"{self.worst.name}: {self.worst.told}"
        return f"{said}; {len(missing)} of {len(self.parts)} parts not judged" if missing else said


def score_streams(report: WindowReport, policy: DriftPolicy) -> tuple[StreamScore, ...]:
    """Score every stream of a window, in the order of ``Stream``; one without any part stays, with None."""
    parts: dict[Stream, list[Part]] = {stream: [] for stream in Stream}
    for result in report.results:
        parts[STREAM_OF[result.kind]].append(_score_drift(result, policy))
    for harm in report.harms:
        if harm.source is Source.REALISED:
            parts[Stream.PERFORMANCE].append(_score_loss(harm, policy))
    return tuple(_gather(stream.value, found) for stream, found in parts.items())


def score_headline(streams: Sequence[StreamScore]) -> StreamScore:
    """Sum the streams up in the worst of them; each stays a part, judged or not."""
    return _gather("headline", [Part(name=one.name, score=one.score, told=one.told) for one in streams])


def _score_drift(result: DriftResult, policy: DriftPolicy) -> Part:
    name = f"{result.feature} ({result.detector})"
    if result.effect is None:
        return Part(name=name, score=None, told=result.reason)
    drifted = result.verdict is Verdict.DRIFT
    least = max(result.least_effect, policy.minimum_effect)
    return Part(name=name, score=_score(result.effect, least) if drifted else ALIKE, told=result.reason)


def _score_loss(harm: Harm, policy: DriftPolicy) -> Part:
    name = f"{harm.metric} of {harm.finding}"
    if harm.loss is None:
        return Part(name=name, score=None, told=harm.reason)
    told = f"{harm.loss:+.3f} lost, {'beyond' if harm.sure else 'within'} chance"
    return Part(name=name, score=_score(harm.loss, policy.tolerated_loss) if harm.sure else ALIKE, told=told)


def _score(size: float, least: float) -> float:
    return ALIKE * min(1.0, least / size) if size > 0 else ALIKE


def _gather(name: str, parts: Iterable[Part]) -> StreamScore:
    kept = tuple(parts)
    judged = [part.score for part in kept if part.score is not None]
    return StreamScore(name=name, score=min(judged, default=None), parts=kept)
