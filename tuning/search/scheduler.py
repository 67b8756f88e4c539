"""Which trials go on: asynchronous successive halving (Li et al. 2020, "A System for Massively Parallel
Hyperparameter Tuning"), in the paper's promoting form and in a stopping one.

Pure: knows how trials stand, neither their configurations nor Ray nor the clock. Reports of the `epochs`
table, replayed in their order, bring a scheduler back to where it was. Where the rungs are is said by the
experiment's `scheduler` section; without rungs nothing ever ends early.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

from tuning.search.arrivals import Arrivals
from tuning.search.ranking import Standing


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
        """The trial has trained for `epoch` epochs, or failed in that one: it waits at no rung before."""

    def was_paused(self, trial_id: str, reason: str) -> None:
        """An earlier run, perhaps with another budget, left the trial paused for this reason of `report`: the
        report is to be answered so again. Here: no answer depends on the budget."""
        return

    def drop(self, trial_id: str) -> None:
        """The trial is over for another reason: it is never promoted."""


@dataclass
class _Rung:
    """The trials that reached a rung."""

    arrivals: Arrivals = field(default_factory=Arrivals)
    members: list[str] = field(default_factory=list)  # trial_id by the index of its arrival
    index: dict[str, int] = field(default_factory=dict)
    promoted: set[str] = field(default_factory=set)

    def enter(self, trial_id: str, standing: Standing) -> None:
        self.index[trial_id] = self.arrivals.add(standing)
        self.members.append(trial_id)

    def promote_best(self) -> str | None:
        best = self.arrivals.take_best()
        if best is None:
            return None
        self.promoted.add(self.members[best])
        return self.members[best]


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
            rung.enter(trial_id, standing)
        return Decision("pause", f"rung {level}: waits for promotion", level)

    def next_promotion(self, *, or_new: bool = True) -> tuple[str, str] | None:
        """From the highest rung down; None where every rung has given what it has."""
        for level, rung in reversed([*enumerate(self._rungs)]):
            due = len(rung.promoted) < len(rung.members) // self._reduction_factor
            if due and (best := rung.promote_best()) is not None:
                given = f"{len(rung.promoted)} of {len(rung.members)} promoted"
                return best, f"rung {level}: the best that waits, {given}"
        return None

    def went_on(self, trial_id: str, epoch: int) -> None:
        """It was promoted at every rung before `epoch`."""
        for rung_epoch, rung in zip(self._epochs, self._rungs, strict=True):
            if rung_epoch < epoch and trial_id in rung.index:
                rung.arrivals.take(rung.index[trial_id])
                rung.promoted.add(trial_id)

    def drop(self, trial_id: str) -> None:
        """Take a trial out of the queues; it stays in the rungs that it reached."""
        for rung in self._rungs:
            if trial_id in rung.index:
                rung.arrivals.take(rung.index[trial_id])


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
        self._arrivals = [Arrivals() for _ in rungs]
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
        arrivals = self._arrivals[level]
        arrivals.add(standing)
        place = arrivals.place_of_last()
        where = f"rung {level}: place {place + 1} of {len(arrivals)}"
        goes_on = place < math.ceil(len(arrivals) / self._reduction_factor)
        return Decision("continue" if goes_on else "stop", where, level)


def _ascending(rungs: Sequence[int]) -> tuple[int, ...]:
    if list(rungs) != sorted(set(rungs)):
        raise ValueError(f"`rungs` must ascend, but got {tuple(rungs)}")
    return tuple(rungs)
