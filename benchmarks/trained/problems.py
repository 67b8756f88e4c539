"""What `real_search` trains: captioners on drawn scenes and on photographs, small enough for two cores.

Both have the shipped space with narrower decoders. This file knows no search method.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from search_spaces import Choice, Space
from search_spaces.captioning import captioning
from trainables.captioning.trial import Captioning
from trainables.trial import Metrics

SPACE = Space({**captioning(), "decoder_width": Choice([32, 64, 96])})


class Captioner(Captioning):
    """The shipped trainable, but nothing is measured at a trial's first full evaluation: it takes as long as
    two epochs (an EfficientNet, on one core), no objective needs it, and it would be charged most to the
    method that begins most trials."""

    def evaluate(self, full: bool) -> Metrics:
        """As the shipped one, but for what is measured."""
        self.measured = self.measured or {"params": math.nan}  # what is there is not measured again
        return super().evaluate(full)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What a method searches. The objective is CIDEr on the validation split."""

    name: str
    data: Mapping[str, Any]
    """The experiment's `data` section."""
    model: Mapping[str, Any]
    """Fixed settings."""
    space: Space = field(default_factory=lambda: SPACE)
    max_epochs: int = 9
    earlier: Problem | None = None
    """On which an earlier experiment was, for the method that learns from one."""


def shapes(cache: Path, size: int = 400) -> Problem:
    """Drawn scenes of 32 px, `size` of them with five captions each; a small CNN is trained along."""
    return Problem(
        name="shapes",
        data={"format": "shapes", "size": size, "image_size": 32, "cache": str(cache)},
        model={"encoder": "cnn", "encoder_width": 16, "decoder": "gru_attention"},
    )


def flickr8k(folder: Path, cache: Path) -> Problem:
    """Photographs in the layout of Flickr8k, seen through a frozen encoder whose features are cached."""
    return Problem(
        name="flickr8k",
        data={
            "format": "flickr8k",
            "path": str(folder.absolute()),
            "max_caption_tokens": 16,
            "cache": str(cache),
        },
        model={"encoder": "efficientnet_lite0", "encoder_trainable": False, "decoder": "gru"},
        earlier=shapes(cache),
    )
