"""The analytic adapter: a head in closed form on random features of the embedding (as in RanPAC, McDonnell 2023).

It holds sums over the studies that it learned, and what solves them (``continual.ridge``). So it cannot
forget, does not care about order, and can unlearn a study by subtracting it. Features are kept on a grid of
binary fractions, coarse enough that every sum is exact in double precision up to 100 million studies: after
a study is removed the adapter is, to the bit, the one that never saw it.

Privacy: the sums stand in the adapter's own file, under its hash, so that what the champion has learned can
never be parted from it. They are kept in five folds of patients, which a hash of the key tells apart. No number
in them belongs to one study, unless a fold or a class in it holds only one, or two files are subtracted that
differ by one. Treat the file as you treat the studies; ``without_sums`` makes one that scores the same and can
leave the hospital, and can learn or unlearn nothing more.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from continual.adapter_card import AdapterCard
from continual.adapter_parts import multiply_row_by_row
from continual.ridge import Array, Spread, Sums, decompose, solve
from monitor.cohorts import binary_labels
from monitor.tasks import TASKS

GRID = 2.0**10
LARGEST = 8.0
FOLDS = 5
AT_ONCE = 8192
SUMS = ("count", "total", "gram", "sums", "positives")
OF_STUDIES = ("count", "total", "gram")  # the same for outputs whose labels are known of the same studies


class AnalyticHead(nn.Module):
    """Sums over learned studies and the head that solves them; embeddings (n, width) to logits (n, outputs).

    Multi-class outputs exclude each other and share sums over all studies whose label is known. Otherwise
    each output has sums of its own over the studies of which *its* label is known.
    """

    def __init__(self, card: AdapterCard, width: int) -> None:
        super().__init__()
        self.card = card
        self.frozen = False
        outputs = TASKS[card.task].score_columns(card.classes)
        groups = 1 if self._exclusive else outputs
        size = width + card.random_features
        self.register_buffer("signs", _draw_signs(width, card.random_features), persistent=False)
        shapes = {
            "count": (groups, FOLDS),
            "total": (groups, FOLDS, size),
            "gram": (groups, FOLDS, size * (size + 1) // 2),  # the lower triangle
            "sums": (outputs, FOLDS, size),
            "positives": (outputs, FOLDS),
            "weight": (outputs, size),
            "bias": (outputs,),
        }
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))

    @property
    def _exclusive(self) -> bool:
        return TASKS[self.card.task].scores_sum_to_one

    @property
    def answers(self) -> Tensor:
        """Tell for each output whether it has learned anything; shape (outputs,)."""
        weight, count = self.get_buffer("weight"), self.get_buffer("count").sum(dim=1)
        return (count > 0).expand(len(weight)) | weight.any(dim=1)

    @property
    def solution_size(self) -> int:
        """Count the numbers of the solution, without the sums behind it."""
        return self.get_buffer("weight").numel() + self.get_buffer("bias").numel()

    def forward(self, embedding: Tensor) -> Tensor:
        """Give logits (n, outputs) in the embedding's precision."""
        logits = multiply_row_by_row(self.features(embedding), self.get_buffer("weight"), self.get_buffer("bias"))
        return logits.to(embedding.dtype)

    def features(self, embedding: Tensor) -> Tensor:
        """Compute features (n, D) on the grid: the embedding at unit scale, and rectified random projections.

        The gradient passes as if there were no grid.
        """
        scale = embedding.double().square().mean(dim=1, keepdim=True).sqrt()
        values = _on_grid(embedding.double() / scale.clamp_min(1e-12))
        signs = self.get_buffer("signs")
        projected = _on_grid(functional.relu(values @ signs / len(signs) ** 0.5))
        return torch.cat([values, projected], dim=1)

    @torch.no_grad()
    def update(self, embedding: Tensor, labels: Array, patient_key: NDArray[np.str_], *, sign: int) -> None:
        """Add studies to the sums (sign 1) or take them away (sign -1), and solve anew.

        Raises:
            ValueError: studies are taken away that were never learned, or the sums were taken out; nothing
                is changed.
        """
        if not self.get_buffer("count").any() and self.get_buffer("weight").any():
            raise ValueError("this adapter was saved without its sums, so it can learn and unlearn nothing")
        sums = {name: self.get_buffer(name).clone() for name in SUMS}
        answers = torch.from_numpy(binary_labels(self.card.task, self.card.classes, labels))
        folds = np.array([_fold_of(key) for key in patient_key.tolist()], dtype=np.intp)
        for start in range(0, len(embedding), AT_ONCE):  # the sums are exact, so that parts change nothing
            part = slice(start, start + AT_ONCE)
            features = self.features(embedding[part])
            for fold in np.unique(folds[part]).tolist():
                mine = torch.from_numpy(folds[part] == fold)
                self._add(sums, fold, features[mine], answers[part][mine], sign)
        if sign < 0 and not self._possible(sums):
            raise ValueError("these studies were not all learned by this adapter, so it cannot unlearn them")
        for name, value in sums.items():
            self.get_buffer(name).copy_(value)
        self._solve()

    def _add(self, sums: dict[str, Tensor], fold: int, features: Tensor, answers: Tensor, sign: int) -> None:
        products: dict[bytes, Tensor] = {}
        for group, columns in enumerate(self._groups()):
            known = ~answers[:, columns[0]].isnan()
            rows, yes = features[known], answers[known][:, columns]
            key = known.numpy().tobytes()
            if key not in products:
                products[key] = _pack(rows.T @ rows)
            sums["count"][group, fold] += sign * len(rows)
            sums["total"][group, fold] += sign * rows.sum(dim=0)
            sums["gram"][group, fold] += sign * products[key]
            sums["sums"][columns, fold] += sign * (yes.T @ rows)
            sums["positives"][columns, fold] += sign * yes.sum(dim=0)

    def _possible(self, sums: dict[str, Tensor]) -> bool:
        """Tell whether sums can be those of studies: exact sums of squares are never below zero."""
        squares = sums["gram"][..., _diagonal(sums["total"].shape[-1])]
        negatives = [
            sums["count"][group] - sums["positives"][columns].sum(0) for group, columns in enumerate(self._groups())
        ]
        empty = sums["count"] == 0
        left = squares[empty].abs().sum() + sums["total"][empty].abs().sum()
        parts = (squares, sums["count"], sums["positives"], torch.stack(negatives))
        return all(bool((part >= 0).all()) for part in parts) and float(left) == 0

    def grow(self, card: AdapterCard) -> AnalyticHead:
        """Make one with more outputs that has learned the same; old logits stay as they are, to the bit."""
        grown = AnalyticHead(card, self.get_buffer("signs").shape[0])
        for name in (*SUMS, "weight", "bias"):
            old = self.get_buffer(name)
            grown.get_buffer(name)[: len(old)] = old
        return grown

    def _groups(self) -> list[list[int]]:
        columns = list(range(len(self.get_buffer("positives"))))
        return [columns] if self._exclusive else [[column] for column in columns]

    def _solve(self) -> None:
        sums = {name: self.get_buffer(name).numpy() for name in SUMS}
        solved: tuple[int, list[Spread]] | None = None
        for group, columns in enumerate(self._groups()):
            if solved is None or not _same_studies(sums, group, solved[0]):
                solved = group, decompose(_sums_of(sums, group))
            of_classes, counts = sums["sums"][columns], sums["positives"][columns]
            if not self._exclusive:  # a yes/no question has two classes; its logit is the log odds of yes
                of_classes = np.concatenate([sums["total"][[group]] - of_classes, of_classes])
                counts = np.concatenate([sums["count"][[group]] - counts, counts])
            weights, bias = solve(solved[1], of_classes, counts, self.card.ridge)
            if not self._exclusive:
                weights, bias = weights[1:] - weights[:1], bias[1:] - bias[:1]
            self.get_buffer("weight")[columns] = torch.from_numpy(weights)
            self.get_buffer("bias")[columns] = torch.from_numpy(bias)


class AnalyticOnTop(nn.Module):
    """A site's analytic head on a shared head, whose logits it takes for features beside the embedding.

    Until it has learned something about an output, the shared answer stands.
    """

    def __init__(self, shared: nn.Module, site: AnalyticHead) -> None:
        super().__init__()
        self.shared = shared
        self.site = site

    def forward(self, embedding: Tensor) -> Tensor:
        """Give logits (n, outputs) for embeddings (n, width)."""
        seen = self.features_of(embedding)
        return torch.where(self.site.answers, self.site(seen), seen[:, embedding.shape[1] :])

    def features_of(self, embedding: Tensor) -> Tensor:
        """Put the shared logits beside the embedding; (n, width + outputs)."""
        return torch.cat([embedding, self.shared(embedding)], dim=1)


def keep_once(name: str, value: Tensor) -> Tensor:
    """Keep the sums that all outputs share once, as they are written; anything else as it is.

    Where every study has all its labels, a file for many findings is no larger than for one.
    """
    shared = name.rpartition(".")[2] in OF_STUDIES and bool((value == value[:1]).all())
    return value[:1] if shared else value


def fits(name: str, found: Tensor, expected: Tensor) -> bool:
    """Tell whether a tensor that was read is the one expected, or one that ``keep_once`` made of it."""
    once = (1, *expected.shape[1:]) if name.rpartition(".")[2] in OF_STUDIES else expected.shape
    return found.dtype == expected.dtype and found.shape in (expected.shape, once)


def _draw_signs(width: int, count: int) -> Tensor:
    """Draw the projections, -1 or 1: the same for every adapter, and on every version of NumPy."""
    words = np.random.PCG64(0).random_raw((width * count + 63) // 64)
    bits = np.unpackbits(np.asarray(words, dtype="<u8").view(np.uint8), count=width * count)
    return torch.from_numpy(bits.reshape(width, count) * 2.0 - 1.0)


def _on_grid(values: Tensor) -> Tensor:
    held = values.clamp(-LARGEST, LARGEST)
    return held + (torch.round(held * GRID) / GRID - held).detach()


def _pack(square: Tensor) -> Tensor:
    """Keep the lower triangle, row by row."""
    rows, columns = torch.tril_indices(*square.shape)
    return square[rows, columns]


def _diagonal(size: int) -> Tensor:
    """Tell where a packed triangle has its diagonal."""
    places = torch.arange(size)
    return places * (places + 3) // 2


def _same_studies(sums: dict[str, Array], one: int, other: int) -> bool:
    return all(np.array_equal(sums[name][one], sums[name][other]) for name in OF_STUDIES)


def _sums_of(sums: dict[str, Array], group: int) -> Sums:
    total = sums["total"][group]
    size = total.shape[1]
    gram = np.zeros((len(total), size, size))
    gram[:, *np.tril_indices(size)] = sums["gram"][group]
    return Sums(count=sums["count"][group], total=total, gram=gram)


def _fold_of(patient_key: str) -> int:
    """Put every study of a patient into the same fold, whenever and wherever it is learned."""
    return hashlib.sha256(patient_key.encode()).digest()[0] % FOLDS
