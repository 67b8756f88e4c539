"""Which trials end early: asynchronous successive halving, stopping form (Li et al. 2020, "A System for
Massively Parallel Hyperparameter Tuning").

Pure: knows values, neither trials' configurations nor Ray nor the clock. Reports of the `epochs` table,
replayed in their order, bring a scheduler back to where it was. Where the rungs are is said by the
experiment's `scheduler` section; without rungs nothing ever stops.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tuning.experiment import Scheduler as SchedulerSettings


@dataclass(frozen=True)
class Decision:
    """What becomes of a trial after an epoch."""

    action: Literal["continue", "stop"]
    reason: str = ""
    """One line for a person; empty between rungs."""
    rung: int | None = None
    """Index of the rung where the trial was compared (0 is the lowest); None between rungs."""

    @property
    def ends(self) -> bool:
        """Whether the trial is over."""
        return self.action == "stop"


def make_scheduler(settings: SchedulerSettings, *, mode: Literal["max", "min"]) -> Asha:
    """The scheduler that an experiment's `scheduler` section describes; `none` is one without rungs."""
    return Asha(rungs=settings.rungs(), reduction_factor=settings.reduction_factor, mode=mode)


class Asha:
    """At each rung, a trial goes on if it is among the best `1 / reduction_factor` that came so far.

    The cut is the `1 - 1/reduction_factor` quantile (linear, as in Ray's ASHA) of all values at the rung,
    the trial's own among them; who equals it goes on. So the first at a rung always goes on, nobody waits
    for others, and nobody is called back.
    """

    def __init__(self, *, rungs: Sequence[int], reduction_factor: int, mode: Literal["max", "min"]):
        """Start with empty rungs.

        Args:
            rungs: epochs at which trials are compared, ascending.
            reduction_factor: one in this many goes on at each rung.
            mode: whether a larger or a smaller value is better.
        """
        if list(rungs) != sorted(set(rungs)):
            raise ValueError(f"`rungs` must ascend, but got {tuple(rungs)}")
        self._rungs = {epoch: index for index, epoch in enumerate(rungs)}
        self._reduction_factor = reduction_factor
        self._sign = 1.0 if mode == "max" else -1.0
        self._values: list[list[float]] = [[] for _ in rungs]  # signed: larger is better
        self._decided: dict[tuple[int, str], Decision] = {}

    def report(self, trial_id: str, epoch: int, value: float) -> Decision:
        """Take notice of a trial's value after `epoch` epochs and say what becomes of the trial.

        An epoch that is reported again (its worker died before the checkpoint was safe) gets the first
        answer again and counts once.
        """
        rung = self._rungs.get(epoch)
        if rung is None:
            return Decision("continue")
        key = (rung, trial_id)
        if key not in self._decided:
            self._decided[key] = self._decide(rung, value)
        return self._decided[key]

    def _decide(self, rung: int, value: float) -> Decision:
        if not math.isfinite(value):  # nor may it move the cut of the others
            return Decision("stop", f"rung {rung}: the value is {value}", rung)
        values = self._values[rung]
        values.append(self._sign * value)
        cut = self._sign * float(np.quantile(values, 1 - 1 / self._reduction_factor))
        if self._sign * value >= self._sign * cut:
            reason = f"rung {rung}: {value:.4g} reaches the cut at {cut:.4g}"
            return Decision("continue", reason, rung)
        side = "below" if self._sign > 0 else "above"
        reason = f"rung {rung}: {value:.4g} is {side} the cut at {cut:.4g}"
        return Decision("stop", reason, rung)
