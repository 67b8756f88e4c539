"""The clock of the comparison: what a search method is, and how its trials run side by side in virtual time.

A method says what a free gang trains next and hears of every epoch (`Method`); `drive` is the clock, and
`RandomSearch` the simplest method. This file knows nothing of the libraries (`optuna_rivals.py`,
`ray_rivals.py`, `syne_tune_rivals.py`) nor of Captune's own search, which `tuning.simulation.simulator`
drives.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from benchmarks.simulated.problem import Problem, configuration
from search_spaces import Space

Decision = Literal["continue", "pause", "stop"]
Losses = tuple[float, ...]


class Start(NamedTuple):
    """What a free gang is to train."""

    trial_id: str
    config: Mapping[str, Any]
    start_epoch: int = 0
    """Epochs that the trial has behind it; 0 for a new one, more for one that was paused."""


class Searched(Protocol):
    """What a method may know of a problem."""

    @property
    def space(self) -> Space:
        """What is searched."""

    @property
    def max_epochs(self) -> int:
        """Epochs of a training that nothing stops."""


class Method(Protocol):
    """A search method, as `drive` sees it."""

    def next(self) -> Start | None:
        """A gang is free: what it trains now; None: nothing before another report."""

    def report(self, trial_id: str, epoch: int, losses: Losses) -> Decision:
        """An epoch (from 1) is over. A trial is over, whatever is answered, after the problem's last epoch
        and where a loss is NaN; this call is all the method hears of it."""


class Report(NamedTuple):
    """An epoch that was trained."""

    time_s: float
    epochs_spent: int
    """Of all trials together, this one included."""
    losses: Losses
    config: Mapping[str, Any]
    trial_id: str
    epoch: int


def drive(method: Method, problem: Problem, gangs: int, budget_epochs: int, seed: int) -> Iterator[Report]:
    """Every epoch in the order of its end, until `budget_epochs` have been trained or nothing is to do.

    Each of the `gangs` trains one trial at a time. The n-th trial to begin has the same training noise
    under every method; `seed` sets it. No epoch begins that the budget does not cover.
    """
    curves: dict[str, np.ndarray] = {}
    running: list[tuple[float, int, Start, int]] = []  # end of the epoch, order of begin, trial, epoch
    begun = itertools.count(1)
    now, idle, started, spent = 0.0, gangs, 0, 0

    def begin(start: Start, epoch: int) -> None:
        end = now + problem.seconds_per_epoch(start.config)
        heapq.heappush(running, (end, next(begun), start, epoch))

    while True:
        while idle and started < budget_epochs and (start := method.next()) is not None:
            if start.trial_id not in curves:
                curves[start.trial_id] = problem.curve(start.config, seed * 1_000_003 + len(curves))
            begin(start, start.start_epoch + 1)
            idle, started = idle - 1, started + 1
        if not running:
            return
        now, _, start, epoch = heapq.heappop(running)
        losses = tuple(curves[start.trial_id][epoch - 1].tolist())
        spent += 1
        yield Report(now, spent, losses, start.config, start.trial_id, epoch)
        decision = method.report(start.trial_id, epoch, losses)
        over = epoch == problem.max_epochs or diverged(losses)
        if decision == "continue" and not over and started < budget_epochs:
            begin(start, epoch + 1)
            started += 1
        else:
            idle += 1


def diverged(losses: Losses) -> bool:
    """Whether a training with these losses has failed."""
    return any(map(math.isnan, losses))


class RandomSearch:
    """Uniformly random configurations, trained to the end."""

    def __init__(self, problem: Searched, seed: int):
        self._space = problem.space
        self._rng = np.random.default_rng(seed)
        self._ids = map(str, itertools.count())

    def next(self) -> Start:
        """A random configuration."""
        return Start(next(self._ids), configuration(self._space, self._rng.random(len(self._space))))

    def report(self, trial_id: str, epoch: int, losses: Losses) -> Decision:
        """Whatever it is, the trial goes on."""
        return "continue"
