"""Sequence-level distillation: a student's captions are those that its teacher writes (Kim & Rush 2016).

People describe one picture in many ways, and a small model that is to learn all of them learns none well. The
teacher's own captions are one way for each picture. They are written once, by beam search, without
augmentation, and lie in the data cache for all workers and trials of the machine.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from trainables.captioning.compress.teacher import fingerprint
from trainables.captioning.data.cache import CaptionData
from trainables.captioning.data.loader import Features, eval_images
from trainables.captioning.data.tokenizer import BOS, EOS, PAD
from trainables.captioning.model.captioner import Captioner
from trainables.machine_cache import build_once

#: Raise when the same teacher's captions would be stored differently.
VERSION = 1
_BATCH = 64


def with_teacher_captions(
    data: CaptionData,
    teacher: Captioner,
    features: Features,
    device: torch.device,
    *,
    share: float,
) -> CaptionData:
    """The same data, but so many of the training captions are what the teacher says of their pictures.

    Which ones is drawn by their number alone. Safe in several processes at once: one asks the teacher, the
    others wait. The teacher's training mode stays.

    Args:
        data: on whose vocabulary the teacher was trained.
        teacher: on `device`; its own settings say how it searches.
        features: of its frozen encoder; None: it sees the images.
        device: of the teacher.
        share: of the training captions, 0 to 1.
    """
    beams, penalty = teacher.settings.beam_width, teacher.settings.length_penalty
    told = f"{VERSION}/{data.key}/{fingerprint(teacher)}/{beams}/{penalty!r}"
    folder = data.folder / f"teacher-captions-{hashlib.blake2b(told.encode(), digest_size=12).hexdigest()}"
    build_once(folder, lambda aside: np.save(aside / "tokens.npy", _written(data, teacher, features, device)))
    by_image = np.load(folder / "tokens.npy")  # int32 [N, T + 1], of training images
    captions = data.captions_of("train")
    drawn = np.random.default_rng(0).permutation(len(captions))[: round(share * len(captions))]
    chosen = captions[drawn]
    tokens, lengths = data.tokens.copy(), data.lengths.copy()
    tokens[chosen] = by_image[data.caption_image[chosen]]
    lengths[chosen] = (tokens[chosen, 1:] != PAD).sum(1)
    key = f"{data.key}-{folder.name}-{share!r}"
    return replace(data, tokens=tokens, lengths=lengths, captions=_in_words(data, by_image, chosen), key=key)


def _in_words(data: CaptionData, by_image: NDArray[np.int32], chosen: NDArray[np.int64]) -> list[list[str]]:
    """`data.captions` with the teacher's as the `chosen`: they tell whether an image may be mirrored."""
    train = data.splits["train"].tolist()
    said = dict(zip(train, data.tokenizer.decode(by_image[train, 1:].tolist()), strict=True))
    captions = [list(texts) for texts in data.captions]
    first = np.searchsorted(data.caption_image, np.arange(len(captions)))
    for caption, image in zip(chosen.tolist(), data.caption_image[chosen].tolist(), strict=True):
        captions[image][caption - first[image]] = said[image]
    return captions


@torch.no_grad()
def _written(
    data: CaptionData, teacher: Captioner, features: Features, device: torch.device
) -> NDArray[np.int32]:
    """int32 [N, T + 1]: the teacher's caption of every training image, as in `CaptionData.tokens`."""
    longest = data.tokens.shape[1] - 1
    tokens = np.full((len(data.names), longest + 1), PAD, dtype=np.int32)
    tokens[:, 0] = BOS
    training = teacher.training
    teacher.eval()
    try:
        for images, inputs in eval_images(data, split="train", batch_size=_BATCH, features=features):
            written = teacher.generate(
                inputs.to(device),
                max_tokens=longest - 1,
                beam_width=teacher.settings.beam_width,
                length_penalty=teacher.settings.length_penalty,
            )
            for image, caption in zip(images, written, strict=True):
                tokens[image, 1 : len(caption) + 2] = [*caption, EOS]
    finally:
        teacher.train(training)
    return tokens
