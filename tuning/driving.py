"""Carry a search out: gangs are started, Ray Tune drives them, tables and checkpoints follow the events.

This is the only place that builds a `tune.Tuner`. What is decided is in `search.py`; who may use the folder,
and what comes before and after, in `runner.py`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from trainables.order import Order
from trainables.patience import StorageFailed
from trainables.store import under
from tuning.accumulation import TrialSettings
from tuning.events import Listener
from tuning.experiment import Experiment
from tuning.gangs.resources import GangPlan
from tuning.interruption import Interruption
from tuning.resuming import history
from tuning.search.budget import BudgetGuard
from tuning.search.scheduler import Scheduler
from tuning.search.search import Search
from tuning.search.searcher import Searcher
from tuning.search.trial import Run
from tuning.tables.checkpoints import CheckpointFolders, CheckpointKeeper
from tuning.tables.lineage import trial_seed
from tuning.tables.mirror import Mirror
from tuning.tables.results_writer import ResultsWriter
from tuning.tables.storage import note

TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # our tables replace them; they dominate Tune's loop
    "TUNE_GLOBAL_CHECKPOINT_S": "100000",  # Tune's snapshots are never read
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the run here, not in Tune
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


class CannotGoOn(RuntimeError):
    """What a run needs is gone. Its tables are whole; resuming goes on from there."""


def carry_out(
    experiment: Experiment,
    searcher: Searcher,
    scheduler: Scheduler,
    plan: GangPlan,
    listeners: Sequence[Listener],
    interruption: Interruption,
    *,
    resume: bool,
    say: Callable[[str], None] = lambda line: None,
    mirror: Mirror | None = None,
    whole: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda config: config,
) -> str:
    """Run the search of `experiment` until it is finished; Ray is connected.

    Args:
        plan: the gangs to start.
        listeners: told of every event after the tables and the checkpoint keeper; closed at the end.
        interruption: asked between two steps.
        resume: go on from the tables in the experiment's folder, where there are any.
        say: told, line by line, what a person should know.
        mirror: of the experiment's folder, where `storage` is a URL; started here.
        whole: what a trial is run with, of its configuration; the experiment's `model` goes before it.

    Returns:
        Why it was given up before its end; empty where it was not.

    Raises:
        CannotGoOn: no gang is left that works, or the storage is full or away; the tables are whole.
        tuning.gangs.resources.NoRoom: for a long time the cluster had no room for any gang.
        KeyboardInterrupt: after everything that was started is taken down and the tables are written.
    """
    folder = experiment.folder.absolute()
    with ExitStack() as stack:
        stack.enter_context(storage_is_needed())  # left last
        writer = ResultsWriter(experiment)
        keeper = CheckpointKeeper(
            mirror or CheckpointFolders(folder / "checkpoints"),
            writer,
            max_mb=experiment.checkpoints.max_mb,
            parents=experiment.compression.parents if experiment.compression.search == "children" else 0,
        )
        writer.make_room = keeper.make_room
        everyone: list[Listener] = [writer, keeper, *listeners]
        settings = TrialSettings(experiment, plan.workers, whole)
        budget = BudgetGuard(experiment.budget, workers=plan.workers, gangs=plan.gangs)
        search = Search(
            experiment,
            searcher=searcher,
            scheduler=scheduler,
            budget=budget,
            listeners=everyone,
            can_halve=settings.can_halve,
        )
        for listener in reversed(everyone):  # a stack closes the last first
            stack.callback(listener.close)
        stack.callback(search.interrupt)  # after the gangs' end, for it may have to wait for the storage
        if resume:
            search.replay(*history(experiment, writer.ledger))
        if mirror is not None:
            mirror.start()  # what an interrupted run left is gone before a gang writes
        with _scratch_folder(folder) as scratch, _tune_environment():
            order_for = _order_maker(experiment, settings)
            _drive(experiment, search, budget, plan, keeper, scratch, order_for, interruption, say)
        given_up = search.given_up
        search.close()
        if not given_up and _spent_for_good(experiment, budget):
            note(folder, "finished")
    return given_up


@contextlib.contextmanager
def storage_is_needed() -> Iterator[None]:
    """Turn storage that is full, or away for too long, into `CannotGoOn`."""
    try:
        yield
    except StorageFailed as error:
        raise CannotGoOn(str(error)) from error


def _drive(
    experiment: Experiment,
    search: Search,
    budget: BudgetGuard,
    plan: GangPlan,
    keeper: CheckpointKeeper,
    scratch: Path,
    order_for: Callable[[Run], Order],
    interruption: Interruption,
    say: Callable[[str], None],
) -> None:
    """Let Ray Tune run the search until it is finished."""
    from ray import tune
    from ray.tune.error import TuneError

    from tuning.gangs.gangs import LIMIT_S, Gangs
    from tuning.trial_actor import TrialActor
    from tuning.tune_adapter import Ticker, TuneScheduler, TuneSearcher

    if search.finished:
        return
    training = experiment.training

    def resized(gangs: int) -> None:
        budget.gangs = max(1, gangs)

    with Gangs(
        plan,
        experiment=experiment.name,
        max_failures=training.max_failures,
        hang_timeout_s=training.hang_timeout_s,
        scratch=str(scratch),
        say=say,
        resized=resized,
        priority=training.priority,
        patience_s=training.wait_s or LIMIT_S,
    ) as gangs:

        def between_steps() -> None:
            interruption.check()
            search.tick()
            gangs.look_after(more=budget.trials_left)

        scheduler = TuneScheduler(search, gangs, keeper.make_room)
        tuner = tune.Tuner(
            TrialActor,
            tune_config=tune.TuneConfig(
                search_alg=TuneSearcher(search, gangs, order_for, between_steps),
                scheduler=scheduler,
                num_samples=-1,  # the search says when it is finished
                reuse_actors=True,
                trial_name_creator=lambda trial: f"{experiment.name}-{trial.config['order'].trial_id}",
                trial_dirname_creator=lambda trial: trial.config["order"].run_id,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(scratch),
                callbacks=[Ticker(between_steps)],
                # Tune waits for a last checkpoint before it frees the actor, and meanwhile starts another.
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        )
        try:
            with interruption.held():
                tuner.fit()
        except TuneError as error:
            raise scheduler.error or error from error
        finally:
            search.halt()
        if gangs.none_left:
            raise CannotGoOn("all gangs failed again and again and were closed, whatever trial they had")


def _spent_for_good(experiment: Experiment, budget: BudgetGuard) -> bool:
    """Whether another run would have nothing to do; where there is a limit of time, it would have it anew."""
    return experiment.budget.time is None or not (budget.may_start or budget.out_of_time)


@contextlib.contextmanager
def _tune_environment() -> Iterator[None]:
    """Tune reads these when it is imported and when it starts; whoever called may use it for his own ends."""
    before = {name: os.environ.get(name) for name in TUNE_ENVIRONMENT}
    os.environ.update(TUNE_ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _order_maker(experiment: Experiment, settings: TrialSettings) -> Callable[[Run], Order]:
    """What turns a run of the search into an order for a gang."""
    place, max_epochs = experiment.place, experiment.scheduler.max_epochs

    def order_for(run: Run) -> Order:
        return Order(
            run_id=f"{run.trial_id}-{uuid.uuid4().hex[:8]}",
            trial_id=run.trial_id,
            trainable=experiment.trainable,
            config=settings.of(run.config, run.halvings) or settings.of(run.config) or {},
            data=experiment.data,
            # Trial 7 is the same trial whichever gang runs it and whatever ran before.
            seed=trial_seed(experiment.search.seed, run.trial_id),
            precision=experiment.training.precision,
            max_epochs=max_epochs,
            full_epochs=experiment.full_epochs(),
            folder=under(place, "checkpoints", run.trial_id),
            epoch=run.epoch,
            attempt=run.attempt,
            slowest_epoch_s=run.slowest_epoch_s,
            lost=run.lost,
        )

    return order_for


@contextlib.contextmanager
def _scratch_folder(folder: Path) -> Iterator[Path]:
    """Room for Ray's own records, which nobody reads afterwards."""
    scratch = folder / ".ray"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
