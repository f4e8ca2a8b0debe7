"""Power of embedding detectors at an equal false-alarm rate: uv run python -m benchmarks.power [--fast].

Every detector gets the same pairs of a reference and a window (benchmarks/worlds.py). Its threshold is set on its own
scores of windows in which nothing changed, so that all have a false-alarm rate of 5 % and badly calibrated ones are
compared fairly. A score is the p-value, ties broken by the statistic; the statistic alone where a detector has no
p-value, or where its permutations would take hours and only change the scale (TorchDrift). Beside it stands how often
a detector alarms there as it comes, at a nominal 5 % or at its default threshold.

Peers run in their defaults and get one row a patient, the mean of the patient's slices, as the product hands them
over: tried on "real, development", that served them better than a row a slice, with which they alarm on most
unchanged windows (told too). Exceptions, all in the peers' favour: Frouros's kernel gets the median distance as its
width (at its 1.0 it sees nothing); Evidently's classifier, distance and MMD get their bootstrap. The learned kernel
has no default and projects to 32 dimensions. All run on one thread.

The constants of monitor/embedding_features.py were tuned on the worlds "real, development", "spectrum" and "factors"
(--development runs those, with our detectors only); "real, test", "steep" and "manifold" are for measuring, and
were looked at after. The sizes of the shifts were set once, beforehand; "planted mixture" was added when on "real,
development" none of our detectors saw the tenth of patients from another source ("mixture").

Ours relabel each pair with a seed of its own. In a real world all pairs are drawn from one pool of patients, but each
by an even draw of its own: given the pool, unchanged pairs are independent, an exact test alarms on at most ALPHA of
them, and a binomial bound holds; it says nothing of other pools. Relabelling all of them with one seed would not do.

Scores are kept in ~/.cache/wardround-bench/power, a file for each detector, world and kind of shift, so that a run
that was stopped goes on; the files of our detectors carry a checksum of their source.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import json
import logging
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.stats import binom
from threadpoolctl import threadpool_limits

from benchmarks.results import Case, record
from benchmarks.worlds import CACHE, PLANTED, REAL_KINDS, Pair, draw_pair
from monitor import domain_classifier, embedding_features, embedding_shift, kernels, permutations

ALPHA = 0.05
PERMUTATIONS = 200
PEER_PERMUTATIONS = 100
COMPONENTS = 32
BY_SLICE = 60

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Answer:
    """How shifted a window looks, more is more, and whether the detector as it comes would alarm (None: it can't)."""

    score: float
    alarm: bool | None


Detector = Callable[[Pair], Answer]


def _by_p(p: float, statistic: float = 0.0) -> Answer:
    """Order by p-value, then by statistic, whose part is too small to outweigh a p-value."""
    return Answer(-float(np.log(max(p, 1e-300))) + 1e-6 * float(np.tanh(statistic / 10)), p <= ALPHA)


# --- ours ------------------------------------------------------------------------------------------


def _own(test: Callable[..., tuple[float, float, float]]) -> Detector:
    def ask(pair: Pair) -> Answer:
        values = np.concatenate([pair.before, pair.now])
        patients = np.unique(np.concatenate([pair.before_patients, pair.now_patients]), return_inverse=True)[1]
        is_current = np.arange(len(values)) >= len(pair.before)
        generator = np.random.default_rng(zlib.crc32(pair.now.tobytes()))
        statistic, _, p = test(values, patients, is_current, permutations=PERMUTATIONS, generator=generator)
        return _by_p(p, statistic)

    return ask


# --- alibi-detect ----------------------------------------------------------------------------------


def _alibi(make: Callable[[NDArray[Any]], Any]) -> Detector:
    def ask(pair: Pair) -> Answer:
        told = make(pair.before).predict(pair.now)["data"]
        return _by_p(float(np.min(told["p_val"])), float(np.max(told["distance"])))

    return ask


def _alibi_mmd(before: NDArray[Any]) -> Any:
    from alibi_detect.cd import MMDDrift

    return MMDDrift(before, backend="pytorch", device="cpu", n_permutations=PEER_PERMUTATIONS)


def _alibi_lsdd(before: NDArray[Any]) -> Any:
    from alibi_detect.cd import LSDDDrift

    return LSDDDrift(before, backend="pytorch", device="cpu", n_permutations=PEER_PERMUTATIONS)


def _alibi_classifier(before: NDArray[Any]) -> Any:
    from alibi_detect.cd import ClassifierDrift
    from sklearn.linear_model import LogisticRegression

    return ClassifierDrift(before, LogisticRegression(max_iter=300), backend="sklearn", preds_type="probs")


def _alibi_learned_kernel(before: NDArray[Any]) -> Any:
    import torch
    from alibi_detect.cd import LearnedKernelDrift
    from alibi_detect.utils.pytorch import DeepKernel

    kernel = DeepKernel(torch.nn.Linear(before.shape[1], COMPONENTS), eps=0.01)
    return LearnedKernelDrift(before, kernel, backend="pytorch", device="cpu", n_permutations=PEER_PERMUTATIONS)


def _alibi_spot_the_diff(before: NDArray[Any]) -> Any:
    from alibi_detect.cd import SpotTheDiffDrift

    return SpotTheDiffDrift(before, backend="pytorch", device="cpu")


def _ks_of_components(pair: Pair) -> Answer:
    """Compare 32 principal components of the reference by alibi-detect's KSDrift with its Bonferroni correction."""
    from alibi_detect.cd import KSDrift
    from sklearn.decomposition import PCA

    components = PCA(COMPONENTS, random_state=0).fit(pair.before)
    told = KSDrift(components.transform(pair.before), p_val=ALPHA).predict(components.transform(pair.now))["data"]
    return Answer(-float(np.log(max(told["p_val"].min(), 1e-300))), bool(told["is_drift"]))


# --- Evidently, TorchDrift, Frouros ----------------------------------------------------------------


def _evidently(name: str, **options: Any) -> Detector:
    def ask(pair: Pair) -> Answer:
        from evidently.legacy.metrics.data_drift import embedding_drift_methods

        method = getattr(embedding_drift_methods, name)(**options)
        score, alarm, _ = method(pd.DataFrame(pair.now), pd.DataFrame(pair.before))
        return Answer(float(score), bool(alarm))

    return ask


def _torchdrift_mmd(pair: Pair) -> Answer:
    import torch
    from torchdrift.detectors.mmd import kernel_mmd

    return Answer(float(kernel_mmd(torch.from_numpy(pair.now), torch.from_numpy(pair.before), n_perm=None)), None)


def _frouros_mmd(pair: Pair) -> Answer:
    from functools import partial

    from frouros.detectors.data_drift import MMD
    from frouros.utils.kernels import rbf_kernel
    from scipy.spatial.distance import pdist

    before, now = pair.before.astype(np.float64), pair.now.astype(np.float64)
    detector = MMD(kernel=partial(rbf_kernel, sigma=float(np.median(pdist(before[:500])))))
    detector.fit(X=before)
    return Answer(float(detector.compare(X=now)[0].distance), None)


OURS: dict[str, Detector] = {
    "embedding_shift": _own(embedding_shift.permutation_shift),
    "domain_classifier": _own(domain_classifier.permutation_classifier),
    "mmd": _own(kernels.permutation_mmd),
}
DEFAULT = "embedding_shift"  # chosen on the worlds for development, before the others were looked at with SETS
SETS = {
    "embedding_shift + domain_classifier": ("embedding_shift", "domain_classifier"),
    "embedding_shift + mmd": ("embedding_shift", "mmd"),
    "embedding_shift + domain_classifier + mmd": tuple(OURS),
}
PEERS: dict[str, Detector] = {
    "alibi-detect MMD": _alibi(_alibi_mmd),
    "alibi-detect LSDD": _alibi(_alibi_lsdd),
    "KS on 32 components": _ks_of_components,
    "alibi-detect classifier": _alibi(_alibi_classifier),
    "alibi-detect learned kernel": _alibi(_alibi_learned_kernel),
    "alibi-detect spot-the-diff": _alibi(_alibi_spot_the_diff),
    "Evidently model": _evidently("model", bootstrap=True),
    "Evidently distance": _evidently("distance", bootstrap=True),
    "Evidently ratio": _evidently("ratio"),
    "Evidently mmd": _evidently("mmd", bootstrap=True),
    "TorchDrift MMD": _torchdrift_mmd,
    "Frouros MMD": _frouros_mmd,
}


# --- running and keeping ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is run: worlds with their kinds of shift, how often unchanged and shifted.

    Attributes:
        calibration: unchanged pairs of "real, test" on which the false alarms of DEFAULT are counted.
    """

    kinds: dict[str, tuple[str, ...]]
    peers: bool
    null: int
    shifted: int
    calibration: int = 0

    def runs(self, kind: str) -> int:
        return self.null if kind == "none" else self.shifted


FULL = Plan(
    kinds={"real, test": REAL_KINDS, "steep": PLANTED, "manifold": PLANTED},
    peers=True,
    null=200,
    shifted=100,
    calibration=2000,
)
FAST = Plan(kinds={"steep": PLANTED}, peers=True, null=20, shifted=10)  # real slices would have to be embedded first
DEVELOPMENT = Plan(
    kinds={"real, development": REAL_KINDS, "spectrum": PLANTED, "factors": PLANTED},
    peers=False,
    null=200,
    shifted=100,
)


def average_by_patient(pair: Pair) -> Pair:
    """Give one row a patient: the mean of the patient's slices."""

    def average(values: NDArray[Any], patients: NDArray[np.str_]) -> tuple[NDArray[Any], NDArray[np.str_]]:
        names, owners = np.unique(patients, return_inverse=True)
        sums = np.zeros((len(names), values.shape[1]))
        np.add.at(sums, owners, values)
        return (sums / np.bincount(owners)[:, None]).astype(np.float32), names

    (before, before_patients), (now, now_patients) = (
        average(pair.before, pair.before_patients),
        average(pair.now, pair.now_patients),
    )
    return Pair(before=before, before_patients=before_patients, now=now, now_patients=now_patients)


def ask_often(name: str, world: str, kind: str, runs: int, *, by_patient: bool) -> list[Answer]:
    """Ask a detector about that many pairs, from its file as far as that reaches."""
    version = f"-{_checksum(name)}" if name in OURS else "" if by_patient else "-by-slice"
    path = CACHE / "power" / f"{name}-{world}-{kind}{version}.json".replace(" ", "-").replace(",", "")
    told: list[Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    detect = (OURS | PEERS)[name]
    for seed in range(len(told), runs):
        pair = draw_pair(world, kind, seed)
        with _quiet(seed):
            answer = detect(average_by_patient(pair) if by_patient else pair)
        told.append([answer.score, answer.alarm])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told), encoding="utf-8")
    return [Answer(score, alarm) for score, alarm in told[:runs]]


@cache
def _checksum(name: str) -> str:
    """Give a checksum of the source of one of our detectors, whose module is of its name or the kernels'."""
    own = {"embedding_shift": [embedding_shift, embedding_features], "domain_classifier": [domain_classifier]}
    modules = [*own.get(name, []), kernels, permutations]
    return f"{zlib.crc32(''.join(map(inspect.getsource, modules)).encode()):08x}"


@contextlib.contextmanager
def _quiet(seed: int) -> Iterator[None]:
    """Seed what the peers draw from, and swallow what they print."""
    import torch

    torch.manual_seed(seed)
    np.random.seed(seed)  # alibi-detect and Evidently draw from it
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


def found_at_equal_rate(null: Floats, shifted: Floats) -> float:
    """Give the share of shifted scores over the threshold that ALPHA of the null scores pass, ties in proportion."""
    ordered = np.sort(null)[::-1]
    allowed = ALPHA * len(null)
    threshold = ordered[int(allowed)]
    over, ties = int((null > threshold).sum()), int((null == threshold).sum())
    return float((shifted > threshold).mean() + (allowed - over) / ties * (shifted == threshold).mean())


def measure_power(plan: Plan, tell: Callable[[str], None]) -> dict[tuple[str, str, str], float]:
    """Give the power by (world, kind, detector); under the kind "none" the share of false alarms as it comes."""
    power: dict[tuple[str, str, str], float] = {}
    for world, kinds in plan.kinds.items():
        scores: dict[tuple[str, str], Floats] = {}
        for name in [*OURS, *(PEERS if plan.peers else ())]:
            tell(f"{world}: {name}")
            for kind in ("none", *kinds):
                answers = ask_often(name, world, kind, plan.runs(kind), by_patient=name in PEERS)
                scores[name, kind] = np.array([answer.score for answer in answers])
                if kind == "none" and answers[0].alarm is not None:
                    power[world, kind, name] = float(np.mean([answer.alarm for answer in answers]))
        for together, names in SETS.items():
            for kind in ("none", *kinds):  # the smallest p-value, as Bonferroni's correction orders them
                scores[together, kind] = np.max([scores[name, kind] for name in names], axis=0)
            alarms = np.exp(-scores[together, "none"]) <= ALPHA / len(names)
            power[world, "none", together] = float(alarms.mean())
        for (name, kind), shifted in scores.items():
            if kind != "none":
                power[world, kind, name] = found_at_equal_rate(scores[name, "none"], shifted)
    return power


# --- telling ---------------------------------------------------------------------------------------


def show(power: dict[tuple[str, str, str], float]) -> None:
    """Print a table for each world: detectors by kinds of shift."""
    for world in dict.fromkeys(world for world, _, _ in power):
        kinds = list(dict.fromkeys(kind for where, kind, _ in power if where == world))
        table = Table("detector", *("alarms unchanged" if kind == "none" else kind for kind in kinds), title=world)
        for name in [*OURS, *SETS, *PEERS]:
            cells = [power.get((world, kind, name)) for kind in kinds]
            if any(cell is not None for cell in cells):
                table.add_row(name, *("" if cell is None else f"{cell:.2f}" for cell in cells))
        Console(width=160).print(table)


def compare_misses(power: dict[tuple[str, str, str], float], plan: Plan, ours: str) -> list[Case]:
    """Compare what ours misses with what the best peer misses; not worse by more than two standard errors is enough."""
    cases = []
    for world, kinds in plan.kinds.items():
        for kind in kinds:
            best = max(PEERS, key=lambda peer: power[world, kind, peer])
            missed = [1 - power[world, kind, name] + 1 / plan.shifted for name in (ours, best)]
            found = (power[world, kind, ours] + power[world, kind, best]) / 2
            error = 2 * np.sqrt(2 * max(found * (1 - found), 1 / plan.shifted) / plan.shifted)
            case = Case(
                case=f"missed, {world}: {kind}",
                ours=missed[0],
                peer=missed[1],
                peer_name=f"best: {best}",
                target=float(missed[1] / (missed[1] + error)),
                n=f"{plan.null} unchanged, {plan.shifted} shifted windows",
            )
            cases.append(case)
    return cases


def compare_false_alarms(plan: Plan, ours: str) -> Case:
    """Compare how often one of ours alarms unchanged, as it comes, with what chance may make of a nominal ALPHA."""
    answers = ask_often(ours, "real, test", "none", plan.calibration, by_patient=False)
    return Case(
        case=f"false alarms, real, test: {ours}",
        ours=float(np.mean([answer.alarm for answer in answers])),
        peer=float(binom.ppf(0.975, plan.calibration, ALPHA)) / plan.calibration,
        peer_name=f"bound on {ALPHA:.0%}",
        target=1,
        n=f"{plan.calibration} unchanged windows",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="few repeats, within a minute")
    parser.add_argument("--development", action="store_true", help="our detectors on the worlds they are tuned on")
    asked = parser.parse_args()
    plan = FAST if asked.fast else DEVELOPMENT if asked.development else FULL
    import torch

    logging.getLogger("alibi_detect").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    with threadpool_limits(1):
        power = measure_power(plan, lambda what: print(time.strftime("%H:%M:%S"), what, flush=True))
        show(power)
        if not plan.peers:
            return
        for name in PEERS if plan is FULL else ():
            answers = ask_often(name, "real, test", "none", BY_SLICE, by_patient=False)
            if answers[0].alarm is not None:
                print(f"{name} with a row a slice: alarms on {np.mean([a.alarm for a in answers]):.0%} unchanged")
        cases = compare_misses(power, plan, DEFAULT)
        if plan.calibration:
            cases.append(compare_false_alarms(plan, DEFAULT))
    command = "uv run python -m benchmarks.power"
    note = "share missed (+ 1/n) at 5 % false alarms on each detector's own null scores"
    record("power", cases, command=command, note=note, fast=asked.fast)


if __name__ == "__main__":
    main()
