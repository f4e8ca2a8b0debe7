"""The feature store: what was put is got, whole or not at all."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from continual.feature_store import FeaturesMissing, FeatureStore

WIDTH, TOKENS = 6, 3


def features_of(names: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Make features that can be told from the name: like a frozen backbone, a pure function of content."""
    seeds = np.array([[sum(name.encode())] for name in names], dtype=np.float32)
    embeddings = seeds + np.arange(WIDTH, dtype=np.float32)
    tokens = (seeds[..., None] + np.arange(TOKENS * WIDTH).reshape(TOKENS, WIDTH)).astype(np.float16)
    return embeddings, tokens, embeddings[:, :2] + 1


def put(store: FeatureStore, names: list[str]) -> None:
    store.put(names, *features_of(names))


names_strategy = st.lists(st.text("abcdef0123456789", min_size=1, max_size=6), min_size=1, max_size=8)


@given(st.lists(names_strategy, min_size=1, max_size=4), st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_was_put_is_got_in_the_order_asked_for(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[str]], data: st.DataObject
) -> None:
    store = FeatureStore(tmp_path_factory.mktemp("features"))
    for batch in batches:
        put(store, batch)
    asked = data.draw(st.lists(st.sampled_from([name for batch in batches for name in batch]), min_size=1))
    embeddings, tokens, statistics = features_of(asked)
    for reader in (store, FeatureStore(store.directory)):
        assert np.array_equal(reader.embeddings(asked), embeddings)
        assert np.array_equal(reader.tokens(np.array(asked)), tokens)
        assert np.array_equal(reader.statistics(asked), statistics)
        assert reader.embeddings(asked).dtype == np.float32
        assert reader.tokens(asked).dtype == np.float16


def test_missing_names_each_hash_once_in_order(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "not there yet")
    assert store.missing(["b", "a", "b"]) == ["b", "a"]
    put(store, ["a"])
    assert store.missing(["b", "a", "c", "b"]) == ["b", "c"]


def test_asking_for_what_nobody_stored_names_the_cure(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    put(store, ["a"])
    with pytest.raises(FeaturesMissing, match=r"1 images .*ingest"):
        store.tokens(["a", "b"])


def test_nothing_asked_is_nothing_got(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    assert len(store.embeddings([])) == 0
    put(store, ["a"])
    assert store.embeddings([]).shape == (0, WIDTH)
    assert store.tokens([]).shape == (0, TOKENS, WIDTH)


def test_one_vector_instead_of_tokens_is_kept_too(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    store.put(["a"], np.ones((1, 5), np.float32), np.ones((1, 1, 4), np.float16), np.zeros((1, 2), np.float32))
    assert store.embeddings(["a"]).shape == (1, 5)
    assert store.tokens(["a"]).shape == (1, 1, 4)


def test_the_same_content_again_is_one_shard(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    put(store, ["a", "b"])
    put(store, ["a", "b"])
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("broken", ["count", "rank", "nan", "statistics", "other backbone"])
def test_features_that_do_not_fit_are_refused_and_not_stored(tmp_path: Path, broken: str) -> None:
    store = FeatureStore(tmp_path)
    put(store, ["a"])
    embeddings, tokens, statistics = features_of(["b"])
    arguments = {
        "count": (["b", "c"], embeddings, tokens, statistics),
        "rank": (["b"], embeddings, tokens[:, 0], statistics),
        "nan": (["b"], embeddings * np.nan, tokens, statistics),
        "statistics": (["b"], embeddings, tokens, statistics * np.inf),
        "other backbone": (["b"], embeddings[:, :4], tokens[..., :4], statistics),
    }[broken]
    with pytest.raises(ValueError, match=r"need|finite|another backbone"):
        store.put(*arguments)  # type: ignore[arg-type]
    assert store.missing(["b"]) == ["b"]


def test_a_damaged_shard_is_an_error_that_names_file_and_cure(tmp_path: Path) -> None:
    put(FeatureStore(tmp_path), ["a"])
    shard = next(tmp_path.iterdir())
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(ValueError, match=f"{shard.name}.*delete it and ingest again"):
        FeatureStore(tmp_path).missing(["a"])


def test_what_a_killed_process_left_is_not_looked_at(tmp_path: Path) -> None:
    (tmp_path / ".half.arrow.1234.partial").write_bytes(b"ARROW1")
    (tmp_path / ".half.arrow").write_bytes(b"ARROW1")
    assert FeatureStore(tmp_path).missing(["a"]) == ["a"]


WRITER = """
import sys
from pathlib import Path
import numpy as np
from continual.feature_store import FeatureStore
store = FeatureStore(Path(sys.argv[1]))
for i in range(int(sys.argv[2]), int(sys.argv[3])):
    tokens = np.full((1, 65, 64), i % 2048, np.float16)
    store.put([str(i)], np.full((1, 64), i, np.float32), tokens, np.full((1, 3), i, np.float32))
    print(i, flush=True)
"""


def start_writer(directory: Path, first: int, end: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(directory), str(first), str(end)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_processes_may_write_at_once(tmp_path: Path) -> None:
    writers = [start_writer(tmp_path, 0, 6), start_writer(tmp_path, 4, 10)]
    assert [writer.communicate(timeout=60) and writer.returncode for writer in writers] == [0, 0]
    names = [str(i) for i in range(10)]
    assert np.array_equal(FeatureStore(tmp_path).embeddings(names)[:, 0], np.arange(10))


@pytest.mark.fault
def test_everything_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    for delay in (0.05, 0.11, 0.23):
        process = start_writer(tmp_path, 0, 100_000)
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        acknowledged = [first.strip(), *process.stdout.read().split()]
        process.stdout.close()
        process.wait()
        if not acknowledged[-1].isdigit():
            acknowledged.pop()
        store = FeatureStore(tmp_path)
        assert store.missing(acknowledged) == []
        assert np.array_equal(store.embeddings(acknowledged)[:, 0], np.array(acknowledged, dtype=np.float32))
