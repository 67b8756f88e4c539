"""The commands that tell what a run has found: `captune results`, `best`, `list`, `caption`.

Only click is imported at the top, as in `tuning/cli.py`, which adds these commands to its group.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tuning.commands.parts import UserMistake, WorkFailed, storage_option, write_frame
from tuning.commands.printed import print_best, print_table

if TYPE_CHECKING:
    import pandas as pd

    from tuning.tables.results import Results


@click.command()
@click.argument("name")
@click.argument("table", type=click.Choice(["trials", "epochs", "schedule", "variants"]), default="trials")
@click.option(
    "--sort",
    "sort_by",
    metavar="COL",
    help="Best first where it is known what is good, else ascending. By default, trials are ranked.",
)
@click.option("--reverse", is_flag=True, help="Turn the order of --sort round.")
@click.option("--where", metavar="CONDITION", help='Like "state == completed and cider >= 0.2".')
@click.option(
    "--columns", metavar="COL,COL", help="Only these, in this order, or `all`; `config/` may be left out."
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most N rows.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "json", "parquet"]),
    default="table",
    show_default=True,
)
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write there."
)
@storage_option
def results(
    name: str,
    table: str,
    sort_by: str | None,
    reverse: bool,
    where: str | None,
    columns: str | None,
    limit: int | None,
    form: str,
    output: Path | None,
    storage: str,
) -> None:
    """Show the TABLE (trials, epochs or variants) of experiment NAME: on screen the most telling columns.

    `schedule`: under which configurations the best trial was trained, epoch by epoch, where
    `search.algorithm: pbt` changed them.

    \b
    Examples:
      captune results shapes
      captune results shapes --sort size_mb --limit 5
      captune results shapes --columns all
      captune results shapes --where "state == completed and size_mb < 2"
      captune results shapes --columns trial_id,learning_rate,cider --format csv
      captune results shapes epochs --where "trial_id == 00003"
      captune results shapes epochs --format parquet --output epochs.parquet
      captune results shapes schedule --format csv
    """
    from tuning.tables import query
    from tuning.tables.results import load
    from tuning.tables.storage import command

    if form == "parquet" and output is None:
        raise click.UsageError("parquet is not for the screen: say where to with --output FILE")
    if form == "table" and output is not None:
        raise click.UsageError("--output needs --format csv, json or parquet")
    found = load(name, storage)
    on_screen = form == "table" and table == "trials"
    if table == "variants" and found.variants.empty:
        raise UserMistake(f"{found.name!r} has no variants; {command('compress', found.place)} makes them")
    frame: pd.DataFrame = found.ranked() if on_screen else _table(found, table)
    if where is not None:
        frame = query.where(frame, where)
    if sort_by is not None:
        frame = query.sort(frame, sort_by, reverse=reverse, better=_good(found, sort_by))
    elif reverse:
        frame = frame[::-1]
    if columns is not None and columns != "all":
        frame = query.select(frame, [part.strip() for part in columns.split(",")])
    chosen = frame.head(limit) if limit else frame
    if form == "table":
        print_table(chosen, found, whole=columns is not None or table == "schedule")
        return
    if output is not None:
        try:
            output.open("ab").close()
        except OSError as error:
            raise UserMistake(f"--output: cannot write {output}: {error.strerror}") from error
    write_frame(chosen, form, output)


@click.command()
@click.argument("name")
@storage_option
def best(name: str, storage: str) -> None:
    """Show the best trial of experiment NAME: configuration, figures, where its model is.

    With several objectives, first the front: the trials that no other beats in every objective.

    \b
    Examples:
      captune best shapes
      captune best /data/results/photos
    """
    from tuning.tables.results import load

    found = load(name, storage)
    if len(found.experiment.objectives) > 1 and len(front := found.front()):
        print_table(front, found)
        click.echo()
    print_best(found)


@click.command(name="list")
@click.option(
    "--storage", default="captune-results", show_default=True, metavar="DIR", help="Folder to look in."
)
def list_command(storage: str) -> None:
    """List the experiments in the storage folder.

    \b
    Examples:
      captune list
      captune list --storage /data/results
    """
    from rich.console import Console

    from trainables.store import is_url, local
    from tuning.tables.storage import list_experiments
    from tuning.tables.summaries import experiments_table

    if not is_url(place := local(storage)):
        try:
            os.listdir(os.path.expanduser(place))
        except OSError as error:
            nothing_run_yet = isinstance(error, FileNotFoundError) and storage == "captune-results"
            if not nothing_run_yet:
                raise UserMistake(f"--storage: cannot look into {storage!r}: {error.strerror}") from error
    names = list_experiments(storage)
    if not names:
        click.echo(f"no experiments in {storage}")
        return
    table, problems = experiments_table(names, storage)
    Console(markup=False, width=None if sys.stdout.isatty() else 200).print(table)
    for line in problems:
        click.echo(line)


@click.command()
@click.argument("name")
@click.argument(
    "images", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False), metavar="IMAGE..."
)
@storage_option
def caption(name: str, images: tuple[str, ...], storage: str) -> None:
    """Let the best captioner of experiment NAME write a caption for each IMAGE.

    \b
    Examples:
      captune caption photos holiday.jpg
      captune caption photos *.jpg --storage /data/results
    """
    from trainables.store import under
    from trainables.trial import resolve_trainable
    from tuning.tables.copies import best_in
    from tuning.tables.results import load
    from tuning.tables.storage import noted

    found = load(name, storage)
    trainable: Any = resolve_trainable(found.experiment.trainable)
    if not hasattr(trainable, "caption"):
        raise UserMistake(f"{found.name!r} tunes {found.experiment.trainable!r}, which writes no captions")
    folder = best_in(found.folder)
    if folder is None:
        raise WorkFailed(
            f"{under(found.place, 'best')} does not exist: the run of {found.name!r} has not finished with a "
            "best trial"
        )
    if not noted(found.folder, "exported"):
        click.echo("by what an earlier run shipped: the last one has not yet", err=True)
    try:
        captions = trainable.caption(folder=folder, images=[Path(image) for image in images])
    except (ValueError, OSError) as error:  # an image that cannot be read
        raise UserMistake(str(error)) from error
    width = max(map(len, images))
    for image, words in zip(images, captions, strict=True):
        click.echo(f"{image:<{width}}  {words}")


def _good(found: Results, column: str) -> str | None:
    """Which direction the experiment itself calls good for a column."""
    from tuning.tables.schema import figure_column

    modes = {figure_column(each.metric): each.mode for each in found.experiment.objectives}
    return modes.get(column)


def _table(found: Results, name: str) -> pd.DataFrame:
    if name != "schedule":
        return getattr(found, name)
    try:
        return found.schedule()
    except ValueError as error:  # no trial has a figure
        raise WorkFailed(str(error)) from error
