"""What a champion remembers of what it learned, and what a new adapter leaves to be remembered.

An adapter learns on from its champion's memory, not from all old studies: what the memory let go is not
kept for learning anywhere else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from continual.adapter_card import Reads
from continual.adapters import Adapter, score
from continual.experiences import Experience
from continual.limits import check_room
from continual.memory_selection import measure_difficulty, rank_for_rehearsal
from continual.memory_store import (
    Memory,
    MemoryItem,
    fit_memory,
    load_memory,
    read_manifest,
    remove_memory,
    write_memory,
)
from continual.plans import AdaptationRun
from flows.ward import Ward, adapter_of, backbone_of, inputs_of
from monitor.cohorts import Cohort, Window, binary_labels, cut_at_median
from registry.entries import ChampionRecord, MemoryVersion
from registry.ledger import SYSTEM

log = logging.getLogger("wardround.remembering")
EVERYWHERE = "all"
"""The stratum of a model that has none of the attributes that share the memory."""


def memories_in(ward: Ward) -> Path:
    """Tell where memories lie, named by their hash."""
    return ward.settings.directory / "memories"


def recall(
    ward: Ward, champion: ChampionRecord, stages: Callable[[], Sequence[tuple[str, Cohort]]], *, at: datetime
) -> Memory:
    """Give what the champion remembers; of one that was live before Wardround, a memory is made of its ``stages``.

    Studies older than the retention are left out. ``stages`` gives the name and the studies of each.

    Raises:
        MemoryRefused: the memory was changed, or holds a patient who is held out.
    """
    policy, model = ward.settings.adaptation.memory, champion.model
    version = ward.records.memory_of(model, champion.adapter_sha256)
    if version is not None:
        memory = load_memory(memories_in(ward), version.sha256, held_out=held_out_patients(ward))
        return memory.fresh(policy, at)
    made_by = f"version {champion.version}"
    adapter = adapter_of(ward, model, champion.adapter_sha256)
    parts = [_select(ward, model, name, cohort, adapter, at) for name, cohort in stages()]
    memory = fit_memory(parts, made_by=made_by, policy=policy)
    _keep(ward, memory, champion.adapter_sha256, why="the first memory of the live adapter", at=at)
    return memory


def keep_memory(
    ward: Ward, run: AdaptationRun, adapter: Adapter, known: Memory, new: Cohort, *, at: datetime
) -> AdaptationRun:
    """Leave a memory beside a run's adapter: the best of what was ``known``, and of the ``new`` stage.

    Returns the run, which names the memory.
    """
    stage = _select(ward, run.model, run.experiences[-1], new, adapter, at)
    memory = fit_memory([known, stage], made_by=run.run_id, policy=ward.settings.adaptation.memory)
    version = _keep(ward, memory, run.adapter_sha256, why="left by a run", at=at)
    return replace(
        run,
        memory_sha256=version.sha256,
        memory_kept=version.studies,
        memory_patients=version.patients,
        memory_bytes=version.bytes,
    )


def experience_of(ward: Ward, model: str, name: str, cohort: Cohort, reads: Reads) -> Experience:
    """Turn labelled studies with images into a stage to learn from, as an adapter that ``reads`` it wants it.

    Raises:
        RunStopped: it would need more memory than the policy allows.
    """
    card = backbone_of(ward, model).card
    tokens, size = (card.tokens, 2) if reads == "tokens" else (1, 4)
    check_room(ward.settings.adaptation.limits, size * len(cohort) * tokens * card.width)
    return Experience(
        name=name,
        tokens=inputs_of(ward, model, cohort, reads),
        labels=cohort.labels,
        patient_key=cohort.patient_key,
        strata=stratify(cohort, ward.settings.adaptation.memory.quotas),
        image=np.asarray(cohort.images, dtype=np.str_),
    )


def name_of(windows: Sequence[Window]) -> str:
    """Name a stage by its span of days: 2026-01-05/2026-03-30."""
    return Window(start=windows[0].start, end=windows[-1].end).key


def held_out_patients(ward: Ward) -> frozenset[str]:
    """Name the patients of every locked held-out cohort of every model."""
    records = ward.records
    return frozenset(
        patient for model in records.models() for lock in records.held_out(model) for patient in lock.patients
    )


def in_force(ward: Ward, model: str | None = None) -> list[MemoryVersion]:
    """List the memory in force beside each adapter, oldest first."""
    newest: dict[tuple[str, str], MemoryVersion] = {}
    for version in ward.records.memories(model):
        newest[version.model, version.adapter_sha256] = version
    return list(newest.values())


def sweep_memories(ward: Ward, model: str, *, at: datetime) -> int:
    """Take studies older than the retention out of every memory of a model; returns how many went."""
    policy, gone = ward.settings.adaptation.memory, 0
    for name in dict.fromkeys(version.sha256 for version in in_force(ward, model)):
        items = read_manifest(memories_in(ward), name).items
        if old := sum(item.expires(policy) <= at for item in items):
            log.warning(
                "%d of %d remembered studies are older than %d days and go", old, len(items), policy.retention_days
            )
            why = f"{old} studies were older than {policy.retention_days} days"
            rewrite_memory(ward, name, lambda item: item.expires(policy) > at, why=why, at=at)
            gone += old
    return gone


def rewrite_memory(
    ward: Ward, name: str, keep: Callable[[MemoryItem], bool], *, why: str, at: datetime, actor: str = SYSTEM
) -> str:
    """Write a memory again with what something holds of alone, note it, and take the old one away.

    Killed at any moment and run again it comes to the same: the new one is noted before the old one goes.
    """
    folder = memories_in(ward)
    smaller = load_memory(folder, name, held_out=()).select(keep)
    versions = [version for version in in_force(ward) if version.sha256 == name]
    if versions:
        after = write_memory(folder, smaller, held_out=())
        for version in versions:
            ward.records.save_memory(_describe(smaller, after, version.adapter_sha256, why, at), at, actor=actor)
    remove_memory(folder, name)
    return after if versions else ""


def stratify(cohort: Cohort, quotas: Sequence[str]) -> NDArray[np.str_]:
    """Name the group of each study by the attributes that share a memory; numbers are cut at their median; (n,)."""
    named = [cut_at_median(cohort.attributes[name]) for name in quotas if name in cohort.attributes]
    if not named:
        return np.full(len(cohort), EVERYWHERE, dtype=np.str_)
    return np.array([" · ".join(words) for words in zip(*named, strict=True)], dtype=np.str_)


def _select(ward: Ward, model: str, stage: str, cohort: Cohort, adapter: Adapter, at: datetime) -> Memory:
    """Rank the studies of a stage and make a memory of the best, within both limits."""
    policy = ward.settings.adaptation.memory
    experience = experience_of(ward, model, stage, cohort, adapter.card.reads)
    each = int(np.prod(experience.tokens.shape[1:])) * experience.tokens.dtype.itemsize
    most = policy.limit(each)
    difficulty = None
    if policy.selection == "hardest":
        card = adapter.card
        answers = binary_labels(card.task, card.classes, experience.labels)
        difficulty = measure_difficulty(score(adapter, experience.tokens), answers)
    generator = np.random.default_rng([ward.settings.adaptation.seed, len(stage), *stage.encode()])
    ranking = rank_for_rehearsal(experience, generator, policy.selection, difficulty, most=most)
    ranking = _first_of_each(cohort, ranking)[:most]
    times = cohort.times.astype("datetime64[us]").astype(object)
    items = [
        MemoryItem(
            image=str(experience.image[row]),
            study=str(cohort.study_uid[row]),
            patient=str(cohort.patient_key[row]),
            stage=stage,
            stratum=str(experience.strata[row]),
            labels=tuple(None if np.isnan(label) else float(label) for label in cohort.labels[row]),
            produced_at=times[row].replace(tzinfo=UTC),
            added_at=at,
        )
        for row in ranking
    ]
    memory = Memory(
        model=model,
        made_by="",
        feature_key=adapter.card.feature_key,
        policy=policy,
        items=tuple(items),
        features=experience.tokens[ranking],
    )
    return memory.fresh(policy, at)


def _first_of_each(cohort: Cohort, ranking: NDArray[np.intp]) -> NDArray[np.intp]:
    """Keep the first of several answers about one study: they share an image and a truth."""
    seen: dict[str, np.intp] = {}
    for row in ranking:
        seen.setdefault(str(cohort.study_uid[row]), row)
    return np.array(list(seen.values()), dtype=np.intp)


def _keep(ward: Ward, memory: Memory, adapter_sha256: str, *, why: str, at: datetime) -> MemoryVersion:
    name = write_memory(memories_in(ward), memory, held_out=held_out_patients(ward))
    version = _describe(memory, name, adapter_sha256, why, at)
    ward.records.save_memory(version, at)
    return version


def _describe(memory: Memory, name: str, adapter_sha256: str, why: str, at: datetime) -> MemoryVersion:
    return MemoryVersion(
        model=memory.model,
        adapter_sha256=adapter_sha256,
        made_by=memory.made_by,
        sha256=name,
        why=why,
        studies=len(memory),
        patients=len({item.patient for item in memory.items}),
        bytes=memory.features.nbytes,
        at=at,
    )
