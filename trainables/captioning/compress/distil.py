"""Distillation's student: a narrower captioner of the same kind, taught by the whole (Hinton et al. 2015).

Knows which widths a student has. What it learns from its teacher is `teacher.py`'s business, the loop that of
`trainables/captioning/train.py`.
"""

from __future__ import annotations

import copy
import math

import torch

from trainables.captioning.model.captioner import Captioner
from trainables.captioning.settings import Settings

#: Widths at strength 1.
_FLOORS = {"decoder_width": 8, "embedding_width": 8, "encoder_width": 4}


def student(captioner: Captioner, strength: float) -> Captioner:
    """A narrower captioner of the same kind and depth, not trained yet; its `settings` say its widths.

    A pretrained encoder is copied with its weights, frozen or not; a `cnn` is new and narrower. The new
    weights come from torch's seed, on the CPU whatever the device, as in the whole captioner.
    """
    device = next(captioner.parameters()).device
    with torch.device("meta" if device.type == "meta" else "cpu"):
        small = Captioner(
            narrowed(captioner.settings, strength),
            captioner.vocabulary_size,
            captioner.image_size,
            load_weights=False,
        )
    if captioner.encoder.pretrained:
        small.encoder = copy.deepcopy(captioner.encoder)
    return small.to(device).train(captioner.training)


def narrowed(settings: Settings, strength: float) -> Settings:
    """`settings` with widths between their own (`strength` 0) and the least sensible ones (1).

    Bytes fall with the strength, in steps. Where the word vectors are as wide as the decoder, they stay so;
    elsewhere the widths stay apart: two that met by chance would save the layer between them, and the bytes
    would go up again when they part.
    """
    transformer = settings.decoder == "transformer"
    update = {"decoder_width": _narrower(settings, "decoder_width", strength, least_step=1 + transformer)}
    if settings.embedding_width is not None:
        update["embedding_width"] = _narrower(
            settings, "embedding_width", strength, least_step=1 + transformer
        )
        narrow, wide = sorted(("decoder_width", "embedding_width"), key=lambda name: getattr(settings, name))
        if getattr(settings, narrow) != getattr(settings, wide):
            update[wide] = max(update[wide], update[narrow] + 1)
    if settings.encoder == "cnn":
        update["encoder_width"] = _narrower(settings, "encoder_width", strength)
    if transformer:
        update["decoder_heads"] = _heads(update["decoder_width"], settings)
    return settings.model_copy(update=update)


def _narrower(settings: Settings, name: str, strength: float, *, least_step: int = 1) -> int:
    """The width of this name, less a multiple of a power of two that is about a 32nd of it."""
    whole, floor = getattr(settings, name), _FLOORS[name]
    step = max(least_step, 1 << max(0, (whole // 32).bit_length() - 1))
    return max(floor, whole - step * round(strength * (whole - floor) / step))


def _heads(width: int, whole: Settings) -> int:
    """How many heads divide `width`, at most as many as before, each about as wide as before."""
    before = whole.decoder_width / whole.decoder_heads
    possible = [heads for heads in range(1, whole.decoder_heads + 1) if width % heads == 0]
    return min(possible, key=lambda heads: abs(math.log(width / heads / before)))
