"""Trials that are not over, and what becomes of them: begun, put aside, paused at a rung, ended.

Whoever is concerned is told of each change: searcher, scheduler, budget, incumbent, and the listeners. What
is decided is for `tuning/search/search.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import partial

from tuning.events import Event, Listener, TrialEnded, TrialStarted, TrialState
from tuning.search.budget import BudgetGuard
from tuning.search.false_start import FalseStart
from tuning.search.incumbent import Incumbent
from tuning.search.scheduler import Scheduler
from tuning.search.searcher import Searcher
from tuning.search.trial import Trial
from tuning.tables.comparison import WENT_WRONG

INTERRUPTED = "the run was interrupted"


class OpenTrials:
    """Begins with none.

    Args:
        max_epochs: of a whole training.
        searcher: told how each ended.
        scheduler: told which to promote no more.
        budget: told which left their gangs.
        listeners: told of every event, in order.
        now: the clock of the events.
    """

    def __init__(
        self,
        *,
        max_epochs: int,
        searcher: Searcher,
        scheduler: Scheduler,
        budget: BudgetGuard,
        listeners: Sequence[Listener],
        now: Callable[[], datetime],
    ):
        self._max_epochs = max_epochs
        self._searcher = searcher
        self._scheduler = scheduler
        self._budget = budget
        self._listeners = listeners
        self._now = now
        self._trials: dict[str, Trial] = {}
        self.running: set[str] = set()
        """Those on a gang."""
        self.waiting: deque[str] = deque()
        """Those to be taken up again, in this order. What neither runs nor waits is paused at its rung."""
        self.incumbent = Incumbent()
        self.false_start = FalseStart()

    def get(self, trial_id: str | None) -> Trial | None:
        """The trial, unless it is over, or there is none of this name."""
        return None if trial_id is None else self._trials.get(trial_id)

    def __getitem__(self, trial_id: str) -> Trial:
        return self._trials[trial_id]

    def __iter__(self) -> Iterator[Trial]:
        return iter(self._trials.values())

    @property
    def leader(self) -> str | None:
        """The trial that goes on whatever others may: the best; while none has a result, the farthest."""
        if self.incumbent.trial_id is not None:
            return self.incumbent.trial_id
        return max(self._trials, key=lambda name: (self._trials[name].epoch, -int(name)), default=None)

    def has_room(self, trial: Trial | None = None) -> bool:
        """Whether `trial`, or a new one, may run another epoch, and whoever leads then can still be finished.

        While none has a result, whether the farthest can. The leader itself waits only for others that run,
        where these may take the lead and there would not be enough for them.
        """
        leads = trial is not None and trial.trial_id == self.leader
        in_flight = len(self.running) - (trial is not None and trial.trial_id in self.running)
        if leads and not in_flight:
            return True
        room = partial(self._budget.has_room_for, in_flight=in_flight, leads=leads)
        if room(self._max_epochs, epoch_s=self._budget.slowest_epoch_s):
            return True  # whoever leads: with a thousand gangs it takes long to look at each
        others = [self._trials[name] for name in self.running if trial is None or name != trial.trial_id]
        needed = self._needed(trial, others)
        may_lead = [each for each in (*others, trial, self.get(self.incumbent.trial_id)) if each]
        return room(needed) and room(needed, epoch_s=max((each.epoch_s for each in may_lead), default=0.0))

    def _needed(self, trial: Trial | None, running: Sequence[Trial]) -> int:
        """Epochs of whoever may lead after the next of `trial`, or of a new one, and of those that run."""
        done = [each.epoch + 1 for each in running] + [trial.epoch + 1 if trial else 1]
        if self.incumbent.trial_id is None:
            farthest = max([*done, *(each.epoch for each in self)])
            return self._max_epochs - farthest if self._trials else 0
        best = self.get(self.incumbent.trial_id)
        if best is not None and best is not trial and best.trial_id not in self.running:
            done.append(best.epoch)
        return self._max_epochs - min(done)

    def open(self, trial_id: str) -> Trial:
        """A trial that the searcher suggested, or that an earlier run began."""
        known = self._searcher.observed[int(trial_id)]
        trial = self._trials[trial_id] = Trial(
            trial_id,
            known.config,
            epoch=known.parent_epoch,
            parent=known.parent,
            parent_epoch=known.parent_epoch,
            why=known.why,
        )
        self._budget.count_trial()
        return trial

    def tell_started(self, trial: Trial) -> None:
        """It begins, or goes on."""
        self.tell(
            TrialStarted(
                trial_id=trial.trial_id,
                config=trial.config,
                at=self._now(),
                why=trial.why,
                chosen=self._searcher.observed[int(trial.trial_id)].why,
                parent=trial.parent,
                parent_epoch=trial.parent_epoch,
                halvings=trial.halvings,
            )
        )

    def tell_paused(self, trial: Trial, reason: str, *, lost_worker_s: float = 0.0) -> None:
        """It leaves its gang, and is not over."""
        self._tell_ended(trial, "paused", reason, lost_worker_s=lost_worker_s)

    def tell(self, event: Event) -> None:
        """All listeners, in order."""
        for listener in self._listeners:
            listener.handle(event)

    def put_aside(self, trial: Trial, reason: str, *, lost_worker_s: float = 0.0) -> None:
        """Not the scheduler's pause: the trial goes on as soon as anything may."""
        self.running.discard(trial.trial_id)
        self.waiting.append(trial.trial_id)
        self.tell_paused(trial, reason, lost_worker_s=lost_worker_s)

    def pause(self, trial: Trial, reason: str) -> None:
        """At its rung, until the scheduler promotes it."""
        self.false_start.worked()
        self._leave(trial)
        self.tell_paused(trial, reason)

    def end(
        self, trial: Trial, state: TrialState, reason: str, error: str = "", *, lost_worker_s: float = 0.0
    ) -> None:
        """It ran, and is over."""
        self._leave(trial)
        if state in WENT_WRONG:
            self.false_start.went_wrong(trial.trial_id, trial.epoch, reason)
        else:
            self.false_start.worked()
        self.close(trial, state)
        self._tell_ended(trial, state, reason, error, lost_worker_s)

    def stop(self, trial: Trial, reason: str) -> None:
        """It was paused, and is over."""
        self.close(trial, "stopped")
        self._tell_ended(trial, "stopped", reason)

    def close(self, trial: Trial, state: TrialState) -> None:
        """It is over; the listeners know, or are told by whoever calls this."""
        del self._trials[trial.trial_id]
        self._searcher.finish(trial.trial_id, state)
        self._scheduler.drop(trial.trial_id)
        if state in WENT_WRONG:
            self.incumbent.forget(trial.trial_id)  # never recommended, however good it was before

    def left_its_gang(self) -> None:
        """A trial, for good or at a rung: the budget counts those that brought nothing better."""
        self._budget.trial_over(self.incumbent.take_gain())

    def _leave(self, trial: Trial) -> None:
        self.running.discard(trial.trial_id)
        self.left_its_gang()

    def _tell_ended(
        self, trial: Trial, state: TrialState, reason: str, error: str = "", lost_worker_s: float = 0.0
    ) -> None:
        self.tell(
            TrialEnded(
                trial_id=trial.trial_id,
                state=state,
                reason=reason,
                at=self._now(),
                error=error,
                lost_worker_s=lost_worker_s,
            )
        )
