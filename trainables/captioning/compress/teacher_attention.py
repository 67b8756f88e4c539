"""Feature distillation: a student's encoder looks where its teacher's does (Zagoruyko & Komodakis 2017).

How strongly an encoder answers at a position, over all its channels, says where it looks, however many
channels it has: so teacher and student need no layer between them. The teacher is asked once, without
augmentation; its maps lie in the data cache, for all workers and trials of the machine.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from trainables.captioning.compress.teacher import fingerprint
from trainables.captioning.data.cache import CaptionData
from trainables.captioning.data.loader import eval_images
from trainables.captioning.model.captioner import Captioner
from trainables.machine_cache import build_once

#: Raise when the same teacher's maps would be stored differently.
VERSION = 1
_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class TeacherAttention:
    """Where a teacher's encoder looks in each training image."""

    maps: NDArray[np.float32]
    """[N, P], of length 1 each; of images of other splits, 0."""
    caption_image: NDArray[np.integer]
    """[M] the image of each caption."""

    def distance(self, features: Tensor, captions: NDArray[np.int64]) -> Tensor:
        """Float32 [B]: squared distance of the student's map from the teacher's, 0 to 4; with a graph.

        Args:
            features: [B, P, C] of the student's encoder, any floating dtype.
            captions: [B] whose images these are.
        """
        told = torch.from_numpy(self.maps[self.caption_image[captions]]).to(features.device)
        return (attention_map(features) - told).square().sum(-1)


def attention_map(features: Tensor) -> Tensor:
    """Float32 [B, P], of length 1: the mean square of `features` [B, P, C] at each position."""
    return F.normalize(features.float().square().mean(-1), dim=-1)


def teacher_attention(data: CaptionData, teacher: Captioner, device: torch.device) -> TeacherAttention:
    """The teacher's maps of all training images; asked if they are not there.

    Safe in several processes at once: one asks, the others wait. The teacher's training mode stays.
    """
    told = f"{VERSION}/{data.image_key}/{fingerprint(teacher)}"
    folder = data.folder / f"teacher-attention-{hashlib.blake2b(told.encode(), digest_size=12).hexdigest()}"
    build_once(folder, lambda aside: _write(aside, data, teacher, device))
    return TeacherAttention(maps=np.load(folder / "maps.npy"), caption_image=data.caption_image)


@torch.no_grad()
def _write(folder: Path, data: CaptionData, teacher: Captioner, device: torch.device) -> None:
    maps = np.zeros((len(data.names), teacher.encoder.positions), dtype=np.float32)
    training = teacher.training
    teacher.eval()
    try:
        for images, inputs in eval_images(data, split="train", batch_size=_BATCH):
            maps[images] = attention_map(teacher.encode(inputs.to(device))).cpu().numpy()
    finally:
        teacher.train(training)
    np.save(folder / "maps.npy", maps)
