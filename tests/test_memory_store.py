"""Rehearsal memories on disk, and what an adaptation takes from its champion's and leaves behind."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from continual.memory_selection import MemoryPolicy
from continual.memory_store import (
    Memory,
    MemoryItem,
    MemoryRefused,
    fit_memory,
    list_memories,
    load_memory,
    read_manifest,
    remove_memory,
    sweep_columns,
    write_memory,
)
from flows.memory_views import count_strata, view_memories
from flows.remembering import held_out_patients, in_force, memories_in, rewrite_memory, sweep_memories
from flows.treating import stages_of, treat

pytestmark = [
    pytest.mark.filterwarnings("ignore:JAXopt is no longer maintained:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning"),
]
MADE = datetime(2026, 1, 5, tzinfo=UTC)


def memory(
    n: int = 6, *, stage: str = "a", tokens: int = 3, start: int = 0, policy: MemoryPolicy | None = None
) -> Memory:
    items = tuple(
        MemoryItem(
            image=f"{i:064x}",
            study=f"s{i}",
            patient=f"p{i // 2}",
            stage=stage,
            stratum="AB"[i % 2],
            labels=(float(i % 2), None),
            produced_at=MADE + timedelta(days=i),
            added_at=MADE + timedelta(days=100),
        )
        for i in range(start, start + n)
    )
    features = np.random.default_rng(start).normal(size=(n, tokens, 4)).astype(np.float16)
    return Memory(
        model="m", made_by="run-1", feature_key="k", policy=policy or MemoryPolicy(), items=items, features=features
    )


def test_what_was_kept_is_loaded_bit_by_bit_and_the_same_memory_has_one_name(tmp_path: Path) -> None:
    one = memory()
    name = write_memory(tmp_path, one, held_out=())
    assert write_memory(tmp_path, memory(), held_out=()) == name
    loaded = load_memory(tmp_path, name, held_out=())
    assert loaded.items == one.items
    assert np.array_equal(loaded.features, one.features)
    assert loaded.features.dtype == np.float16
    assert list(list_memories(tmp_path)) == [name]
    manifest = read_manifest(tmp_path, name)
    assert (manifest.holds, manifest.bytes, len(manifest.patients)) == ("tokens", 6 * 3 * 4 * 2, 3)
    assert json.loads((tmp_path / f"{name}.json").read_text())["columns_sha256"] == manifest.columns_sha256


def test_embeddings_are_kept_as_tokens_of_one(tmp_path: Path) -> None:
    whole = memory(tokens=1)
    wide = replace(whole, features=whole.features.astype(np.float32))
    name = write_memory(tmp_path, wide, held_out=())
    assert read_manifest(tmp_path, name).holds == "embeddings"
    assert load_memory(tmp_path, name, held_out=()).features.dtype == np.float32


def test_a_memory_of_nobody_is_one_too(tmp_path: Path) -> None:
    name = write_memory(tmp_path, memory().select(lambda item: False), held_out=())
    loaded = load_memory(tmp_path, name, held_out=())
    assert (len(loaded), loaded.features.shape, loaded.stages) == (0, (0, 3, 4), ())
    assert len(loaded.experience("a")) == 0


def test_who_is_held_out_is_neither_kept_nor_loaded(tmp_path: Path) -> None:
    with pytest.raises(MemoryRefused, match="1 patients of the memory are held out"):
        write_memory(tmp_path, memory(), held_out={"p1", "p9"})
    assert not list(tmp_path.iterdir())
    name = write_memory(tmp_path, memory(), held_out={"p9"})
    with pytest.raises(MemoryRefused, match="2 patients of the memory are held out"):
        load_memory(tmp_path, name, held_out={"p0", "p2"})


@pytest.mark.parametrize("suffix", [".json", ".arrow"])
def test_a_file_that_was_changed_or_lost_is_refused(tmp_path: Path, suffix: str) -> None:
    name = write_memory(tmp_path, memory(), held_out=())
    (path,) = tmp_path.glob(f"*{suffix}")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(MemoryRefused, match="was changed after it was written; restore it from a backup"):
        load_memory(tmp_path, name, held_out=())
    path.unlink()
    with pytest.raises(MemoryRefused, match="does not exist; restore it from a backup"):
        load_memory(tmp_path, name, held_out=())


def test_what_does_not_fit_is_no_memory() -> None:
    one = memory()
    broken: Any = one.features.copy()
    broken[2, 0, 0] = np.nan
    with pytest.raises(MemoryRefused, match="finite numbers only"):
        replace(one, features=broken)
    with pytest.raises(MemoryRefused, match="a memory of 6 studies needs features"):
        replace(one, features=one.features[:5])
    with pytest.raises(MemoryRefused, match="a study is in the memory twice"):
        replace(one, items=(*one.items[:5], one.items[0]))


def test_both_limits_are_kept_and_the_beginnings_stay() -> None:
    old, new = memory(10), memory(10, stage="b", start=10)
    by_count = fit_memory([old, new], made_by="run-2", policy=MemoryPolicy(studies=6))
    assert [item.study for item in by_count.items] == ["s0", "s1", "s2", "s10", "s11", "s12"]
    each = 3 * 4 * 2
    by_bytes = fit_memory([old, new], made_by="run-2", policy=MemoryPolicy(megabytes=4.5 * each / 2**20))
    assert [item.study for item in by_bytes.items] == ["s0", "s1", "s10", "s11"]
    assert by_bytes.features.nbytes <= 4.5 * each
    third = fit_memory([by_count, memory(10, stage="c", start=20)], made_by="run-3", policy=MemoryPolicy(studies=6))
    assert [item.study for item in third.items] == ["s0", "s1", "s10", "s11", "s20", "s21"]
    assert third.stages == ("a", "b", "c")
    with pytest.raises(ValueError, match="different models or features"):
        fit_memory([old, memory(tokens=1)], made_by="", policy=MemoryPolicy())


def test_the_time_of_the_study_decides_when_it_goes() -> None:
    policy = MemoryPolicy(retention_days=30)
    whole = memory()
    assert whole.items[0].expires(policy) == datetime(2026, 2, 4, tzinfo=UTC)
    left = whole.fresh(policy, datetime(2026, 2, 6, tzinfo=UTC))
    assert [item.study for item in left.items] == ["s3", "s4", "s5"]


def test_an_experience_of_a_stage_has_its_studies_best_first() -> None:
    experience = memory().experience("a")
    assert experience.patient_key.tolist() == ["p0", "p0", "p1", "p1", "p2", "p2"]
    assert experience.strata.tolist() == ["A", "B"] * 3
    assert np.isnan(experience.labels[:, 1]).all()
    assert experience.labels[:, 0].tolist() == [0, 1] * 3
    assert experience.image[1] == f"{1:064x}"


def test_features_that_two_memories_share_go_with_the_last(tmp_path: Path) -> None:
    one = write_memory(tmp_path, memory(), held_out=())
    two = write_memory(tmp_path, replace(memory(), made_by="run-2"), held_out=())
    assert len(list(tmp_path.glob("*.arrow"))) == 1
    remove_memory(tmp_path, one)
    assert len(load_memory(tmp_path, two, held_out=())) == 6
    (tmp_path / ".x.arrow.1.partial").write_bytes(b"left behind")
    remove_memory(tmp_path, two)
    remove_memory(tmp_path, two)
    sweep_columns(tmp_path)
    assert not list(tmp_path.iterdir())


def test_small_groups_stay_blank_and_so_does_what_would_tell_them() -> None:
    items = [
        memory(1).items[0].model_copy(update={"study": f"{stratum}{i}", "patient": f"{stratum}{i}", "stratum": stratum})
        for stratum, n in (("A", 20), ("B", 9), ("C", 2))
        for i in range(n)
    ]
    counts = {row.stratum: (row.studies, row.patients, row.suppressed) for row in count_strata(items, 5)}
    assert counts == {"A": (20, 20, False), "B": (None, None, True), "C": (None, None, True)}


# ---- in the ward


def test_a_run_leaves_a_memory_and_learns_the_past_from_its_champions(treated: Any) -> None:
    ward = treated.ward
    first, *others = in_force(ward, treated.model)
    champion = ward.records.champion(treated.model)
    assert (first.adapter_sha256, first.made_by, first.studies) == (champion.adapter_sha256, "version 1", 60)
    runs = {run.run_id: run for run in ward.records.runs(treated.model)}
    assert [version.made_by for version in others] == list(runs)
    for version in others:
        run = runs[version.made_by]
        kept = load_memory(memories_in(ward), version.sha256, held_out=held_out_patients(ward))
        assert (run.memory_sha256, run.memory_kept, run.memory_patients) == (version.sha256, 60, version.patients)
        assert run.memory_bytes == kept.features.nbytes == version.bytes
        assert kept.stages == run.experiences
        old = load_memory(memories_in(ward), first.sha256, held_out=())
        assert kept.stage(run.experiences[0]).items == old.items[:30]
        features = ward.features_of(treated.model).tokens([item.image for item in kept.items])
        assert np.array_equal(kept.features, features)
    (view, *_) = view_memories(ward, treated.model)
    assert (view.live, view.studies, view.holds) == (True, 60, "tokens")
    assert [(row.stratum, row.studies) for row in view.strata] == [("A", 30), ("B", 30)]


def test_what_was_swept_is_not_learned_from_again(treated: Any) -> None:
    ward = treated.ward
    later = datetime(2028, 1, 11, tzinfo=UTC)
    before = in_force(ward, treated.model)
    gone = sweep_memories(ward, treated.model, at=later)
    after = in_force(ward, treated.model)
    assert gone == sum(version.studies for version in before) - sum(version.studies for version in after) > 10
    assert {version.sha256 for version in after} == set(list_memories(memories_in(ward)))
    assert all("older than 730 days" in version.why for version in after)
    assert sweep_memories(ward, treated.model, at=later) == 0
    assert ward.records.verify_events().ok


def test_a_stage_of_which_nothing_is_remembered_is_still_measured(treated: Any) -> None:
    ward = treated.ward
    plan = replace(ward.records.plans(treated.model)[-1], reason="again", evidence=())
    (version, *_) = in_force(ward, treated.model)
    at = datetime(2026, 3, 3, tzinfo=UTC)
    rewrite_memory(ward, version.sha256, lambda item: False, why="a test", at=at)
    run = treat(ward, plan, "replay", at=at)
    assert len(run.experiences) == len(stages_of(ward, plan)) == len(run.matrix[0]) == 2
    assert all(figure is not None for figure in run.matrix[-1])
    kept = load_memory(memories_in(ward), run.memory_sha256, held_out=())
    assert kept.stages == run.experiences[1:]


def test_a_memory_with_somebody_who_is_held_out_stops_the_adaptation(treated: Any) -> None:
    ward = treated.ward
    plan = replace(ward.records.plans(treated.model)[-1], evidence=())
    (version, *_) = in_force(ward, treated.model)
    held_out = sorted(held_out_patients(ward))[0]
    kept = load_memory(memories_in(ward), version.sha256, held_out=())
    wrong = replace(kept, items=(kept.items[0].model_copy(update={"patient": held_out}), *kept.items[1:]))
    at = datetime(2026, 3, 3, tzinfo=UTC)
    name = write_memory(memories_in(ward), wrong, held_out=())
    ward.records.save_memory(replace(version, sha256=name, why="wrong"), at)
    with pytest.raises(MemoryRefused, match="1 patients of the memory are held out to judge adapters on"):
        treat(ward, plan, "naive", at=at)
