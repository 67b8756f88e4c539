"""What a run may still do: trials, epochs, time, worker-hours, money and patience, counted against limits.

Pure: counts and a clock that is passed in, nothing of Ray or trials. What becomes of running trials at a
limit is for `tuning/search/search.py`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tuning.experiment import Budget

HOUR_S = 3600.0


class BudgetGuard:
    """Holds a run to its limits: `may_start` another trial, or `exhausted`, so that nothing goes on.

    Between the two is the plateau: nothing goes on but the best trial (`has_room_for` says no).

    Everything but time is counted over all resumptions of an experiment: who resumes tells of the earlier
    trials and epochs again. Time runs from when this object was built.
    """

    def __init__(
        self,
        limits: Budget,
        *,
        workers: int = 1,
        gangs: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Start the clock.

        Args:
            limits: the experiment's `budget` section; a limit that is None never ends anything.
            workers: workers of one gang.
            gangs: trials that run at the same time, to begin with.
            clock: seconds from any origin, never going back.
        """
        self._limits = limits
        self._workers = workers
        self.gangs = gangs
        """Trials that run at the same time now."""
        self._clock = clock
        self._began = clock()
        self._started = 0
        self._seconds = 0.0
        self._timed = 0  # epochs of which it is known what they took
        self.epochs = 0
        """Epochs counted."""
        self.worker_s = 0.0
        """Seconds of work, summed over workers."""
        self._lost_s = 0.0  # of these, that came to no epoch
        self.slowest_epoch_s = 0.0
        """The longest of their durations."""
        self.without_gain = 0
        """Trials in a row, up to now, that brought nothing better."""
        self.why_flat = ""
        """One line on why only the best trial may go on; empty where others may, too.

        Once on a plateau, it stays, though the best trial, which is trained to its end, becomes better.
        """

    def count_trial(self) -> None:
        """A trial was started, now or in an earlier run."""
        self._started += 1

    def count_epoch(self, worker_s: float, seconds: float) -> None:
        """An epoch was done, now or in an earlier run.

        Args:
            worker_s: seconds of work, summed over its workers.
            seconds: its duration.
        """
        self.epochs += 1
        self._timed += 1
        self.worker_s += worker_s
        self._seconds += seconds
        self.slowest_epoch_s = max(self.slowest_epoch_s, seconds)

    def count_failure(self) -> None:
        """A trial went wrong in an epoch, now or in an earlier run.

        Else a budget of epochs would never end where every trial fails.
        """
        self.epochs += 1

    def count_lost(self, worker_s: float) -> None:
        """Work was done, now or in an earlier run, that came to no epoch: seconds, summed over workers."""
        self.worker_s += worker_s
        self._lost_s += worker_s

    def count_total(self, worker_s: float) -> None:
        """So much work was done in all: what is beyond that of the epochs counted so far came to none."""
        self.count_lost(max(0.0, worker_s - self.worker_s))

    def trial_over(self, improved: bool) -> None:
        """A trial ended or was paused at a rung; `improved`: with a better best, or a larger hypervolume."""
        self.without_gain = 0 if improved else self.without_gain + 1
        if self.without_gain == self._limits.plateau and not self.why_flat:
            flat = f"{self.without_gain} trials in a row brought nothing better"
            self.why_flat = f"{flat}, budget.plateau is reached"

    @property
    def may_start(self) -> bool:
        """Whether a further trial may start."""
        return not self.why_exhausted

    @property
    def trials_left(self) -> float:
        """Further trials that may start; inf where nothing limits their number."""
        if not self.may_start:
            return 0
        return math.inf if self._limits.trials is None else self._limits.trials - self._started

    @property
    def exhausted(self) -> bool:
        """Whether nothing may go on: what runs finishes its epoch. Not so where only `trials` is used up."""
        return bool(self._spent_limit())

    @property
    def why_exhausted(self) -> str:
        """One line on why no further trial may start; empty where one may."""
        trials = self._limits.trials
        if trials is not None and self._started >= trials and not self.exhausted:
            return f"all {trials} trials of the budget have started"
        return self._spent_limit() or self.why_flat

    @property
    def epochs_left(self) -> float:
        """Epochs that all gangs together may still run, never negative; inf where nothing limits them.

        Exact for a limit on epochs; estimated for the others from what epochs took so far, and inf for them
        before the first.
        """
        if self.exhausted or self.why_flat:
            return 0.0
        left = [math.inf]
        if self._limits.epochs is not None:
            left.append(self._limits.epochs - self.epochs)
        if self._epoch_worker_s > 0:
            left.append(self._worker_s_left() / self._epoch_worker_s)
        if self._limits.time_s is not None and self._seconds > 0:
            left.append(self._until_s(self._limits.time_s) * self.gangs / (self._seconds / self._timed))
        return max(0.0, min(left))

    def has_room_for(self, epochs: int, in_flight: int, *, epoch_s: float = 0.0, leads: bool = False) -> bool:
        """Whether another epoch can be run and one trial still be trained for `epochs` more epochs after it.

        On a plateau it cannot.

        Args:
            epochs: of one trial, on one gang.
            in_flight: epochs that run now on other gangs, and will be finished.
            epoch_s: what its epochs take, seconds; the mean of all trials' where that is more.
            leads: it is the best trial that asks: only what gangs take from each other counts, not time, nor
                a plateau.
        """
        left = [math.inf]
        if self._limits.epochs is not None:
            left.append(self._limits.epochs - self.epochs - in_flight)
        if self._epoch_worker_s > 0:
            each = max(self._epoch_worker_s, epoch_s * self._workers)
            left.append(self._worker_s_left() / each - in_flight)
        if not leads:
            left.append(0.0 if self.why_flat else math.inf)
            if self._limits.time_s is not None and self._seconds > 0:
                left.append(self._until_s(self._limits.time_s) / max(self._seconds / self._timed, epoch_s))
        return min(left) >= epochs + 1

    @property
    def out_of_time(self) -> bool:
        """Whether `time` is used up; a resumed run has it again."""
        return self._limits.time_s is not None and self._until_s(self._limits.time_s) == 0

    @property
    def time_left_s(self) -> float | None:
        """Seconds until time, worker-hours or money are used up if every worker is busy; None without these.

        Never negative.
        """
        left = self._worker_s_left() / (self._workers * self.gangs)
        if self._limits.time_s is not None:
            left = min(left, self._until_s(self._limits.time_s))
        return None if math.isinf(left) else left

    @property
    def cost(self) -> float | None:
        """What the work has cost; None where `price_per_hour` is not given."""
        price = self._limits.price_per_hour
        return None if price is None else self.worker_s / HOUR_S * price

    def _spent_limit(self) -> str:
        """The first limit that ends everything, in words; empty where there is none."""
        limits, hours = self._limits, self.worker_s / HOUR_S
        if self.out_of_time:
            return f"the budget's {limits.time_s:.0f} s are over"
        if limits.epochs is not None and self.epochs >= limits.epochs:
            return f"all {limits.epochs} epochs of the budget are spent"
        if limits.worker_hours is not None and hours >= limits.worker_hours:
            return f"{hours:.4g} worker-hours are spent, the budget has {limits.worker_hours:g}"
        if limits.money is not None and self.cost is not None and self.cost >= limits.money:
            return f"{self.cost:.4g} is spent, the budget's money is {limits.money:g}"
        return ""

    @property
    def _epoch_worker_s(self) -> float:
        """Work of an epoch on average; 0.0 where it is not known."""
        return (self.worker_s - self._lost_s) / max(1, self._timed)

    def _worker_s_left(self) -> float:
        """Seconds of work that worker-hours and money still allow, never negative; inf without these."""
        limits, left = self._limits, math.inf
        if limits.worker_hours is not None:
            left = limits.worker_hours * HOUR_S - self.worker_s
        if limits.money is not None and limits.price_per_hour is not None:
            left = min(left, limits.money / limits.price_per_hour * HOUR_S - self.worker_s)
        return max(0.0, left)

    def _until_s(self, time_s: float) -> float:
        return max(0.0, self._began + time_s - self._clock())
