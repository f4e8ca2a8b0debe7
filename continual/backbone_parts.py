"""A network taken apart: its transformer blocks, what comes after them, and the trunk that stops before them.

Every family of networks is opened by its own file into ``Opened``; ``continual.backbones`` cuts it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from continual.backbone_files import WeightsRefused

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

Statistics = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Opened:
    """A network as its library built it, and its parts.

    ``whole`` maps pixels (n, channels, size, size), for a volume (n, 1, size, size, size), to embeddings
    (n, width) by the library's own code. ``blocks`` map tokens (n, T, token_width) to tokens, ``norm`` and
    ``pool`` the last of them to the embedding; no ``pool``: the class token. ``stops`` are the modules inside
    the network that receive the tokens of each block.
    """

    whole: nn.Module
    width: int
    library: str
    licence: str
    statistics: Statistics
    blocks: Sequence[nn.Module] = ()
    stops: Sequence[nn.Module] = ()
    norm: nn.Module = field(default_factory=nn.Identity)
    pool: nn.Module | None = None
    lora_targets: tuple[str, ...] = ()
    token_width: int = 0
    tokens: int = 1
    parameters: int | None = None
    volumes: bool = False

    def count_parameters(self) -> int:
        """Count the numbers of the network."""
        return sum(value.numel() for value in self.whole.parameters()) if self.parameters is None else self.parameters


class PooledTail(nn.Module):
    """The last blocks, a norm, and a pooling of all tokens: tokens (n, T, token width) in, embeddings out.

    ``lora_targets`` names the linear layers of a block that low-rank additions belong to.
    """

    def __init__(self, blocks: nn.Module, norm: nn.Module, pool: nn.Module, lora_targets: tuple[str, ...]) -> None:
        super().__init__()
        self.blocks = blocks
        self.norm = norm
        self.pool = pool
        self.lora_targets = lora_targets

    def forward(self, tokens: Tensor) -> Tensor:
        """Run the blocks, normalise, pool."""
        embedding: Tensor = self.pool(self.norm(self.blocks(tokens)))
        return embedding


class ClassToken(nn.Module):
    """The first token is the embedding."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Give (n, width)."""
        return tokens[:, 0]


class ClassAndMean(nn.Module):
    """The class token and the mean patch, side by side; ``prefix`` tokens stand before the patches (Virchow2)."""

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix

    def forward(self, tokens: Tensor) -> Tensor:
        """Give (n, 2 width)."""
        return torch.cat([tokens[:, 0], tokens[:, self.prefix :].mean(dim=1)], dim=1)


class Positions(nn.Module):
    """The mean over all positions of a map (n, width, …)."""

    def forward(self, features: Tensor) -> Tensor:
        """Give (n, width)."""
        return features.flatten(2).mean(dim=2)


class StoppedTrunk(nn.Module):
    """Pixels in, the tokens (n, T, width) that enter a block of the network out; nothing after it is computed."""

    def __init__(self, network: nn.Module, stop: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._stop = (stop,)  # in a tuple: it is a part of the network already

    def forward(self, pixels: Tensor) -> Tensor:
        """Run the network until the block is reached."""
        handle = self._stop[0].register_forward_pre_hook(_reach)
        try:
            self.network(pixels)
        except _ReachedError as reached:
            return reached.tokens
        finally:
            handle.remove()
        raise RuntimeError("the network never reached the block it was to stop at")


class WholeTrunk(nn.Module):
    """Pixels in, the embedding as one token (n, 1, width) out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        """Run the whole network."""
        embedding: Tensor = self.network(pixels)
        return embedding[:, None]


class _ReachedError(Exception):
    def __init__(self, tokens: Tensor) -> None:
        super().__init__()
        self.tokens = tokens


def _reach(module: nn.Module, arguments: tuple[Any, ...]) -> None:
    raise _ReachedError(arguments[0])


def keep_parts(network: Any, modules: Sequence[str], parameters: Sequence[str] = ()) -> Any:
    """Copy a network's shell with a few of its parts, so that copying a tail does not copy all blocks."""
    shell = copy.copy(network)
    shell._modules = {name: network._modules[name] for name in modules if name in network._modules}
    shell._parameters = {name: network._parameters[name] for name in parameters if name in network._parameters}
    shell._buffers = {}
    return shell


def linear_layers(block: nn.Module) -> tuple[str, ...]:
    """Name the linear layers of a block's attention; of its MLP where PyTorch's fused attention hides them."""
    linear = [name for name, layer in block.named_modules() if isinstance(layer, nn.Linear)]
    fused = [name for name, layer in block.named_modules() if isinstance(layer, nn.MultiheadAttention)]
    free = [name for name in linear if not any(name.startswith(f"{part}.") for part in fused)]
    return tuple([name for name in free if "attn" in name or "attention" in name] or free)


def check_size(image_size: int, own: int) -> None:
    """Refuse another size of image than the only one that a network reads."""
    if image_size != own:
        raise WeightsRefused(
            f"this network reads images of {own} pixels only, got {image_size}; set image_size = {own}"
        )


def check_multiple(image_size: int, patch: int) -> None:
    """Refuse a size of image that patches do not tile."""
    if image_size % patch:
        raise WeightsRefused(f"image_size must be a multiple of this network's patch of {patch}, got {image_size}")


@contextmanager
def extra() -> Iterator[None]:
    """Import a library of the extra ``backbones`` in this context.

    Raises:
        WeightsRefused: it is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise WeightsRefused(
            f"this source needs {error.name}, which is not installed; run `uv sync --extra backbones`"
        ) from None
