"""`captune simulate`: the search of an experiment in virtual time.

Only click is imported at the top, as in `tuning/cli.py`, which adds this command to its group.
"""

from __future__ import annotations

import click

from tuning.commands.parts import WIDE, file_argument, format_option, set_option, write_frame


@click.command()
@file_argument
@click.option(
    "--curves",
    "source",
    required=True,
    metavar="NAME",
    help="Experiment whose learning curves are taken; `trainable` runs FILE's own, which must cost little.",
)
@click.option(
    "--gangs", default="1,4,64", show_default=True, metavar="N,N", help="Numbers of trials at the same time."
)
@click.option(
    "--schedulers", metavar="NAME,NAME", help="Choices of `scheduler.algorithm`; by default all that fit."
)
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Runs of each; --replay needs one.",
)
@click.option("--replay", is_flag=True, help="Try the configurations of NAME, in their order, and no others.")
@format_option
@set_option
@click.option(
    "--storage", metavar="DIR", help="Folder in which NAME is looked for; by default the file's `storage`."
)
def simulate(
    file: str,
    source: str,
    gangs: str,
    schedulers: str | None,
    seeds: int,
    replay: bool,
    form: str,
    overrides: tuple[str, ...],
    storage: str | None,
) -> None:
    """Run the search of FILE in virtual time: what each scheduler finds, when, and at what cost.

    Learning curves are those of an earlier experiment. csv and json have a row per seed, the table means.

    \b
    Examples:
      captune simulate examples/shapes.yaml --curves shapes --gangs 1,8
      captune simulate examples/shapes.yaml --curves shapes --replay
      captune simulate examples/polynomial.yaml --curves trainable --set budget.trials=200
    """
    from rich.console import Console

    from tuning.experiment import Experiment
    from tuning.simulation.comparison_table import comparison_table, made_up, simulating
    from tuning.simulation.scheduler_comparison import compare, fitting, ran_under, savings
    from tuning.tables.results import load

    if replay and source == "trainable":
        raise click.UsageError("--replay needs the configurations of an experiment: name it with --curves")
    experiment = Experiment.load(file, overrides)
    earlier = None if source == "trainable" else load(source, storage or experiment.storage)
    names = (
        [name.strip() for name in schedulers.split(",")] if schedulers else fitting(experiment, replay=replay)
    )
    before = ran_under(earlier) if replay and earlier is not None else ""
    if before and before not in names:
        names.append(before)
    with simulating() as tell:
        frame = compare(
            experiment,
            earlier,
            gangs=_numbers(gangs, "--gangs"),
            schedulers=names,
            seeds=seeds,
            replay=replay,
            tell=tell,
        )
    if form != "table":
        write_frame(frame, form)
        return
    Console(markup=False, width=WIDE).print(comparison_table(frame, experiment), soft_wrap=True)
    lines = made_up(frame, experiment, earlier) if earlier is not None else []
    lines += savings(frame, before) if replay else []
    for line in lines:
        click.echo(line)


def _numbers(text: str, option: str) -> list[int]:
    """`1,4,64` as numbers."""
    parts = [part.strip() for part in text.split(",")]
    wrong = [part for part in parts if not part.isdecimal() or int(part) < 1]
    if wrong:
        raise click.UsageError(f"{option} takes whole numbers from 1, as in 1,4,64, but got {wrong[0]!r}")
    return [int(part) for part in parts]
