"""What a backbone is, on one card, and how a person wants it loaded. Plain values: nothing here needs torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneCard:
    """What a backbone is: whose weights, which pixels it wants, what it gives. Stored with every run.

    An embedding has ``width`` numbers; ``tokens`` of ``token_width`` enter the last ``blocks`` blocks (without
    blocks: the embedding itself, as one token). ``sha256`` names the weights, ``library`` what runs them.
    Pixels in 0 … 1 are normalised with ``mean`` and ``std``, a number a channel; ``preprocessing`` names how they
    were made from a file. ``feature_key`` names the folder of features: it changes with anything that changes them.
    """

    name: str
    source: str
    licence: str
    sha256: str
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    width: int
    tokens: int
    token_width: int
    blocks: int
    parameters: int
    feature_key: str
    library: str
    preprocessing: str
    interpolation: str = "bicubic"
    channels: int = 3
    colour: str = "RGB"
    volumes: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """How to load a backbone; what is left empty follows from the weights.

    ``device``: "auto" (a GPU where there is one), "cpu" or "cuda". ``precision``: "auto" (bfloat16 on a GPU that
    has it, else float32), "float32" or "bfloat16". ``sha256``: refuse weights with another checksum; a TorchScript
    file needs it. ``download``: fetch from the hub what its cache lacks, at the commit ``revision``.
    ``licence``, ``mean`` and ``std`` state what a file does not.
    """

    device: str = "auto"
    precision: str = "auto"
    download: bool = False
    revision: str = ""
    sha256: str = ""
    licence: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


DEFAULT = Loading()
