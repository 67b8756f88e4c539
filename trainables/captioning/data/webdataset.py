"""WebDataset: uncompressed tar shards of KEY.jpg/.png, KEY.txt and KEY.json; images are read in place."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainables.captioning.data.images import FileSource
from trainables.captioning.data.reading import Reading, Row, split_of, texts
from trainables.trial import SettingsError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def read_webdataset(reading: Reading) -> Iterator[Row]:
    """One row per sample: captions from KEY.txt (one a line), else from KEY.json.

    A split is taken from the name of the shard or its folder (train-0000.tar, val/0000.tar). A key that an
    earlier shard has too is told apart by its shard's name.
    """
    shards = sorted(reading.root.glob("**/*.tar"))
    if not shards:
        packed = sorted(path.name for path in reading.root.glob("**/*.t*gz"))
        hint = f"; {packed[0]} is compressed and cannot be read in place: gunzip it" if packed else ""
        raise SettingsError(("data", "path"), f"{reading.root} has no shards (*.tar){hint}")
    seen: set[str] = set()
    for shard in shards:
        place = shard.relative_to(reading.root)
        split = split_of(place.parts[0])
        for key, members in _samples(shard, reading):
            source = next((members[suffix] for suffix in IMAGE_SUFFIXES if suffix in members), None)
            if source is None:
                reading.bad.append((f"{place}:{key}", f"has no image ({', '.join(IMAGE_SUFFIXES)})"))
                continue
            record = _record(members.get(".json"), f"{place}:{key}", reading)
            columns = (reading.data.caption_column, "caption", "captions")
            value = next((record[column] for column in columns if column in record), None)
            lines = _bytes(members[".txt"]).decode(errors="replace").split("\n") if ".txt" in members else []
            captions = [line for line in lines if line.strip()] or texts(value)
            name = f"{place.with_suffix('')}/{key}" if key in seen else key
            seen.add(key)
            yield Row(name, captions, split, source)


def _samples(shard: Path, reading: Reading) -> Iterator[tuple[str, dict[str, FileSource]]]:
    """Members grouped by key: the path up to the first dot of the file's name, as WebDataset has it."""
    mtime_ns = shard.stat().st_mtime_ns
    samples: dict[str, dict[str, FileSource]] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                folder, slash, name = member.name.rpartition("/")
                if member.isfile() and not name.startswith("."):
                    stem, dot, suffix = name.partition(".")
                    source = FileSource(shard, member.size, mtime_ns, member.offset_data)
                    samples.setdefault(f"{folder}{slash}{stem}", {})[f"{dot}{suffix}".lower()] = source
    except (tarfile.TarError, EOFError) as error:
        reading.bad.append((shard.name, f"broken tar ({error}): the {len(samples)} samples before are used"))
    yield from samples.items()


def _bytes(source: FileSource) -> bytes:
    with source.path.open("rb") as file:
        file.seek(source.offset or 0)
        return file.read(source.bytes)


def _record(source: FileSource | None, place: str, reading: Reading) -> dict[str, Any]:
    if source is None:
        return {}
    try:
        record = json.loads(_bytes(source))
    except ValueError as error:
        reading.left_out.append((f"{place}.json", f"is not JSON: {error}"))
        return {}
    return record if isinstance(record, dict) else {}
