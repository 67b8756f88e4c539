"""Proposers that breed generations: CMA-ES and NSGA-II, on the results of the lowest rung, which every trial
reaches.

A generation is full when POPULATION of its trials have results, and the next one is made from it. What the
full ones lead to is kept, so that a proposal costs as much after thousands of trials as after a few; like all
proposers, these decide as one that was made a moment ago would.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from itertools import count, takewhile
from typing import Any, Generic, TypeVar

import cmaes
import numpy as np
import optuna
from optuna.samplers import NSGAIISampler
from optuna.samplers.nsgaii import UniformCrossover

from search_spaces import Space
from search_spaces.domains import Choice
from tuning.search.optuna_proposers import study_of
from tuning.search.proposers import Observed, Proposal, seed_of
from tuning.search.ranking import Standing

#: Trials of one generation; gangs are few, so that generations must be small.
POPULATION = 16

#: A trial by its number, and how it stands.
_Member = tuple[int, Standing]


_State = TypeVar("_State")


class _Course(Generic[_State]):
    """What each full generation has led to, kept as long as its results stay the same."""

    def __init__(self) -> None:
        self._kept: list[tuple[list[_Member], _State]] = []

    def follow(
        self,
        state: _State,
        generations: Sequence[list[_Member]],
        step: Callable[[_State, list[_Member]], _State],
    ) -> _State:
        """What all of them lead to from `state`, a step for each; none is taken twice."""
        for index, members in enumerate(generations):
            if index >= len(self._kept) or self._kept[index][0] != members:
                self._kept[index:] = [(members, step(state, members))]
            state = self._kept[index][1]
        return state


class CmaEs:
    """CMA-ES (Hansen 2016) over numeric hyperparameters, scaled to 0 to 1; choices are drawn at random."""

    def __init__(self, space: Space, seed: int, *, levels: Sequence[int]):
        self._space, self._seed, self._level = space, seed, levels[0]
        self._numeric = sorted(name for name, domain in space.items() if not isinstance(domain, Choice))
        self._course: _Course[cmaes.CMA] = _Course()

    def propose(self, number: int, observed: Sequence[Observed]) -> Proposal:
        """A draw from the distribution that the full generations lead to."""
        rng = np.random.default_rng([self._seed, number])
        units = dict(zip(sorted(self._space), rng.random(len(self._space)).tolist(), strict=True))
        if len(self._numeric) < 2:  # the library needs two dimensions
            return Proposal(self._space.at(units), why="drawn at random: CMA-ES needs two numbers")
        optimizer = self._optimizer(observed)
        optimizer.reseed_rng(seed_of(self._seed, number))
        units |= dict(zip(self._numeric, map(float, optimizer.ask()), strict=True))
        why = f"drawn by CMA-ES, generation {optimizer.generation}"
        return Proposal(self._space.at(units), optimizer.generation, why=why)

    def _optimizer(self, observed: Sequence[Observed]) -> cmaes.CMA:
        """One that was told the first POPULATION of each full generation; a copy, for asking changes it."""
        begin = cmaes.CMA(
            mean=np.full(len(self._numeric), 0.5),
            sigma=0.3,
            bounds=np.array([[0.0, 1.0]] * len(self._numeric)),
            population_size=POPULATION,
        )

        def told(before: cmaes.CMA, members: Sequence[_Member]) -> cmaes.CMA:
            optimizer = deepcopy(before)
            optimizer.tell(self._solutions(observed, members))
            return optimizer

        generations = [members[:POPULATION] for members in full_generations(observed, self._level)]
        return deepcopy(self._course.follow(begin, generations, told))

    def _solutions(
        self, observed: Sequence[Observed], members: Sequence[_Member]
    ) -> list[tuple[np.ndarray, float]]:
        """Points and losses; beyond a constraint, worse than all others."""
        worst = max(standing.losses[0] for _, standing in members)
        return [
            (
                self._point(observed[number].config),
                worst + standing.violation if standing.violation else standing.losses[0],
            )
            for number, standing in members
        ]

    def _point(self, config: Mapping[str, Any]) -> np.ndarray:
        return np.array(
            [self._space[n].unit(config[n]) if n in config else 0.5 for n in self._numeric]  # type: ignore[union-attr]
        )


class Nsga2:
    """NSGA-II (Deb et al. 2002), Optuna's: a generation's parents are the best of the one before and of its
    parents."""

    def __init__(self, space: Space, seed: int, *, levels: Sequence[int]):
        self._space, self._seed, self._level = space, seed, levels[0]
        self._course: _Course[list[_Member]] = _Course()

    def propose(self, number: int, observed: Sequence[Observed]) -> Proposal:
        """A child of the last full generation."""
        generations = full_generations(observed, self._level)
        parents = self._course.follow([], generations, partial(self._best, observed))
        study = self._study(observed, parents, (), self._sampler(number))
        why = f"NSGA-II, generation {len(generations)}"
        return Proposal(self._space.suggest(study.ask()), len(generations), why=why)

    def _best(
        self, observed: Sequence[Observed], parents: Sequence[_Member], members: Sequence[_Member]
    ) -> list[_Member]:
        """POPULATION of them, by rank and crowding."""
        everyone, sampler = [*parents, *members], self._sampler(0)  # no draw decides here
        study = self._study(observed, parents, members, sampler)
        chosen = sampler.get_parent_population(study, 2 if parents else 1)
        return [everyone[trial.number] for trial in chosen]

    def _study(
        self,
        observed: Sequence[Observed],
        parents: Sequence[_Member],
        members: Sequence[_Member],
        sampler: NSGAIISampler,
    ) -> optuna.Study:
        """One in which the parents are the first generation and the members the next."""
        key = sampler._get_generation_key()
        notes = [{key: 0}] * len(parents) + [{key: 1 if parents else 0}] * len(members)
        shown = [(observed[number], standing) for number, standing in (*parents, *members)]
        return study_of(self._space, shown, sampler, notes)

    def _sampler(self, number: int) -> NSGAIISampler:
        return NSGAIISampler(
            population_size=POPULATION,
            mutation_prob=None,  # one hyperparameter in all, on the average
            crossover=UniformCrossover(swapping_prob=0.5),
            crossover_prob=0.9,
            swapping_prob=0.5,
            seed=seed_of(self._seed, number),
        )


def full_generations(observed: Sequence[Observed], level: int) -> list[list[_Member]]:
    """The trials with a result after epoch `level` of every full generation up to the first that is not."""
    members: dict[int, list[_Member]] = defaultdict(list)
    for number, trial in enumerate(observed):
        if trial.comparable_at(level):
            members[trial.generation].append((number, trial.results[level]))
    return list(takewhile(lambda each: len(each) >= POPULATION, (members[index] for index in count())))
