"""The search's own method: one model of all results decides what runs next, a new trial or a paused one.

A Gaussian process over configurations and epochs predicts how good each configuration would be after its
last epoch, and how much of that each rung on the way will tell (freeze and thaw, Swersky et al. 2014).
Whenever a gang is free, what goes on until its next rung is the paused trial, or the new configuration, whose
epochs are worth most (`tuning/search/worth.py`): where early epochs tell the truth many trials begin and few
go on, where they mislead those that begin go on.

* The first trials are random draws and run to the last rung: from them the rungs' worth is learnt.
* A twentieth of the decisions are random draws and as many the promotions that ASHA would make, so that no
  error of the model lasts. After ALWAYS trials these are ever more of them, so that no decision costs more.
* Losses are modelled on a scale of their own that is cut off above: neither units nor outliers matter.
  Constraints come first (feasibility first, Deb et al. 2002). Of several objectives each has a process of
  its own, and the improvement is of the hypervolume.
* Beside another scheduler this file only proposes, what is expected to improve most in the end.

All of it is a function of what was observed, in the order in which it was: a restarted driver decides what
the first one would have. This file knows neither Ray nor files.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from search_spaces import Space
from tuning.search.encoding import Encoding
from tuning.search.gaussian_process import GaussianProcess
from tuning.search.proposers import Observed, Proposal
from tuning.search.ranking import Standing, best_first
from tuning.search.scheduler import Decision, PromotingAsha, Scheduler
from tuning.search.worth import Gain, expected_gain, highest_prices

Array = NDArray[np.float64]

#: Trials that are drawn at random, and are not paused below the last rung, before any is modelled.
STARTUP = 8
#: Share of decisions that are random draws, and share that are ASHA's promotions.
RANDOM, BY_RANK = 0.05, 0.05
#: Of the scale of losses: units below the median that the best can be, and above it that the worst counts.
BEST, BAD = 3.0, 2.0
#: Candidates: as many independent draws as neighbours of the best; of so many the epochs are priced.
CANDIDATES, LEADERS, PRICED = 150, 8, 24
#: Parameters are fitted again when there are so many times as many results, in so many steps.
REFIT, STEPS = 1.3, 15
#: Most results in the model, and decisions after which it is asked more and more seldom: both bound its cost.
MODELLED, ALWAYS = 300, 1000


@dataclass(frozen=True)
class _Choice:
    """What is to run next: a paused trial by its number, or a new configuration."""

    paused: int | None = None
    config: dict[str, Any] | None = None


@dataclass(frozen=True)
class _Results:
    """What the model learns from, a row for each result."""

    numbers: list[int]
    points: Array  # float64 [n, dimensions]
    times: Array  # float64 [n]
    standings: list[Standing]


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """For small matrices: more threads would only take cores from the gangs of this machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Auto(Scheduler):
    """A proposer and a scheduler in one, which `tuning/search/strategies.py` hands to both places."""

    def __init__(
        self,
        space: Space,
        seed: int,
        *,
        levels: Sequence[int],
        objectives: int = 1,
        reduction_factor: int = 3,
        earlier: Sequence[Observed] = (),
    ):
        """Know nothing but `earlier` yet.

        Args:
            levels: epochs at which trials are evaluated in full, ascending; the last is that of their end.
            objectives: how many there are.
            reduction_factor: of the ASHA that has a share of the promotions.
            earlier: trials of earlier experiments.
        """
        self._seed, self._levels = seed, tuple(levels)
        self._encoding = Encoding(space)
        self._asha = PromotingAsha(rungs=self._levels[:-1], reduction_factor=reduction_factor)
        self._worst = Standing((math.inf,) * objectives)
        self._earlier = earlier  # these have the numbers -1, -2, …
        self._observed: Sequence[Observed] = ()
        self._decides = True
        self._points: dict[int, Array] = {}  # by number
        # (number, epoch) of results, in the order of reporting; the value says nothing.
        self._arrivals: dict[tuple[int, int], None] = {
            (-1 - index, epoch): None
            for index, trial in enumerate(earlier)
            for epoch in self._levels
            if epoch in trial.results
        }
        for index in range(len(earlier)):
            self._remember_failure(-1 - index)
        self._waiting: dict[int, int] = {}  # number -> epoch of the rung at which it is paused
        self._reported: Sequence[tuple[int, int]] = ()
        self._looked_at = 0  # how many of those reports are taken in
        self._parameters: dict[int, Any] = {}  # of the process, by the number of results at their fit
        self._choice: tuple[Any, _Choice] | None = None  # with what it was made from

    def watch(
        self, observed: Sequence[Observed], reported: Sequence[tuple[int, int]], *, decides: bool
    ) -> None:
        """Learn from these trials, which somebody else keeps up to date; to be called once, first.

        Args:
            observed: all trials, by number.
            reported: number and epoch of every result, and number and 0 of every end, as they came.
            decides: whether this object is the scheduler, too, or only proposes.
        """
        self._observed, self._reported, self._decides = observed, reported, decides

    # As a proposer.

    def propose(self, number: int, observed: Sequence[Observed]) -> Proposal:
        """A draw, or the configuration from which most is expected."""
        if not self._decides:
            self._take_in_results()
        config = self._choose().config
        if config is None:  # the choice was a paused trial, but its promotion was not asked for
            config = self._encoding.draw(self._rng(), 1)[0]
        return Proposal(config)

    # As a scheduler.

    def report(self, trial_id: str, epoch: int, standing: Standing) -> Decision:
        """Pause a trial at its rung, unless it is one of the first."""
        self.went_on(trial_id, epoch)
        if epoch not in self._levels:
            return Decision("continue")
        number = int(trial_id)
        self._arrivals[number, epoch] = None
        decision = self._asha.report(trial_id, epoch, standing)
        if decision.action == "pause" and self._passes(number, epoch):
            return Decision("continue", f"rung {decision.rung}: one of the first trials", decision.rung)
        if decision.action == "pause":
            self._waiting[number] = epoch
        return decision

    def next_promotion(self, *, or_new: bool = True) -> str | None:
        """The paused trial from which more is expected than from any new one.

        `or_new` is no question here: this is no scheduler where trials are what is counted, and with any
        other budget a new one may begin as long as anything may.
        """
        paused = self._choose().paused
        if paused is None:
            return None
        self._waiting.pop(paused, None)
        return f"{paused:05d}"

    def went_on(self, trial_id: str, epoch: int) -> None:
        """It does not wait any more, in ASHA's rungs neither."""
        if self._waiting.get(int(trial_id), epoch) < epoch:
            del self._waiting[int(trial_id)]
        self._asha.went_on(trial_id, epoch)

    def drop(self, trial_id: str) -> None:
        """Never promote it; if it failed, remember where it would have been evaluated next as a bad place."""
        number = int(trial_id)
        self._waiting.pop(number, None)
        self._asha.drop(trial_id)
        self._remember_failure(number)

    # The decision.

    def _choose(self) -> _Choice:
        """One choice per state of knowledge: asked again before anything happened, the same answer."""
        state = (len(self._observed), len(self._arrivals), tuple(self._waiting))
        if self._choice is None or self._choice[0] != state:
            self._choice = (state, self._decide(self._rng()))
        return self._choice[1]

    def _decide(self, rng: np.random.Generator) -> _Choice:
        kind = rng.random()
        asked = rng.random() < ALWAYS / max(ALWAYS, len(self._observed))
        begun = len({number for number, _ in self._arrivals})
        if begun < STARTUP or kind < RANDOM:
            return _Choice(config=self._encoding.draw(rng, 1)[0])
        if not asked or kind < RANDOM + BY_RANK:
            if chosen := self._promoted(self._asha.next_promotion()):
                return chosen
            if not asked:
                return _Choice(config=self._encoding.draw(rng, 1)[0])
        return self._most_promising(rng)

    def _promoted(self, trial_id: str | None) -> _Choice | None:
        """ASHA's promotion, unless the model has promoted that trial already."""
        number = None if trial_id is None else int(trial_id)
        return _Choice(paused=number) if number in self._waiting else None

    @_one_thread()
    def _most_promising(self, rng: np.random.Generator) -> _Choice:
        results = self._results(len(self._arrivals))
        processes = self._model(results)
        seen = self._compared(results)
        mean, _ = _predict(processes, np.array([self._point(number) for number in seen]))
        gain = expected_gain(mean, rng)
        leaders = [seen[index] for index in best_first([Standing(tuple(row)) for row in mean])[:LEADERS]]
        candidates = self._encoding.draw(rng, CANDIDATES)
        candidates += [
            self._encoding.near(self._trial(leaders[rng.integers(len(leaders))]).config, rng)
            for _ in range(CANDIDATES)
        ]
        price, chosen = self._dearest(processes, self._encoding.points(candidates), 0, gain)
        choice = _Choice(config=candidates[chosen])
        for epoch in sorted({self._waiting[number] for number in seen if number in self._waiting}):
            numbers = [number for number in seen if self._waiting.get(number) == epoch]
            points = np.array([self._point(number) for number in numbers])
            other, chosen = self._dearest(processes, points, epoch, gain)
            if other > price:
                price, choice = other, _Choice(paused=numbers[chosen])
        return choice

    def _dearest(
        self, processes: Sequence[GaussianProcess], points: Array, epoch: int, gain: Gain
    ) -> tuple[float, int]:
        """Of trainings at `points` that have `epoch` epochs behind them, the one that may cost most, as a
        logarithm, and its index. Beside another scheduler epochs are not ours to spare: the largest gain."""
        mean, spread = _predict(processes, points)
        gains = gain(mean, spread)
        if not self._decides:
            return float(gains.max()), int(gains.argmax())
        best = np.argsort(-gains, kind="stable")[:PRICED]
        stops = self._stops(epoch, len(self._observed))
        times = [self._time(each) for each in stops]
        steps = np.stack([process.futures(points[best], times) for process in processes], -1)
        prices = highest_prices(mean[best], steps, np.diff([epoch, *stops]).tolist(), gain)
        return float(prices.max()), int(best[prices.argmax()])

    def _stops(self, epoch: int, next_number: int) -> list[int]:
        """Levels after `epoch` where a trial stops, at most three: the first, the last but one, the last."""
        left = [level for level in self._levels if level > epoch]
        if epoch == 0:
            left = [level for level in left if not self._passes(next_number, level)]
        return left if len(left) < 4 else [left[0], *left[-2:]]

    def _passes(self, number: int, level: int) -> bool:
        """Whether a trial does not stop at this level: one of the first of all, below the last rung."""
        return number + len(self._earlier) < STARTUP and level < self._levels[-2:][0]

    def _time(self, epoch: int) -> float:
        return math.log1p(epoch) / math.log1p(self._levels[-1])

    def _compared(self, results: _Results) -> list[int]:
        """Trials whose end is predicted: the model's own, and the best of those that wait."""
        waiting = sorted(self._waiting, key=lambda n: (self._standing(n, self._waiting[n]).key, n))
        return sorted({*results.numbers, *waiting[:MODELLED]})

    def _model(self, results: _Results) -> list[GaussianProcess]:
        """A process for each objective, after all results; where trials run, what is expected of them counts
        as seen, so that the next decision looks elsewhere (kriging believer, Ginsbourger et al. 2010)."""
        running = [n for n, trial in enumerate(self._observed) if self._runs(n, trial)]
        processes = []
        for scores, parameters in zip(_scores(results.standings).T, self._fitted(), strict=True):
            process = GaussianProcess(self._encoding.dimensions)
            process.parameters = parameters
            process.condition(results.points, results.times, scores)
            if running:
                points, times = np.array([self._point(n) for n in running]), np.ones(len(running))
                believed, _ = process.predict(points, times)
                process.condition(
                    np.concatenate([results.points, points]),
                    np.concatenate([results.times, times]),
                    np.concatenate([scores, believed]),
                )
            processes.append(process)
        return processes

    def _fitted(self) -> list[Any]:
        """Parameters for each objective, fitted to as many of the first results as the last milestone had."""
        milestone = STARTUP
        while milestone * REFIT <= len(self._arrivals):
            milestone = math.ceil(milestone * REFIT)
        if milestone not in self._parameters:
            results = self._results(milestone)
            fitted = []
            for scores in _scores(results.standings).T:
                process = GaussianProcess(self._encoding.dimensions)
                process.fit(results.points, results.times, np.ascontiguousarray(scores), steps=STEPS)
                fitted.append(process.parameters)
            self._parameters[milestone] = fitted
        return self._parameters[milestone]

    def _results(self, count: int) -> _Results:
        """Of the first `count` results those that are learnt from, at most MODELLED."""
        shown = list(self._arrivals)[:count]
        standings = [self._standing(number, epoch) for number, epoch in shown]
        if len(shown) > MODELLED:
            kept = _most_telling(standings)
            shown, standings = [shown[i] for i in kept], [standings[i] for i in kept]
        return _Results(
            [number for number, _ in shown],
            np.array([self._point(number) for number, _ in shown]),
            np.array([self._time(epoch) for _, epoch in shown]),
            standings,
        )

    def _take_in_results(self) -> None:
        """What another scheduler was told since the last time, in that order."""
        for number, epoch in self._reported[self._looked_at :]:
            if epoch in self._levels:
                self._arrivals[number, epoch] = None
            elif epoch == 0:
                self._remember_failure(number)
        self._looked_at = len(self._reported)

    def _remember_failure(self, number: int) -> None:
        trial = self._trial(number)
        if trial.failed:
            done = max(trial.results, default=0)
            missed = next((epoch for epoch in self._levels if epoch > done), self._levels[-1])
            self._arrivals[number, missed] = None

    def _runs(self, number: int, trial: Observed) -> bool:
        """Whether more is to be expected of a trial now; another scheduler does not say which are paused."""
        return not trial.over and number not in self._waiting and (self._decides or not trial.results)

    def _trial(self, number: int) -> Observed:
        return self._observed[number] if number >= 0 else self._earlier[-1 - number]

    def _standing(self, number: int, epoch: int) -> Standing:
        return self._trial(number).results.get(epoch, self._worst)

    def _point(self, number: int) -> Array:
        if number not in self._points:
            self._points[number] = self._encoding.points([self._trial(number).config])[0]
        return self._points[number]

    def _rng(self) -> np.random.Generator:
        return np.random.default_rng([self._seed, len(self._observed), len(self._arrivals)])


def _predict(processes: Sequence[GaussianProcess], points: Array) -> tuple[Array, Array]:
    """Means and standard deviations at the last epoch: float64 [points, objectives] each."""
    predicted = [process.predict(points, np.ones(len(points))) for process in processes]
    return np.stack([mean for mean, _ in predicted], 1), np.stack([spread for _, spread in predicted], 1)


def _scores(standings: Sequence[Standing]) -> Array:
    """float64 [n, objectives]: losses in each objective on a scale of their own, of mean 0 and variance 1.

    The unit is that of the middle half, or more where the best is far ahead of it; what is worse than the
    median by BAD units counts as that bad. What is infeasible comes behind, by the rank of its violation;
    last what is not a number.
    """
    violations = np.array([standing.violation if standing.finite else math.inf for standing in standings])
    behind = np.searchsorted(np.unique(violations), violations) / len(violations)
    feasible = violations == 0
    columns = []
    for losses in np.array([standing.losses for standing in standings]).T:
        scores = BAD + behind
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
