"""Whether anything more may start. Pure: counts and a clock that is passed in, nothing of Ray or trials."""

from __future__ import annotations

import time
from collections.abc import Callable


class BudgetGuard:
    """Holds a run to its number of trials and its time.

    Trials are counted over all resumptions of an experiment, time from when this object was built: who
    resumes a run whose time was over gives it that time again.
    """

    def __init__(
        self,
        *,
        trials: int | None,
        time_s: float | None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Start the clock.

        Args:
            trials: most trials that may start; None for no limit.
            time_s: seconds after which nothing starts; None for no limit.
            clock: seconds from any origin, never going back.
        """
        self._trials = trials
        self._time_s = time_s
        self._clock = clock
        self._began = clock()
        self._started = 0

    def count_trial(self) -> None:
        """A trial was started, now or in an earlier run."""
        self._started += 1

    @property
    def may_start(self) -> bool:
        """Whether a further trial may start."""
        return not self.why_exhausted

    @property
    def time_is_up(self) -> bool:
        """Whether the time, if it has a limit, is over."""
        return self.time_left_s == 0

    @property
    def time_left_s(self) -> float | None:
        """Seconds until the time is over, never negative; None without a limit."""
        if self._time_s is None:
            return None
        return max(0.0, self._began + self._time_s - self._clock())

    @property
    def why_exhausted(self) -> str:
        """One line on why no further trial may start; empty where one may."""
        if self.time_is_up:
            return f"the budget's {self._time_s:.0f} s are over"
        if self._trials is not None and self._started >= self._trials:
            return f"all {self._trials} trials of the budget have started"
        return ""
