"""With a budget of trials: the epochs that they may have beyond the first rung, as many as under ASHA.

Where trials are what is counted, an epoch costs nothing, and whoever decides by what it is worth would train
every trial to its end. So beyond the first rung there are as many epochs as asynchronous successive halving
(`tuning/search/scheduler.py`) would spend on so many trials; who gets them is for the caller. What a trial
leaves unused, as it fails on its way, is left for others. Pure numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

#: Share that may be spent on trials which go on unchosen, from whose course others are judged.
UNCHOSEN = 0.25


class Allotment:
    """How many epochs there are for all trials together, and what each is granted.

    Args:
        levels: epochs of the rungs, ascending; the last is that of the trials' end.
        trials: how many may begin; None: that is no matter, and nor are epochs.
        reduction_factor: of the ASHA that sets the measure.
    """

    def __init__(self, levels: Sequence[int], trials: int | None, reduction_factor: int):
        self._levels = levels
        self._reduction_factor = reduction_factor
        self._trials, self._came, self._lost = trials, 0, 0
        self._spent = self._unchosen = 0
        self._granted: dict[int, int] = {}  # number -> epochs, where beyond the first rung

    def fits(self, epoch: int) -> bool:
        """Whether a trial that has come to this rung may go on to the next: for half of what that takes, too,
        so that the last of it is not left over."""
        return (self._after(epoch) - epoch) / 2 <= self._total - self._spent

    def pass_unchosen(self, number: int, epoch: int) -> bool:
        """Whether a trial goes on from this rung though nobody chose it: a part is for these.

        What others were granted is no matter, of which a driver that is restarted may not know yet.
        """
        needed = self._after(epoch) - epoch
        if needed > UNCHOSEN * self._total - self._unchosen:
            return False
        self._unchosen += needed
        self.until_next(number, epoch)
        return True

    def come(self) -> None:
        """A trial came to the first rung."""
        self._came += 1

    def lose(self) -> None:
        """A trial was over before it came there: ever fewer are expected to come."""
        self._lost += 1

    def until_next(self, number: int, epoch: int) -> None:
        """A trial with so many epochs goes on to the next rung."""
        self.until(number, self._after(epoch))

    def until(self, number: int, epoch: int) -> None:
        """So many epochs are what a trial gets, or ended with; what it was granted beyond is left again."""
        before, now = self._granted.get(number, self._levels[0]), max(epoch, self._levels[0])
        self._spent += now - before
        self._granted[number] = now

    @property
    def _total(self) -> float:
        if self._trials is None:
            return math.inf
        total, members = 0, self._trials * (self._came + 1) // (self._came + self._lost + 1)
        for level, following in pairwise(self._levels):
            members //= self._reduction_factor
            total += members * (following - level)
        return total

    def _after(self, epoch: int) -> int:
        return next((level for level in self._levels if level > epoch), epoch)
