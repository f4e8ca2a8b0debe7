"""Adapters on disk: one safetensors file each, named by its hash, loaded only once proven to be the one meant."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from continual.adapter_card import FORMAT, AdapterCard
from continual.adapters import METADATA_KEY, Adapter, AdapterRefused, build, check_backbone, serialise
from continual.analytic import fits
from continual.backbones import Backbone
from continual.files import read_header, write_atomically
from continual.outputs import PREFIX, Outputs
from monitor.tasks import TASKS

SUFFIX = ".safetensors"
MAXIMUM_BYTES = 256 * 2**20


def save_adapter(adapter: Adapter, directory: Path) -> str:
    """Write DIRECTORY/<sha256>.safetensors and its card beside it as JSON; returns the sha256.

    The same adapter gives the same bytes; a file appears whole or not at all. Of a site's adapter the
    shared one below is a file of its own.

    Raises:
        ValueError: a learned number is not finite.
        OSError: the disk is full or the folder may not be written.
    """
    content = serialise(adapter)
    sha256 = hashlib.sha256(content).hexdigest()
    beside = adapter.card.model_dump(mode="json") | {"sha256": sha256, "parameters": adapter.trainable_parameters}
    write_atomically(directory / f"{sha256}.json", json.dumps(beside, indent=2, sort_keys=True).encode())
    write_atomically(directory / f"{sha256}{SUFFIX}", content)
    return sha256


def load_adapter(backbone: Backbone, path: Path, expected_sha256: str) -> Adapter:
    """Load an adapter onto its backbone, after proving that it is the one meant and nothing else.

    Checked in this order: size, hash, card, backbone, tensor names, shapes and types, finite numbers. The
    shared adapter below a site's is loaded from the same folder, by the hash on the card, and checked as well.

    Raises:
        AdapterRefused: a check failed.
    """
    card, tensors = _parse(path, _read_checked(path, expected_sha256))
    check_backbone(card, backbone, path.name)
    adapter = _build_for(backbone, card, path)
    outputs = _outputs_of(card, tensors, path)
    _fill(adapter, {name: value for name, value in tensors.items() if not name.startswith(PREFIX)}, path)
    return replace(adapter, outputs=outputs)


def read_outputs(path: Path, expected_sha256: str) -> Outputs:
    """Read what an adapter's file says of its outputs, without its backbone.

    Raises:
        AdapterRefused: the file is not the one meant, or no adapter.
    """
    card, tensors = _parse(path, _read_checked(path, expected_sha256))
    return _outputs_of(card, tensors, path)


def _read_checked(path: Path, expected_sha256: str) -> bytes:
    content = _read(path)
    if (found := hashlib.sha256(content).hexdigest()) != expected_sha256:
        raise AdapterRefused(
            f"{path.name} has sha256 {found[:12]}…, expected {expected_sha256[:12]}…: the file was changed; "
            "restore it from MLflow's artifacts or a backup"
        )
    return content


def _outputs_of(card: AdapterCard, tensors: dict[str, Tensor], path: Path) -> Outputs:
    try:
        outputs = Outputs.of_tensors({n: value.numpy() for n, value in tensors.items() if n.startswith(PREFIX)})
        outputs.check_for(card.task, TASKS[card.task].score_columns(card.classes))
    except ValueError as error:
        raise AdapterRefused(f"{path.name} cannot be used: {error}") from None
    return outputs


def _build_for(backbone: Backbone, card: AdapterCard, path: Path) -> Adapter:
    """Build what a card promises; a card that its backbone cannot carry is refused."""
    shared = None
    if below := card.shared_sha256:
        shared = load_adapter(backbone, path.parent / f"{below}{SUFFIX}", below)
        if shared.shared is not None:
            raise AdapterRefused(f"{path.name} stands on another site's adapter; only a shared one can carry it")
        if (shared.card.task, shared.card.classes) != (card.task, card.classes):
            raise AdapterRefused(f"{path.name} answers other questions than the shared adapter that it names")
    try:
        return build(backbone, card, seed=0, shared=shared)
    except ValueError as error:
        raise AdapterRefused(f"{path.name} cannot be built: {error}") from None


def _read(path: Path) -> bytes:
    try:
        if (size := path.stat().st_size) > MAXIMUM_BYTES:
            raise AdapterRefused(f"{path.name} has {size} bytes, at most {MAXIMUM_BYTES} are allowed")
        return path.read_bytes()
    except FileNotFoundError:
        raise AdapterRefused(f"{path} does not exist; restore it from MLflow's artifacts or a backup") from None


def _parse(path: Path, content: bytes) -> tuple[AdapterCard, dict[str, Tensor]]:
    try:
        tensors = safetensors.load(content)
        told = read_header(content)[METADATA_KEY]
        _check_format(path, json.loads(told))
        return AdapterCard.model_validate_json(told), tensors
    except AdapterRefused:
        raise
    except (SafetensorError, ValidationError, KeyError, ValueError) as error:
        raise AdapterRefused(f"{path.name} is no adapter of Wardround: {error}") from None


def _check_format(path: Path, card: Any) -> None:
    if isinstance(card, dict) and isinstance(found := card.get("format"), int) and found != FORMAT:
        raise AdapterRefused(
            f"{path.name} has format {found}, this version of Wardround reads format {FORMAT}; load it with the "
            "version that wrote it, or train it again and install it with `wardround promote --first FILE`"
        )


def _fill(adapter: Adapter, tensors: dict[str, Tensor], path: Path) -> None:
    expected = adapter.network.stored()
    if tensors.keys() != expected.keys() or not all(fits(name, tensors[name], expected[name]) for name in expected):
        raise AdapterRefused(f"{path.name} does not hold the tensors that its card promises")
    if not all(value.isfinite().all() for value in tensors.values()):
        raise AdapterRefused(f"{path.name} holds numbers that are not finite")
    with torch.no_grad():
        for name, value in expected.items():
            value.copy_(tensors[name])
