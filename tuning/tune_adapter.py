"""Ray Tune around a `Search`: the light trial actor, and the searcher and scheduler that Tune calls.

Nothing is decided here. Tune asks for a configuration (`TuneSearcher.suggest`), gets one if a gang is free,
starts the trial actor, which fetches one epoch's report at a time from the gang's owner, and hands each to
`TuneScheduler`, which asks the `Search`. Tune's own retries, snapshots and result files are not used: what
must survive is in the experiment's tables.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayActorError
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher as TuneSearcherBase

from trainables.order import Failure, Moved, Order, Report
from trainables.patience import StorageFailed
from tuning.gangs.gangs import Gangs
from tuning.search.search import Run, Search

ASK_S = 10.0  # how long one question to a gang's owner may stay open
WAIT_S = 0.1  # between two looks for a gang that has room
REMEMBERED = 200  # trials of which Tune may keep those that are over; more, and each next one costs more
PATIENCE_S = 120.0  # how long an owner may take to come back before its trial counts as lost


class TrialActor(tune.Trainable):
    """One trial as Tune sees it. A step is an epoch of the gang; it never imports a model."""

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """One byte: gangs hold the resources, and Tune refuses trials that ask for nothing at all."""
        return tune.PlacementGroupFactory([{"CPU": 0.0, "memory": 1.0}])

    def __repr__(self) -> str:  # Ray asks once, when the actor is new; it then runs many trials
        return f"trials of {self._experiment}"

    def setup(self, config: dict[str, Any]) -> None:
        """Take the order, the gang and the experiment that `config` names."""
        self._experiment: str = config["experiment"]
        self._order: Order = config["order"]
        self._owner = ray.get_actor(config["gang"])
        self._epoch = self._order.epoch

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Become another trial: Tune uses the actor again (`reuse_actors`)."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Let the gang run one more epoch and return its report, or the failure that ended the trial."""
        self._epoch += 1
        return {"answer": self._ask(self._epoch)}

    def _ask(self, epoch: int) -> Report | Failure | Moved:
        patience = PATIENCE_S
        # Where the owner was restarted it has forgotten the order: it starts anew from this epoch.
        order = dataclasses.replace(self._order, epoch=epoch - 1)
        while True:
            try:
                answer: Any = ray.get(self._owner.await_report.remote(order, epoch, ASK_S))
            except RayActorError:  # being restarted, and its workers with it; it takes some seconds
                order = dataclasses.replace(order, attempt=self._order.attempt + 1)
                patience -= 0.5
                if patience < 0:
                    raise
                time.sleep(0.5)
                continue
            if isinstance(answer, Report):
                self._order = dataclasses.replace(self._order, attempt=answer.attempt)
            if answer is not None:
                return answer

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: a trial's state is in its own checkpoints and in the experiment's tables."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing, see `save_checkpoint`."""


class _Unsaved:
    """Tune pickles all that it is given, for a restore of its own that is never used here."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class TuneSearcher(_Unsaved, TuneSearcherBase):
    """Gives Tune a trial when the search has one and a gang is free.

    Args:
        order_for: makes the order of a run (adds what is the same for all trials).
        experiment: its name, by which the dashboard shows the trials' actors.
    """

    def __init__(self, search: Search, gangs: Gangs, order_for: Callable[[Run], Order], experiment: str):
        super().__init__()
        self._search, self._gangs, self._order_for = search, gangs, order_for
        self._experiment = experiment

    def suggest(self, trial_id: str) -> Any:
        """The config of Tune's trial `trial_id`; None: not now; FINISHED: never again."""
        while not self._gangs.any_free:
            if self._gangs.none_left:
                return TuneSearcherBase.FINISHED
            if self._gangs.lent:
                return None
            # Without any trial Tune would only come back after a second, and do nothing else meanwhile.
            self._search.tick()
            self._gangs.look_after()
            time.sleep(WAIT_S)
        run = self._search.next_run()
        if run is None:
            return TuneSearcherBase.FINISHED if self._search.finished else None
        order = self._order_for(run)
        gang = self._gangs.lend(order.run_id, order.trial_id)
        return {"order": order, "gang": gang, "experiment": self._experiment}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Nothing: the scheduler's adapter hears it with more detail."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing: the study has a storage of its own."""


class TuneScheduler(_Unsaved, FIFOScheduler):
    """Hands every result to the search and obeys; trials start in the order in which they come.

    `make_room` deletes checkpoints that nobody needs, and says whether there were any.
    `error` is what went wrong in that, as it was raised (a full disk, say): Tune makes a text of it.
    """

    error: Exception | None = None

    def __init__(self, search: Search, gangs: Gangs, make_room: Callable[[], bool]):
        super().__init__()
        self._search, self._gangs, self._make_room = search, gangs, make_room

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Continue or stop; the gang of a trial that leaves it is free at once.

        A paused trial is over for Tune: when it is promoted, it comes again, from its checkpoint.
        """
        try:
            return self._decide(trial, result)
        except Exception as error:
            self.error = error
            raise

    def _decide(self, trial: Any, result: dict[str, Any]) -> str:
        order: Order = trial.config["order"]
        gang: str = trial.config["gang"]
        answer: Report | Failure | Moved = result["answer"]
        if isinstance(answer, Report):
            decision = self._search.report(order.trial_id, answer, gang=gang)
            if not decision.leaves:
                return FIFOScheduler.CONTINUE
        elif isinstance(answer, Moved):
            self._search.lose(order.trial_id, answer.reason, times=answer.deaths)
            if answer.storage and not (answer.storage == "full" and self._make_room()):
                raise StorageFailed(answer.reason, full=answer.storage == "full")
            if answer.gang_closed:
                self._gangs.close_one(gang)
                self._search.gang_closed(gang, answer.gang_closed)
            elif answer.deaths:
                self._gangs.suspect(gang, order.trial_id)
        else:
            self._search.fail(order.trial_id, answer)
        self._gangs.take_back(order.run_id)
        return FIFOScheduler.STOP

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """The trial actor died: the search sends the trial again, from its last checkpoint."""
        order: Order = trial.config["order"]
        self._gangs.take_back(order.run_id)
        try:
            self._search.lose(order.trial_id, _error_text(trial))
        except Exception as error:
            self.error = error
            raise


def _error_text(trial: Any) -> str:
    """What Tune wrote down about a trial that it lost; `Trial.get_error` reads a copy that comes later."""
    path = trial.error_file
    return Path(path).read_text() if path and Path(path).exists() else "the trial's actor died"


class Ticker(_Unsaved, tune.Callback):
    """Lets the search's listeners work between results, and the gangs follow the cluster."""

    def __init__(self, search: Search, gangs: Gangs):
        self._search, self._gangs = search, gangs

    def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
        """Tune's loop went round once, at the latest after 0.1 s.

        `trials` is the list that Tune itself goes through several times a trial: what is over leaves it.
        """
        self._search.tick()
        self._gangs.look_after()
        if len(trials) > REMEMBERED:
            trials[:] = [trial for trial in trials if trial.status != Trial.TERMINATED]
