"""The `captune` command: arguments in, exit codes out (0 fine, 1 the work failed, 2 the user's mistake).

Only click is imported at the top, so that `--help` answers at once. What is shown is built in
`tuning/summaries.py`, `render.py` and `query.py`; nothing is decided here.
"""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tuning.cli_choosing import compare, export, pareto
from tuning.cli_parts import WIDE, UserMistake, WorkFailed, format_option, storage_option, write_frame

if TYPE_CHECKING:
    import pandas as pd

    from tuning.experiment import Experiment
    from tuning.progress import Progress
    from tuning.results import Results

#: Trials in the table that `run` ends with.
TOP = 10
#: Different reasons named where every trial went wrong.
REASONS = 5


class _Commands(click.Group):
    """Turns the exceptions that users cause into messages, wherever they come from."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(130)
        except (ValueError, LookupError, OSError) as error:
            if _is_users_mistake(error):
                raise UserMistake(str(error)) from error
            if isinstance(error, OSError):  # a full disk, a cluster out of reach
                raise WorkFailed(f"{type(error).__name__}: {error}") from error
            raise


def _is_users_mistake(error: Exception) -> bool:
    from trainables.trial import SettingsError
    from tuning.experiment_file import ExperimentError
    from tuning.query import QueryError
    from tuning.storage import UnknownExperiment, UnreadableResults

    mistakes = (ExperimentError, SettingsError, QueryError, UnknownExperiment, UnreadableResults)
    return isinstance(error, (*mistakes, PermissionError, NotADirectoryError, FileExistsError))


_set = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Put a value over the file's; repeatable."
)
_own_storage = click.option(
    "--storage", metavar="DIR", help="Keep the results in this folder; over the file's `storage`."
)
_file = click.argument("file", type=click.Path(exists=True, dir_okay=False))


@click.group(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="captune", prog_name="captune")
def main() -> None:
    """Tune image captioners: one experiment file in, a table of trials and the best captioner out.

    \b
    captune check examples/shapes.yaml            what would run
    captune run examples/shapes.yaml              run it
    captune results shapes --sort cider           its trials, the best first
    captune best shapes                           the best one
    captune pareto shapes                         what no other beats in quality and cost
    captune export shapes --max-size-mb 5         the best of at most 5 MB, into a folder
    captune caption shapes photo.jpg              what it says about a picture
    """
    # A trainable of one's own lies beside the experiment, where the command is typed.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))


@main.command()
@_file
@click.option("--resume", is_flag=True, help="Go on with an interrupted run; finished trials are kept.")
@_set
@_own_storage
def run(file: str, resume: bool, overrides: tuple[str, ...], storage: str | None) -> None:
    """Run the experiment in FILE to the end of its budget, then show its best trials.

    Ctrl-C ends it in good order; --resume goes on from there, also after a crash or a reboot.

    \b
    Examples:
      captune run examples/shapes.yaml
      captune run examples/shapes.yaml --set budget.trials=4 --set search.seed=1
      captune run photos.yaml --storage /data/results
      captune run photos.yaml --storage /data/results --resume
    """
    from tuning.experiment import Experiment
    from tuning.progress import Progress
    from tuning.runner import run as run_experiment

    experiment = Experiment.load(file, _with_storage(overrides, storage))
    words = ["captune", "run", file, "--resume"]
    words += [word for override in overrides for word in ("--set", override)]
    words += ["--storage", storage] if storage else []
    progress = Progress(experiment)
    with _carrying_out(experiment, [progress], again=words, remedy="--resume") as follow:
        results = run_experiment(
            experiment, resume=resume, listeners=[progress], follow_variants=follow, say=click.echo
        )
    _show_outcome(results)


@main.command()
@click.argument("name")
@click.option("--methods", metavar="A,B", help="Ways to compress; over the file's `compression.methods`.")
@click.option("--ratios", metavar="R,R", help="Shares of the bytes to remove, each from 0 to 1.")
@click.option("--parents", type=int, metavar="N", help="The best N finished trials are compressed.")
@click.option("--epochs", type=int, metavar="E", help="Fine-tuning epochs of what no other variant beats.")
@storage_option
def compress(
    name: str,
    methods: str | None,
    ratios: str | None,
    parents: int | None,
    epochs: int | None,
    storage: str,
) -> None:
    """Compress the best trials of experiment NAME in many ways, fine-tune those on the front, measure all.

    What is not said is as in the experiment's section `compression`. What was done before is kept: more
    methods, ratios or parents extend it. Ctrl-C ends it in good order; the same command goes on.

    \b
    Examples:
      captune compress shapes
      captune compress shapes --methods int8,prune+int8 --ratios .5,.75 --parents 1
    """
    from tuning.children import asked
    from tuning.results import load
    from tuning.runner import compress as compress_best

    given: dict[str, Any] = {"methods": methods, "ratios": ratios, "parents": parents, "epochs": epochs}
    given = {key: value for key, value in given.items() if value is not None}
    words = ["captune", "compress", name]
    words += [word for key, value in given.items() for word in (f"--{key}", str(value))]
    words += ["--storage", storage]
    if methods is not None:
        given["methods"] = [part.strip() for part in methods.split(",")]
    if ratios is not None:
        given["ratios"] = _shares(ratios)
    experiment = asked(load(name, storage), given)
    with _carrying_out(experiment, [], again=words, remedy="the same command") as follow:
        found = compress_best(experiment, follow_variants=follow, say=click.echo)
    _print_variants(found)


@main.command()
@_file
@_set
@_own_storage
def check(file: str, overrides: tuple[str, ...], storage: str | None) -> None:
    """Validate FILE and show what a run of it would be. Starts nothing.

    Gangs are sized for this machine. Of `search.from`, it tells what the searcher would learn.

    \b
    Examples:
      captune check examples/shapes.yaml
      captune check photos.yaml --set training.workers=2
    """
    from rich.console import Console

    from tuning.experiment import Experiment
    from tuning.plan import plan_table
    from tuning.warm_start import earlier_trials

    experiment = Experiment.load(file, _with_storage(overrides, storage))
    machine = _this_machine()
    _, learnt_from = earlier_trials(experiment, experiment.storage)
    plan = experiment.plan_resources(machine)
    Console().print(plan_table(experiment, plan, machine))
    for line in learnt_from:
        click.echo(line)
    click.echo(f"{file}: fine")


@main.command()
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
    from tuning import query
    from tuning.results import load

    if form == "parquet" and output is None:
        raise click.UsageError("parquet is not for the screen: say where to with --output FILE")
    if form == "table" and output is not None:
        raise click.UsageError("--output needs --format csv, json or parquet")
    found = load(name, storage)
    on_screen = form == "table" and table == "trials"
    if table == "variants" and found.variants.empty:
        raise UserMistake(f"{found.name!r} has no variants; captune compress {name} makes them")
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
        _print_table(chosen, found, whole=columns is not None or table == "schedule")
    else:
        write_frame(chosen, form, output)


@main.command()
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
    from tuning.results import load

    found = load(name, storage)
    if len(found.experiment.objectives) > 1 and len(front := found.front()):
        _print_table(front, found)
        click.echo()
    _print_best(found)


@main.command()
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
    from trainables.trial import resolve_trainable
    from tuning.results import load

    found = load(name, storage)
    trainable: Any = resolve_trainable(found.experiment.trainable)
    if not hasattr(trainable, "caption"):
        raise UserMistake(f"{found.name!r} tunes {found.experiment.trainable!r}, which writes no captions")
    folder = found.folder / "best"
    if not folder.is_dir():
        raise WorkFailed(
            f"{folder} does not exist: the run of {found.name!r} has not finished with a best trial"
        )
    try:
        captions = trainable.caption(folder=folder, images=[Path(image) for image in images])
    except (ValueError, OSError) as error:  # an image that cannot be read
        raise UserMistake(str(error)) from error
    width = max(map(len, images))
    for image, words in zip(images, captions, strict=True):
        click.echo(f"{image:<{width}}  {words}")


@main.command()
@_file
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
@_set
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

    from tuning.comparison_table import comparison_table, made_up, simulating
    from tuning.experiment import Experiment
    from tuning.results import load
    from tuning.scheduler_comparison import compare, fitting, ran_under, savings

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
    Console(width=WIDE).print(comparison_table(frame, experiment), soft_wrap=True)
    lines = made_up(frame, experiment, earlier) if earlier is not None else []
    lines += savings(frame, before) if replay else []
    for line in lines:
        click.echo(line)


@main.command(name="list")
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

    from tuning.storage import list_experiments
    from tuning.summaries import experiments_table

    names = list_experiments(storage)
    if not names:
        click.echo(f"no experiments in {storage}")
        return
    Console(width=None if sys.stdout.isatty() else 200).print(experiments_table(names, storage))


for command in (pareto, compare, export):
    main.add_command(command)
for found_command in entry_points(group="captune.commands"):  # of jobs: this package never imports cluster
    main.add_command(found_command.load())


@contextlib.contextmanager
def _carrying_out(
    experiment: Experiment, displays: list[Progress], *, again: list[str], remedy: str
) -> Iterator[Callable[[Experiment], Progress]]:
    """Show what goes on, and turn what may become of it into messages and exit codes.

    Args:
        displays: those that are shown from the start; all are closed at the end.
        again: the command that goes on after an interruption.
        remedy: what tries again after a failure.

    Yields:
        What makes a display of another experiment, that of the variants.
    """
    from tuning.progress import Progress
    from tuning.results import load
    from tuning.runner import ExportFailed, GivenUp

    def follow(inner: Experiment) -> Progress:
        displays.append(Progress(inner))
        return displays[-1]

    def close() -> None:
        for display in displays:
            display.close()

    try:
        yield follow
    except KeyboardInterrupt:
        close()
        click.echo(f"Interrupted. Go on with: {shlex.join(again)}", err=True)
        click.get_current_context().exit(130)
    except ExportFailed as error:
        close()
        _show_outcome(load(experiment.folder))
        raise WorkFailed(f"{error}; {remedy} tries again") from error
    except GivenUp as error:
        close()
        details = f"captune results {experiment.name} --columns all"
        raise WorkFailed(f"{error}\nAll of them: {details}. {remedy} tries one more.") from error
    finally:
        close()


def _with_storage(overrides: tuple[str, ...], storage: str | None) -> list[str]:
    return [*overrides, f"storage={storage}"] if storage else list(overrides)


def _numbers(text: str, option: str) -> list[int]:
    """`1,4,64` as numbers."""
    parts = [part.strip() for part in text.split(",")]
    wrong = [part for part in parts if not part.isdecimal() or int(part) < 1]
    if wrong:
        raise click.UsageError(f"{option} takes whole numbers from 1, as in 1,4,64, but got {wrong[0]!r}")
    return [int(part) for part in parts]


def _shares(text: str) -> list[float]:
    """`.5,.75` as numbers."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise click.UsageError(f"--ratios takes numbers, as in .5,.75, but got {text!r}") from None


def _this_machine() -> dict[str, float]:
    """What Ray would find here, without starting it."""
    import os

    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"CPU": float(cores), "GPU": float(torch.cuda.device_count())}


def _good(found: Results, column: str) -> str | None:
    """Which direction the experiment itself calls good for a column."""
    from tuning.schema import figure_column

    modes = {figure_column(each.metric): each.mode for each in found.experiment.objectives}
    return modes.get(column)


def _table(found: Results, name: str) -> pd.DataFrame:
    if name != "schedule":
        return getattr(found, name)
    try:
        return found.schedule()
    except ValueError as error:  # no trial has a figure
        raise WorkFailed(str(error)) from error


def _print_table(frame: pd.DataFrame, found: Results, *, whole: bool = False) -> None:
    """All columns if `whole`; else the telling ones, as many as a terminal has room for."""
    from rich.console import Console

    from tuning.query import fitting
    from tuning.render import cell_text, frame_table
    from tuning.summaries import telling

    console = Console()
    shown = frame
    if not whole:
        width = console.width if console.is_terminal else WIDE
        shown = fitting(frame, names=telling(found.experiment, frame), width=width, text=cell_text)
    Console(width=WIDE).print(frame_table(shown), soft_wrap=True)
    hidden = len(frame.columns) - len(shown.columns)
    more = f"; {hidden} more columns with --columns all or --format csv" if hidden else ""
    click.echo(f"{len(frame)} row{'' if len(frame) == 1 else 's'}{more}")


def _show_outcome(found: Results) -> None:
    from tuning.comparison import WENT_WRONG

    trials = found.trials
    if trials["state"].isin(WENT_WRONG).all():
        reasons = trials["reason"].value_counts().head(REASONS).items()
        causes = "".join(f"\n  {count} x {reason}" for reason, count in reasons)
        raise WorkFailed(
            f"no trial of {found.name!r} came to an end; see captune results {found.name} --columns all"
            + (causes or "\n  there were none")
        )
    click.echo()
    _print_table(found.ranked().head(TOP), found)
    click.echo()
    _print_best(found)
    if found.experiment.compression.search == "children":
        _print_variants(found)


def _print_variants(found: Results) -> None:
    from rich.console import Console

    from tuning.choosing_table import front_frame
    from tuning.render import count, frame_table

    if found.variants.empty:
        return
    front = found.pareto()
    click.echo(f"\n{len(front)} of {count(len(found.variants), 'variant')} that no other beats:")
    shown = front_frame(front, found.figures(front), [], width=WIDE)
    Console(width=WIDE).print(frame_table(shown), soft_wrap=True)
    click.echo(f"choose with captune pareto {found.name}, ship with captune export {found.name}")


def _print_best(found: Results) -> None:
    from rich.console import Console

    from tuning.fidelity import in_full
    from tuning.render import frame_table
    from tuning.summaries import best_table

    try:
        row = found.best()
    except ValueError as error:
        raise WorkFailed(str(error)) from error
    Console(soft_wrap=True).print(best_table(found, row))
    folder = found.folder / "best"
    click.echo(f"model  {folder if folder.is_dir() else found.folder / str(row['checkpoint'])}")
    if len(schedule := found.schedule(row["trial_id"])) > 1:
        click.echo("\nits weights were trained under")
        Console(width=WIDE).print(frame_table(schedule.drop(columns="seed")), soft_wrap=True)
    for line in in_full(found.fidelity()):
        click.echo(line)


if __name__ == "__main__":
    main()
