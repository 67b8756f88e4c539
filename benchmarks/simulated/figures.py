"""What a search is judged by: regret or hypervolume as its budget is spent, and when it equals another's.

Curves [..., POINTS] are figures after each hundredth of the budget. This file knows reports and the truth of
problems, not which method made them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np

from benchmarks.simulated.driving import Report
from benchmarks.simulated.problem import Array, Problem

POINTS = 100
"""Equal shares of the budget after which a figure is kept."""


def regrets(problem: Problem, reports: Iterable[Report]) -> Iterator[tuple[int, float]]:
    """(epochs spent, regret of what would be shipped) at the start and after every epoch.

    Shipped is the best fully trained trial so far, by the loss it showed; before there is one, the best of
    the longest trained. Before any epoch it is the median random configuration, regret 1.
    """
    place, regret = (0, math.inf), 1.0
    yield 0, regret
    for report in reports:
        loss = report.losses[0]
        if not math.isnan(loss) and (-report.epoch, loss) < (-place[0], place[1]):
            place, regret = (report.epoch, loss), problem.regret(report.config)
        yield report.epochs_spent, regret


def hypervolumes(problem: Problem, reports: Iterable[Report]) -> Iterator[tuple[int, float]]:
    """(epochs spent, share of the true front's hypervolume) at the start and after every epoch, of all
    checkpoints so far: any of them could be shipped."""
    found = np.empty((0, len(problem.objectives)))
    share = 0.0
    yield 0, share
    for report in reports:
        losses = np.array(report.losses)
        if np.isfinite(losses).all() and not (found <= losses).all(axis=1).any():
            found = np.vstack([found[~(losses <= found).all(axis=1)], losses])
            share = problem.share(found)
        yield report.epochs_spent, share


def at_shares(history: Iterable[tuple[int, float]], budget_epochs: int, points: int = POINTS) -> Array:
    """The figures [points] that stood when each of the equal shares of the budget was spent.

    `history` begins with (0, figure); what comes after the budget does not count, and where it ends before,
    the last figure stands.
    """
    spent, figures = np.array(list(history), dtype=float).T
    reached = np.searchsorted(spent * points, np.arange(1, points + 1) * budget_epochs, side="right")
    return figures[reached - 1]


def share_of_epochs(curves: Array, others: Array) -> Array:
    """Epochs [problems] from which on the mean regret is no worse than the other method's at the end, as a
    share of those that the other one needs for it; infinite where that is never.

    Reached for good, not for the first time: what would be shipped may be good by luck and then change.

    Args:
        curves: regrets [problems, seeds, points].
        others: the same of the method compared with, random search for instance.
    """
    levels = others.mean(axis=1)[:, -1:]
    return _reached(curves.mean(axis=1) > levels) / _reached(others.mean(axis=1) > levels)


def _reached(above: Array) -> Array:
    """Points [problems], from 1, from which on no entry of `above` [problems, points] is true."""
    points = above.shape[1]
    after = np.where(above.any(axis=1), points - above[:, ::-1].argmax(axis=1), 0) + 1.0
    return np.where(after > points, math.inf, after)


def half_width(values: Array) -> Array:
    """Of a 95 % interval of the mean over the first axis, the seeds; infinite where there is only one."""
    if len(values) < 2:
        return np.full(values.shape[1:], math.inf)
    return 1.96 * values.std(axis=0, ddof=1) / math.sqrt(len(values))
