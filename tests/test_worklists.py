"""Worklists: quotas hold, nobody who is held out is learned from, no study twice, and choosing biases no figure."""

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from continual.choosing import METHODS, Pool, choose_studies, name_subgroups, share_quotas
from continual.label_uses import OpenWorklist, hide_from_measuring, look_at_worklists, missing_labels, tell_missing
from continual.worklists import LabelPolicy, Part, Worklist, WorklistItem, draw_worklist, studies_to_ask, waiting_on
from monitor.cohorts import Window
from monitor.performance import auroc
from registry.held_out import PatientRole, roles_of
from registry.settings import RoleShares

AT = datetime(2026, 5, 4, 9, tzinfo=UTC)
WINDOW = Window(start=datetime(2026, 3, 30, tzinfo=UTC), end=datetime(2026, 4, 6, tzinfo=UTC))


def pool_of(seed: int, n: int, *, patients: int, subgroups: int = 3, images: bool = True) -> tuple[Pool, Any]:
    """Draw a pool in which some studies are near-duplicates of others, and which of them may be learned from."""
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((max(n // 2, 1), 6)).astype(np.float32)
    values = centres[generator.integers(len(centres), size=n)]
    values = values + generator.choice([0.0, 0.6], (n, 1)) * generator.standard_normal((n, 6))
    owner = generator.integers(patients, size=n)
    learning = np.isin(owner, np.flatnonzero(generator.random(patients) < 0.5))
    pool = Pool(
        study_uid=np.array([f"s{i}" for i in range(n)], dtype=np.str_),
        patient_key=np.array([f"p{i}" for i in owner], dtype=np.str_),
        subgroup=np.array([f"g{i}" for i in generator.integers(subgroups, size=n) ** 2 % subgroups], dtype=np.str_),
        uncertainty=generator.random(n),
        free=generator.random(n) < 0.9,
        known=generator.random(n) < 0.15,
        embeddings=values.astype(np.float32) if images else None,
    )
    return pool, learning


def similarities(pool: Pool) -> Any:
    assert pool.embeddings is not None
    units = pool.embeddings / np.linalg.norm(pool.embeddings, axis=1, keepdims=True)
    return units @ units.T


pools = st.builds(
    pool_of,
    st.integers(0, 10_000),
    st.integers(1, 60),
    patients=st.integers(1, 40),
    subgroups=st.integers(1, 4),
    images=st.booleans(),
)
policies = st.builds(
    LabelPolicy,
    random_share=st.sampled_from([0.0, 0.3, 0.5]),
    method=st.sampled_from(sorted(METHODS)),
    smallest_quota=st.integers(0, 4),
    near_duplicate=st.sampled_from([0.9, 0.98, 1.0]),
)


# ---- choosing


@settings(max_examples=150)
@given(drawn=pools, n=st.integers(1, 40), method=st.sampled_from(sorted(METHODS)))
def test_what_is_chosen_is_free_new_and_unlike_all_else(drawn: Any, n: int, method: str) -> None:
    pool, _ = drawn
    quotas = dict.fromkeys(pool.subgroup.tolist(), n)
    rule: dict[str, Any] = {"method": method, "quotas": quotas, "near_duplicate": 0.95}
    chosen = choose_studies(pool, n, **rule)
    assert len(set(chosen.tolist())) == len(chosen) <= n
    assert (pool.free[chosen] & ~pool.known[chosen]).all()
    again = choose_studies(pool, n, **rule)
    assert chosen.tolist() == again.tolist()
    if pool.embeddings is not None:
        alike = similarities(pool)
        for place, row in enumerate(chosen):
            others = [*chosen[:place], *np.flatnonzero(pool.known)]
            assert not others or alike[row, others].max() <= 0.95 + 1e-5
    else:
        assert len(chosen) == min(n, int((pool.free & ~pool.known).sum()))


@settings(max_examples=100)
@given(drawn=pools, n=st.integers(1, 40), floor=st.integers(0, 4))
def test_quotas_hold_and_nobody_comes_twice_before_all_came_once(drawn: Any, n: int, floor: int) -> None:
    pool, _ = drawn
    may = pool.free & ~pool.known
    quotas = share_quotas(Counter(pool.subgroup.tolist()), Counter(pool.subgroup[may].tolist()), n, floor=floor)
    chosen = choose_studies(pool, n, method="both", quotas=quotas, near_duplicate=1.0)
    if pool.embeddings is None:  # no near-duplicates that could dry a subgroup up
        assert Counter(pool.subgroup[chosen].tolist()) == {name: quota for name, quota in quotas.items() if quota}
        for name in set(pool.subgroup.tolist()):
            mine = [row for row in chosen if pool.subgroup[row] == name]
            turns = Counter(pool.patient_key[mine].tolist())
            left = set(pool.patient_key[may & (pool.subgroup == name)].tolist()) - set(
                pool.patient_key[chosen].tolist()
            )
            assert max(turns.values(), default=0) <= 1 or not left


def test_a_subgroup_that_dries_up_leaves_its_quota_to_others() -> None:
    pool, _ = pool_of(1, 30, patients=30, subgroups=2, images=False)
    chosen = choose_studies(
        pool,
        20,
        method="uncertainty",
        quotas={"g0": 20, "g1": 0},
        near_duplicate=0.9,
    )
    may = pool.free & ~pool.known
    counts = Counter(pool.subgroup[chosen].tolist())
    assert counts["g0"] == (may & (pool.subgroup == "g0")).sum()
    assert len(chosen) == min(20, may.sum())


@given(
    sizes=st.lists(st.tuples(st.integers(1, 50), st.floats(0, 1)), min_size=1, max_size=6),
    total=st.integers(0, 80),
    floor=st.integers(0, 6),
)
def test_quotas_add_up_are_available_and_keep_the_floor(sizes: Any, total: int, floor: int) -> None:
    population = {f"g{i}": size for i, (size, _) in enumerate(sizes)}
    available = {f"g{i}": round(size * share) for i, (size, share) in enumerate(sizes)}
    quotas = share_quotas(population, available, total, floor=floor)
    assert sum(quotas.values()) == min(total, sum(available.values()))
    assert all(0 <= quotas[name] <= available[name] for name in population)
    floors = {name: min(floor, available[name]) for name in population}
    if sum(floors.values()) <= total:
        assert all(quotas[name] >= floors[name] for name in population)


def test_quotas_by_hand() -> None:
    assert share_quotas({"a": 80, "b": 15, "c": 5}, {"a": 80, "b": 15, "c": 5}, 20, floor=3) == {
        "a": 14,
        "b": 3,
        "c": 3,
    }
    assert share_quotas({"a": 50, "b": 50}, {"a": 4, "b": 50}, 20, floor=5) == {"a": 4, "b": 16}
    assert share_quotas({"a": 50, "b": 50}, {"a": 50, "b": 50}, 3, floor=5) == {"a": 3, "b": 0}


def test_each_method_by_hand() -> None:
    values = np.array([[1, 0], [1, 0.01], [0, 1], [-1, 0.0]], dtype=np.float32)
    pool = Pool(
        study_uid=np.array(["a", "b", "c", "d"]),
        patient_key=np.array(["p", "q", "r", "s"]),
        subgroup=np.array([""] * 4),
        uncertainty=np.array([0.2, 0.9, 0.8, 0.1]),
        free=np.array([False, True, True, True]),
        known=np.array([True, False, False, False]),
        embeddings=values,
    )
    rule: dict[str, Any] = {"quotas": {"": 3}}
    assert choose_studies(pool, 2, method="uncertainty", near_duplicate=1.0, **rule).tolist() == [1, 2]
    assert choose_studies(pool, 1, method="diversity", near_duplicate=1.0, **rule).tolist() == [3]
    # the product: 0.9 first, since nothing near "b" is left, then what is unsure and far
    assert choose_studies(pool, 2, method="both", near_duplicate=1.0, **rule).tolist() == [2, 3]
    assert choose_studies(pool, 3, method="uncertainty", near_duplicate=0.98, **rule).tolist() == [2, 3]
    with pytest.raises(ValueError, match="chosen by uncertainty, diversity, both, got 'luck'"):
        choose_studies(pool, 1, method="luck", near_duplicate=1.0, **rule)


def test_subgroups_are_named_by_their_values_and_numbers_are_cut_at_the_median() -> None:
    attributes: Any = {"sex": np.array(["F", "M", "F"]), "age": np.array([30.0, np.nan, 60.0])}
    assert name_subgroups(attributes, ("sex", "age", "site"), 3).tolist() == [
        "sex F & age ≤ 45",
        "sex M & age missing",
        "sex F & age > 45",
    ]
    assert name_subgroups(attributes, (), 3).tolist() == ["", "", ""]


def test_a_pool_that_does_not_fit_is_refused() -> None:
    pool, _ = pool_of(0, 4, patients=2)
    columns = {name: getattr(pool, name) for name in ("study_uid", "patient_key", "subgroup", "free", "known")}
    with pytest.raises(ValueError, match="every column has 4 rows"):
        Pool(**columns, uncertainty=np.zeros(3))
    with pytest.raises(ValueError, match="0 or more"):
        Pool(**columns, uncertainty=np.full(4, np.nan))
    with pytest.raises(ValueError, match=r"embeddings have shape \(4, width\)"):
        Pool(**columns, uncertainty=np.zeros(4), embeddings=np.zeros((3, 2), dtype=np.float32))


# ---- worklists


@settings(max_examples=150)
@given(drawn=pools, n=st.integers(1, 60), policy=policies, seed=st.integers(0, 99))
def test_nobody_held_out_is_chosen_and_nobody_learned_from_is_drawn(
    drawn: Any, n: int, policy: LabelPolicy, seed: int
) -> None:
    pool, learning = drawn
    items, frame = draw_worklist(pool, learning, n, policy=policy, generator=np.random.default_rng(seed))
    rows = {str(study): i for i, study in enumerate(pool.study_uid)}
    studies = [item.study_uid for item in items]
    assert len(set(studies)) == len(studies) <= n
    for item in items:
        row = rows[item.study_uid]
        assert pool.free[row]
        assert not pool.known[row]
        assert learning[row] == (item.part is Part.CHOSEN)
        assert (item.probability is None) == (item.part is Part.CHOSEN)
        assert item.reason
    random = [item for item in items if item.part is Part.RANDOM]
    assert len(random) == min(round(n * policy.random_share), frame)
    assert {item.probability for item in random} <= {len(random) / max(frame, 1)}
    assert draw_worklist(pool, learning, n, policy=policy, generator=np.random.default_rng(seed)) == (items, frame)


def test_every_study_of_the_frame_has_the_same_chance() -> None:
    pool, learning = pool_of(5, 40, patients=12)
    policy = LabelPolicy(random_share=0.5)
    counts: Counter[str] = Counter()
    for seed in range(800):
        items, frame = draw_worklist(pool, learning, 10, policy=policy, generator=np.random.default_rng(seed))
        counts.update(item.study_uid for item in items if item.part is Part.RANDOM)
    expected = 800 * 5 / frame
    assert len(counts) == frame
    spread = np.sqrt(expected * (1 - 5 / frame))
    assert max(abs(count - expected) for count in counts.values()) < 4 * spread


def test_the_order_does_not_tell_the_part() -> None:
    pool, learning = pool_of(2, 60, patients=60, images=False)
    first = Counter(
        draw_worklist(pool, learning, 10, policy=LabelPolicy(), generator=np.random.default_rng(seed))[0][0].part
        for seed in range(200)
    )
    assert 70 < first[Part.RANDOM] < 130


@given(missing=st.integers(1, 500), share=st.sampled_from([0.0, 0.1, 0.25, 0.4, 0.5, 0.9]))
def test_so_many_studies_are_asked_for_that_enough_are_to_learn_from(missing: int, share: float) -> None:
    policy = LabelPolicy(random_share=share)
    n = studies_to_ask(missing, policy)
    assert n - round(n * share) >= missing
    assert n - 1 - round((n - 1) * share) < missing


def test_an_unknown_method_is_refused_in_the_policy() -> None:
    with pytest.raises(ValidationError, match="chosen by uncertainty, diversity, both, got 'luck'"):
        LabelPolicy(method="luck")


def worklist(*, chosen: int, random: int = 0, at: datetime = AT, name: str = "s") -> Worklist:
    parts = [Part.CHOSEN] * chosen + [Part.RANDOM] * random
    items = [
        WorklistItem(study_uid=f"{name}{i}", part=part, reason="x", uncertainty=0.5, subgroup="")
        for i, part in enumerate(parts)
    ]
    return Worklist(
        model="m",
        windows=(WINDOW,),
        champion_version="1",
        asked=len(items),
        policy=LabelPolicy(),
        frame=random,
        requested_at=at,
        items=tuple(items),
    )


def test_a_worklist_is_open_until_it_came_back_or_was_given_up() -> None:
    one = worklist(chosen=2, random=1)
    assert one.is_open(frozenset({"s0"}), AT)
    assert not one.is_open(frozenset({"s0", "s1", "s2"}), AT)
    assert not one.is_open(frozenset(), AT + timedelta(days=60))
    assert waiting_on([one], frozenset({"s0"}), AT) == {"s1", "s2"}
    assert waiting_on([one], frozenset(), AT + timedelta(days=60)) == frozenset()
    assert one.worklist_id != worklist(chosen=2, random=1, at=AT + timedelta(seconds=1)).worklist_id


def test_what_a_worklist_is_called_follows_from_what_was_asked_and_not_from_who_is_left_on_it() -> None:
    one = worklist(chosen=2, random=1)
    assert replace(one, items=one.items[1:]).worklist_id == one.worklist_id
    assert replace(one, before=1).worklist_id != one.worklist_id


# ---- how many are missing


def test_the_sentence_says_what_is_there_on_its_way_and_to_ask_for() -> None:
    lists = [worklist(chosen=40, random=20)]
    waiting = look_at_worklists(lists, frozenset(f"s{i}" for i in range(6)), AT + timedelta(days=3, hours=1))
    name = lists[0].worklist_id
    assert waiting == (OpenWorklist(worklist_id=name, since=AT.date(), days=3, asked=60, returned=6, to_learn_from=34),)
    assert waiting[0].return_rate == 0.1
    need = missing_labels(12, 60, waiting)
    assert (need.missing, need.enough) == (14, False)
    assert tell_missing(need, LabelPolicy(random_share=0.0)) == (
        f"12 of 60 labels to learn from are there; 34 are on worklist {name} since 2026-05-04; "
        "request 14 more with `wardround labels request --n 14`"
    )
    assert tell_missing(need, LabelPolicy(random_share=0.5)).endswith("--n 28`, 14 of them to measure by")


def test_without_anything_missing_nothing_is_asked_for() -> None:
    assert tell_missing(missing_labels(60, 60), LabelPolicy()) == "60 of 60 labels to learn from are there"
    assert missing_labels(60, 60).enough
    waiting = look_at_worklists([worklist(chosen=1)], frozenset(), AT)
    assert "; 1 is on worklist wl-" in tell_missing(missing_labels(59, 60, waiting), LabelPolicy())


# ---- choosing biases no figure


def simulate(seed: int, *, by_themselves: float) -> dict[str, float | None]:
    """Label a window of a model that is less sure of what it gets wrong; give its AUROC by four ways of counting."""
    generator = np.random.default_rng(seed)
    n = 600
    labels = generator.integers(0, 2, n).astype(float)
    logits = 1.5 * (2 * labels - 1) + generator.normal(0, 2, n)
    scores = 1 / (1 + np.exp(-logits))
    patients = np.array([f"{seed}-{i // 2}" for i in range(n)])
    learning = roles_of(patients, RoleShares()) == PatientRole.LEARNING
    pool = Pool(
        study_uid=np.array([f"s{i}" for i in range(n)]),
        patient_key=patients,
        subgroup=np.array([""] * n),
        uncertainty=1 - np.abs(2 * scores - 1),
        free=np.ones(n, dtype=bool),
        known=np.zeros(n, dtype=bool),
    )
    policy = LabelPolicy(method="uncertainty")
    items, _ = draw_worklist(pool, np.asarray(learning), 160, policy=policy, generator=generator)
    rows = {item.study_uid: int(item.study_uid[1:]) for item in items}
    chosen = np.zeros(n, dtype=bool)
    chosen[[rows[item.study_uid] for item in items if item.part is Part.CHOSEN]] = True
    known = generator.random(n) < by_themselves
    known[list(rows.values())] = True
    told = np.where(known, labels, np.nan)
    measured = hide_from_measuring(told[:, None], learning=np.asarray(learning), chosen=chosen)[:, 0]
    return {
        "truth": auroc(scores, labels),
        "all": auroc(scores, told),
        "without the chosen": auroc(scores, np.where(chosen, np.nan, told)),
        "ours": auroc(scores, measured),
    }


@pytest.mark.parametrize(("by_themselves", "biased", "sign"), [(0.0, "all", -1), (0.9, "without the chosen", 1)])
def test_choosing_biases_the_window_but_not_what_we_measure(by_themselves: float, biased: str, sign: int) -> None:
    """Counting chosen studies makes the model look worse, leaving out only them makes it look better; ours neither."""
    runs = [simulate(seed, by_themselves=by_themselves) for seed in range(80)]
    errors = {name: np.array([run[name] - run["truth"] for run in runs]) for name in runs[0]}  # type: ignore[operator]
    standard = {name: error.std() / np.sqrt(len(error)) for name, error in errors.items()}
    assert sign * errors[biased].mean() > 0.015
    assert abs(errors["ours"].mean()) < 3 * standard["ours"]
    assert standard["ours"] < 0.005


def test_labels_count_again_once_all_learning_patients_are_labelled() -> None:
    labels = np.array([[1.0], [0.0], [np.nan], [1.0]])
    learning, chosen = np.array([True, True, False, False]), np.array([True, False, False, False])
    assert hide_from_measuring(labels, learning=learning, chosen=chosen) is labels
    labels[1] = np.nan
    hidden = hide_from_measuring(labels, learning=learning, chosen=chosen)
    assert np.array_equal(hidden, [[np.nan], [np.nan], [np.nan], [1.0]], equal_nan=True)
    unread = np.array([False, True, False, False])
    assert hide_from_measuring(labels, learning=learning, chosen=unread) is labels
