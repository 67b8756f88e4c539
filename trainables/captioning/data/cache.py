"""Prepared data: decoded and tokenised once per machine, then memory-mapped by every worker of every trial.

`prepare` is the way in. Two folders (`machine_cache.py`) lie behind it: the images, keyed by what the image
files are, and the captions, keyed by everything else too, so that another vocabulary does not decode again.
Reading layouts is left to `formats.py`, batches to `loader.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track

from trainables.captioning.data.formats import read_items
from trainables.captioning.data.items import SPLITS, BadImage, Item, Items
from trainables.captioning.data.tokenizer import BOS, PAD, CaptionTokenizer
from trainables.captioning.settings import DataSettings
from trainables.machine_cache import build_once, machine_cache
from trainables.trial import SettingsError

#: Raise when the same files would be prepared differently.
VERSION = 1
BPE_VERSION = 2  # likewise, of captions in pieces alone
_CHUNK = 256  # images in flight between the decoding threads and the disk


@dataclass(frozen=True, kw_only=True)
class CaptionData:
    """A data set, ready to train on. N images of side S, M captions, T = `max_caption_tokens`."""

    images: np.memmap[Any, np.dtype[np.uint8]]
    """uint8 [N, S, S, 3], RGB, read only."""
    names: list[str]
    """[N], unique."""
    captions: list[list[str]]
    """[N], one or more each, as written."""
    splits: dict[str, NDArray[np.int64]]
    """Indices of images under "train", "val", "test"; sorted; the first two are never empty."""
    tokens: NDArray[np.int32]
    """[M, T + 1]: BOS, the caption, EOS, then PAD; captions in the order of their images."""
    lengths: NDArray[np.int64]
    """[M] target tokens of each caption: its words and EOS."""
    caption_image: NDArray[np.int64]
    """[M] index of the image that each caption describes."""
    tokenizer: CaptionTokenizer
    key: str
    """Hash of contents, settings and code version: equal keys, equal data."""
    image_key: str
    """The same for the images alone; features are kept under it."""
    folder: Path
    """Where the cache lies; `features.py` puts its stores there too."""
    bad: list[tuple[str, str]]
    """(name, reason) of every image or line that was skipped."""
    left_out: list[tuple[str, str]]
    """(name, reason) of what was left out without being wrong (in no official list, an empty caption)."""
    decoded: int
    """Images that this call decoded or drew: 0 where the cache was there."""

    @cached_property
    def speaks_of_sides(self) -> NDArray[np.bool_]:
        """[N] whether a caption of the image says "left" or "right": mirroring it would make that a lie."""
        side = re.compile(r"\b(left|right)", re.IGNORECASE)
        return np.array(
            [any(side.search(caption) for caption in texts) for texts in self.captions], dtype=bool
        )

    @cached_property
    def identity(self) -> str:
        """Hash of names, captions and splits; unlike `key` the same for copied files, and by later code."""
        split_of = {int(index): split for split, indices in self.splits.items() for index in indices}
        named = zip(self.names, self.captions, strict=True)
        everything = [[name, texts, split_of[index]] for index, (name, texts) in enumerate(named)]
        return hashlib.blake2b(json.dumps(everything).encode(), digest_size=12).hexdigest()

    def captions_of(self, split: str) -> NDArray[np.int64]:
        """Indices of the split's captions, ascending."""
        return np.flatnonzero(np.isin(self.caption_image, self.splits[split]))


def prepare(data: DataSettings, *, progress: bool = False, cores: int | None = None) -> CaptionData:
    """Open the prepared data, building first what is not there. Safe in any number of processes at once.

    Args:
        data: the experiment's `data` section.
        progress: draw a bar on standard error while decoding.
        cores: decoding threads; default: every core this process may run on.

    Raises:
        SettingsError: data that cannot be read as told, more bad images than `max_bad_fraction`, or an empty
            training or validation split.
    """
    items = check_items(data)
    folder = cache_folder(data)
    image_key = _key(data.image_size, *([item.name, item.source.identity()] for item in items.good))
    pictures = folder / f"images-{image_key}"
    built = build_once(
        pictures, lambda aside: _write_images(aside, items.good, data.image_size, progress, cores)
    )
    undecoded = [(name, reason) for name, reason in json.loads((pictures / "bad.json").read_text())]
    broken = {name for name, _ in undecoded}
    good = [item for item in items.good if item.name not in broken]
    bad = items.bad + undecoded
    _check(data, good, bad)

    text_settings = [data.tokenizer, data.vocabulary_size, data.min_frequency, data.max_caption_tokens]
    text_settings += [BPE_VERSION] if data.tokenizer == "bpe" else []
    key = _key(image_key, text_settings, *([i.name, i.captions, i.split] for i in good))
    texts = folder / f"captions-{key}"
    build_once(texts, lambda aside: _write_captions(aside, good, data))

    shape = (len(good), data.image_size, data.image_size, 3)
    counts = [len(item.captions) for item in good]
    splits = np.array([item.split for item in good])
    return CaptionData(
        images=np.memmap(pictures / "images.u8", dtype=np.uint8, mode="r", shape=shape),
        names=[item.name for item in good],
        captions=[list(item.captions) for item in good],
        splits={split: np.flatnonzero(splits == split) for split in SPLITS},
        tokens=np.load(texts / "tokens.npy", mmap_mode="r"),
        lengths=np.load(texts / "lengths.npy"),
        caption_image=np.repeat(np.arange(len(good)), counts),
        tokenizer=CaptionTokenizer.load(texts / "tokenizer.json"),
        key=key,
        image_key=image_key,
        folder=folder,
        bad=bad,
        left_out=items.left_out,
        decoded=len(items.good) if built else 0,
    )


def check_items(data: DataSettings) -> Items:
    """What can be refused without decoding: layout, files, captions, splits. For checks before anything runs.

    Raises:
        SettingsError: as `prepare`.
    """
    items = read_items(data)
    _check(data, items.good, items.bad)
    return items


def cache_folder(data: DataSettings) -> Path:
    """`data.cache`, else $CAPTUNE_CACHE, else ~/.cache/captune."""
    return Path(data.cache).expanduser() if data.cache else machine_cache()


def _check(data: DataSettings, good: list[Item], bad: list[tuple[str, str]]) -> None:
    some = "; ".join(f"{name}: {reason}" for name, reason in bad[:5]) + ("; ..." if len(bad) > 5 else "")
    total = len(good) + len(bad)
    if good and len(bad) > data.max_bad_fraction * total:
        raise SettingsError(
            ("data", "max_bad_fraction"),
            f"{len(bad)} of {total} images are bad, a share of {len(bad) / total:.2g} where at most "
            f"{data.max_bad_fraction:g} is tolerated: {some}",
        )
    counts = {split: sum(item.split == split for item in good) for split in SPLITS}
    for split in ("train", "val"):
        if not counts[split]:
            found = ", ".join(f"{name} {count}" for name, count in counts.items())
            where = ("data", "size" if data.format == "shapes" else "path")
            message = f"split {split!r} must not be empty, but the images are {found}"
            raise SettingsError(where, message + (f" ({len(bad)} bad: {some})" if bad else ""))


def _key(*parts: Any) -> str:
    digest = hashlib.blake2b(str(VERSION).encode(), digest_size=12)
    for part in parts:
        digest.update(json.dumps(part, sort_keys=True, default=str).encode() + b"\0")
    return digest.hexdigest()


def _write_images(folder: Path, items: list[Item], size: int, progress: bool, cores: int | None) -> None:
    """images.u8: the pixels of every image that decodes, in order; bad.json: (name, reason) of the others."""
    bad: list[tuple[str, str]] = []
    with (folder / "images.u8").open("wb") as file:
        for item, pixels in zip(items, _decoded(items, size, progress, cores), strict=True):
            if isinstance(pixels, BadImage):
                bad.append((item.name, str(pixels)))
            else:
                file.write(pixels.tobytes())
    (folder / "bad.json").write_text(json.dumps(bad))


def _decoded(
    items: list[Item], size: int, progress: bool, cores: int | None
) -> Iterator[NDArray[np.uint8] | BadImage]:
    def pixels(item: Item) -> NDArray[np.uint8] | BadImage:
        try:
            return item.source.pixels(size)
        except BadImage as error:
            return error

    threads = cores or (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    # Pillow lets go of the interpreter's lock while it decodes and resizes, so threads are enough.
    with ThreadPoolExecutor(threads) as pool, warnings.catch_warnings():
        # Large photos are told from bombs in images.py; damaged EXIF and the like need not be read about.
        warnings.filterwarnings("ignore", module="PIL")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        chunks = (items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK))
        results = (result for chunk in chunks for result in pool.map(pixels, chunk))
        console = Console(stderr=True)
        yield from track(results, "Preparing images", len(items), console=console, disable=not progress)


def _write_captions(folder: Path, items: list[Item], data: DataSettings) -> None:
    """tokenizer.json, trained on the training captions; tokens.npy and lengths.npy of all captions."""
    tokenizer = CaptionTokenizer.train(
        (caption for item in items if item.split == "train" for caption in item.captions),
        kind=data.tokenizer,
        vocabulary_size=data.vocabulary_size,
        min_frequency=data.min_frequency,
    )
    tokenizer.save(folder / "tokenizer.json")
    rows = tokenizer.encode([c for item in items for c in item.captions], data.max_caption_tokens)
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    tokens = np.full((len(rows), data.max_caption_tokens + 1), PAD, dtype=np.int32)
    tokens[:, 0] = BOS
    tokens[:, 1:][np.arange(data.max_caption_tokens) < lengths[:, None]] = [
        id_ for row in rows for id_ in row
    ]
    np.save(folder / "tokens.npy", tokens)
    np.save(folder / "lengths.npy", lengths)
