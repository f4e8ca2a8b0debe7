"""The encoder of MONAI's 3D SwinUNETR. The only file that imports MONAI."""

from __future__ import annotations

import re
from importlib.metadata import version
from typing import Any

from torch import Tensor, nn

from continual.backbone_files import WeightFiles, WeightsRefused
from continual.backbone_parts import Opened, Positions, extra
from continual.weights import State, inside_of, load_state, read_state


def open_monai(name: str, files: WeightFiles, image_size: int) -> Opened:
    """Open the encoder of a SwinUNETR: volumes (n, size, size, size) of one channel, embedded at its deepest stage.

    Everything about its shape is read from the weights. Embedding: the mean over the deepest map.

    Raises:
        WeightsRefused: another network, a side not divisible by 32, weights that do not fit.
    """
    if name != "swin_unetr":
        raise WeightsRefused(f"source monai reads swin_unetr, not {name!r}; set name accordingly")
    if image_size % 32:
        raise WeightsRefused(f"a volume's side must be divisible by 32, got {image_size}; change image_size")
    with extra():
        import einops  # noqa: F401 - MONAI asks for it when it is used
        from monai.networks.nets.swin_unetr import SwinTransformer
    state = {key.removeprefix("module."): value for key, value in read_state(files).items()}
    state = inside_of(state, "swinViT.")
    network = SwinTransformer(**_swin_shape(state, str(files.weights[0])))
    load_state(network, state, what=str(files.weights[0]))
    return Opened(
        whole=_Deepest(network),
        width=int(network.embed_dim) * 16,
        library=f"monai {version('monai')}",
        licence=files.licence,
        statistics=((0.0,), (1.0,)),
        volumes=True,
    )


def _swin_shape(state: State, what: str) -> dict[str, Any]:
    patch = state.get("patch_embed.proj.weight")
    tables = [state.get(f"layers{i}.0.blocks.0.attn.relative_position_bias_table") for i in range(1, 5)]
    if patch is None or patch.ndim != 5 or any(table is None for table in tables):
        raise WeightsRefused(f"{what} does not fit the architecture: it holds no 3D SwinUNETR encoder (swinViT.…)")
    if patch.shape[1] != 1:
        raise WeightsRefused(f"{what} reads {patch.shape[1]} channels; volumes of one channel are supported")
    found = [table for table in tables if table is not None]
    side = (round(len(found[0]) ** (1 / 3)) + 1) // 2
    depths = [
        len({key for key in state if re.fullmatch(rf"layers{i}\.0\.blocks\.\d+\.norm1\.weight", key)})
        for i in range(1, 5)
    ]
    return {
        "in_chans": 1,
        "embed_dim": int(patch.shape[0]),
        "window_size": (side,) * 3,
        "patch_size": tuple(patch.shape[2:]),
        "depths": depths,
        "num_heads": [int(table.shape[1]) for table in found],
        "use_v2": any(key.startswith("layers1c.") for key in state),
        "spatial_dims": 3,
    }


class _Deepest(nn.Module):
    """Volumes (n, 1, size, size, size) to the mean over the deepest map."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.pool = Positions()

    def forward(self, volumes: Tensor) -> Tensor:
        embedding: Tensor = self.pool(self.network(volumes)[-1])
        return embedding
