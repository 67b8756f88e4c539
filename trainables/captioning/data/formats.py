"""Every layout that captioned images come in, read into the same `Items`; nothing is decoded here.

One reader per format yields rows (a name, some captions, perhaps a split); `read_items` merges the rows of an
image, finds its file, and gives it its split. Which images decode, `cache.py` finds out.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from trainables.captioning.data import shapes
from trainables.captioning.data.coco import read_coco, read_karpathy
from trainables.captioning.data.flickr import read_flickr8k
from trainables.captioning.data.imagefolder import read_imagefolder
from trainables.captioning.data.images import PASSING, FileSource
from trainables.captioning.data.items import Item, Items, Split, hashed_split, with_validation
from trainables.captioning.data.reading import Reading, Row
from trainables.captioning.data.webdataset import read_webdataset
from trainables.captioning.settings import DataSettings
from trainables.refusal import nearest
from trainables.trial import SettingsError

READERS: dict[str, Callable[[Reading], Iterator[Row]]] = {
    "flickr8k": read_flickr8k,
    "coco": read_coco,
    "karpathy": read_karpathy,
    "imagefolder": read_imagefolder,
    "webdataset": read_webdataset,
}
#: Folders beside the caption file that data sets keep their images in.
IMAGE_FOLDERS = ("", "images", "Images", "Flicker8k_Dataset", "Flickr8k_Dataset", "flickr30k-images")


def read_items(data: DataSettings) -> Items:
    """Every image that `data` names, with captions and split; bad and left-out ones apart, with reasons.

    Raises:
        SettingsError: missing folder or caption file, a file that is not of the format, a missing column.
        OSError: a file cannot be looked at now: that may pass.
    """
    if data.format == "shapes":
        return Items(good=_shapes(data), bad=[], left_out=[])
    root = _root(data)
    reading = Reading(data, root, [root / name for name in IMAGE_FOLDERS])
    rows = list(READERS[data.format](reading))
    return Items(good=_merged(rows, reading), bad=reading.bad, left_out=reading.left_out)


def _shapes(data: DataSettings) -> list[Item]:
    # By position, not by hash: the smallest set of ten still has all three splits.
    splits: tuple[Split, ...] = (*(("train",) * 8), "val", "test")
    return [
        Item(
            name=f"shapes-{index:06d}",
            source=shapes.SceneSource(data.seed, index),
            captions=shapes.captions(data.seed, index),
            split=splits[index % 10],
        )
        for index in range(data.size)
    ]


def _root(data: DataSettings) -> Path:
    if data.path is None:
        raise SettingsError(("data", "path"), f"format {data.format!r} reads a folder: name it here")
    root = data.path.expanduser()
    if not root.is_dir():
        wrong = "is a file, not a folder" if root.exists() else "does not exist"
        beside = (
            [path.name for path in root.parent.iterdir() if path.is_dir()] if root.parent.is_dir() else []
        )
        raise SettingsError(("data", "path"), f"{root} {wrong}{nearest(root.name, beside)}")
    return root


def _merged(rows: list[Row], reading: Reading) -> list[Item]:
    merged: dict[str, list[Row]] = {}
    for row in rows:
        merged.setdefault(row.name, []).append(row)
    there = {row.split for row in rows}
    split_by = _splitter(there)
    # Words are all that the tokenizer `word` reads: "..." would teach the captioner to say nothing.
    said = re.compile(r"\w" if reading.data.tokenizer == "word" else r"\S")
    good: list[Item] = []
    for name, pieces in merged.items():
        captions = [caption.strip() for piece in pieces for caption in piece.captions]
        kept = tuple(caption for caption in captions if said.search(caption))
        named = {piece.split for piece in pieces}
        if not kept:
            reading.bad.append((name, "its captions are empty" if captions else "no caption"))
            continue
        if len(named) > 1:
            reading.bad.append((name, f"is in several splits: {', '.join(sorted(map(str, named)))}"))
            continue
        split = split_by(name, named.pop())
        if split is None:
            reading.left_out.append((name, "is in no split where others are in one"))
            continue
        try:
            source = next((piece.source for piece in pieces if piece.source), None) or _find(
                name, reading.folders
            )
        except (OSError, ValueError) as error:  # ValueError: a null byte in the name
            if isinstance(error, OSError) and error.errno in PASSING:
                raise
            reading.bad.append((name, str(error)))
            continue
        if empty := len(captions) - len(kept):
            reading.left_out.append((name, f"{empty} of its {len(captions)} captions are empty"))
        good.append(Item(name=name, source=source, captions=kept, split=split))
    return good if "val" in there else with_validation(good)


def _splitter(named: Iterable[Split | None]) -> Callable[[str, Split | None], Split | None]:
    """How an image gets its split, given which splits the layout itself names."""
    there = set(named) - {None}
    if "train" not in there or there == {"train"}:
        return lambda name, split: hashed_split(name)
    if "val" in there:
        return lambda name, split: split
    # Train and test folders only: the test images stay apart, a tenth of the others validates.
    return lambda name, split: "val" if split == "train" and hashed_split(name) == "val" else split


def _find(name: str, folders: list[Path]) -> FileSource:
    # File systems differ in how they spell accented letters, and caption files come from other systems.
    spellings = (name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name))
    for spelling in dict.fromkeys(spellings):
        for folder in folders:
            try:
                return FileSource.of(folder / spelling)
            except (FileNotFoundError, NotADirectoryError):
                continue
    raise FileNotFoundError("file is missing")
