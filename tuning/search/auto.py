"""The search's own method: one model of all results decides what runs next, a new trial or a paused one.

A Gaussian process over configurations and epochs predicts how good each configuration would be after its
last epoch. Whenever a gang is free, what goes on is the paused trial, or the new configuration, from which
the largest improvement on the best is expected there, a paused trial's weighed by how little training is
left for it (freeze and thaw, Swersky et al. 2014; DyHPO, Wistuba et al. 2022). A trial that goes on does so
until its next rung.

* A twentieth of the decisions are random draws and as many the promotions that ASHA would make, so that no
  error of the model lasts.
* With enough full trainings, only these are learnt from, and new trials run to their end: by then the
  model knows better than low rungs where to look, and they cannot mislead it. Not so beside another
  scheduler, where this file only proposes: all results are learnt from.
* What is compared are ranks, not figures: outliers and units do not matter, and constraints come first
  (feasibility first, Deb et al. 2002). Of several objectives each has a process of its own, and the
  improvement is of the hypervolume (Emmerich et al. 2006).

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
from scipy.stats import norm

from search_spaces import Space
from tuning.search.encoding import Encoding
from tuning.search.gaussian_process import GaussianProcess
from tuning.search.proposers import Observed, Proposal
from tuning.search.ranking import Standing, best_first, front, hypervolume
from tuning.search.scheduler import Decision, PromotingAsha, Scheduler

Array = NDArray[np.float64]

#: Trials that are drawn at random before the first is modelled.
STARTUP = 4
#: Share of decisions that are random draws, and share that are ASHA's promotions.
RANDOM, BY_RANK = 0.05, 0.05
#: Full trainings from which on nothing else is learnt from.
FULL_TRAININGS = 10
#: Candidates: as many independent draws as neighbours of the best.
CANDIDATES, LEADERS = 150, 8
#: Parameters are fitted again when there are so many times as many results, in so many steps.
REFIT, STEPS = 1.3, 15
#: Draws behind the expected gain of hypervolume.
SAMPLES = 64
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
        self._waiting: dict[int, int] = {}  # number -> epoch of the rung at which it is paused
        self._looked_at = 0  # how many trials were searched for results
        self._changing: list[int] = []  # those of them that were not over
        self._parameters: dict[int, Any] = {}  # of the process, by the number of results at their fit
        self._choice: tuple[Any, _Choice] | None = None  # with what it was made from

    def watch(self, observed: Sequence[Observed], *, decides: bool) -> None:
        """Learn from these trials, which somebody else keeps up to date; to be called once, first.

        `decides`: whether this object is the scheduler, too, or only proposes.
        """
        self._observed, self._decides = observed, decides

    # As a proposer.

    def propose(self, number: int, observed: Sequence[Observed]) -> Proposal:
        """A draw, or the configuration from which most is expected."""
        if not self._decides:
            self._take_in_results()
        config = self._choose().config
        if config is None:  # the choice was a paused trial, but its promotion was not asked for
            config = self._encoding.draw(self._rng(), 1)[0]
        # Remembered with the trial as its generation: 1 where it is to run to its end.
        return Proposal(config, generation=int(self._full_trainings() >= FULL_TRAININGS))

    # As a scheduler.

    def report(self, trial_id: str, epoch: int, standing: Standing) -> Decision:
        """Pause a trial at its rung, unless it was started to run to its end."""
        if epoch not in self._levels:
            return Decision("continue")
        number = int(trial_id)
        self._waiting.pop(number, None)
        self._arrivals[number, epoch] = None
        decision = self._asha.report(trial_id, epoch, standing)
        if decision.action == "pause" and self._observed[number].generation:
            return Decision("continue", f"rung {decision.rung}: started to run to its end", decision.rung)
        if decision.action == "pause":
            self._waiting[number] = epoch
        return decision

    def next_promotion(self, *, or_new: bool = True) -> str | None:
        """The paused trial from which more is expected than from any new one; ASHA's where none may start."""
        if or_new:
            paused = self._choose().paused
            promoted = None if paused is None else f"{paused:05d}"
        else:
            promoted = self._asha.next_promotion()
            while promoted is not None and int(promoted) not in self._waiting:  # the model was first
                promoted = self._asha.next_promotion()
        if promoted is not None:
            self._waiting.pop(int(promoted), None)
        return promoted

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
        if len({number for number, _ in self._arrivals}) < STARTUP or kind < RANDOM or not asked:
            promoted = None if asked else self._asha.next_promotion()
            return self._promoted(promoted) or _Choice(config=self._encoding.draw(rng, 1)[0])
        if kind < RANDOM + BY_RANK and (chosen := self._promoted(self._asha.next_promotion())):
            return chosen
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
        mean, spread = _predict(processes, np.array([self._point(number) for number in seen]))
        leaders = [seen[index] for index in best_first([Standing(tuple(row)) for row in mean])[:LEADERS]]
        candidates = self._encoding.draw(rng, CANDIDATES)
        candidates += [
            self._encoding.near(self._trial(leaders[rng.integers(len(leaders))]).config, rng)
            for _ in range(CANDIDATES)
        ]
        waiting = [index for index, number in enumerate(seen) if number in self._waiting]
        new_mean, new_spread = _predict(processes, self._encoding.points(candidates))
        gains = expected_gain(
            mean,
            np.concatenate([mean[waiting], new_mean]),
            np.concatenate([spread[waiting], new_spread]),
            rng,
        )
        left = [1 - self._waiting[seen[index]] / self._levels[-1] for index in waiting]
        gains[: len(waiting)] /= left
        chosen = int(gains.argmax())
        if chosen < len(waiting):
            return _Choice(paused=seen[waiting[chosen]])
        return _Choice(config=candidates[chosen - len(waiting)])

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
        milestone = min(milestone, len(self._arrivals))
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
        end = self._levels[-1]
        shown = list(self._arrivals)[:count]
        full = [(number, epoch) for number, epoch in shown if epoch == end]
        # Beside another scheduler only its favourites get there, too alike to learn from alone.
        if self._decides and len(full) >= FULL_TRAININGS:
            # Who failed before the end is no full training, but where it lies is worth knowing.
            full += [(n, e) for n, e in shown if e < end and not self._standing(n, e).finite]
            shown = [(number, end) for number, _ in full]
            standings = [self._standing(number, epoch) for number, epoch in full]
        else:
            standings = [self._standing(number, epoch) for number, epoch in shown]
        if len(shown) > MODELLED:
            kept = _most_telling(standings)
            shown, standings = [shown[i] for i in kept], [standings[i] for i in kept]
        return _Results(
            [number for number, _ in shown],
            np.array([self._point(number) for number, _ in shown]),
            np.array([math.log1p(epoch) / math.log1p(end) for _, epoch in shown]),
            standings,
        )

    def _take_in_results(self) -> None:
        """What another scheduler was told."""
        known, self._looked_at = self._looked_at, len(self._observed)
        numbers = [*self._changing, *range(known, self._looked_at)]
        for number in numbers:
            for epoch in self._levels:
                if epoch in self._observed[number].results:
                    self._arrivals[number, epoch] = None
            self._remember_failure(number)
        self._changing = [number for number in numbers if not self._observed[number].over]

    def _remember_failure(self, number: int) -> None:
        trial = self._observed[number]
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

    def _full_trainings(self) -> int:
        return sum(epoch == self._levels[-1] for _, epoch in self._arrivals)

    def _rng(self) -> np.random.Generator:
        return np.random.default_rng([self._seed, len(self._observed), len(self._arrivals)])


def _predict(processes: Sequence[GaussianProcess], points: Array) -> tuple[Array, Array]:
    """Means and standard deviations at the last epoch: float64 [points, objectives] each."""
    predicted = [process.predict(points, np.ones(len(points))) for process in processes]
    return np.stack([mean for mean, _ in predicted], 1), np.stack([spread for _, spread in predicted], 1)


def _scores(standings: Sequence[Standing]) -> Array:
    """float64 [n, objectives]: normal quantiles of the ranks of `standings` in each objective.

    What is infeasible ranks behind, by its violation; last what is not a number.
    """
    finite = np.array([standing.finite for standing in standings])
    violation = np.array([standing.violation if standing.finite else 0.0 for standing in standings])
    columns = []
    for losses in np.array([standing.losses for standing in standings]).T:
        order = np.lexsort((np.where(finite, losses, 0.0), violation, ~finite))
        ranks = np.empty(len(order))
        ranks[order] = np.arange(len(order))
        columns.append(norm.ppf((ranks + 0.5) / len(ranks)))
    return np.stack(columns, 1)


def expected_gain(known: Array, mean: Array, spread: Array, rng: np.random.Generator) -> Array:
    """float64 [m]: by how much normal variables improve on `known` on average, nothing where they are worse.

    Of one objective the improvement on the least (Jones et al. 1998), of several the hypervolume that is
    added, from a reference beyond all that is known, by SAMPLES draws, the same ones for all.

    Args:
        known: float64 [n, objectives].
        mean: float64 [m, objectives].
        spread: float64 [m, objectives], standard deviations.
    """
    if known.shape[1] == 1:
        z = (known.min() - mean[:, 0]) / spread[:, 0]
        return spread[:, 0] * (z * norm.cdf(z) + norm.pdf(z))
    reference = known.max(axis=0) + 0.1
    best = known[front(known)]
    draws = rng.standard_normal((SAMPLES, known.shape[1]))
    sampled = mean[:, None, :] + spread[:, None, :] * draws[None]  # [m, SAMPLES, objectives]
    if known.shape[1] == 2:
        return _added_area(best, sampled, reference).mean(axis=1)
    before = hypervolume(best, reference)
    return np.array(
        [
            np.mean([hypervolume(np.vstack([best, point]), reference) - before for point in draws_of])
            for draws_of in sampled[:, : SAMPLES // 4]
        ]
    )


def _added_area(best: Array, points: Array, reference: Array) -> Array:
    """float64 [...]: area that each of `points` [..., 2] alone adds to that of the front `best` [n, 2]."""
    stairs = best[best[:, 0].argsort()]
    left = np.concatenate([[-np.inf], stairs[:, 0]])
    right = np.concatenate([stairs[:, 0], [reference[0]]])
    top = np.concatenate([[reference[1]], stairs[:, 1]])
    width = np.clip(right - np.maximum(left, points[..., :1]), 0, None)
    return (width * np.clip(top - points[..., 1:], 0, None)).sum(-1)


def _most_telling(standings: Sequence[Standing]) -> list[int]:
    """Indices of the best half and the latest half of as many results as the model bears."""
    best = sorted(range(len(standings)), key=lambda index: standings[index].key)[: MODELLED // 2]
    return sorted({*best, *range(len(standings) - MODELLED // 2, len(standings))})
