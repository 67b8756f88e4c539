"""The commands for choosing among what a run has found: `captune pareto`, `compare`, `export`.

Only click is imported at the top, as in `tuning/cli.py`, which adds these commands to its group.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from tuning.commands.parts import WIDE, WorkFailed, format_option, storage_option, write_frame

#: Rows of each table of a comparison on screen, where no number is asked for.
ROWS = 20


@click.command()
@click.argument("name")
@click.option(
    "--figures",
    metavar="COL,COL",
    help="What to compare by, the most important first; `COL:min` or `COL:max` where it is not known what "
    "is good. By default the objectives, size_mb and latency_ms.",
)
@click.option(
    "--max", "at_most", multiple=True, metavar="COL=NUMBER", help="Largest value allowed; repeatable."
)
@click.option(
    "--min", "at_least", multiple=True, metavar="COL=NUMBER", help="Smallest value allowed; repeatable."
)
@format_option
@storage_option
def pareto(
    name: str, figures: str | None, at_most: Sequence[str], at_least: Sequence[str], form: str, storage: str
) -> None:
    """Show the front of experiment NAME: what no other beats in every figure, and which of it to choose.

    Candidates are the compressed variants where there are any, else the trials. Limits leave the front as it
    is; with them the best that keeps them is named, by the first figure, or what comes nearest.

    \b
    Examples:
      captune pareto shapes
      captune pareto shapes --max size_mb=5 --max latency_ms=20
      captune pareto shapes --figures cider,macs --min cider=0.2 --format csv
    """
    from rich.console import Console

    from tuning.choosing import pareto as fronts
    from tuning.choosing.choosing_table import front_frame, front_lines, nothing_to_choose
    from tuning.render import frame_table
    from tuning.tables.results import load

    found = load(name, storage)
    bounds = {"at_most": _bounds(at_most, "--max"), "at_least": _bounds(at_least, "--min")}
    names = None if figures is None else [part.strip() for part in figures.split(",")]
    candidates = found.candidates()
    compared_by = found.figures(candidates, names)
    front = found.pareto(names, **bounds)
    if front.empty:
        raise WorkFailed(nothing_to_choose(found, compared_by))
    if form != "table":
        write_frame(front, form)
        return
    console = Console(markup=False)
    limits = fronts.limits(candidates, **bounds)
    shortened = front_frame(front, compared_by, limits, width=console.width if console.is_terminal else WIDE)
    Console(markup=False, width=WIDE).print(frame_table(shortened), soft_wrap=True)
    click.echo()
    for line in front_lines(candidates, front, compared_by, limits):
        click.echo(line)


@click.command()
@click.argument("name")
@click.argument("a")
@click.argument("b")
@click.option("--show", metavar="TABLE", help="Only this of the tables; csv and json show one, the first.")
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", help=f"At most N rows; on screen {ROWS} if not said."
)
@format_option
@storage_option
def compare(name: str, a: str, b: str, show: str | None, limit: int | None, form: str, storage: str) -> None:
    """Tell what model B of experiment NAME does worse than model A; each is a variant or a trial.

    What there is to tell is the trainable's business. Of captioners: the words that B stops saying. Both
    caption the validation images, as they would ship; a word's recall is the share of the images whose
    references agree on it in which the model says it, too. Tables: words (those whose recall fell most come
    first), kinds (objects, colours, counts, other content words) and captions, side by side.

    \b
    Examples:
      captune compare shapes 00002 00003
      captune compare shapes v00000 v00003 --show captions --limit 5
      captune compare shapes 00002 00003 --format csv
    """
    from rich.console import Console

    from search_spaces.nearest import nearest
    from tuning.choosing.shipping import CannotShip, label, named
    from tuning.choosing.side_by_side import compare as compare_models
    from tuning.render import count, frame_table
    from tuning.tables.query import QueryError
    from tuning.tables.results import load

    found = load(name, storage)
    try:
        tables = compare_models(found, a, b, progress=sys.stderr.isatty())
    except CannotShip as error:
        raise WorkFailed(str(error)) from error
    if show is not None and show not in tables:
        raise QueryError(f"--show takes one of {', '.join(tables)}, but got {show!r}{nearest(show, tables)}")
    if form != "table":
        frame = tables[show or next(iter(tables))]
        write_frame(frame.head(limit) if limit else frame, form)
        return
    for title, frame in tables.items():
        if show in (None, title):
            Console(markup=False, width=WIDE).print(frame_table(frame.head(limit or ROWS)), soft_wrap=True)
            click.echo(f"{title}: {min(limit or ROWS, len(frame))} of {count(len(frame), 'row')}\n")
    click.echo(f"a is {label(named(found, a))}, b is {label(named(found, b))}")


@click.command()
@click.argument("name")
@click.option("--trial", metavar="T", help="This trial.")
@click.option("--variant", metavar="V", help="This compressed variant.")
@click.option("--max-size-mb", type=float, metavar="MB", help="Nothing larger, in 10^6 bytes.")
@click.option("--max-latency-ms", type=float, metavar="MS", help="Nothing slower.")
@click.option(
    "--to",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Folder to export into, new or empty; by default exported/ID in the experiment's folder.",
)
@storage_option
def export(
    name: str,
    trial: str | None,
    variant: str | None,
    max_size_mb: float | None,
    max_latency_ms: float | None,
    to: Path | None,
    storage: str,
) -> None:
    """Export a model of experiment NAME: the best within the limits, or the one that is named.

    The best is that by the first objective, among the compressed variants where there are any, else among
    the trials; it also keeps the experiment's constraints. Of a trial the best epoch is exported, whose
    figures are shown. Where the extra `onnx` is installed, ONNX graphs are added and measured, in int8, too,
    of a model that stores its weights in 8 bits or fewer.

    \b
    Examples:
      captune export shapes
      captune export shapes --max-size-mb 5 --max-latency-ms 20 --to captioner
      captune export shapes --trial 00002
      captune export shapes --variant v00003
    """
    from rich.console import Console

    from tuning.choosing.choosing_table import shipped_table
    from tuning.choosing.shipping import (
        CannotShip,
        best_within,
        checkpoint_of,
        convert,
        limits_of,
        name_of,
        named,
        ship,
    )
    from tuning.tables.results import load

    asked = {"size_mb": max_size_mb, "latency_ms": max_latency_ms}
    at_most = {column: bound for column, bound in asked.items() if bound is not None}
    if (trial is not None) + (variant is not None) + bool(at_most) > 1:
        raise click.UsageError("give --trial, or --variant, or limits: each says which model is exported")
    if to is not None and to.resolve().is_dir() and any(to.resolve().iterdir()):
        raise click.UsageError(f"--to takes a new or an empty folder, but {to} has something in it")
    found = load(name, storage)
    limits = None
    try:
        if trial is not None:
            row = named(found, trial, kinds=("trial",))
        elif variant is not None:
            row = named(found, variant, kinds=("variant",))
        else:
            limits = limits_of(found, at_most)
            row = best_within(found, limits)
        if to is None and found.place != str(found.folder):
            raise click.UsageError(f"the results are at {found.place}: say where to with --to DIR")
        folder = to or found.folder / "exported" / name_of(row)
        ship(found.experiment.trainable, checkpoint_of(found, row), folder)
        line = convert(found.experiment.trainable, folder, found.experiment.data)
    except CannotShip as error:
        raise WorkFailed(str(error)) from error
    console = Console(markup=False, soft_wrap=True)
    console.print(shipped_table(found, row, limits, folder))
    if line:
        console.print(line)


def _bounds(texts: Sequence[str], option: str) -> dict[str, float]:
    """`size_mb=5` as a bound by name."""
    example = {"--max": "size_mb=5", "--min": "cider=0.2"}[option]
    bounds: dict[str, float] = {}
    for text in texts:
        column, _, value = (part.strip() for part in text.partition("="))
        try:
            bound = float(value)
        except ValueError:
            raise click.UsageError(f"{option} takes COL=NUMBER, as in {example}, but got {text!r}") from None
        if column in bounds:
            raise click.UsageError(f"{option} {column} is given twice")
        bounds[column] = bound
    return bounds
