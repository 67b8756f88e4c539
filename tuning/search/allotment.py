"""With a budget of trials: the epochs that they may have beyond the first rung, as many as under ASHA.

Where trials are what is counted, an epoch costs nothing, and whoever decides by what it is worth would train
every trial to its end. So all that begin come to the first rung, and beyond it are as many epochs as
asynchronous successive halving (`tuning/search/scheduler.py`) would spend on so many trials; who gets them
is for the caller. Pure numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

#: Share that may be spent on trials which go on unchosen, from whose course others are judged.
UNCHOSEN = 0.25


class Allotment:
    """What is left of it; nothing is granted yet.

    Args:
        levels: epochs of the rungs, ascending; the last is that of the trials' end.
        trials: how many may begin; None: that is no matter, and nor are epochs.
        reduction_factor: of the ASHA that sets the measure.
    """

    def __init__(self, levels: Sequence[int], trials: int | None, reduction_factor: int):
        self._levels = levels
        self._total, members = 0, trials or 0
        for level, following in pairwise(levels):
            members //= reduction_factor
            self._total += members * (following - level)
        self._left = math.inf if trials is None else self._total
        self._granted: dict[int, int] = {}  # number -> epochs, where beyond the first rung

    def fits(self, epoch: int) -> bool:
        """Whether a trial that has come to this rung may go on to the next: for half of what that takes, too,
        so that the last of it is not left over."""
        return (self._after(epoch) - epoch) / 2 <= self._left

    def fits_unchosen(self, epoch: int) -> bool:
        """The same of a trial that nobody chose to: a part is for these."""
        return self._after(epoch) - epoch <= self._left - (1 - UNCHOSEN) * self._total

    def until_next(self, number: int, epoch: int) -> None:
        """A trial with so many epochs goes on to the next rung."""
        self.until(number, self._after(epoch))

    def until(self, number: int, epoch: int) -> None:
        """So many epochs are what a trial has, or gets; what it had been granted more is left again."""
        before, now = self._granted.get(number, self._levels[0]), max(epoch, self._levels[0])
        self._left -= now - before
        self._granted[number] = now

    def _after(self, epoch: int) -> int:
        return next((level for level in self._levels if level > epoch), epoch)
