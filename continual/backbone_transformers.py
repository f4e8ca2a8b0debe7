"""Image encoders of transformers: CLIP, SigLIP, DINOv2, and SAM's or MedSAM's. The only file that imports it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from torch import Tensor, nn

from continual.backbone_files import WeightFiles, WeightsRefused
from continual.backbone_parts import (
    CLIP,
    HALF,
    IMAGENET,
    ClassToken,
    Opened,
    Positions,
    Statistics,
    check_multiple,
    check_size,
    extra,
    linear_layers,
)

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
    with extra():
        import transformers
    network = _from_folder(getattr(transformers, class_name), files)
    told: dict[str, Any] = {
        "library": f"transformers {version('transformers')}",
        "licence": files.licence,
        "statistics": _statistics(files.read("preprocessor_config.json"), usual),
    }
    if class_name == "SamVisionModel":
        check_size(image_size, network.config.image_size)
        return Opened(whole=_Map(network), width=int(network.config.output_channels), **told)
    check_multiple(image_size, int(network.config.patch_size))
    return _open_encoder(network, image_size, told)


def _from_folder(kind: Any, files: WeightFiles) -> Any:
    with _silence():
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
def _silence() -> Iterator[None]:
    """What a text encoder leaves over is no news, nor is a progress bar."""
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging  # its functions carry no types

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
        lora_targets=linear_layers(blocks[0]),
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
