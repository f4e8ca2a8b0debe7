"""What can be done to a trained adapter: let it grow, merge it into the weights, take it out again."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from continual.adapter_parts import Bottleneck, Head, Prompted, lora_layers
from continual.adapters import AdaptedTail, Adapter
from continual.analytic import AnalyticHead
from continual.outputs import IDENTITY
from monitor.tasks import TASKS

MERGEABLE = ("lora", "norm", "head", "analytic")


def grow(adapter: Adapter, classes: tuple[str, ...]) -> Adapter:
    """Add outputs for new classes or findings; the old logits stay as they are, to the bit.

    ``classes`` lists the old ones first, in their order. A new output starts at logit 0.

    Raises:
        ValueError: the old classes do not come first, the task is binary, or the adapter is a site's.
    """
    card = adapter.card
    before, after = (TASKS[card.task].score_columns(names) for names in (card.classes, classes))
    if classes[: len(card.classes)] != card.classes or len(set(classes)) != len(classes):
        raise ValueError(f"the classes {card.classes} must come first and each once, got {classes}")
    if after - before != len(classes) - len(card.classes):
        raise ValueError(f"a {card.task} adapter asks one question; train a multi-class or multi-label one")
    if adapter.shared is not None:
        raise ValueError("a site's adapter grows with its shared one: grow that, and stack the site's on it anew")
    grown, network = card.model_copy(update={"classes": classes}), copy.deepcopy(adapter.network)
    head = network.head
    network.head = head.grow(grown) if isinstance(head, AnalyticHead) else _grow_linear(head, after)
    network.remember_untrained_head()
    outputs = IDENTITY  # what was fitted to fewer answers says nothing of the new ones: calibrate anew
    return replace(adapter, card=grown, network=network.eval(), outputs=outputs)


def _grow_linear(head: Any, outputs: int) -> Head:
    grown = Head(head.in_features, outputs)
    with torch.no_grad():
        grown.weight[: head.out_features] = head.weight
        grown.bias[: head.out_features] = head.bias
    return grown


def merge(adapter: Adapter) -> AdaptedTail:
    """Write the additions into a copy of the weights: a plain network, frozen, with the same logits up to rounding.

    Raises:
        ValueError: bottlenecks and prompts are computed beside the weights and cannot be written into them.
    """
    kinds = {adapter.card.kind, *([adapter.shared.card.kind] if adapter.shared else [])}
    if impossible := sorted(kinds - {*MERGEABLE}):
        raise ValueError(f"{', '.join(impossible)} cannot be merged into weights; only {', '.join(MERGEABLE)} can")
    merged = copy.deepcopy(adapter.network)
    _take_out(merged.tail, keep=True)
    return merged.freeze().eval()


def detach(adapter: Adapter) -> nn.Module:
    """Take all additions out of a copy of the tail: what is left is the backbone's own tail, to the bit."""
    tail = copy.deepcopy(adapter.network.tail)
    _take_out(tail, keep=False)
    return tail.requires_grad_(False).eval()


def detach_site(adapter: Adapter) -> Adapter:
    """Take a site's adapter off: what is left is the shared one, with its scores, to the bit.

    Raises:
        ValueError: it stands on no shared one.
    """
    if adapter.shared is None:
        raise ValueError("this adapter stands on no shared one; detach takes it off its backbone")
    return adapter.shared.copy()


def _take_out(tail: nn.Module, *, keep: bool) -> None:
    """Remove every addition from a tail; ``keep`` writes what can be written into the weights first."""
    for name, layer in lora_layers(tail):
        if keep:
            layer.merge()
        _replace(tail, name, layer.base_layer)
    for module in [part for part in tail.modules() if parametrize.is_parametrized(part)]:
        _unshift(module, keep=keep)
    while wrapped := [(name, part) for name, part in tail.named_modules() if isinstance(part, Bottleneck | Prompted)]:
        name, part = wrapped[0]
        _replace(tail, name, part.inner)


def _unshift(module: nn.Module, *, keep: bool) -> None:
    """Take shifts off a module; it gets a class of its own first, since a copy shares it with its original."""
    shared = type(module)
    module.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
    for name in ("weight", "bias"):
        if parametrize.is_parametrized(module, name):
            parametrize.remove_parametrizations(module, name, leave_parametrized=keep)


def _replace(tail: nn.Module, name: str, by: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(tail.get_submodule(parent), last, by)
