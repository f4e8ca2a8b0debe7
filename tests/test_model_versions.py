"""MLflow keeps adapters as bytes with their papers, each once, and fails quickly and clearly when it is not there."""

import hashlib
import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from registry.model_versions import ALIAS, SHA256, ModelVersions, Release, VersionsUnavailable

# MLflow's own tables use a loader strategy that SQLAlchemy 2.1 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning")


@pytest.fixture(scope="session")
def mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One MLflow database a session: its first creation takes 10 to 18 seconds."""
    folder = tmp_path_factory.getbasetemp() / "mlflow"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def versions(mlflow_store: Path, tmp_path: Path) -> ModelVersions:
    return ModelVersions(tracking_uri=f"sqlite:///{mlflow_store / 'mlflow.db'}", artifact_root=tmp_path / "mlartifacts")


@pytest.fixture
def release(tmp_path: Path, request: pytest.FixtureRequest) -> Release:
    content = b"weights of " + request.node.name.encode()
    adapter, card = tmp_path / "adapter.safetensors", tmp_path / "adapter.json"
    adapter.write_bytes(content)
    card.write_text("{}")
    return Release(
        model=request.node.name.replace("[", "-").replace("]", ""),
        adapter=adapter,
        adapter_sha256=hashlib.sha256(content).hexdigest(),
        files=(card,),
        documents={"plan.json": '{"reason": "drift"}'},
        metrics={"auroc challenger on 2026-01-05/2026-03-30": 0.9, "broken": float("nan")},
        tags={"wardround.version": "1"},
    )


def client_of(versions: ModelVersions):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=versions.tracking_uri, registry_uri=versions.tracking_uri)


def test_an_adapter_is_kept_as_bytes_with_its_papers(versions, release, tmp_path):
    version = versions.register(release)
    assert version == "1"
    client = client_of(versions)
    kept = client.get_model_version(release.model, version)
    assert kept.tags == {SHA256: release.adapter_sha256, "wardround.version": "1"}
    run = client.get_run(kept.run_id)
    assert run.data.metrics == {"auroc challenger on 2026-01-05/2026-03-30": 0.9}
    assert run.info.status == "FINISHED"
    folder = Path(urlsplit(run.info.artifact_uri).path) / "adapter"
    assert sorted(path.name for path in folder.iterdir()) == ["adapter.json", "adapter.safetensors", "plan.json"]
    assert (folder / "adapter.safetensors").read_bytes() == release.adapter.read_bytes()
    assert json.loads((folder / "plan.json").read_text()) == {"reason": "drift"}
    assert folder.is_relative_to(tmp_path / "mlartifacts")


def test_the_same_adapter_is_the_same_version(versions, release):
    assert versions.find(release.model, release.adapter_sha256) is None
    assert [versions.register(release) for _ in range(3)] == ["1", "1", "1"]
    release.adapter.write_bytes(b"other weights")
    other = Release(model=release.model, adapter=release.adapter, adapter_sha256="0" * 64)
    assert versions.register(other) == "2"
    assert versions.find(release.model, release.adapter_sha256) == "1"
    assert versions.find("another model", release.adapter_sha256) is None


def test_the_alias_goes_where_it_is_sent(versions, release):
    assert versions.champion(release.model) is None
    versions.register(release)
    assert versions.champion(release.model) is None
    versions.set_champion(release.model, "1")
    assert versions.champion(release.model) == "1"
    assert client_of(versions).get_model_version_by_alias(release.model, ALIAS).tags[SHA256] == release.adapter_sha256
    with pytest.raises(VersionsUnavailable, match="version=7"):
        versions.set_champion(release.model, "7")
    assert versions.champion(release.model) == "1"


def test_a_crash_between_run_and_version_leaves_nothing_in_the_way(versions, release):
    client = client_of(versions)
    folder = versions.artifact_root.resolve() / release.model
    client.create_experiment(f"wardround/{release.model}", artifact_location=folder.as_uri())
    client.create_registered_model(release.model)
    assert versions.register(release) == "1"


@pytest.mark.parametrize("name", ["a/b", "a:b", "it's", 'say "hi"', "50%", ""])
def test_names_that_would_change_a_question_are_refused(versions, name):
    with pytest.raises(ValueError, match=r"rename it in wardround\.toml"):
        versions.champion(name)


@pytest.mark.parametrize("where", ["file-that-is-no-database", "folder/that/is/not/there.db"])
def test_a_store_that_cannot_be_opened_is_one_clear_error(tmp_path, where):
    (tmp_path / "file-that-is-no-database").write_bytes(b"\xff" * 4096)
    (tmp_path / "folder").write_text("not a folder")
    broken = ModelVersions(tracking_uri=f"sqlite:///{tmp_path / where}", artifact_root=tmp_path / "mlartifacts")
    with pytest.raises(VersionsUnavailable, match="the records stand"):
        broken.champion("tumour")


@pytest.mark.slow
def test_a_dead_and_a_silent_server_fail_soon(tmp_path):
    """Measured from a fresh process, as it is for a user: MLflow's own retries would take minutes."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        dead = socket.create_server(("127.0.0.1", 0))
        closed = dead.getsockname()[1]
        dead.close()
        for port, limit in ((closed, 25), (silent.getsockname()[1], 35)):  # imports included
            code = (
                "from pathlib import Path; from registry.model_versions import *\n"
                f"versions = ModelVersions(tracking_uri='http://127.0.0.1:{port}', artifact_root=Path('x'))\n"
                "try: versions.champion('tumour')\n"
                "except VersionsUnavailable as error: print('unavailable')\n"
            )
            began = time.monotonic()
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100)
            assert done.stdout == "unavailable\n"
            assert time.monotonic() - began < limit
