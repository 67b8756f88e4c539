"""Batches for training and evaluation, cut from the memory maps of prepared data.

Which captions make step k of an epoch depends on (seed, epoch, batch_size) alone; how they are shared depends
on rank and world size, and needs no communication. Nothing is decoded or tokenised here, the cache has it;
moving batches to a device is left to the trainer.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainables.captioning.data.augment import Changes, apply_changes, draw_changes
from trainables.captioning.data.cache import CaptionData
from trainables.captioning.data.tokenizer import PAD

Features = NDArray[np.float16] | None

_POOL = 16  # batches whose captions are sorted by length together


@dataclass(frozen=True)
class Batch:
    """What one forward pass takes; b captions, at least one."""

    inputs: Tensor
    """uint8 [b, S, S, 3] images, or float16 [b, P, C] cached features."""
    tokens: Tensor
    """int64 [b, T + 1]: BOS, caption, EOS, PAD, cut to the longest caption of the batch."""
    captions: NDArray[np.int64]
    """[b] indices of the captions in the data set; the empty array in a filler (see `train_steps`)."""

    @property
    def target_tokens(self) -> int:
        """Targets in this batch that are not padding."""
        return int((self.tokens[:, 1:] != PAD).sum())


@dataclass(frozen=True)
class Step:
    """One worker's share of one optimisation step."""

    micro_batches: list[Batch]
    """As many on every rank. Their gradients are to be accumulated before the step."""
    global_tokens: int
    """Non-padding targets of the whole global batch over all ranks: what the summed loss is divided by."""
    captions: int
    """Captions of the whole global batch."""


def steps_per_epoch(data: CaptionData, batch_size: int) -> int:
    """Optimisation steps in an epoch; the last may hold fewer captions."""
    return math.ceil(len(data.captions_of("train")) / batch_size)


def train_steps(
    data: CaptionData,
    *,
    rank: int = 0,
    world_size: int = 1,
    epoch: int,
    seed: int,
    batch_size: int,
    micro_batch_size: int | None = None,
    features: Features = None,
    augment: bool = False,
) -> Iterator[Step]:
    """This worker's share of every step of one epoch over the training captions, in random order.

    Captions of like length share a batch, see `_by_length`.

    A global batch is `batch_size` consecutive captions of the epoch's order, the last one what remains. Ranks
    take consecutive shares of it whose sizes differ by one at most, and cut them into micro-batches.

    **Every rank yields as many steps, and as many micro-batches in each**, so that DDP's collectives meet.
    Where a rank has no caption for a micro-batch, it is a *filler*: one caption whose targets are all
    padding, which adds nothing to a loss that leaves padding out, and zero to every gradient.

    Args:
        micro_batch_size: most captions in one micro-batch; None: a worker's whole share at once.
        features: float16 [N, P, C] from `cached_features`, taken in place of images.
        augment: flip, crop and colour the images, by draws that depend on (seed, epoch, step) and not on
            the number of workers. An image whose captions say left or right is never mirrored. Turned off
            with a warning where there are `features`: they were computed from unchanged images.
    """
    if augment and features is not None:
        warnings.warn(
            "augmentation is off: cached features are of unchanged images", UserWarning, stacklevel=2
        )
        augment = False
    order = _by_length(data, batch_size, np.random.default_rng((seed, epoch)))
    for index, start in enumerate(range(0, len(order), batch_size)):
        whole = order[start : start + batch_size]
        shares = np.array_split(np.arange(len(whole)), world_size)
        passes = math.ceil(
            len(shares[0]) / (micro_batch_size or batch_size)
        )  # the first share is the largest
        changes = None
        if augment:
            rng = np.random.default_rng((seed, epoch, index))
            may_flip = ~data.speaks_of_sides[data.caption_image[whole]]
            changes = draw_changes(rng, may_flip=may_flip, size=data.images.shape[1])
        yield Step(
            [
                _micro_batch(data, features, whole, part, changes)
                for part in np.array_split(shares[rank], passes)
            ],
            global_tokens=int(data.lengths[whole].sum()),
            captions=len(whole),
        )


def _by_length(data: CaptionData, batch_size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """The training captions in random order, but captions of like length in one batch.

    Among 64 captions of photographs one has 25 tokens or more where the mean is 12: in batches as they fall
    more than half of what is computed would be padding. So pools of some batches are sorted by length, and
    the batches shuffled. What does not fill a batch comes last, as it falls.
    """
    order = rng.permutation(data.captions_of("train"))
    full = len(order) // batch_size * batch_size
    batches = [order[:0].reshape(0, batch_size)]
    for start in range(0, full, _POOL * batch_size):
        pool = order[start : min(start + _POOL * batch_size, full)]
        pool = pool[np.argsort(data.lengths[pool], kind="stable")]
        batches.append(pool.reshape(-1, batch_size))
    return np.concatenate([rng.permutation(np.concatenate(batches)).ravel(), order[full:]])


def _micro_batch(
    data: CaptionData,
    features: Features,
    whole: NDArray[np.int64],
    part: NDArray[np.int64],
    changes: Changes | None,
) -> Batch:
    if not len(part):
        filler = _batch(data, features, whole[:1])
        filler.tokens[:, 1:] = PAD
        return Batch(filler.inputs, filler.tokens, whole[:0])
    batch = _batch(data, features, whole[part])
    if changes is None:
        return batch
    return Batch(apply_changes(batch.inputs, changes[part]), batch.tokens, batch.captions)


def _batch(data: CaptionData, features: Features, captions: NDArray[np.int64]) -> Batch:
    longest = int(data.lengths[captions].max())
    tokens = torch.from_numpy(data.tokens[captions, : longest + 1].astype(np.int64))
    return Batch(_inputs(data, features, data.caption_image[captions]), tokens, captions)


def _inputs(data: CaptionData, features: Features, images: NDArray[np.int64]) -> Tensor:
    source = data.images if features is None else features
    return torch.from_numpy(np.asarray(source[images]))  # indexing by an array copies out of the map


def eval_batches(
    data: CaptionData,
    *,
    split: str = "val",
    rank: int = 0,
    world_size: int = 1,
    batch_size: int,
    features: Features = None,
) -> Iterator[Batch]:
    """The split's captions for a loss, each on exactly one rank, none twice; alike in length together.

    Ranks may yield different numbers of batches, or none: reduce sums and counts after the loop, not within
    (and call the bare module: DDP's own forward would broadcast buffers).
    """
    captions = data.captions_of(split)
    captions = captions[np.argsort(data.lengths[captions], kind="stable")][rank::world_size]
    for start in range(0, len(captions), batch_size):
        yield _batch(data, features, captions[start : start + batch_size])


def eval_images(
    data: CaptionData,
    *,
    split: str = "val",
    rank: int = 0,
    world_size: int = 1,
    batch_size: int,
    features: Features = None,
) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
    """The split's images for generation, each on exactly one rank: (indices int64 [b], inputs [b, ...])."""
    images = data.splits[split][rank::world_size]
    for start in range(0, len(images), batch_size):
        chosen = images[start : start + batch_size]
        yield chosen, _inputs(data, features, chosen)
