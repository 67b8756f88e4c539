"""Which trials go on: asynchronous successive halving (Li et al. 2020, "A System for Massively Parallel
Hyperparameter Tuning"), in the paper's promoting form and in a stopping one.

Pure: knows how trials stand, neither their configurations nor Ray nor the clock. Reports of the `epochs`
table, replayed in their order, bring a scheduler back to where it was. Where the rungs are is said by the
experiment's `scheduler` section; without rungs nothing ever ends early.
"""

from __future__ import annotations

import bisect
import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

from tuning.search.ranking import Standing, best_first, best_of


@dataclass(frozen=True)
class Decision:
    """What becomes of a trial after an epoch."""

    action: Literal["continue", "pause", "stop"]
    """`pause`: it leaves its gang and may be promoted later. `stop`: it is over."""
    reason: str = ""
    """One line for a person; empty between rungs."""
    rung: int | None = None
    """Index of the rung where the trial was compared (0 is the lowest); None between rungs."""

    @property
    def leaves(self) -> bool:
        """Whether the trial gives its gang back."""
        return self.action != "continue"


class Scheduler(Protocol):
    """What decides about trials that have begun. Reports may be replayed; none counts twice."""

    synchronous: ClassVar[bool] = False
    """Whether paused trials wait for those that run: none goes on out of turn, to use a free gang."""

    def report(self, trial_id: str, epoch: int, standing: Standing) -> Decision:
        """Take notice of how a trial stands after `epoch` epochs, and decide about it."""

    def next_promotion(self, *, or_new: bool = True) -> tuple[str, str] | None:
        """A paused trial that is to go on now, from here on counted as promoted, and why; None: none is due.

        `or_new`: whether a new trial may start instead.
        """

    def next_stop(self, *, or_new: bool = True) -> tuple[str, str] | None:
        """A paused trial that is over from now on, and why; None: there is none (left).

        Here: who is not promoted stays paused.
        """
        return None

    def went_on(self, trial_id: str, epoch: int) -> None:
        """The trial has trained for `epoch` epochs, the last without figures: it waits at no rung before."""

    def drop(self, trial_id: str) -> None:
        """The trial is over for another reason: it is never promoted."""


@dataclass
class _Rung:
    """The trials that reached a rung."""

    standings: list[Standing] = field(default_factory=list)  # in the order of arrival
    members: list[str] = field(default_factory=list)  # trial_id by the same index
    index: dict[str, int] = field(default_factory=dict)
    waiting: list[tuple[float, float, int]] = field(default_factory=list)  # a heap, the best first
    promoted: set[str] = field(default_factory=set)
    dropped: set[str] = field(default_factory=set)


class PromotingAsha(Scheduler):
    """Algorithm 2 of the paper: every trial runs to its rung and is paused there; whenever a gang is free,
    the best waiting trial of the highest rung that has a promotion to give goes on.

    A rung that n trials have reached gives floor(n / reduction_factor) promotions in all. The paper bounds
    the candidates by that number, not the promotions, so that rungs whose order changes promote more.
    """

    def __init__(self, *, rungs: Sequence[int], reduction_factor: int):
        """Start with empty rungs.

        Args:
            rungs: epochs at which trials are paused and compared, ascending.
            reduction_factor: one in this many is promoted.
        """
        self._epochs = _ascending(rungs)
        self._reduction_factor = reduction_factor
        self._rungs = [_Rung() for _ in rungs]

    def report(self, trial_id: str, epoch: int, standing: Standing) -> Decision:
        """Pause a trial at its rung; beyond a rung, it is known to have been promoted there."""
        self.went_on(trial_id, epoch)
        if epoch not in self._epochs:
            return Decision("continue")
        level = self._epochs.index(epoch)
        rung = self._rungs[level]
        if not standing.finite:
            return Decision("stop", f"rung {level}: not a finite number", level)
        if trial_id not in rung.index:
            self._enter(rung, trial_id, standing)
        return Decision("pause", f"rung {level}: waits for promotion", level)

    def next_promotion(self, *, or_new: bool = True) -> tuple[str, str] | None:
        """From the highest rung down; None where every rung has given what it has."""
        for level, rung in reversed([*enumerate(self._rungs)]):
            if len(rung.promoted) < len(rung.members) // self._reduction_factor:
                best = self._best_waiting(rung)
                if best is not None:
                    rung.promoted.add(best)
                    given = f"{len(rung.promoted)} of {len(rung.members)} promoted"
                    return best, f"rung {level}: the best that waits, {given}"
        return None

    def went_on(self, trial_id: str, epoch: int) -> None:
        """It was promoted at every rung before `epoch`."""
        for rung_epoch, rung in zip(self._epochs, self._rungs, strict=True):
            if rung_epoch < epoch and trial_id in rung.index:
                rung.promoted.add(trial_id)

    def drop(self, trial_id: str) -> None:
        """Take a trial out of the queues; it stays in the rungs that it reached."""
        for rung in self._rungs:
            if trial_id in rung.index:
                rung.dropped.add(trial_id)

    def _enter(self, rung: _Rung, trial_id: str, standing: Standing) -> None:
        index = rung.index[trial_id] = len(rung.members)
        rung.members.append(trial_id)
        rung.standings.append(standing)
        heapq.heappush(rung.waiting, (*standing.key, index))

    def _best_waiting(self, rung: _Rung) -> str | None:
        """The heap knows the order of one objective; of several, it changes with every arrival."""
        gone = rung.promoted | rung.dropped if len(rung.standings[0].losses) > 1 else None
        if gone is not None:
            waiting = [i for i, member in enumerate(rung.members) if member not in gone]
            return rung.members[best_of(rung.standings, waiting)] if waiting else None
        while rung.waiting:
            _, _, index = heapq.heappop(rung.waiting)
            trial_id = rung.members[index]
            if trial_id not in rung.promoted and trial_id not in rung.dropped:
                return trial_id
        return None


class StoppingAsha(Scheduler):
    """At each rung, a trial goes on if it is among the best `1 / reduction_factor` that came so far.

    So the first at a rung always goes on, nobody waits for others, and nobody is called back.
    """

    def __init__(self, *, rungs: Sequence[int], reduction_factor: int):
        """Start with empty rungs.

        Args:
            rungs: epochs at which trials are compared, ascending.
            reduction_factor: one in this many goes on at each rung.
        """
        self._epochs = _ascending(rungs)
        self._reduction_factor = reduction_factor
        self._standings: list[list[Standing]] = [[] for _ in rungs]
        self._order: list[list[tuple[float, float]]] = [[] for _ in rungs]  # of one objective, the best first
        self._decided: dict[tuple[int, str], Decision] = {}

    def report(self, trial_id: str, epoch: int, standing: Standing) -> Decision:
        """Let a trial go on or end it.

        An epoch that is reported again (its worker died before the checkpoint was safe) gets the first
        answer again and counts once.
        """
        if epoch not in self._epochs:
            return Decision("continue")
        level = self._epochs.index(epoch)
        if (level, trial_id) not in self._decided:
            self._decided[level, trial_id] = self._decide(level, standing)
        return self._decided[level, trial_id]

    def next_promotion(self, *, or_new: bool = True) -> tuple[str, str] | None:
        """None: nothing is ever paused."""
        return None

    def went_on(self, trial_id: str, epoch: int) -> None:
        """Nothing: nobody waits."""

    def drop(self, trial_id: str) -> None:
        """Nothing: who is over is not asked about again."""

    def _decide(self, level: int, standing: Standing) -> Decision:
        if not standing.finite:  # nor may it move the cut of the others
            return Decision("stop", f"rung {level}: not a finite number", level)
        standings = self._standings[level]
        standings.append(standing)
        place = self._place(level, standing)
        where = f"rung {level}: place {place + 1} of {len(standings)}"
        goes_on = place < math.ceil(len(standings) / self._reduction_factor)
        return Decision("continue" if goes_on else "stop", where, level)

    def _place(self, level: int, standing: Standing) -> int:
        """Of the last to come; behind its equals."""
        standings = self._standings[level]
        if len(standing.losses) > 1:
            return best_first(standings).index(len(standings) - 1)
        key = standing.key
        place = bisect.bisect_right(self._order[level], key)
        self._order[level].insert(place, key)
        return place


def _ascending(rungs: Sequence[int]) -> tuple[int, ...]:
    if list(rungs) != sorted(set(rungs)):
        raise ValueError(f"`rungs` must ascend, but got {tuple(rungs)}")
    return tuple(rungs)
