"""Which trials go on, for several objectives and a known number of trials: the front alone.

Every trial runs to the first rung, and nothing goes on before all have been there: what is cheap comes first.
Then those that no other beats go on to their end, the best first; the others are over. What begins untrained
goes on after them, for of it the first rung says nothing. Pure, as `tuning/search/scheduler.py` is: reports
replayed in any order bring it back to where it was.
"""

from __future__ import annotations

from collections.abc import Collection

from tuning.search.ranking import Standing, best_first, dominated
from tuning.search.scheduler import Decision, Scheduler


class FrontScheduler(Scheduler):
    """A scheduler with one rung.

    Args:
        rung: epoch at which trials are paused and compared; None: there is none, nothing is ever paused.
        expected: trials that are to come to the rung, or to be over before.
        complete: trial_ids that are whole at the rung: they are compared, but do not go on.
        untrained: trial_ids that the rung says nothing of: they are not compared, and go on.
    """

    synchronous = True

    def __init__(
        self,
        *,
        rung: int | None,
        expected: int,
        complete: Collection[str] = (),
        untrained: Collection[str] = (),
    ):
        self._rung, self._expected = rung, expected
        self._complete, self._untrained = frozenset(complete), frozenset(untrained)
        self._standings: dict[str, Standing] = {}
        self._promoted: set[str] = set()
        self._dropped: set[str] = set()

    def report(self, trial_id: str, epoch: int, standing: Standing) -> Decision:
        """Pause a trial at the rung; beyond it, it is known to have been promoted."""
        if self._rung is None or epoch < self._rung:
            return Decision("continue")
        if epoch > self._rung:
            self.went_on(trial_id, epoch)
            return Decision("continue")
        if not standing.finite:
            return Decision("stop", "rung 0: not a finite number", 0)
        self._standings.setdefault(trial_id, standing)
        if trial_id in self._complete:
            return Decision("stop", "rung 0: nothing is left to do for it", 0)
        if trial_id in self._untrained:
            return Decision("pause", "rung 0: goes on after the front, it is not trained yet", 0)
        return Decision("pause", "rung 0: goes on if no other beats it", 0)

    def next_promotion(self, *, or_new: bool = True) -> tuple[str, str] | None:
        """The best of the front that has not gone on, then the untrained; None before the last has come."""
        if not self._all_came:
            return None
        for trial_id in self._going_on():
            if trial_id not in self._promoted and trial_id not in self._dropped:
                self._promoted.add(trial_id)
                late = trial_id in self._untrained
                return trial_id, "rung 0: " + ("not trained yet" if late else "no other beats it")
        return None

    def next_stop(self, *, or_new: bool = True) -> tuple[str, str] | None:
        """One that another beats, when all have come."""
        if not self._all_came:
            return None
        beaten = self._standings.keys() - self._promoted - self._dropped - set(self._going_on())
        return (min(beaten), "rung 0: another beats it") if beaten else None

    def went_on(self, trial_id: str, epoch: int) -> None:
        """Beyond the rung, it was promoted there."""
        if self._rung is not None and epoch > self._rung:
            self._promoted.add(trial_id)

    def drop(self, trial_id: str) -> None:
        """The trial is over; where it reached the rung, the others are still compared with it."""
        self._dropped.add(trial_id)

    @property
    def _all_came(self) -> bool:
        return len(self._standings.keys() | self._dropped) >= self._expected

    def _going_on(self) -> list[str]:
        return [*self._front(), *sorted(self._untrained & self._standings.keys())]

    def _front(self) -> list[str]:
        """The trials that no other beats, the best first; of equals, the first that came."""
        names = [name for name in self._standings if name not in self._untrained]
        standings = [self._standings[name] for name in names]
        front: list[int] = []
        for index in best_first(standings):  # whoever beats another comes before it
            if not dominated(standings[index], (standings[other] for other in front)):
                front.append(index)
        return [names[index] for index in front]
