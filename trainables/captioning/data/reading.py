"""What the readers of the layouts share: rows, finding caption files, lines and JSON with their errors.

Knows no layout; `formats.py` merges the rows into items.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainables.captioning.data.items import SPLIT_NAMES, Source, Split
from trainables.captioning.settings import DataSettings
from trainables.refusal import nearest
from trainables.trial import SettingsError


@dataclass(frozen=True)
class Row:
    """A piece of what is known about one image; rows of one name are merged."""

    name: str
    captions: list[str]
    split: Split | None = None
    source: Source | None = None
    """None: the file `name` in one of the folders."""


@dataclass
class Reading:
    """What a reader is given, and where it puts what is no row."""

    data: DataSettings
    root: Path
    folders: list[Path]
    """Where images may lie, in order of preference."""
    bad: list[tuple[str, str]] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)

    @property
    def file_key(self) -> tuple[str, str]:
        """The setting that named the caption file."""
        return ("data", "captions_file" if self.data.captions_file else "path")

    def caption_file(self, *usual: str) -> Path:
        """`data.captions_file`, else the first file that matches one of the `usual` patterns.

        Raises:
            SettingsError: there is none.
        """
        if self.data.captions_file is not None:
            file = self.root / self.data.captions_file.expanduser()
            if file.is_file():
                return file
            there = [path.relative_to(self.root) for path in _texts(self.root)]
            near = nearest(str(self.data.captions_file), map(str, there))
            raise SettingsError(("data", "captions_file"), f"{file} is not a file{near}")
        for pattern in usual:
            if found := sorted(self.root.glob(pattern)):
                return found[0]
        there = [path.relative_to(self.root) for path in _texts(self.root)]
        hint = (
            f"; it has {', '.join(map(str, there[:5]))}: is one of these data.captions_file?" if there else ""
        )
        raise SettingsError(
            ("data", "path"),
            f"{self.root} has none of {', '.join(usual)}, which format {self.data.format!r} reads{hint}",
        )

    def lines(self, file: Path) -> Iterator[tuple[int, str]]:
        """Numbered lines that are not blank. Only newlines end them: str.splitlines would cut at U+2028."""
        content = file.read_bytes().removeprefix(b"\xef\xbb\xbf")
        for number, raw in enumerate(content.split(b"\n"), start=1):
            try:
                line = raw.decode().rstrip("\r")
            except UnicodeDecodeError as error:
                self.bad.append((f"{file.name}:{number}", f"is not UTF-8: {error.reason}"))
                continue
            if line.strip():
                yield number, line

    def json_with(self, file: Path, key: str) -> dict[str, Any]:
        """The JSON object in `file`, which must hold a list under `key`."""
        try:
            content = json.loads(file.read_text(encoding="utf-8-sig"))
        except ValueError as error:
            raise SettingsError(self.file_key, f"{file} is not JSON: {error}") from error
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            rule = f"must hold an object with a list {key!r}, as format {self.data.format!r} has it"
            raise SettingsError(self.file_key, f"{file} {rule}")
        return content


def _texts(root: Path) -> list[Path]:
    """Files that may hold captions, here and one folder down."""
    suffixes = (".txt", ".json", ".jsonl", ".csv", ".token")
    return sorted(path for path in [*root.glob("*"), *root.glob("*/*")] if path.suffix in suffixes)


def split_of(name: str) -> Split | None:
    """The split that a file or folder is named after, numbers or not: train2017, val-0-of-8.tar, dev."""
    named = re.fullmatch(r"([a-z]+)([\d._-]|of)*", name.lower().removesuffix(".tar"))
    return SPLIT_NAMES.get(named[1]) if named else None


def text(value: Any) -> str:
    """A caption as a string; what is none is empty, half a surrogate pair a question mark."""
    none = value is None or isinstance(value, dict | list)
    return "" if none else str(value).encode("utf-8", "replace").decode()


def texts(value: Any) -> list[str]:
    """The captions in a column: one, or a list of them."""
    return [text(one) for one in value] if isinstance(value, list) else [text(value)]
