"""How much a training may take: what is asked for is looked at before the start, what is taken at every step."""

from __future__ import annotations

import os
import resource
import sys
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from continual.policies import AdaptationPolicy, RunLimits

MEGABYTE = 2**20
LOOK_SECONDS = 0.5
STATES_A_NUMBER = 8
"""Single-precision numbers held for each trained one: itself, gradient, two moments, best, stage's end, two copies."""
ACTIVATIONS_A_NUMBER = 40
"""Single-precision numbers that a block keeps for the way back, for each number of a batch's tokens."""


class RunStopped(Exception):
    """A training reached a limit; the message names the limit, and how to go on."""


@dataclass(slots=True)
class RunWatch:
    """Stops a training at its limits; ``earlier`` are the seconds it took before it was resumed."""

    limits: RunLimits
    earlier: float = 0.0
    _began: float = field(default_factory=perf_counter)
    _looked: float = 0.0

    @property
    def seconds(self) -> float:
        """Tell how long the training has taken so far, over all its parts."""
        return self.earlier + perf_counter() - self._began

    def check(self) -> None:
        """Look at the clock, and twice a second at the memory.

        Raises:
            RunStopped: the training took longer, or the process is larger, than the limits allow.
        """
        now = self.seconds
        if now > 60 * self.limits.minutes:
            raise RunStopped(
                f"the time limit of {self.limits.minutes:g} minutes was reached; raise minutes under "
                "[adaptation.limits] and run `wardround adapt --resume`, which goes on after the last whole epoch"
            )
        if now - self._looked >= LOOK_SECONDS:
            self._looked = now
            if (used := resident_megabytes()) > allowed_megabytes(self.limits):
                raise RunStopped(_too_large(used, self.limits, "are in use"))


def check_request(policy: AdaptationPolicy, *, stages: int, tokens_a_study: int, parameters: int) -> None:
    """Refuse a training that is sure to break a limit, before anything is computed.

    ``tokens_a_study`` are the numbers that a study is stored as, ``parameters`` the trained ones.

    Raises:
        RunStopped: it asks for more epochs or memory than the limits allow.
    """
    epochs = stages * policy.epochs
    if epochs > policy.limits.epochs:
        raise RunStopped(
            f"{epochs} epochs are asked for, {policy.limits.epochs} are allowed; "
            "lower epochs under [adaptation] or raise epochs under [adaptation.limits]"
        )
    needed = resident_megabytes() + estimate_megabytes(policy, tokens_a_study=tokens_a_study, parameters=parameters)
    if needed > allowed_megabytes(policy.limits):
        raise RunStopped(_too_large(needed, policy.limits, "would be needed"))


def check_room(limits: RunLimits, more_bytes: int) -> None:
    """Refuse to read studies that would not fit beside what this process holds already.

    Raises:
        RunStopped: they would take more memory than the limits allow.
    """
    if (needed := resident_megabytes() + more_bytes / MEGABYTE) > allowed_megabytes(limits):
        raise RunStopped(_too_large(needed, limits, "would be needed"))


def estimate_megabytes(policy: AdaptationPolicy, *, tokens_a_study: int, parameters: int) -> float:
    """Estimate what training takes beyond the studies themselves: weights and their moments, and one batch.

    A batch counts twice, since rehearsal adds as many studies again.
    """
    activations = 2 * policy.batch_size * tokens_a_study * policy.blocks * ACTIVATIONS_A_NUMBER
    return 4 * (parameters * STATES_A_NUMBER + activations) / MEGABYTE


def allowed_megabytes(limits: RunLimits) -> float:
    """Tell how large the process may become: as the limits say, but never more than the machine has."""
    return min(float(limits.megabytes), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / MEGABYTE)


def resident_megabytes() -> float:
    """Measure the memory that this process holds now; where the system does not tell, the most it ever held."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / MEGABYTE
    except FileNotFoundError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (MEGABYTE if sys.platform == "darwin" else 1024)


def _too_large(megabytes: float, limits: RunLimits, what: str) -> str:
    return (
        f"{megabytes:,.0f} MB of memory {what}, {allowed_megabytes(limits):,.0f} are allowed; lower batch_size or "
        "blocks under [adaptation], raise megabytes under [adaptation.limits], or use a larger machine"
    )
