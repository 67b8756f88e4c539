"""What `auto` has seen, in the order in which it came, and the model of it.

A result is a trial's standing after an epoch at which it was evaluated in full; a failure counts as the worst
one where the trial would have been evaluated next. Each objective has a Gaussian process of its own
(`tuning/search/gaussian_process.py`), fitted and conditioned here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuning.search.encoding import Encoding
from tuning.search.gaussian_process import GaussianProcess
from tuning.search.proposers import Observed
from tuning.search.ranking import Standing, best_first

Array = NDArray[np.float64]

#: Of the scale of losses: units below the median that the best can be, and above it that the worst counts.
BEST, BAD = 3.0, 2.0
#: Parameters are fitted when there are so many results, which must be there when a model is first asked for,
#: and again when there are so many times as many, in so many steps.
FIRST_FIT, REFIT, STEPS = 8, 1.3, 15
#: Most results in the model, the best half and the latest half; and most running trials of which something is
#: expected.
MODELLED = 300


@dataclass(frozen=True)
class _Rows:
    """What the model learns from, a row for each result."""

    numbers: list[int]
    points: Array  # float64 [n, dimensions]
    times: Array  # float64 [n]
    standings: list[Standing]


class Evidence:
    """Of an experiment with these full epochs (`levels`), and so many objectives.

    Trials have their numbers; those of `earlier` experiments have the numbers -1, -2, …
    """

    def __init__(
        self, encoding: Encoding, levels: Sequence[int], objectives: int, earlier: Sequence[Observed]
    ):
        self._encoding, self._levels, self._earlier = encoding, levels, earlier
        self._worst = Standing((math.inf,) * objectives)
        self.observed: Sequence[Observed] = ()
        """All trials of this experiment, by number; somebody else keeps them up to date."""
        self._points: dict[int, Array] = {}  # by number
        self._tried: set[bytes] = set()  # points of the first so many trials
        self._counted = 0
        self._arrivals: dict[tuple[int, int], None] = {  # the values say nothing
            (-1 - index, epoch): None
            for index, trial in enumerate(earlier)
            for epoch in levels
            if epoch in trial.results
        }
        self._parameters: dict[int, Any] = {}  # of the processes, by the number of results at their fit
        for index in range(len(earlier)):
            self.add_failure(-1 - index)

    def __len__(self) -> int:
        return len(self._arrivals)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Number and epoch of each result, in the order of reporting."""
        return iter(self._arrivals)

    @property
    def trials(self) -> int:
        """How many have a result."""
        return len({number for number, _ in self._arrivals})

    def add(self, number: int, epoch: int) -> None:
        """A result came; a second time it says nothing new."""
        self._arrivals[number, epoch] = None

    def add_failure(self, number: int) -> None:
        """Remember where a trial that failed would have been evaluated next as a bad place; nothing of
        another."""
        trial = self.trial(number)
        if trial.failed:
            done = max(trial.results, default=0)
            missed = next((epoch for epoch in self._levels if epoch > done), self._levels[-1])
            self.add(number, missed)

    def trial(self, number: int) -> Observed:
        """One of this experiment, or of an earlier one."""
        return self.observed[number] if number >= 0 else self._earlier[-1 - number]

    def standing(self, number: int, epoch: int) -> Standing:
        """A result; the worst where there is none."""
        return self.trial(number).results.get(epoch, self._worst)

    def point(self, number: int) -> Array:
        """float64 [dimensions]: the configuration of a trial."""
        if number not in self._points:
            self._points[number] = self._encoding.points([self.trial(number).config])[0]
        return self._points[number]

    def tried(self, config: Mapping[str, Any]) -> bool:
        """Whether a trial of this experiment has it."""
        for number in range(self._counted, len(self.observed)):
            self._tried.add(self.point(number).tobytes())
        self._counted = len(self.observed)
        return self._encoding.points([config])[0].tobytes() in self._tried

    def time(self, epoch: int) -> float:
        """Epochs as the model sees them: 0 before the first, 1 after the last."""
        return math.log1p(epoch) / math.log1p(self._levels[-1])

    def model(self, running: Sequence[int]) -> tuple[list[GaussianProcess], list[int]]:
        """A process for each objective, after all results; and the numbers of the trials whose these are.

        Where trials run, what is expected of them counts as seen, so that the next decision looks elsewhere
        (kriging believer, Ginsbourger et al. 2010); of very many, of those that began last.
        """
        running = running[-MODELLED:]
        rows = self._rows(len(self))
        processes = []
        for scores, parameters in zip(_scores(rows.standings).T, self._fitted(), strict=True):
            process = GaussianProcess(self._encoding.dimensions)
            process.parameters = parameters
            process.condition(rows.points, rows.times, scores)
            if running:
                points, times = np.array([self.point(n) for n in running]), np.ones(len(running))
                believed, _ = process.predict(points, times)
                process.condition(
                    np.concatenate([rows.points, points]),
                    np.concatenate([rows.times, times]),
                    np.concatenate([scores, believed]),
                )
            processes.append(process)
        return processes, rows.numbers

    def _fitted(self) -> list[Any]:
        """Parameters for each objective, fitted to as many of the first results as the last milestone had."""
        milestone = FIRST_FIT
        while milestone * REFIT <= len(self):
            milestone = math.ceil(milestone * REFIT)
        if milestone not in self._parameters:
            rows = self._rows(milestone)
            fitted = []
            for scores in _scores(rows.standings).T:
                process = GaussianProcess(self._encoding.dimensions)
                process.fit(rows.points, rows.times, np.ascontiguousarray(scores), steps=STEPS)
                fitted.append(process.parameters)
            self._parameters[milestone] = fitted
        return self._parameters[milestone]

    def _rows(self, count: int) -> _Rows:
        """Of the first `count` results those that are learnt from, at most MODELLED."""
        shown = list(self._arrivals)[:count]
        standings = [self.standing(number, epoch) for number, epoch in shown]
        if len(shown) > MODELLED:
            kept = _most_telling(standings)
            shown, standings = [shown[i] for i in kept], [standings[i] for i in kept]
        return _Rows(
            [number for number, _ in shown],
            np.array([self.point(number) for number, _ in shown]),
            np.array([self.time(epoch) for _, epoch in shown]),
            standings,
        )


def _scores(standings: Sequence[Standing]) -> Array:
    """float64 [n, objectives]: losses in each objective on a scale of their own, of mean 0 and variance 1.

    The unit is that of the middle half, or more where the best is far ahead of it; what is worse than the
    median by BAD units counts as that bad. What is infeasible comes behind, by the rank of its violation, of
    equal ones by that of its loss; last what is not a number.
    """
    finite = np.array([standing.finite for standing in standings])
    violations = np.array([standing.violation for standing in standings])
    feasible = finite & (violations == 0)
    columns = []
    for losses in np.array([standing.losses for standing in standings]).T:
        scores = np.zeros(len(standings))
        ranked = np.stack([~finite, violations, losses], 1)[~feasible]
        ranked[ranked[:, 0] == 1] = (1, 0, 0)
        _, rank = np.unique(ranked, axis=0, return_inverse=True)
        scores[~feasible] = BAD + (1 + rank.reshape(-1)) / len(standings)
        if feasible.any():
            best, first, median, third = np.quantile(losses[feasible], (0, 0.25, 0.5, 0.75))
            unit = max((third - first) / 1.35, (median - best) / BEST) or 1.0
            scores[feasible] = np.minimum((losses[feasible] - median) / unit, BAD)
        columns.append((scores - scores.mean()) / (scores.std() or 1.0))
    return np.stack(columns, 1)


def _most_telling(standings: Sequence[Standing]) -> list[int]:
    """Indices of the best half and the latest half of as many results as the model bears."""
    best = best_first(standings)[: MODELLED // 2]
    return sorted({*best, *range(len(standings) - MODELLED // 2, len(standings))})
