"""Streams of real slices to learn one after the other, in three forms, from the worlds' images and backbone.

Domain-incremental: the four source proxies of Br35H arrive in turn; the question (tumour or not) stays.
Class-incremental: one slice a patient, sharp or blurred, faded or noisy (planted in its pixels); the kinds arrive
one at a time, so that each later stage asks about a class that nobody had heard of.
Multi-label: the same slices with four findings (tumour, blurred, faded, noisy), each slice with at most one planted
change; each stage names the truth of two of them only, as a reading room that is asked something new would.

The truth of a planted change is known because it was planted; tumours and sources are the data set's own.
Near-duplicate groups are the patients: whole groups are learned from or tested on. Tokens enter the last block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from benchmarks.worlds import BACKBONE, SIDE, SOURCE, Pixels, keep, real_embeddings
from flows.demo_data import SOURCES
from monitor.tasks import Task

BLOCKS = 1
LEARNED_SHARE = 0.6
ORDERS = ((0, 1, 2, 3), (2, 3, 0, 1), (3, 1, 0, 2))
FINDINGS = ("tumour", "blurred", "faded", "noisy")
KINDS = ("sharp", *FINDINGS[1:])
IMAGES_AT_ONCE = 128
ASKED = ((0, 1), (0, 2), (0, 3), (1, 2))
"""Which findings each stage of the multi-label stream knows the truth of."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stage:
    """What is learned (rows of the stream's inputs with labels (n, label columns)) and what is asked of it afterwards.

    ``asked`` are the score columns that this stage taught; ``tested`` the rows they are asked on, with the ``truth``
    (n, columns asked) of 0 and 1. ``classes`` are those known once the stage was learned.
    """

    name: str
    learned: NDArray[np.intp]
    labels: NDArray[np.float64]
    asked: tuple[int, ...]
    tested: NDArray[np.intp]
    truth: NDArray[np.bool_]
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stream:
    """Stages in the order they arrive, over one set of slices."""

    name: str
    task: Task
    stages: tuple[Stage, ...]
    patients: NDArray[np.str_]
    embeddings: Callable[[], NDArray[np.float32]]
    tokens: Callable[[], NDArray[np.float16]]

    @property
    def size(self) -> int:
        """Count the studies that are learned from."""
        return sum(len(stage.learned) for stage in self.stages)


def domain_stream(order: int, seed: int) -> Stream:
    """Let the four source proxies arrive in one of three orders; patients are divided by the seed."""
    slices = real_embeddings()
    labels = (slices.labels == "yes").astype(np.float64)[:, None]
    learned = _learned(slices.patients, seed)
    stages = []
    for place in ORDERS[order]:
        here = slices.sources == SOURCES[place]
        learn, test = np.flatnonzero(here & learned), np.flatnonzero(here & ~learned)
        stages.append(
            Stage(
                name=SOURCES[place],
                learned=learn,
                labels=labels[learn],
                asked=(0,),
                tested=test,
                truth=labels[test] == 1,
                classes=("no", "yes"),
            )
        )
    return Stream(
        name="domain",
        task=Task.BINARY,
        stages=tuple(stages),
        patients=slices.patients,
        embeddings=lambda: real_embeddings().values,
        tokens=real_tokens,
    )


def class_stream(order: int, seed: int) -> Stream:
    """Let kinds of slices arrive one at a time: two first, then one more in each stage."""
    rows, kind = _dealt(seed)
    patients = real_embeddings().patients[rows]
    learned = _learned(patients, seed)
    arrival = [KINDS[place] for place in ORDERS[order]]
    names = tuple(arrival)
    number = np.array([arrival.index(one) for one in kind], dtype=np.float64)[:, None]
    test = np.flatnonzero(~learned)
    stages = []
    for known in (2, 3, 4):
        asked = (0, 1) if known == 2 else (known - 1,)
        learn = np.flatnonzero(np.isin(number[:, 0], asked) & learned)
        stages.append(
            Stage(
                name=" and ".join(names[i] for i in asked),
                learned=learn,
                labels=number[learn],
                asked=asked,
                tested=test,
                truth=number[test] == asked,
                classes=names[:known],
            )
        )
    return _dealt_stream("class", Task.MULTI_CLASS, stages, patients, kind)


def finding_stream(order: int, seed: int) -> Stream:
    """Let stages arrive that know the truth of two findings each, of other patients."""
    rows, kind = _dealt(seed)
    slices = real_embeddings()
    patients = slices.patients[rows]
    learned = _learned(patients, seed)
    changed = [kind == one for one in KINDS[1:]]
    truth = np.stack([slices.labels[rows] == "yes", *changed], axis=1)
    test = np.flatnonzero(~learned)
    part = np.unique(patients, return_inverse=True)[1]
    part = np.random.default_rng([seed, 7]).permutation(part.max() + 1)[part] % len(ASKED)
    stages = []
    for place in ORDERS[order]:
        unasked = np.setdiff1d(np.arange(len(FINDINGS)), ASKED[place])
        labels = truth.astype(np.float64)
        labels[:, unasked] = np.nan
        learn = np.flatnonzero((part == place) & learned)
        stages.append(
            Stage(
                name=" and ".join(FINDINGS[i] for i in ASKED[place]),
                learned=learn,
                labels=labels[learn],
                asked=ASKED[place],
                tested=test,
                truth=truth[np.ix_(test, ASKED[place])],
                classes=FINDINGS,
            )
        )
    return _dealt_stream("findings", Task.MULTI_LABEL, stages, patients, kind)


STREAMS: dict[str, Callable[[int, int], Stream]] = {
    "domain": domain_stream,
    "class": class_stream,
    "findings": finding_stream,
}


def real_tokens() -> NDArray[np.float16]:
    """Give the tokens (3000, 65, 384) of all slices entering the last block, in the worlds' order."""
    tokens: NDArray[np.float16] = keep("br35h-tokens-1.npz", lambda: _features("sharp", None))["tokens"]
    return tokens


@cache
def _of_kind(kind: str) -> tuple[NDArray[np.float32], NDArray[np.float16]]:
    """Give embeddings and tokens of the slices in ``one_a_patient`` after a change."""
    if kind == "sharp":
        return real_embeddings().values[one_a_patient()], real_tokens()[one_a_patient()]
    features = keep(f"br35h-tokens-1-{kind}.npz", lambda: _features(kind, one_a_patient()))
    return features["embeddings"], features["tokens"]


def one_a_patient() -> NDArray[np.intp]:
    """Give the row of each patient's first slice, ascending."""
    return np.sort(np.unique(real_embeddings().patients, return_index=True)[1])


def _learned(patients: NDArray[np.str_], seed: int) -> NDArray[np.bool_]:
    """Say of each row whether its patient is learned from."""
    names, owners = np.unique(patients, return_inverse=True)
    chosen = np.random.default_rng([20261125, seed]).random(len(names)) < LEARNED_SHARE
    return np.asarray(chosen[owners], dtype=np.bool_)


def _dealt(seed: int) -> tuple[NDArray[np.intp], NDArray[np.str_]]:
    """Give one slice a patient and the change it gets."""
    rows = one_a_patient()
    kinds = np.random.default_rng([seed, 3]).permutation(np.arange(len(rows)) % len(KINDS))
    return rows, np.array(KINDS, dtype=np.str_)[kinds]


def _dealt_stream(
    name: str, task: Task, stages: list[Stage], patients: NDArray[np.str_], kind: NDArray[np.str_]
) -> Stream:
    return Stream(
        name=name,
        task=task,
        stages=tuple(stages),
        patients=patients,
        embeddings=lambda: _dealt_features(kind, tokens=False),
        tokens=lambda: _dealt_features(kind, tokens=True),
    )


def _dealt_features(kind: NDArray[np.str_], *, tokens: bool) -> NDArray[np.floating]:
    parts = {one: _of_kind(one)[tokens] for one in KINDS}
    return np.stack([parts[str(one)][i] for i, one in enumerate(kind)])


def _change(pixels: Pixels, kind: str, generator: np.random.Generator) -> Pixels:
    values = pixels.astype(np.float32)
    if kind == "blurred":
        values = gaussian_filter(values, sigma=(1.2, 1.2, 0))
    elif kind == "faded":
        values = values.mean() + 0.55 * (values - values.mean())
    elif kind == "noisy":
        values = values + generator.normal(0, 14, (*pixels.shape[:2], 1))  # grey noise: the slices are grey
    return np.rint(np.clip(values, 0, 255)).astype(np.uint8)


def _features(kind: str, rows: NDArray[np.intp] | None) -> dict[str, NDArray[np.generic]]:
    from continual.backbones import load_backbone
    from continual.images import read_image
    from flows.demo_data import describe_images

    paths = list(describe_images(lambda what, done, of: None)["path"])
    chosen = paths if rows is None else [paths[row] for row in rows]
    backbone, parts = load_backbone(BACKBONE, source=SOURCE, blocks=BLOCKS), []
    for start in range(0, len(chosen), IMAGES_AT_ONCE):
        generator = np.random.default_rng([KINDS.index(kind), start])
        images = [_change(read_image(path, SIDE), kind, generator) for path in chosen[start : start + IMAGES_AT_ONCE]]
        parts.append(backbone.embed(np.stack(images)))
    embeddings, tokens = (np.concatenate(part) for part in zip(*parts, strict=True))
    return {"embeddings": embeddings, "tokens": tokens}
