"""Fewer bits a weight: two-byte floats, int8 by channel or by tensor, int4 by groups of 32.

Post-training where nothing is trained afterwards; where it is, the model computes with the rounded weights
(`hold.py`), so that it learns to live with them. Which kinds are faster, too, is `arithmetic.py`'s business.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from torch import nn

from trainables.captioning.compress.encoding import GROUP, Encoding, Kind
from trainables.captioning.model.captioner import Captioner

KINDS: tuple[Kind, ...] = ("fp16", "bf16", "int8", "int8_per_tensor", "int4")
#: Smaller tensors stay as they are: scales and names cost what the bytes would save.
FEWEST_WEIGHTS = 1024


def stored_as(kind: Kind) -> Callable[[Captioner, float], Captioner]:
    """The method that stores every matrix as `kind`."""
    return partial(_store, kind)


def weights(captioner: Captioner) -> Iterator[tuple[str, nn.Parameter]]:
    """What is worth an encoding, by name: matrices, filters and word vectors."""
    for name, parameter in captioner.named_parameters():
        if parameter.ndim > 1 and parameter.numel() >= FEWEST_WEIGHTS:
            yield name, parameter


def _store(kind: Kind, captioner: Captioner, strength: float) -> Captioner:
    small = copy.deepcopy(captioner)
    for name, weight in weights(small):
        # Depthwise filters have nine weights: too few to share a scale of an int4, and too touchy.
        short = kind == "int4" and weight[0].numel() < GROUP
        old = small.encodings.get(name, Encoding())
        small.encodings[name] = replace(old, kind="int8" if short else kind)
    return small
