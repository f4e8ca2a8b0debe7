"""MLflow as the library of adapters: files, figures and the alias that mirrors who is champion.

Only this file imports MLflow, and only when it is used. Nothing here loads a model: an adapter is a
safetensors file that goes in as bytes. Our records decide who is champion; MLflow's alias follows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from monitor.cohorts import Window

if TYPE_CHECKING:
    from mlflow import MlflowClient

ALIAS = "champion"
SHA256 = "wardround.adapter_sha256"
FOLDER = "adapter"
LIMITS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "6",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ALLOW_MODEL_CODE_EXECUTION": "false",
    "MLFLOW_CONFIGURE_LOGGING": "false",
}
"""Set before MLflow is imported: with its own retries a dead server blocks a promotion for minutes.

One retry of six seconds: a person who signs waits at most about a quarter of a minute."""


class VersionsUnavailable(RuntimeError):
    """MLflow cannot be reached or refuses; the records are not affected and ``reconcile`` catches up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What MLflow is given of one adapter.

    ``files`` are kept beside the adapter (its card, the window's report); ``documents`` are texts by
    file name (plan, run, decision); metrics that are not finite are left out.
    """

    model: str
    adapter: Path
    adapter_sha256: str
    files: tuple[Path, ...] = ()
    documents: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersions:
    """MLflow's registry at ``tracking_uri``; ``artifact_root`` lies in the store directory, beside adapters/."""

    tracking_uri: str
    artifact_root: Path

    @property
    def store(self) -> Path:
        """The store directory."""
        return self.artifact_root.parent

    def adapter(self, adapter_sha256: str) -> Path:
        """Tell where an adapter lies, named by its hash."""
        return self.store / "adapters" / f"{adapter_sha256}.safetensors"

    def report(self, model: str, window: Window) -> Path:
        """Tell where the report of a window lies."""
        return self.store / "reports" / model / f"{window.key.replace('/', '_').replace(':', '')}.html"

    def register(self, release: Release) -> str:
        """Keep an adapter with its papers as a version of its model; the same adapter is the same version.

        Raises:
            VersionsUnavailable: MLflow cannot be reached or refuses.
        """
        with self._client(release.model) as client:
            found = _find(client, release.model, release.adapter_sha256)
            return found or _create(client, release, self.artifact_root)

    def find(self, model: str, adapter_sha256: str) -> str | None:
        """Tell which version an adapter is.

        Raises:
            VersionsUnavailable: MLflow cannot be reached.
        """
        with self._client(model) as client:
            return _find(client, model, adapter_sha256)

    def set_champion(self, model: str, version: str) -> None:
        """Point the alias ``champion`` to a version.

        Raises:
            VersionsUnavailable: MLflow cannot be reached, or has no such version.
        """
        with self._client(model) as client:
            client.set_registered_model_alias(model, ALIAS, version)

    def champion(self, model: str) -> str | None:
        """Tell which version the alias ``champion`` points to; None without one.

        Raises:
            VersionsUnavailable: MLflow cannot be reached.
        """
        with self._client(model) as client:
            for registered in client.search_registered_models(f"name = '{model}'"):
                version = registered.aliases.get(ALIAS)
                return None if version is None else str(version)
            return None

    @contextmanager
    def _client(self, model: str) -> Iterator[MlflowClient]:
        check_name(model)
        os.environ.update({name: value for name, value in LIMITS.items() if name not in os.environ})
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
        from mlflow.store.db.utils import sqlalchemy  # type: ignore[attr-defined]  # its errors come through

        try:
            yield MlflowClient(tracking_uri=self.tracking_uri, registry_uri=self.tracking_uri)
        except (MlflowException, sqlalchemy.exc.SQLAlchemyError, OSError) as error:
            first = str(error).strip().partition("\n")[0]
            raise VersionsUnavailable(
                f"MLflow at {self.tracking_uri} did not do it: {first}; "
                "the records stand, and the next round (or `wardround promote` again) brings MLflow after"
            ) from error


def _find(client: MlflowClient, model: str, adapter_sha256: str) -> str | None:
    wanted = f"name = '{model}' AND tags.`{SHA256}` = '{adapter_sha256}'"
    versions = [int(found.version) for found in client.search_model_versions(wanted)]
    return str(min(versions)) if versions else None


def _create(client: MlflowClient, release: Release, artifact_root: Path) -> str:
    tags = {**release.tags, SHA256: release.adapter_sha256}
    run = client.create_run(_experiment(client, release.model, artifact_root), tags=tags, run_name=release.model)
    run_id = run.info.run_id
    for path in (release.adapter, *release.files):
        client.log_artifact(run_id, str(path), FOLDER)
    for name, text in release.documents.items():
        client.log_text(run_id, text, f"{FOLDER}/{name}")
    for name, value in release.metrics.items():
        if isfinite(value):
            client.log_metric(run_id, name, value)
    client.set_terminated(run_id)
    if not client.search_registered_models(f"name = '{release.model}'"):
        client.create_registered_model(release.model)
    created = client.create_model_version(release.model, f"runs:/{run_id}/{FOLDER}", run_id=run_id, tags=tags)
    return str(created.version)


def _experiment(client: MlflowClient, model: str, artifact_root: Path) -> str:
    name = f"wardround/{model}"
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    folder = artifact_root.resolve() / model
    folder.mkdir(parents=True, exist_ok=True)
    return str(client.create_experiment(name, artifact_location=folder.as_uri()))


def check_name(model: str) -> None:
    """Refuse a model name that MLflow cannot keep, or that would change the meaning of its filters."""
    if not model or set(model) & set("/:'\"`%\\"):
        raise ValueError(f"a model name holds no / : % \\ or quotes, got {model!r}; rename it in wardround.toml")
