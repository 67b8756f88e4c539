"""Ray Tune around a `Search`: the searcher and the scheduler that Tune calls.

Nothing is decided here. Tune asks for a configuration (`TuneSearcher.suggest`), gets one if a gang is
free, gives it to the gang's trial actor (`tuning/trial_actor.py`), which fetches one epoch's report at a time
from the gang's owner, and hands each to `TuneScheduler`, which asks the `Search`. Tune's own retries,
snapshots and result files are not used: what must survive is in the experiment's tables.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher as TuneSearcherBase

from trainables.order import Failure, Moved, Order, Report
from trainables.patience import StorageFailed
from tuning.gangs.gangs import Gangs
from tuning.search.search import Search
from tuning.search.trial import Run

WAIT_S = 0.1  # between two looks for a gang that has room
REMEMBERED = 200  # trials of which Tune may keep those that are over; more, and each next one costs more


class _Unsaved:
    """Tune pickles all that it is given, for a restore of its own that is never used here."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class TuneSearcher(_Unsaved, TuneSearcherBase):
    """Gives Tune a trial when the search has one and a gang is free.

    Args:
        order_for: makes the order of a run (adds what is the same for all trials).
        between_steps: lets everybody else work while nothing can be suggested.
    """

    def __init__(
        self,
        search: Search,
        gangs: Gangs,
        order_for: Callable[[Run], Order],
        between_steps: Callable[[], None],
    ):
        super().__init__()
        self._search, self._gangs, self._order_for = search, gangs, order_for
        self._between_steps = between_steps

    def suggest(self, trial_id: str) -> Any:
        """The config of Tune's trial `trial_id`; None: not now; FINISHED: never again."""
        while not self._gangs.any_free:
            if self._gangs.none_left or self._search.finished:
                return TuneSearcherBase.FINISHED
            if self._gangs.lent:
                return None
            # Without any trial Tune would only come back after a second, and do nothing else meanwhile.
            self._between_steps()
            time.sleep(WAIT_S)
        run = self._search.next_run()
        if run is None:
            return TuneSearcherBase.FINISHED if self._search.finished else None
        order = self._order_for(run)
        gang = self._gangs.lend(order.run_id, order.trial_id)
        return {"order": order, "gang": gang}

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
        self._seats: dict[str, Any] = {}  # what Tune tells a gang's actor by

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Have Tune keep the gang's actor between trials, which it does by itself for one actor in all.

        Those of gangs that have ended are let go.
        """
        kept = tune_controller._tune_controller._actor_cache  # no setting reaches it
        gang = trial.config["gang"]
        if gang not in self._seats:
            self._seats[gang] = trial.placement_group_factory
            kept.increase_max(self._seats[gang])
        for gone in self._seats.keys() - self._gangs.names:
            kept.decrease_max(self._seats.pop(gone))

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
    """Calls `between_steps` whenever nothing else is going on in Tune's loop."""

    def __init__(self, between_steps: Callable[[], None]):
        self._between_steps = between_steps

    def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
        """Tune's loop went round once, at the latest after 0.1 s.

        `trials` is the list that Tune itself goes through several times a trial: what is over leaves it.
        """
        self._between_steps()
        if len(trials) > REMEMBERED:
            trials[:] = [trial for trial in trials if trial.status != Trial.TERMINATED]
