"""Population based training (Jaderberg et al. 2017, "Population Based Training of Neural Networks").

A population of trials is compared at rungs that are equally far apart. At each, the last quarter is stopped,
and as many forks of trials of the first quarter take their place: they go on from the checkpoint of such a
trial with its hyperparameters changed a little. So hyperparameters change in the course of the training,
and what is found is a schedule of them. Every trial keeps the one configuration that the tables show; a
schedule is a chain of forks (`tuning/tables/lineage.py`).

* A rung is decided when every living trial of the population has come there. Trials that went wrong on the
  way count as last, so that the population stays as large as it was.
* Who is first is decided by `tuning/search/ranking.py`: constraints first, with several objectives by front.
* Forks start before anybody goes on, as long as their parents' checkpoints are at hand.
* When the last rung is decided, and budget is left, another population begins.
* Where no further trial may start, the last quarter is stopped all the same, and nobody takes its place.

All of it is a function of what was observed: a restarted driver decides what the first one would have. This
file knows neither Ray nor files; which hyperparameters may change in mid-training is for the trainable.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

import numpy as np

from search_spaces import Space
from search_spaces.domains import Choice, Domain, Int
from tuning.search.proposers import Observed, Proposal, Random
from tuning.search.ranking import Standing, best_first
from tuning.search.scheduler import Decision, Scheduler

#: How often a hyperparameter is drawn anew instead of being changed a little.
RESAMPLED = 0.25
#: What numbers are multiplied with.
FACTORS = (0.8, 1.2)
#: Most draws for a fork that would have its parent's configuration.
DRAWS = 10


class Pbt(Scheduler):
    """A proposer and a scheduler in one, which `tuning/search/strategies.py` hands to both places.

    Generations are counted over all populations, in `Observed.generation`: of each population, 0 is drawn at
    random and the others are the forks at its rungs.
    """

    synchronous = True

    def __init__(self, space: Space, seed: int, *, rungs: Sequence[int], population: int, replaced: int):
        """Begin with an empty population.

        Args:
            rungs: epochs after which the population is compared, ascending, at least one.
            population: how many trials it has, at least 2.
            replaced: how many of them each rung replaces, by forks of as many of the best.
        """
        self._space, self._seed = space, seed
        self._random = Random(space, seed)
        self._rungs, self._population = tuple(rungs), population
        self._replaced = replaced
        self._observed: Sequence[Observed] = ()
        self._left: dict[int, int] = {}  # number -> highest rung from which the trial has gone on
        # The generation that is being filled with trials and trained, and what was decided before it.
        self._generation = 0
        self._kept: list[int] = []  # numbers of the trials that it takes over, the best first
        self._parents: list[int] = []  # of its forks
        self._first = 0  # number of the first trial that is born into it
        self._to_promote: deque[int] = deque()
        self._to_stop: deque[tuple[int, int, str]] = deque()  # with the rung's epoch and the reason

    def watch(self, observed: Sequence[Observed]) -> None:
        """Decide by these trials, which somebody else keeps up to date; to be called once, first."""
        self._observed = observed

    # As a proposer.

    def propose(self, number: int, observed: Sequence[Observed]) -> Proposal | None:
        """A draw for a new population, or a fork; None while a rung waits for trials that run."""
        self._advance(or_new=True)
        born = len(self._born())
        if not self._wants(or_new=True):
            return None
        if not self._level:
            return replace(self._random.propose(number, observed), generation=self._generation)
        parent = self._parents[born]
        rng = np.random.default_rng([self._seed, number, 1])
        return Proposal(
            self._changed(observed[parent].config, rng),
            generation=self._generation,
            parent=f"{parent:05d}",
            parent_epoch=self._rung_before,
            why=f"fork of {parent:05d}, one of the best at rung {self._level - 1}",
        )

    def _changed(self, config: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Another configuration near `config`; the same only where nothing else seems to be possible."""
        for _ in range(DRAWS):
            found = explore(self._space, config, rng)
            if found != config:
                break
        return found

    # As a scheduler.

    def report(self, trial_id: str, epoch: int, standing: Standing) -> Decision:
        """Pause a trial at its rung."""
        if epoch not in self._rungs:
            return Decision("continue")
        level = self._rungs.index(epoch)
        if not standing.finite:
            return Decision("stop", f"rung {level}: not a finite number", level)
        return Decision("pause", f"rung {level}: waits for the population", level)

    def next_stop(self, *, or_new: bool = True) -> tuple[str, str] | None:
        """A paused trial that is over, and why: a fork takes its place."""
        self._advance(or_new=or_new)
        while self._to_stop:
            number, rung, reason = self._to_stop.popleft()
            if not self._observed[number].over and not self._gone_on(number, rung):
                return f"{number:05d}", reason
        return None

    def next_promotion(self, *, or_new: bool = True) -> tuple[str, str] | None:
        """A trial that stays in the population, when it is complete; the best first."""
        self._advance(or_new=or_new)
        if self._level and self._wants(or_new=or_new):
            return None  # the forks first
        while self._to_promote:
            number = self._to_promote.popleft()
            if self._waits(number):
                self._left[number] = self._rung_before
                return f"{number:05d}", f"rung {self._level - 1}: stays in the population"
        return None

    def went_on(self, trial_id: str, epoch: int) -> None:
        """The trial waits at no rung before `epoch`."""
        passed = max((rung for rung in self._rungs if rung < epoch), default=0)
        self._left[int(trial_id)] = max(self._left.get(int(trial_id), 0), passed)

    def drop(self, trial_id: str) -> None:
        """It waits at no rung any more: it is over, or is trained to its end whatever the others do."""
        self.went_on(trial_id, 1 + max(self._observed[int(trial_id)].results, default=0))

    # The decision.

    @property
    def _level(self) -> int:
        """How many rungs the present population has passed."""
        return self._generation % (len(self._rungs) + 1)

    @property
    def _rung_before(self) -> int:
        return self._rungs[self._level - 1]

    def _born(self) -> range:
        """Numbers of the trials that were proposed for the present generation."""
        end = self._first
        while end < len(self._observed) and self._observed[end].generation == self._generation:
            end += 1
        return range(self._first, end)

    def _wants(self, *, or_new: bool) -> bool:
        """Whether trials are still to be born into the present generation.

        Not any more once somebody has gone on: the checkpoints of its rung may be gone.
        """
        born = self._born()
        if not or_new or len(born) >= self._population - len(self._kept):
            return False
        if not self._level:
            first = self._rungs[0]
            return not any(self._has_come(number, first) and self._gone_on(number, first) for number in born)
        return not any(self._gone_on(number, self._rung_before) for number in self._kept)

    def _gone_on(self, number: int, rung: int) -> bool:
        return self._left.get(number, 0) >= rung or any(e > rung for e in self._observed[number].results)

    def _waits(self, number: int) -> bool:
        """Whether a trial that was kept has yet to leave the last rung."""
        return not self._gone_on(number, self._rung_before) and not self._observed[number].over

    def _advance(self, *, or_new: bool) -> None:
        """Decide every rung at which all have come; `or_new`: whether further trials may start."""
        while not self._wants(or_new=or_new):
            born = self._born()
            if self._level == len(self._rungs):
                begun = born.stop < len(self._observed)  # before the budget ended, or a restart
                if any(map(self._waits, self._to_promote)) or not (or_new or begun):
                    return
                self._begin(self._generation + 1, born.stop)  # these run to their end, others begin
                continue
            rung, members = self._rungs[self._level], [*self._kept, *born]
            arrived = [n for n in members if self._has_come(n, rung)]
            if not members or not all(n in arrived or self._observed[n].over for n in members):
                return
            self._decide(arrived, rung, born.stop)

    def _has_come(self, number: int, rung: int) -> bool:
        standing = self._observed[number].results.get(rung)
        return standing is not None and standing.finite

    def _decide(self, arrived: Sequence[int], rung: int, first: int) -> None:
        """Who stays, who is stopped and who is forked, after `rung`; forks will be numbered from `first`."""
        order = best_first([self._observed[n].results[rung] for n in arrived])
        ranked = [arrived[place] for place in order]
        kept = ranked[: self._population - self._replaced]
        level = self._level
        if not kept:
            population = self._generation // (len(self._rungs) + 1)
            self._begin((population + 1) * (len(self._rungs) + 1), first)
            return
        self._begin(self._generation + 1, first)
        rng = np.random.default_rng([self._seed, first, 2])
        best = kept[: self._replaced]
        self._kept = kept
        self._parents = [best[rng.integers(len(best))] for _ in range(self._population - len(kept))]
        self._to_promote = deque(kept)
        for place, number in enumerate(ranked[len(kept) :], len(kept) + 1):
            self._to_stop.append((number, rung, f"rung {level}: place {place} of {len(ranked)}"))

    def _begin(self, generation: int, first: int) -> None:
        self._generation, self._first = generation, first
        self._kept, self._parents = [], []


def explore(space: Space, config: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """A configuration near `config`, every hyperparameter changed or, seldom, drawn anew.

    Follows `ray.tune.schedulers.pbt._explore`, which itself cannot be used: it draws from Python's global
    random numbers, leaves the domain, and has whole numbers get stuck where a factor is rounded away. Here
    numbers are multiplied by one of `FACTORS` and clipped to their domain, those in steps go at least one
    step, and a choice goes to its neighbour in the order in which the domain lists them.
    """
    near, drawn = {}, {}
    for name in sorted(space):
        unit, resampled, up = rng.random(), rng.random() < RESAMPLED, rng.random() < 0.5
        drawn[name] = space[name].at(unit)
        if name in config:
            near[name] = drawn[name] if resampled else _neighbour(space[name], config[name], up)
    return space.complete(near, drawn)


def _neighbour(domain: Domain, value: Any, up: bool) -> Any:
    """The next value up or down; a zero, which no factor changes, moves by a share of the range."""
    if isinstance(domain, Choice):
        there = domain.values.index(value) + (1 if up else -1)
        return domain.values[min(max(there, 0), len(domain.values) - 1)]
    scaled = value * FACTORS[up] if value else (FACTORS[up] - 1) * (domain.high - domain.low)
    if domain.step is None:
        return float(min(max(scaled, domain.low), domain.high))
    low, step = Decimal(str(domain.low)), Decimal(str(domain.step))  # 0.1 + 2 * 0.1 is to be 0.3
    here = round((Decimal(str(value)) - low) / step)
    there = round((Decimal(str(scaled)) - low) / step)
    there = max(there, here + 1) if up else min(there, here - 1)
    top = round((Decimal(str(domain.top)) - low) / step)
    found = low + min(max(there, 0), top) * step
    return int(found) if isinstance(domain, Int) else float(found)
