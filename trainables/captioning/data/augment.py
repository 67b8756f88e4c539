"""Flip, crop and colour for a batch of images, as a few tensor operations.

What each image gets is drawn beforehand (`draw_changes`), for a global batch at once, so that a caption meets
the same picture whatever the number of workers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Largest shift of the crop, as a share of the side; the rim is repeated outwards.
SHIFT = 1 / 8
#: Brightness, contrast and saturation are multiplied by 1 - COLOUR to 1 + COLOUR.
COLOUR = 0.2


@dataclass(frozen=True)
class Changes:
    """What happens to each of B images."""

    flip: NDArray[np.bool_]  # [B]
    shift: NDArray[np.int64]  # [B, 2] rows, columns
    colour: NDArray[np.float32]  # [B, 3] brightness, contrast, saturation

    def __getitem__(self, rows: NDArray[np.int64]) -> Changes:
        return Changes(self.flip[rows], self.shift[rows], self.colour[rows])


def draw_changes(rng: np.random.Generator, *, may_flip: NDArray[np.bool_], size: int) -> Changes:
    """Changes for `len(may_flip)` images of side `size`; half of those that may are mirrored."""
    count, most = len(may_flip), int(size * SHIFT)
    return Changes(
        flip=(rng.random(count) < 0.5) & may_flip,
        shift=rng.integers(-most, most + 1, (count, 2)),
        colour=rng.uniform(1 - COLOUR, 1 + COLOUR, (count, 3)).astype(np.float32),
    )


def apply_changes(images: Tensor, changes: Changes) -> Tensor:
    """Apply `changes` to uint8 [B, S, S, 3]; the same shape and dtype back."""
    moved = _moved(images, changes)  # uint8 [B, S, S, 3]
    # The three changes of colour are linear, so they are one 3x3 matrix and one offset per image: a third of
    # the time of doing them in turn.
    brightness, contrast, saturation = (
        torch.from_numpy(changes.colour).view(-1, 3, 1, 1).unbind(1)
    )  # [B, 1, 1]
    mixing = saturation * torch.eye(3) + (1 - saturation) / 3  # [B, 3, 3] towards the mean of the channels
    pixels = moved.flatten(1, 2).float()  # [B, S*S, 3]
    offset = (1 - contrast) * brightness * pixels.mean(dim=(1, 2), keepdim=True)  # [B, 1, 1]
    pixels = torch.baddbmm(offset, pixels, brightness * contrast * mixing)
    return pixels.round_().clamp_(0, 255).to(torch.uint8).view_as(moved)


def _moved(images: Tensor, changes: Changes) -> Tensor:
    size = images.shape[1]
    line, shift = torch.arange(size), torch.from_numpy(changes.shift)
    rows = (line + shift[:, :1]).clamp(0, size - 1)  # [B, S]
    columns = (line + shift[:, 1:]).clamp(0, size - 1)  # [B, S]
    columns = torch.where(torch.from_numpy(changes.flip)[:, None], columns.flip(1), columns)
    # Image by image: three times faster than indexing the batch at once, which moves single bytes.
    picked = zip(images, rows, columns, strict=True)
    return torch.stack([image.index_select(0, r).index_select(1, c) for image, r, c in picked])
