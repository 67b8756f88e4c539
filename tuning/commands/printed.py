"""What several commands print at their end: trials, variants, the best."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tuning.commands.parts import WIDE, WorkFailed

if TYPE_CHECKING:
    import pandas as pd

    from tuning.tables.results import Results


def print_table(frame: pd.DataFrame, found: Results, *, whole: bool = False) -> None:
    """All columns if `whole`; else the telling ones, as many as a terminal has room for."""
    from rich.console import Console

    from tuning.render import cell_text, frame_table
    from tuning.tables.query import fitting
    from tuning.tables.summaries import telling

    console = Console(markup=False)
    shown = frame
    if not whole:
        width = console.width if console.is_terminal else WIDE
        shown = fitting(frame, names=telling(found.experiment, frame), width=width, text=cell_text)
    Console(markup=False, width=WIDE).print(frame_table(shown), soft_wrap=True)
    hidden = len(frame.columns) - len(shown.columns)
    more = f"; {hidden} more columns with --columns all or --format csv" if hidden else ""
    click.echo(f"{len(frame)} row{'' if len(frame) == 1 else 's'}{more}")


def print_variants(found: Results) -> None:
    """The front of the variants, if there are any."""
    from rich.console import Console

    from tuning.choosing.choosing_table import front_frame
    from tuning.render import count, frame_table
    from tuning.tables.storage import command

    if found.variants.empty:
        return
    front = found.pareto()
    click.echo(f"\n{len(front)} of {count(len(found.variants), 'variant')} that no other beats:")
    shown = front_frame(front, found.figures(front), [], width=WIDE)
    Console(markup=False, width=WIDE).print(frame_table(shown), soft_wrap=True)
    choose, ship = (command(verb, found.place) for verb in ("pareto", "export"))
    click.echo(f"choose with {choose}, ship with {ship}")


def print_best(found: Results) -> None:
    """The best trial: configuration, figures, where its model is, how far its rungs can be trusted.

    Raises:
        WorkFailed: no trial has a figure.
    """
    from rich.console import Console

    from trainables.store import under
    from tuning.render import frame_table
    from tuning.tables.copies import BEST_IS_WHOLE
    from tuning.tables.fidelity import in_full
    from tuning.tables.storage import noted
    from tuning.tables.summaries import best_table

    try:
        row = found.best()
    except ValueError as error:
        raise WorkFailed(str(error)) from error
    Console(markup=False, soft_wrap=True).print(best_table(found, row))
    there = any((found.folder / name).exists() for name in ("best", BEST_IS_WHOLE))
    exported = there and noted(found.folder, "exported")  # until then it is an earlier run's
    click.echo(f"model  {under(found.place, 'best' if exported else str(row['checkpoint']))}")
    if len(schedule := found.schedule(row["trial_id"])) > 1:
        click.echo("\nits weights were trained under")
        Console(markup=False, width=WIDE).print(frame_table(schedule.drop(columns="seed")), soft_wrap=True)
    pbt = found.experiment.search.algorithm == "pbt"
    for line in in_full(found.fidelity(), key="search.interval" if pbt else "scheduler.min_epochs"):
        click.echo(line)
