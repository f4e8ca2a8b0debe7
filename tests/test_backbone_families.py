"""A tiny member of each family, written as its library writes it and loaded as a person would."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from continual.backbone_cards import Loading
from continual.backbone_open_clip import build_open_clip, open_tower
from continual.backbone_parts import IMAGENET, WholeTrunk
from continual.backbone_timm import build_timm, open_network
from continual.backbones import Backbone, _cut, feature_key, load_backbone
from continual.images import PREPROCESSING
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


@dataclass(frozen=True, kw_only=True)
class Family:
    """How to write a tiny member and load it, and its width, tokens and token width when cut at one block."""

    name: str
    source: str
    write: Callable[[Path], None]
    shape: tuple[int, int, int]
    size: int = SIZE
    transformer: bool = True


def timm_family(architecture: str, shape: tuple[int, int, int], *, transformer: bool = True, **more: Any) -> Family:
    def write(folder: Path) -> None:
        write_timm(folder, architecture, **more)

    return Family(name=architecture, source="timm", write=write, shape=shape, transformer=transformer)


def vit(shape: tuple[int, int, int], **more: Any) -> Family:
    return timm_family("vit_tiny_patch16_224", shape, img_size=SIZE, **more)


def encoder(kind: str, shape: tuple[int, int, int], *, transformer: bool = True) -> Family:
    def write(folder: Path) -> None:
        write_transformers(folder, kind)

    return Family(name=kind, source="transformers", write=write, shape=shape, transformer=transformer)


def tower(kind: str, shape: tuple[int, int, int], size: int = SIZE) -> Family:
    def write(folder: Path) -> None:
        write_open_clip(folder, kind)

    return Family(name=kind, source="open_clip", write=write, shape=shape, size=size)


QUICK = {
    "timm ViT": vit((192, 5, 192)),
    "timm mean": vit((192, 4, 192), global_pool="avg", class_token=False),
    "timm all tokens": vit((192, 9, 192), global_pool="", reg_tokens=4, init_values=1e-5),
    "timm attention pool": vit((192, 4, 192), global_pool="map", class_token=False),
    "timm ConvNeXt": timm_family("convnext_atto", (320, 1, 320), transformer=False),
}
SLOW = {
    "timm Swin": timm_family(
        "swin_tiny_patch4_window7_224",
        (192, 1, 192),
        transformer=False,
        img_size=SIZE,
        embed_dim=24,
        depths=(1, 1, 1, 1),
    ),
    "timm EfficientNet": timm_family("efficientnet_lite0", (1280, 1, 1280), transformer=False),
    "CLIP": encoder("clip", (24, 17, 24)),
    "SigLIP": encoder("siglip", (24, 16, 24)),
    "DINOv2": encoder("dinov2", (24, 17, 24)),
    "DINOv2 with registers": encoder("dinov2 with registers", (24, 19, 24)),
    "SAM": encoder("sam", (20, 1, 20), transformer=False),
    "open_clip": tower("own", (16, 17, 32)),
    "open_clip learned query": tower("learned query", (16, 17, 32)),
    "open_clip on timm": tower("timm", (16, 197, 192), size=224),
}
FAMILIES = QUICK | SLOW


def marked(names: Iterable[str]) -> list[Any]:
    """Mark the families whose library takes seconds to import."""
    return [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in names]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that writes a family's folder, once."""
    root = tmp_path_factory.mktemp("families")

    def write(family: str) -> Path:
        folder = root / family
        if not folder.exists():
            FAMILIES[family].write(folder)
        return folder

    return write


def load(family: str, folder: Path, blocks: int = 1, size: int = 0, **loading: Any) -> Backbone:
    chosen = FAMILIES[family]
    return load_backbone(
        chosen.name,
        source=chosen.source,
        path=str(folder),
        image_size=size or chosen.size,
        blocks=blocks,
        loading=Loading(device="cpu", **loading),
    )


@pytest.mark.parametrize("family", marked(FAMILIES))
def test_a_family_embeds_as_its_library_does_wherever_it_is_cut(family: str, written: Callable[[str], Path]) -> None:
    folder = written(family)
    chosen, (width, tokens, token_width) = FAMILIES[family], FAMILIES[family].shape
    whole, cut = load(family, folder, blocks=0), load(family, folder, blocks=1)
    images = noise(2, chosen.size)
    expected, _ = whole.embed(images)
    found, entering = cut.embed(images)
    assert isinstance(whole.trunk, WholeTrunk)
    assert (cut.card.width, cut.card.tokens, cut.card.token_width) == (width, tokens, token_width)
    assert (found.shape, entering.shape) == ((2, width), (2, tokens, token_width))
    assert cut.card.blocks == int(chosen.transformer)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-4, "the embedding does not depend on the image"
    again = load(family, folder, blocks=1)
    assert again.card == cut.card
    assert np.array_equal(again.embed(images)[0], found)
    assert cut.card.feature_key == feature_key(
        chosen.name, source=chosen.source, path=str(folder), image_size=chosen.size, blocks=1
    )
    assert cut.card.library.split()[0] == chosen.source
    assert cut.card.parameters == sum(value.numel() for value in whole.trunk.parameters())
    if chosen.transformer:
        deeper = load(family, folder, blocks=2)
        np.testing.assert_allclose(deeper.embed(images)[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", marked(name for name, family in FAMILIES.items() if family.transformer))
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


@pytest.mark.parametrize("family", marked(["timm ViT", "CLIP", "open_clip"]))
def test_a_changed_weight_changes_the_checksum_and_the_place_of_the_features(
    family: str, written: Callable[[str], Path], tmp_path: Path
) -> None:
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


@pytest.mark.parametrize("family", marked(["timm ViT", "CLIP", "open_clip"]))
def test_bfloat16_on_the_cpu_is_near_float32(family: str, written: Callable[[str], Path]) -> None:
    exact = load(family, written(family)).embed(noise(4))[0]
    halved = load(family, written(family), precision="bfloat16").embed(noise(4))[0]
    assert 0 < np.abs(halved - exact).max() / np.abs(exact).max() < 0.05


@pytest.mark.parametrize("family", marked(["timm ViT", "timm ConvNeXt", "CLIP", "SigLIP", "DINOv2"]))
def test_another_size_of_image_is_read(family: str, written: Callable[[str], Path]) -> None:
    larger = load(family, written(family), size=64)
    assert larger.embed(noise(1, 64))[1].shape == (1, larger.card.tokens, larger.card.token_width)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["SAM", "open_clip"])
def test_another_size_of_image_is_refused_where_a_network_reads_one(
    family: str, written: Callable[[str], Path]
) -> None:
    with pytest.raises(WeightsRefused, match="reads images of 32 pixels only, got 64; set image_size = 32"):
        load(family, written(family), size=64)


def test_the_card_says_what_the_folder_says(written: Callable[[str], Path]) -> None:
    card = load("timm ViT", written("timm ViT")).card
    assert (card.licence, card.mean, card.std) == ("cc-by-nc-nd-4.0", (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    assert (card.channels, card.colour, card.interpolation, card.preprocessing) == (3, "RGB", "bicubic", PREPROCESSING)
    stated = load("timm ViT", written("timm ViT"), licence="ours", mean=(0.0,) * 3, std=(1.0,) * 3).card
    assert (stated.licence, stated.mean, stated.std) == ("ours", (0.0,) * 3, (1.0,) * 3)
    assert stated.feature_key != card.feature_key


def test_a_folder_is_named_as_sha256sum_names_it(written: Callable[[str], Path]) -> None:
    folder = written("timm ViT")
    listed = subprocess.run(
        "sha256sum *.json *.safetensors | sha256sum", shell=True, cwd=folder, capture_output=True, text=True, check=True
    )
    assert load("timm ViT", folder).card.sha256 == listed.stdout.split()[0]


def test_copying_a_tail_does_not_copy_the_network(written: Callable[[str], Path]) -> None:
    for family in ("timm attention pool", "timm mean"):
        backbone = load(family, written(family))
        in_tail = sum(value.numel() for value in backbone.tail.parameters())
        assert in_tail < 0.3 * backbone.card.parameters


# --- one graph, one program, one volume ------------------------------------------------------------------


def write_onnx(path: Path, *, output: str = "map", batch: int | str = "n", channels: int = 3) -> None:
    """Write one convolution; its output is a map, or tokens, or one row an image."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(0).normal(size=(5, channels, 8, 8)).astype(np.float32)
    nodes = [helper.make_node("Conv", ["pixels", "weight"], ["map"], strides=[8, 8])]
    if output == "row":
        nodes += [helper.make_node("ReduceMax", ["map"], ["row"], axes=[2, 3], keepdims=0)]
    shapes = {"map": [batch, 5, SIZE // 8, SIZE // 8], "row": [batch, 5]}
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [batch, channels, SIZE, SIZE])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, shapes[output])],
        [numpy_helper.from_array(weight, "weight")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def test_an_onnx_graph_is_a_backbone_without_blocks(tmp_path: Path) -> None:
    import onnx
    from onnx import numpy_helper

    path = tmp_path / "net.onnx"
    write_onnx(path)
    backbone = load_backbone("net", source="onnx", path=str(path), image_size=SIZE)
    assert (backbone.card.width, backbone.card.tokens, backbone.card.blocks, backbone.card.parameters) == (5, 1, 0, 960)
    found, tokens = backbone.embed(noise(40))
    weight = torch.from_numpy(numpy_helper.to_array(onnx.load(str(path)).graph.initializer[0]).copy())
    expected = torch.conv2d(backbone._normalise(noise(40)), weight, stride=8).mean(dim=(2, 3))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    assert tokens.shape == (40, 1, 5)
    key = feature_key("net", source="onnx", path=str(path), image_size=SIZE)
    assert backbone.card.feature_key == key
    write_onnx(path, output="row", batch=1)
    one_by_one = load_backbone("net", source="onnx", path=str(path), image_size=SIZE)
    assert one_by_one.embed(noise(3))[0].shape == (3, 5)
    assert one_by_one.card.feature_key != key


def test_an_onnx_graph_that_is_none_or_reads_something_else_is_refused(tmp_path: Path) -> None:
    import onnx

    path = tmp_path / "net.onnx"
    path.write_bytes(b"no graph")
    with pytest.raises(WeightsRefused, match="no ONNX file that stands alone"):
        load_backbone("net", source="onnx", path=str(path), image_size=SIZE)
    write_onnx(path, channels=4)
    with pytest.raises(WeightsRefused, match=r"one float input \(n, 3, size, size\)"):
        load_backbone("net", source="onnx", path=str(path), image_size=SIZE)
    write_onnx(path)
    with pytest.raises(WeightsRefused, match="reads images of 32 pixels only"):
        load_backbone("net", source="onnx", path=str(path), image_size=64)
    model = onnx.load(str(path))
    onnx.save(model, str(path), save_as_external_data=True, location="elsewhere.bin", size_threshold=0)
    with pytest.raises(WeightsRefused, match="no ONNX file that stands alone"):
        load_backbone("net", source="onnx", path=str(path), image_size=SIZE)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:FutureWarning")  # writing one; reading must not warn
def test_torchscript_runs_only_when_somebody_vouches_for_its_bytes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 8, stride=8), torch.nn.Flatten(), torch.nn.Linear(64, 6)).eval()
    path = tmp_path / "net.pt"
    torch.jit.trace(network, torch.zeros(1, 3, SIZE, SIZE)).save(str(path))
    with pytest.raises(WeightsRefused, match="is a program, and is only run when somebody vouches"):
        load_backbone("net", source="torchscript", path=str(path), image_size=SIZE)
    with pytest.raises(WeightsRefused, match="the settings expect"):
        load_backbone("net", source="torchscript", path=str(path), image_size=SIZE, loading=Loading(sha256="0" * 64))
    trusted = Loading(sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    backbone = load_backbone("net", source="torchscript", path=str(path), image_size=SIZE, loading=trusted)
    with torch.inference_mode():
        expected = network(backbone._normalise(noise(3)))
    np.testing.assert_allclose(backbone.embed(noise(3))[0], expected.numpy(), atol=1e-5)
    assert (backbone.card.width, backbone.card.blocks, backbone.card.parameters) == (6, 0, 1162)
    with pytest.raises(WeightsRefused, match="does not read images of 64 pixels"):
        load_backbone("net", source="torchscript", path=str(path), image_size=64, loading=trusted)
    path.write_bytes(b"\x80\x04cos\nsystem\n")
    pickle = Loading(sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(WeightsRefused, match="no TorchScript file"):
        load_backbone("net", source="torchscript", path=str(path), image_size=SIZE, loading=pickle)


@pytest.mark.slow
@pytest.mark.parametrize("version", [False, True])
def test_the_encoder_of_a_swin_unetr_reads_volumes(tmp_path: Path, version: bool) -> None:
    from monai.networks.nets.swin_unetr import SwinUNETR

    write_monai(tmp_path / "net", version)
    path = str(tmp_path / "net")
    backbone = load_backbone("swin_unetr", source="monai", path=path, image_size=SIZE)
    volumes = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, SIZE), dtype=np.uint8)
    found, tokens = backbone.embed(volumes)
    whole = SwinUNETR(in_channels=1, out_channels=2, feature_size=12, depths=(1, 2, 1, 1), use_v2=version).eval()
    whole.load_state_dict(load_file(tmp_path / "net" / "model.safetensors"))
    with torch.inference_mode():
        deepest = whole.swinViT(torch.from_numpy(volumes)[:, None].float() / 255)[-1]
    np.testing.assert_allclose(found, deepest.flatten(2).mean(2).numpy(), atol=1e-5)
    np.testing.assert_allclose(backbone.embed(volumes / np.float32(255))[0], found, atol=1e-5)
    assert tokens.shape == (2, 1, 192)
    assert (backbone.card.volumes, backbone.card.channels, backbone.card.blocks) == (True, 1, 0)
    with pytest.raises(ValueError, match="volumes must be uint8 or float32"):
        backbone.embed(noise(2))
    with pytest.raises(ValueError, match="between 0 and 1"):
        backbone.embed(volumes.astype(np.float32))
    with pytest.raises(WeightsRefused, match="images are flat"):
        backbone.check_reads_images()
    with pytest.raises(WeightsRefused, match="divisible by 32"):
        load_backbone("swin_unetr", source="monai", path=path, image_size=48)
    with pytest.raises(WeightsRefused, match="reads swin_unetr"):
        load_backbone("unet", source="monai", path=path, image_size=SIZE)


# --- published shapes, built without memory -----------------------------------------------------------------


def test_published_shapes_of_timm_have_their_known_figures() -> None:
    # UNI: 303 million parameters, 1,024 numbers. Virchow2: 632 million, 2,560 numbers, class token and mean patch.
    known = {"MahmoodLab/UNI": (1024, 24, 197, 303_350_784), "paige-ai/Virchow2": (2560, 32, 261, 631_239_424)}
    for name, (width, blocks, tokens, parameters) in known.items():
        with torch.device("meta"):
            network = build_timm("", name, 224, {})
        opened = open_network(network, licence="", statistics=IMAGENET, class_and_mean=width == 2560)
        assert (opened.width, len(opened.blocks), opened.tokens) == (width, blocks, tokens)
        assert opened.count_parameters() == parameters


@pytest.mark.slow
def test_published_shapes_of_open_clip_have_their_known_figures() -> None:
    # OpenAI's ViT-B/32 tower has 87.8 million parameters, timm's ViT-B/16 with a projection 86.2 million
    known = {"conch": (785, 768), "biomedclip": (197, 768), "eyeclip": (50, 768)}
    counted = {}
    for name, (tokens, token_width) in known.items():
        with torch.device("meta"):
            network = build_open_clip(name, {})
        opened = open_tower(network, licence="", statistics=IMAGENET)
        assert (opened.width, len(opened.blocks), opened.tokens, opened.token_width) == (512, 12, tokens, token_width)
        counted[name] = opened.count_parameters()
    assert (counted["biomedclip"], counted["eyeclip"]) == (86_191_872, 87_849_216)


def test_virchow2_puts_the_class_token_beside_the_mean_patch() -> None:
    import timm
    from timm.layers.mlp import SwiGLUPacked

    torch.manual_seed(0)
    options: dict[str, Any] = {"reg_tokens": 4, "mlp_layer": SwiGLUPacked, "act_layer": torch.nn.SiLU}
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=64, global_pool="", **options).eval()
    stir(network)
    opened = open_network(network, licence="", statistics=IMAGENET, class_and_mean=True)
    trunk, tail = _cut(opened, 2)
    pixels = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        tokens = network.forward_features(pixels)
        expected = torch.cat([tokens[:, 0], tokens[:, 5:].mean(1)], dim=1)
        torch.testing.assert_close(opened.whole(pixels), expected)
        torch.testing.assert_close(tail(trunk(pixels)), expected, atol=1e-5, rtol=1e-5)
    assert opened.width == 384
    assert opened.tokens == 5 + 16


# --- the hub -------------------------------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the hub's client an empty cache, and a hub where nobody answers."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    return tmp_path / "cache"


def test_weights_are_taken_from_the_hubs_cache(cache: Path, written: Callable[[str], Path]) -> None:
    repository = cache / "models--somebody--tiny"
    shutil.copytree(written("timm ViT"), repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    by_name = load_backbone("somebody/tiny", source="timm", image_size=SIZE, blocks=1)
    pinned = Loading(revision=COMMIT)
    by_commit = load_backbone("hf-hub:somebody/tiny", source="timm", image_size=SIZE, blocks=1, loading=pinned)
    assert by_name.card.sha256 == by_commit.card.sha256 == load("timm ViT", written("timm ViT")).card.sha256
    assert np.array_equal(by_name.embed(noise(1))[0], load("timm ViT", written("timm ViT")).embed(noise(1))[0])


@pytest.mark.parametrize(
    ("name", "source", "loading", "message"),
    [
        ("a/b", "transformers", Loading(), "a/b are not at hand: not in the hub's cache; set path"),
        ("vit_tiny_patch16_224", "timm", Loading(), "timm/vit_tiny_patch16_224.* are not at hand"),
        ("no_such_net", "timm", Loading(), "timm knows no weights for 'no_such_net'"),
        ("a/b", "timm", Loading(download=True), "needs revision, the 40 hexadecimal digits"),
        ("a/b", "timm", Loading(download=True, revision="main"), "a branch may change what a model is"),
        pytest.param(
            "a/b",
            "open_clip",
            Loading(download=True, revision=COMMIT),
            "the hub could not be reached.*copy its folder",
            marks=pytest.mark.slow,  # the hub's client tries again for 20 s
        ),
        ("a b", "open_clip", Loading(), "is no repository of the hub"),
    ],
)
def test_what_the_hub_does_not_give_is_one_clear_error(
    cache: Path, name: str, source: str, loading: Loading, message: str
) -> None:
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    with pytest.raises(WeightsRefused, match=message):
        load_backbone(name, source=source, image_size=SIZE, loading=loading)
    assert before == constants.HF_HUB_OFFLINE, "a download left the way out open"


def test_pickled_weights_are_refused_by_name_and_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(WeightsRefused, match="holds pickled weights only; pickled weights are never loaded"):
        load_backbone("net", source="timm", path=str(tmp_path))
    with pytest.raises(WeightsRefused, match="is a pickle by its name"):
        load_backbone("net", source="file", path=str(tmp_path / "pytorch_model.bin"))
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(WeightsRefused, match="holds no safetensors file"):
        load_backbone("net", source="timm", path=str(tmp_path))
    for name in ("a", "b"):
        save_file({"x": torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(WeightsRefused, match="holds 2 safetensors files; set path to the one"):
        load_backbone("net", source="timm", path=str(tmp_path))


def test_weights_in_shards_are_read_together_and_never_from_another_folder(
    tmp_path: Path, written: Callable[[str], Path]
) -> None:
    whole = written("timm ViT")
    state = load_file(whole / "model.safetensors")
    names = sorted(state)
    halves = {"model-1.safetensors": names[: len(names) // 2], "model-2.safetensors": names[len(names) // 2 :]}
    for file, part in halves.items():
        save_file({name: state[name] for name in part}, tmp_path / file)
    shutil.copy(whole / "config.json", tmp_path)
    index = {"weight_map": {name: file for file, part in halves.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    found = load("timm ViT", tmp_path).embed(noise(2))[0]
    assert np.array_equal(found, load("timm ViT", whole).embed(noise(2))[0])
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../x.safetensors"}}))
    with pytest.raises(WeightsRefused, match="names files outside its folder"):
        load("timm ViT", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "message"),
    [("SAM", "model_type 'bert'; source transformers reads clip"), ("open_clip", "knows no model")],
)
def test_a_folder_of_another_kind_is_refused(
    family: str, message: str, tmp_path: Path, written: Callable[[str], Path]
) -> None:
    shutil.copytree(written(family), tmp_path / "copy")
    for name in ("config.json", "open_clip_config.json"):
        if (tmp_path / "copy" / name).exists():
            (tmp_path / "copy" / name).write_text('{"model_type": "bert"}')
    with pytest.raises(WeightsRefused, match=message):
        load(family, tmp_path / "copy")


@pytest.mark.slow
def test_a_checkpoint_without_some_tensors_is_refused(tmp_path: Path, written: Callable[[str], Path]) -> None:
    for family in ("CLIP", "open_clip", "timm ViT"):
        folder = tmp_path / family
        shutil.copytree(written(family), folder)
        (weights,) = folder.glob("*.safetensors")
        state = {name: value for name, value in load_file(weights).items() if "vis" not in name or "1" not in name}
        state = {name: value for name, value in state.items() if "blocks.1" not in name}
        save_file(state, weights, metadata={"format": "pt"})
        with pytest.raises(WeightsRefused, match="does not fit the architecture"):
            load(family, folder)


@pytest.mark.parametrize(
    ("missing", "source", "name"),
    [("open_clip", "open_clip", "eyeclip"), ("monai", "monai", "swin_unetr"), ("onnxruntime", "onnx", "net")],
)
def test_a_library_that_is_not_installed_is_named_with_its_cure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, missing: str, source: str, name: str
) -> None:
    for module in {missing, *(name for name in sys.modules if name.startswith(f"{missing}."))}:
        monkeypatch.setitem(sys.modules, module, None)  # as Python itself marks a module that cannot be imported
    save_file({"x": torch.zeros(1)}, tmp_path / "net.safetensors")
    with pytest.raises(WeightsRefused, match=f"needs {missing}.*, which is not installed; run `uv sync --extra"):
        load_backbone(name, source=source, path=str(tmp_path / "net.safetensors"), image_size=SIZE)


@pytest.mark.slow
def test_importing_the_libraries_of_backbones_opens_no_connection() -> None:
    program = """
import sys
from monitor.telemetry import switch_off
switch_off()
sys.addaudithook(lambda event, arguments: event == "socket.connect" and print("CONNECTS", arguments[1]))
import huggingface_hub, monai.networks.nets.swin_unetr, onnxruntime, open_clip, timm, transformers
transformers.CLIPVisionModel, transformers.SiglipVisionModel, transformers.Dinov2Model, transformers.SamVisionModel
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "CONNECTS" not in done.stdout
