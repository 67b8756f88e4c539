"""Low-rank factors in the place of the decoder's matrices: W [N, K] becomes U [N, r] V [r, K].

The factors come from a truncated SVD, the best approximation of W at its rank (Eckart & Young 1936), after
some epochs at full rank, and are fine-tuned in the epochs that follow (Pufferfish, Wang et al. 2021). They
are ordinary parameters: DDP and any optimizer take them as they are.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from trainables.captioning.compress.swap import swap_layers
from trainables.captioning.model.captioner import Captioner
from trainables.trial import SettingsError

#: How far the removed share of the bytes may be from the one that was asked for.
_TOLERANCE = 0.05


def factorise(captioner: Captioner, ratio: float) -> Captioner:
    """A copy of `captioner` whose decoder's linear and recurrent matrices are products of two factors.

    Ranks depend on the shapes and the ratio only, so that a checkpoint of a factorised captioner fits any
    other one with the same settings. The original is untouched; the copy's training mode is the original's.

    Args:
        captioner: not factorised before.
        ratio: share of the factorised matrices' bytes that is to go. Matrices that are so thin that no
            rank would make them smaller stay as they are and do not count.

    Raises:
        SettingsError: rank 1 everywhere would not remove as much.
    """
    shapes = {
        path: tuple(layer.weight.shape)
        for path, layer in captioner.decoder.named_modules()
        if type(layer) is nn.Linear
    }
    return factorise_to(captioner, choose_ranks(shapes, ratio))


def factorise_to(captioner: Captioner, ranks: Mapping[str, int]) -> Captioner:
    """As `factorise`, with the rank of each of the decoder's layers (by its name there) given."""
    small = copy.deepcopy(captioner)

    def make(path: str, layer: nn.Module) -> nn.Module | None:
        return LowRankLinear(cast(nn.Linear, layer), ranks[path]) if path in ranks else None

    swap_layers(small.decoder, make)
    return small


def is_factorised(captioner: Captioner) -> bool:
    """Whether `factorise` made this captioner."""
    return any(isinstance(layer, LowRankLinear) for layer in captioner.decoder.modules())


def choose_ranks(shapes: dict[str, tuple[int, ...]], ratio: float) -> dict[str, int]:
    """Ranks that remove `ratio` of the weights of the matrices together, about the same share of each.

    Args:
        shapes: (rows, columns) of each matrix by name.
        ratio: share to remove.

    Returns:
        Rank by name, without the matrices that even rank 1 would not shrink.

    Raises:
        SettingsError: the ratio cannot be reached within 0.05.
    """
    shapes = {name: (n, k) for name, (n, k) in shapes.items() if n + k < n * k}
    total = sum(n * k for n, k in shapes.values())
    wanted = {name: (1 - ratio) * n * k / (n + k) for name, (n, k) in shapes.items()}
    ranks = {name: max(1, math.floor(rank)) for name, rank in wanted.items()}
    kept = sum(ranks[name] * sum(shape) for name, shape in shapes.items())
    # What rounding down has left over goes to the matrices that it has cut most.
    for name in sorted(shapes, key=lambda name: ranks[name] - wanted[name]):
        if kept + sum(shapes[name]) <= (1 - ratio) * total:
            ranks[name] += 1
            kept += sum(shapes[name])
    removed = 1 - kept / total
    if abs(removed - ratio) > _TOLERANCE:
        reachable = 1 - sum(map(sum, shapes.values())) / total
        raise SettingsError(
            ("model", "compression", "ratio"),
            f"{ratio:g} of the bytes cannot be removed within {_TOLERANCE:g}: rank 1 everywhere removes "
            f"{reachable:.3f}; ask for at most that, or widen the decoder",
        )
    return ranks


class LowRankLinear(nn.Module):
    """`nn.Linear` through a bottleneck of `rank` units, started from a truncated SVD.

    Args:
        linear: what is replaced.
        rank: r.
    """

    def __init__(self, linear: nn.Linear, rank: int):
        super().__init__()
        weight = linear.weight.detach()
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        root = values[:rank].sqrt()  # shared evenly, so that both factors learn at the same pace
        self.left = nn.Parameter((left[:, :rank] * root).contiguous())  # U [N, r]
        self.right = nn.Parameter((root.unsqueeze(1) * right[:rank]).contiguous())  # V [r, K]
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().clone())

    @property
    def weight(self) -> Tensor:
        """The product [N, K], for callers that need the matrix as one; gradients reach the factors."""
        return self.left @ self.right

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] to [..., N] without forming the product."""
        return nn.functional.linear(nn.functional.linear(x, self.right), self.left, self.bias)
