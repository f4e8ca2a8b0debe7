"""The kinds of adapter by name: what each reads, what it adds to a copy of the backbone's tail, and its head.

Only what a kind adds is trained and stored; the rest of the tail stays frozen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from continual.adapter_card import AdapterCard, Reads
from continual.adapter_parts import Bottleneck, Head, Prompted, Shift, lora_layers
from continual.analytic import AnalyticHead
from monitor.tasks import TASKS

Add = Callable[[nn.Module, int, AdapterCard], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of adapter: ``add`` changes a tail in place, ``head`` makes what turns embeddings into logits.

    ``sizes`` names the fields of the policy, and of the card, that shape it.
    """

    reads: Reads
    add: Add
    head: Callable[[AdapterCard, int], nn.Module]
    sizes: tuple[str, ...]


def _add_nothing(tail: nn.Module, width: int, card: AdapterCard) -> None:
    """Leave the tail as it is: only the head is learned."""


def _add_lora(tail: nn.Module, width: int, card: AdapterCard) -> None:
    """Add products of two narrow matrices to the attention's projections (LoRA, Hu 2021), through peft."""
    from peft import LoraConfig, inject_adapter_in_model

    targets = [name for name, part in tail.named_modules() if part in _lora_parts(tail, card)]
    name = "site" if card.shared_sha256 else "default"
    vars(tail).pop("peft_config", None)  # a second injection would warn that there was a first
    inject_adapter_in_model(
        LoraConfig(r=card.rank, lora_alpha=2 * card.rank, target_modules=targets), tail, adapter_name=name
    )
    vars(tail).pop("peft_config", None)
    for _, layer in lora_layers(tail):
        layer.set_adapter(list(layer.lora_A))  # a shared and a site addition work at once


def _lora_parts(tail: nn.Module, card: AdapterCard) -> list[nn.Module]:
    """List the linear layers that the backbone's family names, in the adapted blocks."""
    names: Any = tail.lora_targets
    return [_inner(block).get_submodule(name) for block in _adapted_blocks(tail, card) for name in names]


def _add_bottleneck(tail: nn.Module, width: int, card: AdapterCard) -> None:
    blocks = [_inner(block) for block in _adapted_blocks(tail, card)]
    if not all(hasattr(block, "mlp") for block in blocks):
        raise ValueError(
            f"the blocks of {card.backbone} have no MLP that a bottleneck could stand behind; set adapter to one of "
            '"lora", "prompt", "norm", "head" or "analytic"'
        )
    for block in blocks:
        block.mlp = Bottleneck(block.mlp, width, card.bottleneck)


def _add_prompts(tail: nn.Module, width: int, card: AdapterCard) -> None:
    blocks: Any = tail.blocks
    _adapted_blocks(tail, card)
    for place in range(len(blocks) - card.blocks, len(blocks)):
        blocks[place] = Prompted(blocks[place], width, card.prompts)


def _add_shifts(tail: nn.Module, width: int, card: AdapterCard) -> None:
    """Shift norms and biases (BitFit, Ben Zaken 2022): of the adapted blocks, and of the norm behind them."""
    backbones = nn.ModuleList([*_adapted_blocks(tail, card), tail.get_submodule("norm")])
    below = [layer for part in tail.modules() if isinstance(part, Bottleneck) for layer in (part.down, part.up)]
    for module in [part for part in backbones.modules() if part not in below]:
        for name in _shiftable(module):
            parametrize.register_parametrization(module, name, Shift(getattr(module, name)))


def _shiftable(module: nn.Module) -> list[str]:
    names = {nn.LayerNorm: ("weight", "bias"), nn.Linear: ("bias",)}
    wanted = next((found for kind, found in names.items() if isinstance(module, kind)), ())
    return [name for name in wanted if getattr(module, name) is not None]


def _adapted_blocks(tail: nn.Module, card: AdapterCard) -> list[nn.Module]:
    """Give the last blocks that the card names, after checking that there are so many."""
    blocks = [*getattr(tail, "blocks", nn.Sequential()).children()]
    if not 1 <= card.blocks <= len(blocks):
        raise ValueError(
            f"{card.kind} in {card.blocks} blocks needs tokens stored before them, {card.backbone} stores "
            f'{len(blocks)}; lower blocks, or set adapter = "head" for a backbone without transformer blocks'
        )
    return blocks[-card.blocks :]


def _inner(block: nn.Module) -> Any:
    """Look through prompts at the block itself."""
    return _inner(block.inner) if isinstance(block, Prompted) else block


def _linear_head(card: AdapterCard, width: int) -> nn.Module:
    return Head(width, TASKS[card.task].score_columns(card.classes))


def _analytic_head(card: AdapterCard, width: int) -> nn.Module:
    on_top = TASKS[card.task].score_columns(card.classes) if card.shared_sha256 else 0
    return AnalyticHead(card, width + on_top)


KINDS: dict[str, Kind] = {
    "head": Kind(reads="embedding", add=_add_nothing, head=_linear_head, sizes=()),
    "lora": Kind(reads="tokens", add=_add_lora, head=_linear_head, sizes=("blocks", "rank")),
    "bottleneck": Kind(reads="tokens", add=_add_bottleneck, head=_linear_head, sizes=("blocks", "bottleneck")),
    "prompt": Kind(reads="tokens", add=_add_prompts, head=_linear_head, sizes=("blocks", "prompts")),
    "norm": Kind(reads="tokens", add=_add_shifts, head=_linear_head, sizes=("blocks",)),
    "analytic": Kind(reads="embedding", add=_add_nothing, head=_analytic_head, sizes=("random_features", "ridge")),
}
