"""What the commands have in common: how they fail, options that mean the same everywhere, tables written out.

Only click is imported at the top, as in `tuning/cli.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    import pandas as pd

#: Characters in a line where nothing has to fit anywhere.
WIDE = 10_000


class UserMistake(click.ClickException):
    """Something that the user can put right: one message, no traceback, exit code 2."""

    exit_code = 2


class WorkFailed(click.ClickException):
    """The command was right, but what it asked for could not be done: exit code 1."""


file_argument = click.argument("file", type=click.Path(exists=True, dir_okay=False))
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Put a value over the file's; repeatable."
)
own_storage_option = click.option(
    "--storage",
    metavar="DIR",
    help="Keep the results in this folder, or at this URL; over the file's `storage`.",
)
storage_option = click.option(
    "--storage",
    default="captune-results",
    show_default=True,
    metavar="DIR",
    help="Folder or URL in which NAME is looked for; NAME may also be an experiment's own folder or URL.",
)
format_option = click.option(
    "--format", "form", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True
)


def with_storage(overrides: Sequence[str], storage: str | None) -> list[str]:
    """What `--set` and `--storage` put over the file."""
    return [*overrides] if storage is None else [*overrides, f"storage={json.dumps(storage)}"]


def write_frame(frame: pd.DataFrame, form: str, output: Path | None = None) -> None:
    """A table as `csv`, `json` or `parquet`, into a file or, but for parquet, onto the screen."""
    if form == "parquet":
        assert output is not None
        frame.to_parquet(output, index=False)
        return
    if form == "csv":
        text = frame.to_csv(index=False)
    else:
        rows = json.loads(frame.to_json(orient="records", date_format="iso"))
        for name in frame.select_dtypes("float"):  # pandas writes ten decimals, of 1e-11 none
            for row, value in zip(rows, frame[name].astype(float), strict=True):
                row[name] = value if math.isfinite(value) else None
        text = json.dumps(rows, indent=2, ensure_ascii=False) + "\n"
    if output is None:
        click.echo(text, nl=False)
    else:
        output.write_text(text)
