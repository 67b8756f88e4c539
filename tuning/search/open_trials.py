"""Trials that are not over, and what becomes of them: begun, put aside, paused at a rung, ended.

Whoever is concerned is told of each change: searcher, scheduler, budget, incumbent, and the listeners. What
is decided is for `tuning/search/search.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime

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

    def has_room(self, epoch: int, but: str = "", *, leads: bool = False) -> bool:
        """Whether a trial with `epoch` epochs may run another, and whoever leads then can still be finished.

        While none has a result, whether the farthest can.

        Args:
            epoch: those behind it.
            but: that trial, if it has just reported and so is not in the middle of an epoch.
            leads: it is the leader.
        """
        in_flight, slowest_s = len(self.running), self._budget.slowest_epoch_s
        if self._budget.has_room_for(self._max_epochs, in_flight, epoch_s=slowest_s, leads=leads):
            return True  # whoever leads: with a thousand gangs it takes long to look at each
        best = self.incumbent.trial_id
        running = self.running - {but}
        done = [epoch + 1, *(self._trials[each].epoch + 1 for each in running)]
        if best is None:
            farthest = max([*done, *(trial.epoch for trial in self)])
            needed = self._max_epochs - farthest if self._trials else 0
        else:
            if best in self._trials and best not in running and not leads:
                done.append(self._trials[best].epoch)
            needed = self._max_epochs - min(done)
        if not self._budget.has_room_for(max(needed, 0), len(running), leads=leads):
            return False
        may_lead = [self._trials[each].epoch_s for each in (*running, best, but) if each in self._trials]
        return self._budget.has_room_for(
            max(needed, 0), len(running), epoch_s=max(may_lead, default=0.0), leads=leads
        )

    def open(self, trial_id: str) -> Trial:
        """A trial that the searcher suggested, or that an earlier run began."""
        known = self._searcher.observed[int(trial_id)]
        trial = self._trials[trial_id] = Trial(
            trial_id,
            known.config,
            epoch=known.parent_epoch,
            parent=known.parent,
            parent_epoch=known.parent_epoch,
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
                parent=trial.parent,
                parent_epoch=trial.parent_epoch,
                halvings=trial.halvings,
            )
        )

    def tell_paused(self, trial: Trial, reason: str) -> None:
        """It leaves its gang, and is not over."""
        self.tell(TrialEnded(trial_id=trial.trial_id, state="paused", reason=reason, at=self._now()))

    def tell(self, event: Event) -> None:
        """All listeners, in order."""
        for listener in self._listeners:
            listener.handle(event)

    def put_aside(self, trial: Trial, reason: str) -> None:
        """Not the scheduler's pause: the trial goes on as soon as anything may."""
        self.running.discard(trial.trial_id)
        self.waiting.append(trial.trial_id)
        self.tell_paused(trial, reason)

    def pause(self, trial: Trial, reason: str) -> None:
        """At its rung, until the scheduler promotes it."""
        self.false_start.worked()
        self._leave(trial)
        self.tell_paused(trial, reason)

    def end(self, trial: Trial, state: TrialState, reason: str, error: str = "") -> None:
        """It ran, and is over."""
        self._leave(trial)
        if state in WENT_WRONG:
            self.false_start.went_wrong(trial.trial_id, trial.epoch, reason)
        else:
            self.false_start.worked()
        self.close(trial, state)
        self._tell_ended(trial, state, reason, error)

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

    def _tell_ended(self, trial: Trial, state: TrialState, reason: str, error: str = "") -> None:
        self.tell(
            TrialEnded(trial_id=trial.trial_id, state=state, reason=reason, at=self._now(), error=error)
        )
