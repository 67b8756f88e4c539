"""The commands that do the work: `captune run`, `compress`, `check`.

Only click is imported at the top, as in `tuning/cli.py`, which adds these commands to its group.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from tuning.commands.parts import (
    WorkFailed,
    file_argument,
    own_storage_option,
    set_option,
    storage_option,
    with_storage,
)
from tuning.commands.printed import print_best, print_table, print_variants

if TYPE_CHECKING:
    from tuning.experiment import Experiment
    from tuning.progress import Progress
    from tuning.tables.results import Results

#: Trials in the table that `run` ends with.
TOP = 10
#: Different reasons named where every trial went wrong.
REASONS = 5


@click.command()
@file_argument
@click.option("--resume", is_flag=True, help="Go on with an interrupted run; finished trials are kept.")
@set_option
@own_storage_option
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
    from trainables.store import Store, is_url
    from tuning.experiment import Experiment
    from tuning.progress import Progress
    from tuning.runner import run as run_experiment
    from tuning.tables.mirror import bring_here

    experiment = Experiment.load(file, with_storage(overrides, storage))
    words = ["captune", "run", file, "--resume"]
    words += [word for override in overrides for word in ("--set", override)]
    words += [] if storage is None else ["--storage", storage]
    if is_url(experiment.storage):
        with contextlib.suppress(OSError):  # the run itself will tell
            bring_here(experiment.folder, Store(experiment.place))
    progress = Progress(experiment)
    with _carrying_out(experiment, [progress], again=words, remedy="--resume") as follow:
        results = run_experiment(
            experiment, resume=resume, listeners=[progress], follow_variants=follow, say=click.echo
        )
    _show_outcome(results)


@click.command()
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
    from tuning.runner import compress as compress_best
    from tuning.tables.results import load

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
    print_variants(found)


@click.command()
@file_argument
@set_option
@own_storage_option
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
    from tuning.search.warm_start import earlier_trials

    experiment = Experiment.load(file, with_storage(overrides, storage))
    machine = _this_machine()
    earlier = earlier_trials(experiment, experiment.storage)
    plan = experiment.plan_resources([machine])
    Console(markup=False).print(plan_table(experiment, plan, [machine]))
    for line in earlier.lines:
        click.echo(line)
    click.echo(f"{file}: fine")


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
    from tuning.gangs.resources import NoRoom
    from tuning.progress import Progress
    from tuning.runner import CannotGoOn, ExportFailed, GivenUp
    from tuning.tables.results import load
    from tuning.tables.storage import command

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
    except NoRoom as error:
        close()
        raise WorkFailed(f"{error}; {remedy} tries again") from error
    except CannotGoOn as error:
        close()
        raise WorkFailed(f"{error}\nGo on with: {shlex.join(again)}") from error
    except GivenUp as error:
        close()
        details = command("results", experiment.place, "--columns", "all")
        raise WorkFailed(f"{error}\nAll of them: {details}. {remedy} tries one more.") from error
    finally:
        close()


def _show_outcome(found: Results) -> None:
    from tuning.tables.comparison import WENT_WRONG
    from tuning.tables.storage import command

    trials = found.trials
    if trials["state"].isin(WENT_WRONG).all():
        reasons = trials["reason"].value_counts().head(REASONS).items()
        causes = "".join(f"\n  {count} x {reason}" for reason, count in reasons)
        details = command("results", found.place, "--columns", "all")
        causes = causes or "\n  there were none"
        raise WorkFailed(f"no trial of {found.name!r} came to an end; see {details}{causes}")
    click.echo()
    print_table(found.ranked().head(TOP), found)
    click.echo()
    print_best(found)
    if found.experiment.compression.search == "children":
        print_variants(found)


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
