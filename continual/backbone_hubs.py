"""Networks of transformers, open_clip and MONAI. Each library is imported only when one of its networks is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from continual import backbone_shapes as shapes
from continual.backbone_files import WeightFiles, WeightsRefused
from continual.backbone_parts import CLIP, HALF, IMAGENET, ClassToken, Opened, Positions, Statistics, keep_parts
from continual.backbone_timm import TARGETS, pool_of
from continual.weights import State, load_state, read_state

#: transformers' name of an architecture → the class of its image encoder, and its pixels' statistics.
ENCODERS: dict[str, tuple[str, Statistics]] = {
    "clip": ("CLIPVisionModel", CLIP),
    "clip_vision_model": ("CLIPVisionModel", CLIP),
    "siglip": ("SiglipVisionModel", HALF),
    "siglip_vision_model": ("SiglipVisionModel", HALF),
    "dinov2": ("Dinov2Model", IMAGENET),
    "dinov2_with_registers": ("Dinov2WithRegistersModel", IMAGENET),
    "sam": ("SamVisionModel", IMAGENET),
    "sam_vision_model": ("SamVisionModel", IMAGENET),
}


def needed(module: str) -> Any:
    """Import a library of the extra ``backbones``.

    Raises:
        WeightsRefused: it is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise WeightsRefused(
            f"this source needs {error.name}, which is not installed; run `uv sync --extra backbones`"
        ) from None


# --- transformers -------------------------------------------------------------------------------------------


def open_transformers(name: str, files: WeightFiles, image_size: int) -> Opened:
    """Open the image encoder of a CLIP, SigLIP, DINOv2 or SAM (MedSAM) model, from a folder with its config.json.

    Embeddings: the class token after the last norm (CLIP before its projection, DINOv2), SigLIP's attention
    pooling, the mean over SAM's map.

    Raises:
        WeightsRefused: another kind of model, a size of image it does not read, weights that do not fit.
    """
    kind = str(files.read("config.json").get("model_type", ""))
    if kind not in ENCODERS:
        raise WeightsRefused(
            f"{files.folder} states model_type {kind!r}; source transformers reads {', '.join(ENCODERS)}: "
            "set path to a folder with config.json and model.safetensors"
        )
    class_name, usual = ENCODERS[kind]
    network = _from_folder(getattr(needed("transformers"), class_name), files)
    told: dict[str, Any] = {
        "library": f"transformers {version('transformers')}",
        "licence": files.licence,
        "statistics": _statistics(files.read("preprocessor_config.json"), usual),
    }
    if class_name == "SamVisionModel":
        _check_size(image_size, network.config.image_size)
        return Opened(whole=_Map(network), width=int(network.config.output_channels), **told)
    _check_multiple(image_size, int(network.config.patch_size))
    return _open_encoder(network, image_size, told)


def _from_folder(kind: Any, files: WeightFiles) -> Any:
    logging = import_module("transformers").utils.logging
    with _silence(logging):
        try:
            network, report = kind.from_pretrained(
                files.folder, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise WeightsRefused(f"{files.folder} cannot be loaded as {kind.__name__}: {error}") from None
    if missing := sorted(report["missing_keys"]):
        raise WeightsRefused(
            f"{files.folder} does not fit the architecture: {', '.join(missing[:4])} ({len(missing)} tensors)"
        )
    return network


@contextmanager
def _silence(logging: Any) -> Iterator[None]:
    """What a text encoder leaves over is no news, nor is a progress bar."""
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def _open_encoder(network: Any, image_size: int, told: dict[str, Any]) -> Opened:
    config = network.config
    layers = list(network.encoder.layer if hasattr(network.encoder, "layer") else network.encoder.layers)
    siglip = type(network).__name__ == "SiglipVisionModel"
    if siglip and not network.use_head:
        raise WeightsRefused("this SigLIP has no pooling head, so no embedding; use a checkpoint with one")
    prefix = 0 if siglip else 1 + int(getattr(config, "num_register_tokens", 0) or 0)
    blocks = [_Layer(layer) for layer in layers]
    return Opened(
        whole=_Pooled(network, interpolate=hasattr(network, "post_layernorm")),
        width=int(config.hidden_size),
        blocks=blocks,
        stops=layers,
        norm=network.post_layernorm if hasattr(network, "post_layernorm") else network.layernorm,
        pool=network.head if siglip else ClassToken(),
        lora_targets=_linear_layers(blocks[0]),
        token_width=int(config.hidden_size),
        tokens=prefix + (image_size // int(config.patch_size)) ** 2,
        **told,
    )


class _Layer(nn.Module):
    """A layer of transformers as a function of tokens alone."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, tokens: Tensor) -> Tensor:
        after: Tensor = self.layer(tokens, attention_mask=None)
        return after


class _Pooled(nn.Module):
    """Pixels to the pooled output; position embeddings are interpolated to the size of the image."""

    def __init__(self, network: Any, *, interpolate: bool) -> None:
        super().__init__()
        self.network = network
        self.options = {"interpolate_pos_encoding": True} if interpolate else {}  # DINOv2 always does

    def forward(self, pixels: Tensor) -> Tensor:
        embedding: Tensor = self.network(pixels, **self.options).pooler_output
        return embedding


class _Map(nn.Module):
    """Pixels to the mean over the encoder's map."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.pool = Positions()

    def forward(self, pixels: Tensor) -> Tensor:
        embedding: Tensor = self.pool(self.network(pixels).last_hidden_state)
        return embedding


def _statistics(config: dict[str, Any], usual: Statistics) -> Statistics:
    return tuple(config.get("image_mean") or usual[0]), tuple(config.get("image_std") or usual[1])


def _linear_layers(block: nn.Module) -> tuple[str, ...]:
    """Name the linear layers of a block's attention; of its MLP where PyTorch's fused attention hides them."""
    linear = [name for name, layer in block.named_modules() if isinstance(layer, nn.Linear)]
    fused = [name for name, layer in block.named_modules() if isinstance(layer, nn.MultiheadAttention)]
    free = [name for name in linear if not any(name.startswith(f"{part}.") for part in fused)]
    return tuple([name for name in free if "attn" in name or "attention" in name] or free)


# --- open_clip ----------------------------------------------------------------------------------------------


def open_open_clip(name: str, files: WeightFiles, image_size: int) -> Opened:
    """Open the visual tower of an open_clip model: a folder with open_clip_config.json, or a file and a known name.

    ``name`` may be one of open_clip's configurations (ViT-B-32 …) or a published shape (conch, biomedclip, eyeclip).

    Raises:
        WeightsRefused: an unknown configuration, a size of image it does not read, weights that do not fit.
    """
    config = files.read("open_clip_config.json")
    network = build_open_clip(name, config.get("model_cfg") or {})
    size = network.image_size[0] if isinstance(network.image_size, tuple) else network.image_size
    _check_size(image_size, size)
    load_state(network, _tower(read_state(files), "visual."), what=str(files.weights[0]))
    stated = config.get("preprocess_cfg") or {}
    statistics = tuple(stated.get("mean") or CLIP[0]), tuple(stated.get("std") or CLIP[1])
    return open_tower(network, licence=files.licence, statistics=statistics)


def build_open_clip(name: str, config: dict[str, Any]) -> Any:
    """Build the visual tower that a model_cfg, or the name of a known one, describes; without weights."""
    open_clip = needed("open_clip")
    config = config or shapes.OPEN_CLIP.get(shapes.key_of(name)) or open_clip.get_model_config(name) or {}
    if not {"embed_dim", "vision_cfg"} <= config.keys():
        raise WeightsRefused(
            f"open_clip knows no model {name!r}; set path to a folder with open_clip_config.json, "
            "or name one of open_clip.list_models()"
        )
    vision = {**config["vision_cfg"], "timm_model_pretrained": False, "output_tokens": False}
    # the tower alone: building a whole model would ask the hub for its text encoder
    return import_module("open_clip.model")._build_vision_tower(
        config["embed_dim"], vision, bool(config.get("quick_gelu"))
    )


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
        lora_targets=_linear_layers(blocks[0]),
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


def _tower(state: State, prefix: str) -> State:
    """Take the image encoder's tensors out of a whole model's, under their own names."""
    inside = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return inside or state


# --- MONAI --------------------------------------------------------------------------------------------------


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
    module = needed("monai.networks.nets.swin_unetr")
    needed("einops")
    state = {key.removeprefix("module."): value for key, value in read_state(files).items()}
    state = _tower(state, "swinViT.")
    network = module.SwinTransformer(**_swin_shape(state, str(files.weights[0])))
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


# --- sizes --------------------------------------------------------------------------------------------------


def _check_size(image_size: int, own: int) -> None:
    if image_size != own:
        raise WeightsRefused(
            f"this network reads images of {own} pixels only, got {image_size}; set image_size = {own}"
        )


def _check_multiple(image_size: int, patch: int) -> None:
    if image_size % patch:
        raise WeightsRefused(f"image_size must be a multiple of this network's patch of {patch}, got {image_size}")
