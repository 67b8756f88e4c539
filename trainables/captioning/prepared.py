"""What trials share: data and a frozen encoder's features, made once per machine, opened once per process."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch

from trainables.captioning import check
from trainables.captioning.data import cache
from trainables.captioning.data.cache import CaptionData
from trainables.captioning.data.features import cached_features
from trainables.captioning.data.loader import Features
from trainables.captioning.model.encoders import build_encoder
from trainables.captioning.settings import DataSettings, Settings


def prepare(data: Mapping[str, Any], settings: Mapping[str, Any], *, progress: bool = False) -> list[str]:
    """Decode images, train the tokenizer, compute a frozen encoder's features: what is not there yet.

    Returns:
        Lines for a person: how much there is, and every image that was skipped, with the reason.

    Raises:
        SettingsError: data that cannot be used.
    """
    prepared = cache.prepare(check.read_data_settings(data), progress=progress)
    chosen = check.read_settings(settings)
    if check.caches_features(chosen):
        encoder = build_encoder(chosen, prepared.images.shape[1])
        cached_features(prepared, encoder, progress=progress)
    return _report(prepared)


def identity(data: Mapping[str, Any]) -> str:
    """What is learnt from and judged on; of prepared data."""
    return cache.prepare(check.read_data_settings(data)).identity


@lru_cache(maxsize=1)
def open_data(settings: DataSettings, cores: int) -> CaptionData:
    """Prepared data, opened once per process: checking what lies on disk takes longer than a short trial."""
    return cache.prepare(settings, cores=cores)


@lru_cache(maxsize=2)
def open_features(data: DataSettings, encoder: str, cores: int, device: torch.device) -> Features:
    """Those of a frozen encoder, by its name."""
    prepared = open_data(data, cores)
    settings = Settings.model_validate({"encoder": encoder, "encoder_trainable": False})
    module = build_encoder(settings, prepared.images.shape[1]).to(device)
    return cached_features(prepared, module, device=device)


def _report(data: CaptionData) -> list[str]:
    sizes = ", ".join(f"{len(images):,} {split}" for split, images in data.splits.items())
    report = [
        f"{len(data.names):,} images ({sizes}), {len(data.tokens):,} captions, "
        f"vocabulary of {data.tokenizer.vocabulary_size:,}"
    ]
    for what, items in (("skipped as bad", data.bad), ("left out", data.left_out)):
        if items:
            report += [f"{len(items):,} {what}:", *(f"  {name}: {reason}" for name, reason in items)]
    return report
