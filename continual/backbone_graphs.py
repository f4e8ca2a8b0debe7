"""Networks that bring their own program: an ONNX graph, or TorchScript that a person vouches for."""

from __future__ import annotations

import hashlib
import io
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from continual.backbone_files import WeightFiles, WeightsRefused
from continual.backbone_parts import IMAGENET, Opened, extra


def open_onnx(files: WeightFiles, image_size: int, device: torch.device) -> Opened:
    """Open an ONNX graph: one float input (n, 3, size, size), the first output is taken.

    An output (n, width) is the embedding; of tokens (n, T, width) the first is; a map (n, width, …) is averaged.

    Raises:
        WeightsRefused: no ONNX file, weights outside the file, another input, another size of image.
    """
    with extra():
        import onnxruntime as runtime
    content = _read(files)
    wanted = ["CUDAExecutionProvider"] if device.type == "cuda" else []
    providers = [name for name in [*wanted, "CPUExecutionProvider"] if name in runtime.get_available_providers()]
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        # from bytes, not from the path: so tensors in other files are refused, whatever path they name
        session = runtime.InferenceSession(content, options, providers=providers)
    except _refusals() as error:
        raise WeightsRefused(f"{files.weights[0]} is no ONNX file that stands alone: {str(error)[:200]}") from None
    whole = _Graph(session, _input_name(session, image_size))
    return Opened(
        whole=whole,
        width=_width(whole, image_size),
        library=f"onnxruntime {runtime.__version__}",
        licence="",
        statistics=IMAGENET,
        parameters=_count(content),
    )


def _refusals() -> tuple[type[Exception], ...]:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile", "NotImplemented")
    return tuple(getattr(state, name) for name in (*names, "RuntimeException"))


def _input_name(session: Any, image_size: int) -> str:
    inputs = session.get_inputs()
    shape = inputs[0].shape
    fits = len(inputs) == 1 and inputs[0].type == "tensor(float)" and len(shape) == 4 and shape[1] in (3, None)
    if not fits and not (len(inputs) == 1 and len(shape) == 4 and isinstance(shape[1], str)):
        told = ", ".join(f"{each.name} {each.type} {each.shape}" for each in inputs)
        raise WeightsRefused(f"the graph must have one float input (n, 3, size, size), it has: {told}; export it so")
    for side in shape[2:]:
        if isinstance(side, int) and side != image_size:
            raise WeightsRefused(
                f"this network reads images of {side} pixels only, got {image_size}; set image_size = {side}"
            )
    return str(inputs[0].name)


class _Graph(nn.Module):
    """Pixels to embeddings through onnxruntime."""

    def __init__(self, session: Any, name: str) -> None:
        super().__init__()
        self.session = session
        self.name = name
        self.one_by_one = session.get_inputs()[0].shape[0] == 1

    def forward(self, pixels: Tensor) -> Tensor:
        values = pixels.float().cpu().numpy()
        parts = [values[i : i + 1] for i in range(len(values))] if self.one_by_one else [values]
        found = [self.session.run(None, {self.name: part})[0] for part in parts]
        return _pool(torch.from_numpy(np.concatenate(found))).to(pixels.device)


def _count(content: bytes) -> int:
    import onnx

    return sum(int(np.prod(value.dims)) for value in onnx.load_from_string(content).graph.initializer)


def open_torchscript(files: WeightFiles, image_size: int, trusted: str) -> Opened:
    """Open a TorchScript file: pixels (n, 3, size, size) in, the embedding (or tokens, or a map) out.

    A TorchScript file is a program, so it is run only when ``trusted`` names the sha256 of the very bytes.

    Raises:
        WeightsRefused: nobody vouches for the file, it is none, or it does not take such pixels.
    """
    content = _read(files)
    found = hashlib.sha256(content).hexdigest()
    if trusted.lower() != found:
        raise WeightsRefused(
            f"{files.weights[0]} is a program, and is only run when somebody vouches for it: if you know where it "
            f'comes from, set sha256 = "{found}" beside its path; better, save its weights as safetensors'
        )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.jit.load.* is deprecated", category=FutureWarning)
            script = torch.jit.load(io.BytesIO(content), map_location="cpu")  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise WeightsRefused(f"{files.weights[0]} is no TorchScript file: {str(error)[:200]}") from None
    whole = _Script(script)
    return Opened(
        whole=whole,
        width=_width(whole, image_size),
        library=f"torch {torch.__version__}",
        licence="",
        statistics=IMAGENET,
    )


class _Script(nn.Module):
    """Pixels to embeddings through TorchScript."""

    def __init__(self, script: Any) -> None:
        super().__init__()
        self.script = script

    def forward(self, pixels: Tensor) -> Tensor:
        return _pool(self.script(pixels))


def _pool(output: Any) -> Tensor:
    """Make (n, width) of what a graph gives."""
    values: Tensor = output[0] if isinstance(output, tuple | list) else output
    if values.ndim == 3:
        return values[:, 0]
    return values.flatten(2).mean(dim=2) if values.ndim > 3 else values


@torch.inference_mode()
def _width(whole: nn.Module, image_size: int) -> int:
    try:
        found = whole.eval()(torch.zeros(1, 3, image_size, image_size))
    except RuntimeError as error:
        raise WeightsRefused(f"the network does not read images of {image_size} pixels: {str(error)[:200]}") from None
    if found.ndim != 2:
        raise WeightsRefused(f"the network's first output has shape {tuple(found.shape)}; it must be one row an image")
    return int(found.shape[1])


def _read(files: WeightFiles) -> bytes:
    try:
        return files.weights[0].read_bytes()
    except OSError as error:
        raise WeightsRefused(f"{files.weights[0]} cannot be read: {error.strerror}; check path") from None
