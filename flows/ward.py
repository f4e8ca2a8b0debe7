"""The ward: what every step needs at hand, and the cohorts that a model version stands on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path

import numpy as np

from continual.adapter_card import Reads
from continual.adapter_files import load_adapter, read_outputs
from continual.adapters import Adapter, Inputs, read_inputs, score
from continual.backbones import Backbone, feature_key, load_backbone
from continual.feature_store import FeatureStore
from flows.features import load_features
from flows.progress import Progress, current_progress
from monitor.cohorts import Cohort, Window, concatenate
from monitor.results import WindowReport
from monitor.suppression import suppress_report
from registry.held_out import PatientRole, roles_of
from registry.model_versions import ModelVersions
from registry.promotion import lineage
from registry.records import Records, open_records
from registry.settings import BackboneSettings, Settings, SettingsError, read_settings, weights_path


class StepRefused(RuntimeError):
    """A step cannot be done now; the message says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ward:
    """Settings and records of one store directory, and the way to its features, adapters and versions."""

    settings: Settings
    records: Records

    @property
    def progress(self) -> Progress:
        """How this process tells progress; quiet unless somebody shows it."""
        return current_progress.get()

    @property
    def adapters(self) -> Path:
        """Where adapters lie, named by their hash."""
        return self.settings.directory / "adapters"

    @property
    def versions(self) -> ModelVersions:
        """The MLflow registry of this ward."""
        return ModelVersions(
            tracking_uri=self.settings.tracking_uri, artifact_root=self.settings.directory / "mlartifacts"
        )

    def features_of(self, model: str) -> FeatureStore:
        """The features of a model's images: one store a backbone, preprocessing and number of adapted blocks."""
        backbone = self.settings.model(model).backbone
        key = feature_key(
            backbone.name,
            source=backbone.source,
            path=weights_path(self.settings, backbone),
            image_size=backbone.image_size,
            blocks=self.settings.adaptation.blocks,
            loading=backbone.loading,
        )
        return FeatureStore(self.settings.directory / "features" / key)


def open_ward(directory: Path) -> Ward:
    """Open the store directory that holds wardround.toml.

    Raises:
        SettingsError: there is no readable settings file.
    """
    settings = read_settings(directory)
    return Ward(settings=settings, records=open_records(settings.database_url))


def shown_reports(ward: Ward, model: str) -> list[WindowReport]:
    """Give the reports of a model as they may leave the process, without small cells."""
    return [suppress_report(report, ward.settings.drift.smallest_cell) for report in ward.records.reports(model)]


def backbone_of(ward: Ward, model: str) -> Backbone:
    """Load a model's frozen backbone, once a process."""
    backbone = ward.settings.model(model).backbone
    return _load_backbone(backbone, weights_path(ward.settings, backbone), ward.settings.adaptation.blocks)


@lru_cache(maxsize=2)
def _load_backbone(backbone: BackboneSettings, path: str, blocks: int) -> Backbone:
    return load_backbone(
        backbone.name,
        source=backbone.source,
        path=path,
        image_size=backbone.image_size,
        blocks=blocks,
        loading=backbone.loading,
    )


def version_at(ward: Ward, model: str, moment: datetime) -> str:
    """Name the version that was champion at a moment; before the first one, the first; none: empty."""
    history = ward.records.champion_history(model)
    live = [entry for entry in history if entry.since <= moment] or history[:1]
    return live[-1].version if live else ""


def version_in(ward: Ward, model: str, window: Window) -> str:
    """Name the version that a window is about: who was champion in the middle of it, and so for most of it."""
    return version_at(ward, model, window.middle)


def windows_of(ward: Ward, model: str, version: str) -> tuple[Window, ...]:
    """List the windows that a version was adapted to; the first version: the reference window.

    Raises:
        SettingsError: the settings name no first reference window.
    """
    history = ward.records.champion_history(model)
    entry = next((entry for entry in history if entry.version == version and entry.kind != "rollback"), None)
    if entry is not None and entry.kind == "promote":
        decision = ward.records.decision(entry.decision_id)
        return ward.records.plan(decision.plan_id).windows
    key = ward.settings.model(model).reference
    if not key:
        raise SettingsError(
            f'[models.{model}] names no reference window; add for example reference = "2026-01-05/2026-03-30"'
        )
    return (Window.from_key(key),)


def learned_windows(ward: Ward, model: str) -> list[tuple[Window, ...]]:
    """List the windows of every stage that the live version has learned, oldest first."""
    return [windows_of(ward, model, move.version) for move in lineage(ward.records.champion_history(model))]


def load_role(ward: Ward, model: str, windows: Sequence[Window], role: PatientRole | None) -> Cohort:
    """Load the studies of some windows with embeddings; with a role, only its patients.

    Without a role it is to measure by, and labels that studies were chosen for are left out, window by window.
    """
    cohorts = [ward.records.load_cohort(model, window=window) for window in windows]
    if role is None:
        shares = ward.settings.roles
        cohorts = [replace(one, labels=ward.records.labels_to_measure(model, one, shares)) for one in cohorts]
    cohort = concatenate(cohorts)
    if role is not None:
        cohort = cohort.select(np.asarray(roles_of(cohort.patient_key, ward.settings.roles) == role))
    return load_features(cohort, ward.features_of(model))


def reference_of(ward: Ward, model: str, version: str) -> Cohort:
    """Load what windows are compared with under a version: its reference patients, scored and answered by it.

    Without any champion the whole reference window serves, since nobody in it was learned from by us.
    """
    role = PatientRole.REFERENCE if version else None
    reference = load_role(ward, model, windows_of(ward, model, version), role)
    return reference if not version else answered_by(ward, model, rescore(ward, model, reference, version), version)


def answered_by(ward: Ward, model: str, cohort: Cohort, version: str) -> Cohort:
    """Give a cohort the thresholds of a version, from which on its scores mean yes; without a version 0.5."""
    entry = next((entry for entry in ward.records.champion_history(model) if entry.version == version), None)
    if entry is None:
        return cohort
    outputs = read_outputs(ward.adapters / f"{entry.adapter_sha256}.safetensors", entry.adapter_sha256)
    return replace(cohort, thresholds=outputs.thresholds)


def adapter_of(ward: Ward, model: str, adapter_sha256: str) -> Adapter:
    """Load an adapter by its hash, onto the model's backbone."""
    path = ward.adapters / f"{adapter_sha256}.safetensors"
    return load_adapter(backbone_of(ward, model), path, adapter_sha256)


def rescore(ward: Ward, model: str, cohort: Cohort, version: str) -> Cohort:
    """Replace scores that another version gave; where the version itself produced every score they are kept."""
    windows = windows_of(ward, model, version)
    own = [ward.records.load_cohort(model, window=window, model_version=version) for window in windows]
    if set(cohort.study_uid) <= set(np.concatenate([part.study_uid for part in own])):
        return cohort
    entry = next(entry for entry in ward.records.champion_history(model) if entry.version == version)
    return score_with(ward, model, cohort, entry.adapter_sha256)


def score_with(ward: Ward, model: str, cohort: Cohort, adapter_sha256: str) -> Cohort:
    """Score what is stored of a cohort's images with an adapter, and take its thresholds."""
    adapter = adapter_of(ward, model, adapter_sha256)
    scores = score(adapter, inputs_of(ward, model, cohort, adapter.card.reads))
    return replace(cohort, scores=scores, thresholds=adapter.outputs.thresholds)


def inputs_of(ward: Ward, model: str, cohort: Cohort, reads: Reads) -> Inputs:
    """Read what enters an adapter of a cohort's images: embeddings (n, 1, width) or tokens (n, T, width).

    Raises:
        StepRefused: the studies came without images.
    """
    if cohort.images is None:
        raise StepRefused(
            "these studies came without images, so no adapter can score or learn them; ingest an image column"
        )
    return read_inputs(reads, ward.features_of(model), cohort.images)
