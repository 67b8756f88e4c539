"""A frozen encoder's features, computed once per machine and memory-mapped by every trial.

Knows only that an encoder maps a batch of images to [B, P, C] and says what it is by its `fingerprint`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from trainables.captioning.data.cache import CaptionData
from trainables.machine_cache import build_once

#: Raise when the same encoder's features would be stored differently.
VERSION = 1


class Encoder(Protocol):
    """What is asked of an encoder, beside being an `nn.Module`."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever the features would: architecture, weights, normalisation."""


def cached_features(
    data: CaptionData,
    encoder: Encoder,
    *,
    device: str | torch.device = "cpu",
    progress: bool = False,
    batch_size: int = 32,
) -> np.memmap[Any, np.dtype[np.float16]]:
    """Features of every image, in the order of `data.images`; computed if they are not there.

    The encoder must be on `device`; it runs in evaluation mode without gradients, and is left in the mode it
    was in. Safe in several processes at once: one computes, the others wait.

    Returns:
        float16 [N, P, C], read only. Float16: half the disk and memory at 11 bits.

    Raises:
        ValueError: a feature is not finite in float16.
    """
    told = f"{VERSION}/{data.image_key}/{encoder.fingerprint}"
    key = hashlib.blake2b(told.encode(), digest_size=12).hexdigest()
    folder = data.folder / f"features-{key}"
    build_once(folder, lambda aside: _write(aside, data, encoder, device, progress, batch_size))
    shape = tuple(json.loads((folder / "shape.json").read_text()))
    return np.memmap(folder / "features.f16", dtype=np.float16, mode="r", shape=shape)


@torch.no_grad()
def _write(
    folder: Path,
    data: CaptionData,
    encoder: Encoder,
    device: str | torch.device,
    progress: bool,
    batch_size: int,
) -> None:
    module = cast(nn.Module, encoder)
    training = module.training
    module.eval()
    starts = range(0, len(data.images), batch_size)
    bar = track(starts, "Encoding images", console=Console(stderr=True), disable=not progress)
    shape: tuple[int, ...] = ()
    try:
        with (folder / "features.f16").open("wb") as file:
            for start in bar:
                images = torch.from_numpy(np.array(data.images[start : start + batch_size])).to(device)
                features: Tensor = module(images).to(torch.float16).cpu()  # [B, P, C]
                if not torch.isfinite(features).all():
                    raise ValueError(
                        f"features must be finite in float16 (below 65504), but those of some image among "
                        f"{data.names[start]!r} and the {len(images) - 1} after it are not"
                    )
                shape = (len(data.images), *features.shape[1:])
                file.write(features.numpy().tobytes())
    finally:
        module.train(training)
    (folder / "shape.json").write_text(json.dumps(shape))
