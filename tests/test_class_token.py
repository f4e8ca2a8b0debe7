"""The short way to the class token equals timm's own block, whatever an adapter put inside."""

from collections.abc import Callable

import pytest
import torch
from timm.models.vision_transformer import Block, ResPostBlock
from torch import nn

from continual.adapters import new_adapter
from continual.backbones import Tail, load_backbone
from continual.class_token import class_token_after
from continual.policies import AdaptationPolicy
from monitor.tasks import Task


def spread(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return module.eval()


@pytest.mark.parametrize(
    "build",
    [
        lambda: Block(48, 3, qkv_bias=True, init_values=0.5),
        lambda: Block(48, 4),
        lambda: Block(48, 3, qkv_bias=True, scale_attn_norm=True, proj_bias=False),
        lambda: Block(48, 3, qk_norm=True),  # keys are normalised, so this one takes the long way
        lambda: ResPostBlock(48, 3),  # another block than the plain one: the long way
    ],
)
def test_the_short_way_is_the_long_way(build: Callable[[], nn.Module]) -> None:
    block = spread(build())
    tokens = torch.randn(7, 11, 48, generator=torch.Generator().manual_seed(1))
    tokens.requires_grad_()
    short, long = class_token_after(block, tokens), block(tokens)[:, 0]
    torch.testing.assert_close(short, long, atol=1e-5, rtol=1e-5)
    one, other = (torch.autograd.grad(way.square().sum(), tokens)[0] for way in (short, long))
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["lora", "bottleneck", "prompt", "norm"])
def test_the_short_way_goes_through_every_kind_of_addition(kind: str) -> None:
    backbone = load_backbone("tiny", source="random", image_size=28)
    policy = AdaptationPolicy.model_validate({"adapter": kind})
    tail = new_adapter(backbone, task=Task.BINARY, classes=("no", "yes"), policy=policy, seed=0).network.tail
    spread(tail, seed=3)
    tokens = torch.randn(4, 5, 48, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        long = tail.norm(tail.blocks(tokens)[:, 0])  # type: ignore[operator]
        torch.testing.assert_close(tail(tokens), long, atol=1e-5, rtol=1e-5)


def test_a_tail_without_blocks_takes_the_one_token() -> None:
    tokens = torch.randn(3, 1, 8)
    assert torch.equal(Tail(nn.Sequential(), nn.Identity())(tokens), tokens[:, 0])
