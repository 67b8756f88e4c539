"""An experiment's search in virtual time: the same searcher, scheduler and budget, learning curves instead of
gangs.

This file knows `Search` and a clock of its own. Where the curves come from is for whoever calls:
`tuning/simulation/curve_tables.py` has those of earlier experiments.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from trainables.order import Failure, Report
from tuning.events import Listener
from tuning.experiment import Experiment
from tuning.search.budget import BudgetGuard
from tuning.search.earlier import Earlier
from tuning.search.proposers import Proposer
from tuning.search.search import Search
from tuning.search.strategies import open_strategy
from tuning.search.trial import Run

#: (trial_id, configuration, epoch) -> figures of that epoch with its `seconds`, or the failure in it.
Curves = Callable[[str, Mapping[str, Any], int], Mapping[str, float] | Failure]


@dataclass(frozen=True, slots=True)
class SimulatedEpoch:
    """An epoch that a gang ran in virtual time."""

    at_s: float
    """When it ended, seconds from the start."""
    trial_id: str
    config: Mapping[str, Any]
    epoch: int
    metrics: Mapping[str, float]


class VirtualClock:
    """Seconds that pass only when told."""

    now_s = 0.0

    def __call__(self) -> float:
        """Seconds from the start."""
        return self.now_s

    def date(self) -> datetime:
        """The same as a date, from an arbitrary day on."""
        return datetime(2000, 1, 1, tzinfo=UTC) + timedelta(seconds=self.now_s)


def simulate(
    experiment: Experiment,
    curves: Curves,
    *,
    gangs: int,
    listeners: Sequence[Listener] = (),
    proposer: Proposer | None = None,
    earlier: Earlier | None = None,
) -> Iterator[SimulatedEpoch]:
    """Run `experiment` on so many gangs; yields epochs as they end, until its budget is spent.

    Args:
        proposer: one to use instead of the experiment's own, to replay given configurations for instance.
        earlier: what is known of earlier experiments.
    """
    clock = VirtualClock()
    searcher, scheduler = open_strategy(experiment, path=None, proposer=proposer, earlier=earlier)
    workers = experiment.training.workers
    search = Search(
        experiment,
        searcher=searcher,
        scheduler=scheduler,
        budget=BudgetGuard(experiment.budget, workers=workers, gangs=gangs, clock=clock),
        listeners=listeners,
        now=clock.date,
    )
    events: list[tuple[float, int, Run, int, Mapping[str, float] | Failure]] = []
    free, started = gangs, 0

    def begin_epoch(run: Run, epoch: int) -> None:
        nonlocal started
        started += 1  # of epochs that end at the same time, the first to begin comes first
        figures = curves(run.trial_id, run.config, epoch)
        seconds = 1.0 if isinstance(figures, Failure) else figures.get("seconds", 1.0)
        heapq.heappush(events, (clock.now_s + seconds, started, run, epoch, figures))

    while True:
        while free and (run := search.next_run()) is not None:
            free -= 1
            begin_epoch(run, run.epoch + 1)
        if not events:
            return
        clock.now_s, _, run, epoch, figures = heapq.heappop(events)
        if isinstance(figures, Failure):
            search.fail(run.trial_id, figures)
            free += 1
            continue
        figures = {"worker_s": figures.get("seconds", 1.0) * workers, **figures}
        decision = search.report(
            run.trial_id, Report(epoch=epoch, metrics=dict(figures), attempt=run.attempt, node="")
        )
        yield SimulatedEpoch(clock.now_s, run.trial_id, run.config, epoch, figures)
        if decision.leaves:
            free += 1
        else:
            begin_epoch(run, epoch + 1)
