"""Shapes of published medical backbones, for weights that come without a configuration beside them.

Only shapes: their weights are under their owners' licences, mostly gated, and must be got from them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class TimmShape:
    """An architecture of timm, the options that make it the published one, and how its tokens are pooled."""

    architecture: str
    options: dict[str, Any] = field(default_factory=dict)
    class_and_mean: bool = False
    swiglu: bool = False


TIMM = {
    # Chen et al. 2024, Nature Medicine 30:850: ViT-L/16 with layer scale, the class token is the embedding
    "uni": TimmShape(architecture="vit_large_patch16_224", options={"init_values": 1e-5, "dynamic_img_size": True}),
    # Zimmermann et al. 2024, arXiv:2408.00738: ViT-H/14, SwiGLU, 4 registers; class token beside the mean patch
    "virchow2": TimmShape(
        architecture="vit_huge_patch14_224",
        options={
            "init_values": 1e-5,
            "mlp_ratio": 5.3375,
            "reg_tokens": 4,
            "global_pool": "",
            "dynamic_img_size": True,
        },
        class_and_mean=True,
        swiglu=True,
    ),
}

OPEN_CLIP: dict[str, dict[str, Any]] = {
    # Lu et al. 2024, Nature Medicine 30:863: ViT-B/16 at 448 pixels, one learned query pools the tokens
    "conch": {
        "embed_dim": 512,
        "vision_cfg": {
            "image_size": 448,
            "layers": 12,
            "width": 768,
            "patch_size": 16,
            "no_ln_pre": True,
            "attentional_pool": True,
            "attn_pooler_queries": 1,
            "attn_pooler_heads": 8,
        },
    },
    # Zhang et al. 2023, arXiv:2303.00915: timm's ViT-B/16, a linear projection of the class token
    "biomedclip": {
        "embed_dim": 512,
        "vision_cfg": {
            "timm_model_name": "vit_base_patch16_224",
            "timm_model_pretrained": False,
            "timm_pool": "",
            "timm_proj": "linear",
            "image_size": 224,
        },
    },
    # Shi et al. 2025, npj Digital Medicine: OpenAI's ViT-B/32, with its quick GELU
    "eyeclip": {
        "embed_dim": 512,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32},
    },
}


def key_of(name: str) -> str:
    """Read "MahmoodLab/UNI" or "hf-hub:MahmoodLab/UNI" as uni."""
    return name.rpartition("/")[2].lower()
