"""A tiny member of each family, written as its library writes it and loaded as a person would."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from continual.backbone_cards import Loading
from continual.backbones import Backbone, WholeTrunk, feature_key, load_backbone
from continual.weights import WeightsRefused

SIZE = 32


def noise(n: int, size: int = SIZE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def stir(network: torch.nn.Module) -> None:
    """Make every number count: fresh networks hold zeros and ones that would hide a mistake."""
    generator = torch.Generator().manual_seed(5)
    for value in network.parameters():
        value.data += 0.05 * torch.randn(value.shape, generator=generator)


# --- writing a tiny member of each family ---------------------------------------------------------------


def write_timm(folder: Path, architecture: str, **arguments: Any) -> None:
    import timm

    torch.manual_seed(0)
    network = timm.create_model(architecture, pretrained=False, num_classes=3, **arguments)
    stir(network)
    folder.mkdir(parents=True)
    config = {
        "architecture": architecture,
        "num_classes": 3,
        "model_args": arguments,
        "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-nd-4.0\n---\nA model.\n")
    save_file(network.state_dict(), folder / "model.safetensors")


def write_transformers(folder: Path, kind: str) -> None:
    import transformers

    torch.manual_seed(0)
    small = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
    image = {"image_size": SIZE, "patch_size": 8}
    text = {**small, "vocab_size": 50, "max_position_embeddings": 8}
    if kind == "clip":
        config = transformers.CLIPConfig(text_config=text, vision_config={**small, **image}, projection_dim=16)
        network = transformers.CLIPModel(config)
    elif kind == "siglip":
        network = transformers.SiglipModel(
            transformers.SiglipConfig(text_config=text, vision_config={**small, **image})
        )
    elif kind == "dinov2":
        network = transformers.Dinov2Model(transformers.Dinov2Config(mlp_ratio=2, **small, **image))
    elif kind == "dinov2 with registers":
        config = transformers.Dinov2WithRegistersConfig(mlp_ratio=2, num_register_tokens=2, **small, **image)
        network = transformers.Dinov2WithRegistersModel(config)
    else:
        vision = transformers.SamVisionConfig(
            **small, **image, output_channels=20, window_size=2, global_attn_indexes=[1], mlp_dim=48, num_pos_feats=12
        )
        prompt = transformers.SamPromptEncoderConfig(hidden_size=20, image_size=SIZE, patch_size=8)
        decoder = transformers.SamMaskDecoderConfig(
            hidden_size=20, mlp_dim=20, num_attention_heads=2, num_hidden_layers=1
        )
        network = transformers.SamModel(
            transformers.SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
        )
    stir(network)
    network.save_pretrained(folder)


OPEN_CLIP: dict[str, dict[str, Any]] = {
    "own": {"width": 32, "head_width": 16, "layers": 3, "patch_size": 8},
    "learned query": {
        "width": 32,
        "head_width": 16,
        "layers": 3,
        "patch_size": 8,
        "attentional_pool": True,
        "attn_pooler_queries": 1,
        "attn_pooler_heads": 2,
    },
    "timm": {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "", "timm_proj": "linear"},
}


def write_open_clip(folder: Path, kind: str) -> None:
    import open_clip

    torch.manual_seed(0)
    size = 224 if kind == "timm" else SIZE
    text = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 16, "vision_cfg": {"image_size": size, **OPEN_CLIP[kind]}, "text_cfg": text}
    network = open_clip.CustomTextCLIP(**config)
    stir(network)
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": {"mean": [0.4] * 3, "std": [0.3] * 3}})
    )
    save_file(network.state_dict(), folder / "open_clip_model.safetensors")


def write_monai(folder: Path, version: bool = False) -> None:
    from monai.networks.nets.swin_unetr import SwinUNETR

    torch.manual_seed(0)
    folder.mkdir(parents=True)
    network = SwinUNETR(in_channels=1, out_channels=2, feature_size=12, depths=(1, 2, 1, 1), use_v2=version)
    stir(network)
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, folder / "model.safetensors")


# --- what must hold for every family --------------------------------------------------------------------

TRANSFORMER, WHOLE = True, False
Family = tuple[str, str, Callable[[Path], None], int, tuple[int, int, int]]
FAMILIES: dict[str, tuple[Family, bool]] = {
    # name, source, how to write it, image size, (width, tokens, token width) when cut at one block
    "timm ViT": (
        (
            "vit_tiny_patch16_224",
            "timm",
            lambda f: write_timm(f, "vit_tiny_patch16_224", img_size=SIZE),
            SIZE,
            (192, 5, 192),
        ),
        TRANSFORMER,
    ),
    "timm mean pool": (
        (
            "vit_tiny_patch16_224",
            "timm",
            lambda f: write_timm(f, "vit_tiny_patch16_224", img_size=SIZE, global_pool="avg", class_token=False),
            SIZE,
            (192, 4, 192),
        ),
        TRANSFORMER,
    ),
    "timm registers": (
        (
            "vit_tiny_patch16_224",
            "timm",
            lambda f: write_timm(f, "vit_tiny_patch16_224", img_size=SIZE, reg_tokens=4, init_values=1e-5),
            SIZE,
            (192, 9, 192),
        ),
        TRANSFORMER,
    ),
    "timm attention pool": (
        (
            "vit_tiny_patch16_224",
            "timm",
            lambda f: write_timm(f, "vit_tiny_patch16_224", img_size=SIZE, global_pool="map", class_token=False),
            SIZE,
            (192, 4, 192),
        ),
        TRANSFORMER,
    ),
    "timm ConvNeXt": (("convnext_atto", "timm", lambda f: write_timm(f, "convnext_atto"), SIZE, (320, 1, 320)), WHOLE),
    "timm Swin": (
        (
            "swin_tiny_patch4_window7_224",
            "timm",
            lambda f: write_timm(f, "swin_tiny_patch4_window7_224", img_size=SIZE, embed_dim=24, depths=(1, 1, 1, 1)),
            SIZE,
            (192, 1, 192),
        ),
        WHOLE,
    ),
    "timm EfficientNet": (
        ("efficientnet_lite0", "timm", lambda f: write_timm(f, "efficientnet_lite0"), SIZE, (1280, 1, 1280)),
        WHOLE,
    ),
    "CLIP": (("clip", "transformers", lambda f: write_transformers(f, "clip"), SIZE, (24, 17, 24)), TRANSFORMER),
    "SigLIP": (("siglip", "transformers", lambda f: write_transformers(f, "siglip"), SIZE, (24, 16, 24)), TRANSFORMER),
    "DINOv2": (("dinov2", "transformers", lambda f: write_transformers(f, "dinov2"), SIZE, (24, 17, 24)), TRANSFORMER),
    "DINOv2 with registers": (
        ("dinov2", "transformers", lambda f: write_transformers(f, "dinov2 with registers"), SIZE, (24, 19, 24)),
        TRANSFORMER,
    ),
    "SAM": (("sam", "transformers", lambda f: write_transformers(f, "sam"), SIZE, (20, 1, 20)), WHOLE),
    "open_clip": (("own", "open_clip", lambda f: write_open_clip(f, "own"), SIZE, (16, 17, 32)), TRANSFORMER),
    "open_clip learned query": (
        ("own", "open_clip", lambda f: write_open_clip(f, "learned query"), SIZE, (16, 17, 32)),
        TRANSFORMER,
    ),
    "open_clip on timm": (("t", "open_clip", lambda f: write_open_clip(f, "timm"), 224, (16, 197, 192)), TRANSFORMER),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that writes a family's folder, once."""
    root = tmp_path_factory.mktemp("families")

    def write(family: str) -> Path:
        folder = root / family
        if not folder.exists():
            FAMILIES[family][0][2](folder)
        return folder

    return write


def load(family: str, folder: Path, blocks: int = 1, **loading: Any) -> Backbone:
    name, source, _, size, _ = FAMILIES[family][0]
    return load_backbone(
        name, source=source, path=str(folder), image_size=size, blocks=blocks, loading=Loading(device="cpu", **loading)
    )


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_embeds_as_its_library_does_wherever_it_is_cut(family: str, written: Callable[[str], Path]) -> None:
    folder = written(family)
    (name, source, _, size, (width, tokens, token_width)), transformer = FAMILIES[family]
    whole, cut = load(family, folder, blocks=0), load(family, folder, blocks=1)
    images = noise(2, size)
    expected, _ = whole.embed(images)
    found, entering = cut.embed(images)
    assert isinstance(whole.trunk, WholeTrunk)
    assert (cut.card.width, cut.card.tokens, cut.card.token_width) == (width, tokens, token_width)
    assert (found.shape, entering.shape) == ((2, width), (2, tokens, token_width))
    assert cut.card.blocks == int(transformer)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-4, "the embedding does not depend on the image"
    again = load(family, folder, blocks=1)
    assert again.card == cut.card
    assert np.array_equal(again.embed(images)[0], found)
    assert cut.card.feature_key == feature_key(name, source=source, path=str(folder), image_size=size, blocks=1)
    assert cut.card.library.split()[0] == {"timm": "timm"}.get(source, source)
    assert cut.card.parameters == sum(value.numel() for value in whole.trunk.parameters())
    if transformer:
        deeper = load(family, folder, blocks=2)
        np.testing.assert_allclose(deeper.embed(images)[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", [name for name, (_, transformer) in FAMILIES.items() if transformer])
def test_low_rank_additions_where_the_tail_says_change_the_answer_and_learn(
    family: str, written: Callable[[str], Path]
) -> None:
    import copy

    from peft import LoraConfig, inject_adapter_in_model

    backbone = load(family, written(family))
    _, tokens = backbone.embed(noise(2, backbone.card.image_size))
    entering, tail = torch.from_numpy(tokens).float(), copy.deepcopy(backbone.tail)
    names = [f"blocks.0.{part}" for part in tail.lora_targets]
    assert all(isinstance(tail.get_submodule(name), torch.nn.Linear) for name in names)
    before = tail(entering)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=names, init_lora_weights=False), tail)
    after = tail(entering)
    after.sum().backward()
    gradients = [value.grad for name, value in tail.named_parameters() if "lora_" in name]
    assert len(gradients) == 2 * len(names)
    assert all(gradient is not None for gradient in gradients)
    assert not torch.allclose(before, after)
    assert torch.equal(backbone.tail(entering), before), "the backbone itself was changed"


@pytest.mark.slow
@pytest.mark.parametrize("family", ["timm ViT", "CLIP", "open_clip"])
def test_a_changed_weight_changes_the_checksum_and_the_place_of_the_features(
    family: str, written: Callable[[str], Path], tmp_path: Path
) -> None:
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(written(family), folder)
    before = load(family, folder).card
    (weights,) = folder.glob("*.safetensors")
    state = load_file(weights)
    name = next(key for key, value in state.items() if value.ndim > 1)
    state[name][0] += 1
    save_file(state, weights, metadata={"format": "pt"})
    after = load(family, folder).card
    assert after.sha256 != before.sha256
    assert after.feature_key != before.feature_key
    with pytest.raises(WeightsRefused, match=rf"expect {before.sha256[:12]}"):
        load(family, folder, sha256=before.sha256)


@pytest.mark.slow
def test_bfloat16_on_the_cpu_is_near_float32(written: Callable[[str], Path]) -> None:
    images = noise(4)
    for family in ("timm ViT", "CLIP"):
        exact = load(family, written(family)).embed(images)[0]
        halved = load(family, written(family), precision="bfloat16").embed(images)[0]
        assert 0 < np.abs(halved - exact).max() / np.abs(exact).max() < 0.05


@pytest.mark.slow
def test_position_embeddings_are_interpolated_to_another_size(written: Callable[[str], Path]) -> None:
    for family in ("timm ViT", "CLIP", "SigLIP", "DINOv2"):
        name, source, *_ = FAMILIES[family][0]
        larger = load_backbone(name, source=source, path=str(written(family)), image_size=64, blocks=1)
        assert larger.embed(noise(1, 64))[1].shape == (1, larger.card.tokens, larger.card.token_width)
