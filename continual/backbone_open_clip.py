"""Visual towers of open_clip: its own vision transformers, and those of timm. The only file that imports it."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from continual import backbone_shapes as shapes
from continual.backbone_files import WeightFiles, WeightsRefused
from continual.backbone_parts import CLIP, ClassToken, Opened, Statistics, check_size, extra, keep_parts, linear_layers
from continual.backbone_timm import TARGETS, pool_of
from continual.weights import inside_of, load_state, read_state


def open_open_clip(name: str, files: WeightFiles, image_size: int) -> Opened:
    """Open the visual tower of an open_clip model: a folder with open_clip_config.json, or a file and a known name.

    ``name`` may be one of open_clip's configurations (ViT-B-32 …) or a published shape (conch, biomedclip, eyeclip).

    Raises:
        WeightsRefused: an unknown configuration, a size of image it does not read, weights that do not fit.
    """
    config = files.read("open_clip_config.json")
    network = build_open_clip(name, config.get("model_cfg") or {})
    size = network.image_size[0] if isinstance(network.image_size, tuple) else network.image_size
    check_size(image_size, size)
    load_state(network, inside_of(read_state(files), "visual."), what=str(files.weights[0]))
    stated = config.get("preprocess_cfg") or {}
    statistics = tuple(stated.get("mean") or CLIP[0]), tuple(stated.get("std") or CLIP[1])
    return open_tower(network, licence=files.licence, statistics=statistics)


def build_open_clip(name: str, config: dict[str, Any]) -> Any:
    """Build the visual tower that a model_cfg, or the name of a known one, describes; without weights."""
    with extra():
        import open_clip
        from open_clip.model import _build_vision_tower
    config = config or shapes.OPEN_CLIP.get(shapes.key_of(name)) or open_clip.get_model_config(name) or {}
    if not {"embed_dim", "vision_cfg"} <= config.keys():
        raise WeightsRefused(
            f"open_clip knows no model {name!r}; set path to a folder with open_clip_config.json, "
            "or name one of open_clip.list_models()"
        )
    vision = {**config["vision_cfg"], "timm_model_pretrained": False, "output_tokens": False}
    # the tower alone: building a whole model would ask the hub for its text encoder
    return _build_vision_tower(config["embed_dim"], vision, bool(config.get("quick_gelu")))


def open_tower(network: Any, *, licence: str, statistics: Statistics) -> Opened:
    """Open a visual tower: open_clip's own vision transformer, or timm's; any other stays whole."""
    from timm.models.vision_transformer import VisionTransformer

    told: dict[str, Any] = {
        "whole": network,
        "library": f"open_clip {version('open-clip-torch')}",
        "licence": licence,
        "statistics": statistics,
    }
    trunk = getattr(network, "trunk", None)
    if type(trunk) is VisionTransformer:
        width = network.head.proj.out_features if hasattr(network.head, "proj") else int(trunk.num_features)
        return Opened(
            **told,
            width=int(width),
            blocks=list(trunk.blocks),
            stops=list(trunk.blocks),
            norm=trunk.norm,
            pool=nn.Sequential(pool_of(trunk, class_and_mean=False) or ClassToken(), network.head),
            lora_targets=TARGETS,
            token_width=int(trunk.num_features),
            tokens=trunk.num_prefix_tokens + trunk.patch_embed.num_patches,
        )
    if type(network).__name__ != "VisionTransformer":
        return Opened(**told, width=_width_of(network))
    blocks = list(network.transformer.resblocks)
    return Opened(
        **told,
        width=int(network.output_dim if network.proj is not None else network.ln_post.normalized_shape[0]),
        blocks=blocks,
        stops=blocks,
        pool=_TowerHead(network),
        lora_targets=linear_layers(blocks[0]),
        token_width=int(network.conv1.out_channels),
        tokens=1 + network.grid_size[0] * network.grid_size[1],
    )


class _TowerHead(nn.Module):
    """What open_clip's vision transformer does with the tokens after its last block."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = keep_parts(network, ("ln_post", "attn_pool", "attn_pool_contrastive"), ("proj",))

    def forward(self, tokens: Tensor) -> Tensor:
        pooled: Tensor = self.network._pool(tokens)[0]
        if pooled.ndim == 3:  # one learned query gives one token
            pooled = pooled[:, 0]
        return pooled if self.network.proj is None else pooled @ self.network.proj


@torch.inference_mode()
def _width_of(network: Any) -> int:
    size = network.image_size[0] if isinstance(network.image_size, tuple) else network.image_size
    return int(network.eval()(torch.zeros(1, 3, size, size)).shape[1])
