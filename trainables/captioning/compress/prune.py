"""Unstructured pruning: the smallest weights of the whole captioner become zero (Han et al. 2015).

Which are small is decided over all layers together, by LAMP scores (Lee et al. 2021): the square of a
weight over the sum of the squares of its tensor's weights that are no smaller. So the scale of a filter
before a norm, which means nothing, does not count, and no tensor loses all. Zeros are left out of the file;
no arithmetic gets faster by them. A frozen encoder stays whole: on Flickr8k's photographs some 60% of zeros
in an EfficientNet-Lite0 took CIDEr from .38 to .03, and what is frozen does not learn to do without them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch

from trainables.captioning.compress.encoding import SPARSE, Encoding
from trainables.captioning.compress.number_formats import weights
from trainables.captioning.model.captioner import Captioner

#: Sparsity at strength 1: beyond it the bitmap is what is left.
_MOST = 0.99


def prune(captioner: Captioner, strength: float) -> Captioner:
    """A copy with a share of `sparsity(strength)` of its weights at zero, those of a frozen encoder aside."""
    small = copy.deepcopy(captioner)
    if strength == 0:
        return small
    chosen = {
        name: weight
        for name, weight in weights(small)
        if not (small.encoder.frozen and name.startswith("encoder."))
    }
    if any(weight.is_meta for weight in chosen.values()):
        densities = dict.fromkeys(chosen, 1 - sparsity(strength))
    else:
        densities = zero_smallest(chosen, sparsity(strength))
    for name, density in densities.items():
        small.encodings[name] = replace(small.encodings.get(name, Encoding()), density=density)
    return small


def sparsity(strength: float) -> float:
    """Share of zeros at a strength from 0 to 1."""
    return _MOST * strength


@torch.no_grad()
def zero_smallest(chosen: Mapping[str, torch.nn.Parameter], sparsity: float) -> dict[str, float]:
    """Sets this share of all entries of `chosen` to zero, and gives each tensor's share that is left.

    What is zero already is among the smallest.
    """
    if not chosen:
        return {}
    scores = {name: _lamp(weight) for name, weight in chosen.items()}
    everything = torch.cat([score.flatten() for score in scores.values()])
    threshold = everything.kthvalue(max(1, round(sparsity * everything.numel()))).values
    for name, score in scores.items():
        chosen[name].data = torch.where(score > threshold, chosen[name].data, 0.0)
    return {
        name: min(SPARSE, weight.count_nonzero().item() / weight.numel()) for name, weight in chosen.items()
    }


def _lamp(weight: torch.Tensor) -> torch.Tensor:
    """As `weight`, in (0, 1]: the largest scores 1, and so does nothing else; zeros score 0."""
    squares, order = weight.detach().flatten().double().square().sort()
    no_smaller = squares.flip(0).cumsum(0).flip(0)
    score = torch.empty_like(squares)
    score[order] = squares / no_smaller.clamp(min=1e-300)
    return score.view_as(weight)


def sparsity_at(progress: float) -> float:
    """Share of the final sparsity when `progress` (0 to 1) of the pruning is done: 1 - (1 - p)^3.

    The gradual schedule of Zhu & Gupta 2018: much at first, when there is much to spare.
    """
    return 1 - (1 - min(max(progress, 0.0), 1.0)) ** 3
