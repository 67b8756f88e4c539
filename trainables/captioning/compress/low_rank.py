"""Low-rank factors in the place of matrices and filters: W [N, K] becomes U [N, r] V [r, K].

The factors come from a truncated SVD, the best approximation of W at its rank (Eckart & Young 1936), and are
fine-tuned afterwards (Pufferfish, Wang et al. 2021). They are ordinary parameters: DDP and any optimizer take
them as they are. A convolution becomes one with r filters and a 1x1 convolution (Denton et al. 2014).

How many bytes are left is decided by the shapes; which matrix gets them, by the energy (squared singular
values, as a share of the matrix's own) that each rank keeps for its bytes. A matrix that would be as large
in two parts stays whole, as does a frozen encoder, which no fine-tuning would mend.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.captioning.compress.swap import swap_layers
from trainables.captioning.model.captioner import Captioner
from trainables.captioning.model.words import TiedEmbedding

#: Smaller matrices stay whole.
FEWEST_WEIGHTS = 1024


def low_rank(captioner: Captioner, strength: float) -> Captioner:
    """A copy with factors of a rank between that at which nothing is saved (`strength` 0) and 1 (1)."""
    layers = _layers(captioner)
    ranks = {path: 1 + (1 - strength) * (_highest(layer) - 1) for path, layer in layers.items()}
    if layers and not next(captioner.parameters()).is_meta:
        budget = sum(rank * sum(_matrix_shape(layers[path])) for path, rank in ranks.items())
        ranks = {**_by_energy(layers, budget)}
    small = copy.deepcopy(captioner)

    def make(path: str, layer: nn.Module) -> nn.Module | None:
        if path not in ranks or round(ranks[path]) >= _highest(layer):
            return None
        return _factorised(layer, round(ranks[path]))

    swap_layers(small, make)
    return small


def factorised_like(captioner: Captioner, shapes: Mapping[str, tuple[int, ...]]) -> Captioner:
    """`captioner`, changed, with factors where `shapes` (by parameter name) has such; values are void."""

    def make(path: str, layer: nn.Module) -> nn.Module | None:
        left = shapes.get(f"{path}.left")
        return None if left is None else _factorised(layer, left[1], shapes_only=True)

    swap_layers(captioner, make)
    return captioner


class LowRank(nn.Module):
    """Two factors in the place of a layer's weight; what is done with them is the subclasses' business.

    Args:
        layer: what is replaced, with its bias.
        rank: r.
        shapes_only: leaves the factors' values void.
    """

    def __init__(self, layer: nn.Module, rank: int, *, shapes_only: bool = False):
        super().__init__()
        weight = cast(Tensor, layer.weight).detach()
        rows, columns = weight.shape[0], weight[0].numel()
        left, right = weight.new_empty(rows, rank), weight.new_empty(rank, columns)
        if not shapes_only and not weight.is_meta:
            u, values, v = torch.linalg.svd(weight.flatten(1), full_matrices=False)
            root = values[:rank].sqrt()  # shared evenly, so that both factors learn at the same pace
            left, right = u[:, :rank] * root, root.unsqueeze(1) * v[:rank]
        self.left = nn.Parameter(left.contiguous())  # U [N, r]
        self.right = nn.Parameter(
            right.reshape(rank, *weight.shape[1:]).contiguous()
        )  # V [r, K] or [r, C, k, k]
        bias = cast("Tensor | None", getattr(layer, "bias", None))
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.train(layer.training)


class LowRankLinear(LowRank):
    """`nn.Linear` through a bottleneck of r units."""

    @property
    def weight(self) -> Tensor:
        """The product [N, K], for callers that need the matrix as one; gradients reach the factors."""
        return self.left @ self.right

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] to [..., N] without forming the product."""
        return F.linear(F.linear(x, self.right), self.left, self.bias)


class LowRankEmbedding(LowRank):
    """`nn.Embedding` whose vectors lie in r dimensions."""

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., E] for int64 [...]."""
        return F.embedding(tokens, self.left) @ self.right


class LowRankTiedEmbedding(LowRankEmbedding):
    """`TiedEmbedding` whose vectors lie in r dimensions, read and multiplied."""

    def __init__(self, layer: TiedEmbedding, rank: int, *, shapes_only: bool = False):
        super().__init__(layer, rank, shapes_only=shapes_only)
        self.factor = layer.factor

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., E] for int64 [...]."""
        return super().forward(tokens) * self.factor

    def logits(self, x: Tensor) -> Tensor:
        """[..., V] of x [..., E]."""
        return F.linear(F.linear(x, self.right), self.left, self.bias)


class LowRankConv2d(LowRank):
    """`nn.Conv2d` as one with r filters and a 1x1 convolution."""

    def __init__(self, layer: nn.Conv2d, rank: int, *, shapes_only: bool = False):
        super().__init__(layer, rank, shapes_only=shapes_only)
        self._pad = getattr(layer, "static_padding", nn.Identity())  # EfficientNet pads by itself
        self._stride, self._padding, self._dilation = layer.stride, layer.padding, layer.dilation

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, N, H', W']."""
        inner = F.conv2d(self._pad(x), self.right, None, self._stride, self._padding, self._dilation)
        return F.conv2d(inner, self.left[:, :, None, None], self.bias)


_KINDS: dict[type[nn.Module], type[LowRank]] = {
    nn.Linear: LowRankLinear,
    nn.Embedding: LowRankEmbedding,
    TiedEmbedding: LowRankTiedEmbedding,
    nn.Conv2d: LowRankConv2d,
}


def _factorised(layer: nn.Module, rank: int, *, shapes_only: bool = False) -> LowRank:
    return _KINDS[_kind(layer)](layer, rank, shapes_only=shapes_only)  # type: ignore[index]


def _kind(layer: nn.Module) -> type[nn.Module] | None:
    """The class that `layer` is of, for `_KINDS`; EfficientNet has a convolution of its own."""
    if isinstance(layer, nn.Conv2d):
        return nn.Conv2d if layer.groups == 1 else None
    return type(layer) if type(layer) in _KINDS else None


def _layers(captioner: Captioner) -> dict[str, nn.Module]:
    """What two factors could be smaller than, by path."""
    return {
        path: layer
        for path, layer in captioner.named_modules()
        if _kind(layer)
        and not (captioner.encoder.frozen and path.startswith("encoder."))
        and math.prod(_matrix_shape(layer)) >= FEWEST_WEIGHTS
        and _highest(layer) > 1
    }


def _matrix_shape(layer: nn.Module) -> tuple[int, int]:
    shape = cast(Tensor, layer.weight).shape
    return shape[0], math.prod(shape[1:])


def _highest(layer: nn.Module) -> int:
    """The rank at which the factors are no smaller than the matrix."""
    rows, columns = _matrix_shape(layer)
    return math.ceil(rows * columns / (rows + columns))


def _by_energy(layers: Mapping[str, nn.Module], budget: float) -> dict[str, int]:
    """A rank by path, so that the factors have at most `budget` weights together, at least 1 each."""
    offers: list[tuple[float, int, str]] = []
    for path, layer in layers.items():
        energy = torch.linalg.svdvals(cast(Tensor, layer.weight).detach().flatten(1)).square()
        share, cost = (energy / energy.sum().clamp(min=1e-30)).tolist(), sum(_matrix_shape(layer))
        offers += [(gain / cost, cost, path) for gain in share[1 : _highest(layer)]]
    ranks = dict.fromkeys(layers, 1)
    spent = sum(sum(_matrix_shape(layer)) for layer in layers.values())
    for _, cost, path in sorted(offers, key=lambda offer: -offer[0]):
        if spent + cost <= budget:
            ranks[path] += 1
            spent += cost
    return ranks
