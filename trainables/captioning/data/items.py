"""What a data set is before a pixel is decoded: images by reference, their captions, their split.

This file knows neither layouts on disk (`formats.py`) nor how a source becomes pixels (`images.py`,
`shapes.py`); it holds the values that pass between them and the rule that makes a split where none is given.
"""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

#: What a folder, shard, list or column may call a split.
SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "restval": "train",  # Karpathy's split: the rest of COCO's validation images, used for training
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


class Source(Protocol):
    """Where an image comes from."""

    def identity(self) -> list[Any]:
        """JSON values that change when the image changes; they enter the cache's key."""

    def pixels(self, size: int) -> NDArray[np.uint8]:
        """The image as RGB, uint8 [size, size, 3].

        Raises:
            BadImage: where it cannot be decoded, with the reason.
        """


class BadImage(ValueError):
    """An image that cannot be used; the message is the reason."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One image, not yet decoded, and all that is said about it."""

    name: str
    """Unique in the data set: the file's name as the caption file spells it."""
    source: Source
    captions: tuple[str, ...]
    """At least one; stripped, none empty."""
    split: Split


@dataclass(frozen=True, kw_only=True)
class Items:
    """What `read_items` found, good and bad."""

    good: list[Item]
    bad: list[tuple[str, str]]
    """(name, reason) of what is unusable: missing image, no caption, unreadable line (`FILE:LINE`)."""
    left_out: list[tuple[str, str]]
    """(name, reason) of what is left out without being wrong; does not count towards the bad fraction."""


def hashed_split(name: str) -> Split:
    """80/10/10 by a hash of the image's name alone: the same on every machine, whatever else is there."""
    bucket = _number(name) % 10
    return "train" if bucket < 8 else "val" if bucket == 8 else "test"


def with_validation(items: list[Item]) -> list[Item]:
    """Items in hashed splits; where there are so few that `val` has none, one of `train` is moved there."""
    train = [item for item in items if item.split == "train"]
    if len(train) < 2 or any(item.split == "val" for item in items):
        return items
    moved = min(train, key=lambda item: _number(item.name))
    return [replace(item, split="val") if item is moved else item for item in items]


def _number(name: str) -> int:
    """From 0 to 2**64 - 1, equally likely."""
    canonical = unicodedata.normalize("NFC", name.replace("\\", "/")).encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(canonical, digest_size=8).digest(), "big")
