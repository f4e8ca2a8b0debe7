"""What an adapter is, in words and numbers; stands inside its file, under its hash. No torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from continual.policies import AdapterKind
from monitor.tasks import Task

FORMAT = 2
Reads = Literal["embedding", "tokens"]


class AdapterCard(BaseModel):
    """What an adapter is and which backbone, and which shared adapter, it needs.

    ``reads`` tells what enters it: the cached embedding, (n, 1, width) float32, where no block is changed,
    else the cached tokens, (n, T, width) float16. Sizes that its kind does not have are 0.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[2] = 2
    kind: AdapterKind
    task: Task
    classes: tuple[str, ...]
    reads: Reads
    blocks: int = Field(0, ge=0, le=1_000)
    rank: int = Field(0, ge=0, le=10_000)
    bottleneck: int = Field(0, ge=0, le=10_000)
    prompts: int = Field(0, ge=0, le=10_000)
    random_features: int = Field(0, ge=0, le=10_000)
    ridge: float | Literal["auto"] = "auto"
    shared_sha256: str = ""
    backbone: str
    backbone_sha256: str
    feature_key: str
