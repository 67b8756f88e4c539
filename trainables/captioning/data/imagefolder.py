"""ImageFolder (Hugging Face): metadata.jsonl or metadata.csv beside the images, one file or one per split."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainables.captioning.data.reading import Reading, Row, split_of, text, texts
from trainables.refusal import nearest
from trainables.trial import SettingsError


def read_imagefolder(reading: Reading) -> Iterator[Row]:
    """One row per record: `file_name` and the caption column.

    A split is taken from the first folder of a file's name where it is called train, validation or test.
    """
    first = reading.caption_file("metadata.jsonl", "metadata.csv", "*/metadata.jsonl", "*/metadata.csv")
    alone = reading.data.captions_file is not None or first.parent == reading.root
    files = [first] if alone else sorted(reading.root.glob(f"*/{first.name}"))
    reading.folders += [file.parent for file in files]
    records = [
        (place, "" if alone else f"{file.parent.name}/", record)
        for file in files
        for place, record in _records(file, reading)
    ]
    _check_column([record for _, _, record in records], reading)
    for place, folder, record in records:
        name = text(record.get("file_name")).strip().replace("\\", "/")
        if not name:
            reading.bad.append((place, "has no file_name"))
            continue
        value = _value(record, reading.data.caption_column)
        name = folder + name
        yield Row(name, texts(value), split_of(name.split("/")[0]) if "/" in name else None)


def _records(file: Path, reading: Reading) -> Iterator[tuple[str, dict[str, Any]]]:
    if file.suffix == ".csv":
        # A quoted caption may run over several lines: here the csv module finds the ends of rows.
        table = csv.DictReader(
            io.StringIO(file.read_text(encoding="utf-8-sig", errors="replace"), newline="")
        )
        for record in table:
            place = f"{file.name}:{table.line_num}"
            if None in record or None in record.values():
                reading.bad.append((place, f"must have {len(table.fieldnames or [])} columns"))
            else:
                yield place, dict(record)
        return
    for number, line in reading.lines(file):
        place = f"{file.name}:{number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            reading.bad.append((place, f"is not JSON: {error}"))
            continue
        if isinstance(record, dict):
            yield place, record
        else:
            reading.bad.append((place, "must be a JSON object"))


def _value(record: dict[str, Any], column: str) -> Any:
    """The value of a column; a dot reaches into an object (captions.en). None where it is missing."""
    if column in record:
        return record[column]
    value: Any = record
    for key in column.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _check_column(records: list[dict[str, Any]], reading: Reading) -> None:
    """A record may lack its caption (it is bad then); where all do, or hold objects, the column is wrong."""
    column = reading.data.caption_column
    values = [_value(record, column) for record in records]
    said = [value for value in values if value is not None]
    first = said[0] if said and isinstance(said[0], list) else said[:1]
    if records and (not said or isinstance(next(iter(first), None), dict)):
        wrong = "holds objects" if said else "is in no record"
        names = [key for key, value in records[0].items() if isinstance(value, str | list)]
        names += [f"{key}.{k}" for key, value in records[0].items() if isinstance(value, dict) for k in value]
        names = [name for name in names if name not in ("file_name", column)]
        raise SettingsError(
            ("data", "caption_column"),
            f"column {column!r} {wrong}{nearest(column, names)} (columns: {', '.join(names)})",
        )
