"""Run an experiment: refuse what cannot be, prepare data, carry the search out, export the best.

Carrying a search out is `driving.py`, what a run decides is in `search.py`, what it writes in
`results_writer.py`; here things are put together, taken apart again, and nothing else.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import filelock

from trainables.store import is_url
from trainables.trial import resolve_trainable
from tuning import children
from tuning.choosing.shipping import CannotShip, ship
from tuning.driver import announced, lock_of
from tuning.driving import CannotGoOn, carry_out, storage_is_needed
from tuning.events import Listener
from tuning.experiment import Experiment, ExperimentError, GangPlan
from tuning.gangs.places import refuse_unseen_folders
from tuning.interruption import Interruption
from tuning.quiet import measure_all
from tuning.render import count
from tuning.resuming import refuse_changes, refuse_other_data
from tuning.run_log import written_down
from tuning.search.earlier import keep, kept
from tuning.search.strategies import open_strategy
from tuning.search.warm_start import earlier_trials
from tuning.tables.copies import checkpoint_in
from tuning.tables.lease import ExperimentBusy
from tuning.tables.mirror import Mirror, mirrored
from tuning.tables.results import Results, load
from tuning.tables.storage import note, write_description
from tuning.variants import Variants

__all__ = [
    "CannotGoOn",
    "ExperimentBusy",
    "ExperimentExists",
    "ExportFailed",
    "GivenUp",
    "compress",
    "run",
]

SHOWN_LINES = 8  # of what a trainable has to say; all of it is in a file


class ExperimentExists(ExperimentError):
    """The experiment's folder holds results already and resuming was not asked for."""


class ExportFailed(RuntimeError):
    """The best trial, or a variant, could not be turned into what ships; resuming the run tries again."""


class GivenUp(RuntimeError):
    """All of the first trials went wrong; resuming the run tries another."""


def run(
    experiment: Experiment,
    *,
    resume: bool = False,
    listeners: Sequence[Listener] = (),
    follow_variants: Callable[[Experiment], Listener] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Results:
    """Run `experiment` to the end of its budget and return its results.

    Args:
        experiment: a validated experiment.
        resume: go on where an interrupted run of the same experiment stopped; finished trials stay.
        listeners: told of every event beside the tables, a progress display for instance.
        follow_variants: makes a listener of the inner experiment, where the best trials are compressed.
        say: told, line by line, what there is to know about the data before the trials begin.

    Raises:
        ExperimentExists: there are results and `resume` is False.
        ExportFailed: all is done and in the tables, but `best/` or a variant could not be exported.
        CannotGoOn: what the run needs is gone, as when no gang works any more; `resume` goes on from there.
        GivenUp: all of the first trials went wrong; they are in the tables, with the budget not spent.
        ExperimentBusy: another process is at it.
        StorageAway: the URL that `storage` is was away at the end; resuming on this machine sends the rest.
        ExperimentError: the cluster cannot hold one gang, a node does not see the data or the storage, or the
            experiment to resume was another.
        NoRoom: nor could it after `training.wait_for_resources`.
        trainables.trial.SettingsError: the data cannot be used.
        KeyboardInterrupt: after everything that was started is taken down; `resume` goes on from there.
    """
    folder = experiment.folder.absolute()
    with _sole_user_of(experiment, resume, say) as mirror, ExitStack() as stack:
        refuse_changes(experiment, folder)
        log, say = stack.enter_context(written_down(experiment, folder, say))
        earlier = kept(experiment) if resume else None
        if earlier is None:
            earlier_trials(experiment, experiment.storage)  # what cannot be read is refused before all work
        interruption = stack.enter_context(_connected(experiment))
        plan = _plan(experiment, say)
        refuse_unseen_folders(experiment)
        data = _prepare_data(experiment, folder, say)
        earlier = earlier or earlier_trials(experiment, experiment.storage, data)
        for line in earlier.lines:
            say(line)
        write_description(experiment, command=sys.argv, data=data)
        keep(earlier, experiment)
        searcher, scheduler = open_strategy(experiment, path=folder / "study.journal", earlier=earlier)
        everyone = [*listeners, log, *_found_listeners(experiment, experiment.name)]
        given_up = carry_out(
            experiment,
            searcher,
            scheduler,
            plan,
            everyone,
            interruption,
            resume=resume,
            say=say,
            mirror=mirror,
        )
        if given_up:
            raise GivenUp(given_up)
        stack.enter_context(storage_is_needed())
        _export_best(experiment, load(folder))
        if experiment.compression.search == "children" and children.parents(load(folder)):
            _compress(experiment, mirror, interruption, follow_variants, say)
    return load(folder)


def compress(
    experiment: Experiment,
    *,
    follow_variants: Callable[[Experiment], Listener] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Results:
    """Compress the best trials of an experiment that was run, as its section `compression` says.

    Goes on where an earlier compression stopped, or extends it: what was done stays. Arguments as for `run`.

    Raises:
        CannotGoOn, ExperimentBusy, ExperimentError, ExportFailed, GivenUp, NoRoom, StorageAway,
        KeyboardInterrupt: as `run` does.
    """
    folder = experiment.folder.absolute()
    with ExitStack() as stack:
        mirror = stack.enter_context(_sole_user_of(experiment, True, say))
        _, say = stack.enter_context(written_down(experiment, folder, say))
        interruption = stack.enter_context(_connected(experiment))
        refuse_unseen_folders(experiment)
        _prepare_data(experiment, folder, say)
        stack.enter_context(storage_is_needed())
        if mirror is not None:
            mirror.start()
        _compress(experiment, mirror, interruption, follow_variants, say)
    return load(folder)


def _compress(
    experiment: Experiment,
    mirror: Mirror | None,
    interruption: Interruption,
    follow_variants: Callable[[Experiment], Listener] | None,
    say: Callable[[str], None],
) -> None:
    """Run the children of the best trials, then measure them while nothing trains."""
    found = load(experiment.folder.absolute())
    wanted, impossible = children.points(found, experiment)
    _show(impossible, found.folder / "impossible_variants.txt", say)
    with _mirrored(*children.home(experiment), say, within=mirror) as inner_mirror:
        inner = children.inner_experiment(experiment, wanted)
        parents = dict.fromkeys(children.parent_of(config).trial_id for config in inner.search.start)
        say(f"{count(len(inner.search.start), 'variant')} of {', '.join(parents)}")
        write_description(inner, command=sys.argv)
        given_up = carry_out(
            inner,
            *children.open_children(inner),
            _plan(inner, say),
            [
                *([follow_variants(inner)] if follow_variants else []),
                *_found_listeners(inner, f"{experiment.name}/{inner.name}"),
            ],
            interruption,
            resume=True,
            say=say,
            mirror=inner_mirror,
            whole=children.Inheritance(found, experiment.place),
        )
    if given_up:
        raise GivenUp(f"variants, in {inner.place}: {given_up}")
    variants = Variants(load(inner.folder), found.folder)
    variants.write()
    failures = measure_all(variants, experiment.place, experiment.trainable, say)
    if failures:
        raise ExportFailed(
            f"the run is done, but {count(len(failures), 'variant')} could not be exported and measured; "
            f"the first is {failures[0]}"
        )


@contextlib.contextmanager
def _sole_user_of(
    experiment: Experiment, resume: bool, say: Callable[[str], None]
) -> Iterator[Mirror | None]:
    """Hold the experiment's lock; refuse a folder in use, or one with results unless resuming.

    Where `storage` is a URL, the folder is brought up to date first, and what keeps the URL so is returned.
    """
    folder = experiment.folder.absolute()
    lock = lock_of(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise ExperimentBusy([f"{folder}: another process is running this experiment"]) from None
    except OSError as error:
        rule = f"cannot write into {folder}: {error.strerror or error}"
        raise ExperimentError([experiment.problem(("storage",), rule)]) from error
    with ExitStack() as stack:
        stack.callback(lock.release)
        mirror = stack.enter_context(_mirrored(folder, experiment.place, say))
        if (folder / "trials.parquet").exists() and not resume:
            has = f"{experiment.place} has results already"
            raise ExperimentExists([f"{has}: go on with --resume, or give the experiment another name"])
        with announced(folder):
            yield mirror


@contextlib.contextmanager
def _mirrored(
    folder: Path, place: str, say: Callable[[str], None], *, within: Mirror | None = None
) -> Iterator[Mirror | None]:
    """Where `place` is a URL, hold the experiment there, and bring its folder here up to date."""
    if is_url(place):
        with mirrored(folder, place, say, within=within) as mirror:
            yield mirror
    else:
        yield None


@contextlib.contextmanager
def _connected(experiment: Experiment) -> Iterator[Interruption]:
    """Ray for this experiment, and what becomes of Ctrl-C.

    While Ray starts, Ctrl-C waits: a process in which that was cut short may crash at its end (Ray 2.60).
    """
    with ExitStack() as stack:
        with Interruption() as starting, starting.held():
            stack.enter_context(_connect()(experiment=experiment))
        yield stack.enter_context(Interruption())  # anew: Ray has set a handler of its own


def _connect() -> Callable[..., Any]:
    """`cluster.connect.connect`, found by name: this package does not depend on where it runs."""
    (entry_point,) = entry_points(group="captune.cluster", name="connect")
    return entry_point.load()


def _found_listeners(experiment: Experiment, title: str) -> list[Listener]:
    """What follows every run, found by the entry points `captune.listeners`; Ray is connected."""
    return [each.load()(experiment, title) for each in entry_points(group="captune.listeners")]


def _plan(experiment: Experiment, say: Callable[[str], None]) -> GangPlan:
    """`tuning.gangs.waiting.plan_in_time`, imported late: Ray must not be before the connection is set up."""
    from tuning.gangs.waiting import plan_in_time

    return plan_in_time(experiment, say)


def _prepare_data(experiment: Experiment, folder: Path, say: Callable[[str], None]) -> str | None:
    """Let the trainable prepare its data; what it has to say is shown in short and kept in full.

    Returns:
        The identity of the data, where the trainable says one.

    Raises:
        ExperimentError: it is another than that of the results in `folder`.
    """
    trainable, report = resolve_trainable(experiment.trainable), None
    if hasattr(trainable, "prepare"):
        report = trainable.prepare(experiment.data, experiment.model, progress=sys.stderr.isatty()) or []
    identity = trainable.identity(experiment.data) if hasattr(trainable, "identity") else None
    refuse_other_data(folder, identity)
    if report is not None:
        _show(report, folder / "data_report.txt", say)
    return identity


def _show(lines: Sequence[str], path: Path, say: Callable[[str], None]) -> None:
    """Say the first of `lines`, and write them all to `path`."""
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    for line in lines[:SHOWN_LINES]:
        say(line)
    if len(lines) > SHOWN_LINES:
        say(f"… and {len(lines) - SHOWN_LINES} more lines in {path}")


def _export_best(experiment: Experiment, results: Results) -> None:
    """Put what the best trial would ship into `best/`; nothing where no trial has a figure."""
    try:
        best = results.best()
    except ValueError:
        return
    try:
        checkpoint = checkpoint_in(results.folder, best["checkpoint"])
        ship(experiment.trainable, checkpoint, results.folder / "best")
        note(results.folder, "exported")
    except (CannotShip, OSError) as error:  # after hours of work: nothing of that may get lost
        raise ExportFailed(
            f"the run is done, but its best trial {best['trial_id']} could not be shipped: {error}"
        ) from error
