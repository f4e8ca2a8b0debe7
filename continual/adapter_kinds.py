"""The kinds of adapter by name: what each adds to a copy of the backbone's tail, and leaves trainable there."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from continual.backbones import BackboneCard


def _add_lora(tail: nn.Module, backbone: BackboneCard, rank: int, blocks: int) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    if not 1 <= blocks <= backbone.blocks:
        raise ValueError(
            f"LoRA in {blocks} blocks needs tokens stored before them, {backbone.name} stores {backbone.blocks}; "
            'lower blocks, or set adapter = "head" for a backbone without transformer blocks'
        )
    names = [f"blocks.{i}.attn.{part}" for i in range(backbone.blocks - blocks, backbone.blocks) for part in LORA_PARTS]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names), tail)


def _add_nothing(tail: nn.Module, backbone: BackboneCard, rank: int, blocks: int) -> None:
    """Leave the tail frozen: only the head is trained."""


LORA_PARTS = ("qkv", "proj")
ADAPTERS: dict[str, Callable[[nn.Module, BackboneCard, int, int], None]] = {"lora": _add_lora, "head": _add_nothing}
