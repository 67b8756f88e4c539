"""Flickr8k as it goes around: captions.txt (Kaggle) or Flickr8k.token.txt, and the official split lists."""

from __future__ import annotations

import re
from collections.abc import Iterator

from trainables.captioning.data.items import Split
from trainables.captioning.data.reading import Reading, Row
from trainables.trial import SettingsError

LISTS: dict[str, Split] = {
    "Flickr_8k.trainImages.txt": "train",
    "Flickr_8k.devImages.txt": "val",
    "Flickr_8k.testImages.txt": "test",
}


def read_flickr8k(reading: Reading) -> Iterator[Row]:
    """One row per line; images in none of the official lists are left out where there are lists."""
    file = reading.caption_file("captions.txt", "Flickr8k.token.txt", "*.token.txt", "*.token")
    lists = _lists(reading)
    left_out: set[str] = set()
    first = True
    for number, line in reading.lines(file):
        header, first = first and line.replace(" ", "").lower() == "image,caption", False
        if header:
            continue
        tabbed = re.fullmatch(r"([^\t]+)#\d+\t(.*)", line)
        # Captions hold commas, and Kaggle's file quotes only some of them: the first comma ends the name.
        name, comma, caption = (tabbed[1], "\t", tabbed[2]) if tabbed else line.partition(",")
        name = name.strip() if tabbed else _unquoted(name)
        if not comma or not name:
            reading.bad.append((f"{file.name}:{number}", "must be NAME,CAPTION or NAME#0<TAB>CAPTION"))
        elif lists and name not in lists:
            left_out.add(name)
        else:
            yield Row(name, [caption if tabbed else _unquoted(caption)], lists.get(name))
    reading.left_out += [(name, "in none of the official split lists") for name in sorted(left_out)]


def _lists(reading: Reading) -> dict[str, Split]:
    files = {name: path for name in LISTS for path in sorted(reading.root.glob(f"**/{name}"))[:1]}
    missing = [name for name, split in LISTS.items() if split != "test" and name not in files]
    if files and missing:
        there, lacking = ", ".join(files), ", ".join(missing)
        raise SettingsError(
            ("data", "path"), f"split lists must be complete: {reading.root} has {there}, not {lacking}"
        )
    return {line.strip(): LISTS[name] for name, path in files.items() for _, line in reading.lines(path)}


def _unquoted(text: str) -> str:
    """CSV's quotes taken off, where they are CSV's: around everything and doubled within."""
    text = text.strip()
    if len(text) >= 2 and text[0] == text[-1] == '"' and '"' not in text[1:-1].replace('""', ""):
        return text[1:-1].replace('""', '"')
    return text
