"""The parts that adapters are made of: what may be put into a block, and what turns an embedding into logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from continual.class_token import class_token_after


class CachedEmbedding(nn.Module):
    """A tail that is already behind us: (n, 1, width) in, the embedding (n, width) out."""

    def forward(self, embeddings: Tensor) -> Tensor:
        """Take the one token, which is the embedding.

        Raises:
            ValueError: tokens came instead.
        """
        if embeddings.shape[1] != 1:
            raise ValueError(
                f"this adapter reads embeddings (n, 1, width), got tokens {tuple(embeddings.shape)}; "
                "fetch them with read_inputs"
            )
        return embeddings[:, 0]


class Bottleneck(nn.Module):
    """A part of a block with a narrow residual network behind it (Houlsby 2019, placed as in Pfeiffer 2021).

    The way up starts at zero, so that an untrained one changes nothing.
    """

    def __init__(self, inner: nn.Module, width: int, narrow: int) -> None:
        super().__init__()
        self.inner = inner
        self.down = nn.Linear(width, narrow)
        self.up = nn.Linear(narrow, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, values: Tensor) -> Tensor:
        """Add what the narrow network says about the inner part's answer."""
        answer: Tensor = self.inner(values)
        added: Tensor = self.up(functional.gelu(self.down(answer)))
        return answer + added


class Prompted(nn.Module):
    """A block that reads prompt tokens of its own beside the others (VPT-deep, Jia 2022).

    The prompts stand behind the class token and are dropped after the block, so the next one gets its own.
    """

    def __init__(self, inner: nn.Module, width: int, length: int) -> None:
        super().__init__()
        self.inner = inner
        self.prompts = nn.Parameter(torch.empty(length, width))
        nn.init.normal_(self.prompts, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Run the block with the prompts; tokens (n, T, width) in and out."""
        after: Tensor = self.inner(self._with_prompts(tokens))
        return torch.cat([after[:, :1], after[:, 1 + len(self.prompts) :]], dim=1)

    def class_token(self, tokens: Tensor) -> Tensor:
        """Give the class token (n, width) alone."""
        return class_token_after(self.inner, self._with_prompts(tokens))

    def _with_prompts(self, tokens: Tensor) -> Tensor:
        prompts = self.prompts.expand(len(tokens), -1, -1)
        return torch.cat([tokens[:, :1], prompts, tokens[:, 1:]], dim=1)


class Shift(nn.Module):
    """What is added to a frozen weight or bias; zero at first, so weight decay pulls towards the backbone."""

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.delta = nn.Parameter(torch.zeros_like(like))

    def forward(self, frozen: Tensor) -> Tensor:
        """Add the shift."""
        return frozen + self.delta


class Head(nn.Linear):
    """A linear head that starts at zero; each output is computed by itself.

    A matrix product may round an output differently when it has other neighbours; this one does not, so that
    a head that grows leaves its old logits as they were, to the bit.
    """

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__(width, outputs)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Give logits (n, outputs) for embeddings (n, width)."""
        return multiply_row_by_row(input, self.weight, self.bias)


class ResidualHead(nn.Module):
    """A site's head on top of a shared, frozen one: its logits are added to the shared logits."""

    def __init__(self, shared: nn.Module, site: nn.Module) -> None:
        super().__init__()
        self.shared = shared
        self.site = site

    def forward(self, embedding: Tensor) -> Tensor:
        """Give logits (n, outputs); the shared ones, exactly, while the site's head is zero."""
        logits: Tensor = self.shared(embedding) + self.site(embedding)
        return logits


def multiply_row_by_row(values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute ``values @ weight.T + bias``, (n, outputs), each output by a product of its own."""
    return torch.stack([values @ row for row in weight], dim=1) + bias


def lora_layers(tail: nn.Module) -> list[tuple[str, Any]]:
    """List the layers that carry low-rank additions of peft, by name."""
    return [(name, module) for name, module in tail.named_modules() if hasattr(module, "get_delta_weight")]
