"""Ways to choose the next configuration, each a function of what has been observed and nothing else.

A proposer holds no state: the same number and the same observations give the same configuration, in a
process that was restarted, too. This file knows the search space and the libraries that search it; it knows
neither files nor Ray nor when a trial starts or ends. `auto`, our own method, is `tuning/search/auto.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any, Protocol

import cmaes
import numpy as np
import optuna
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, TPESampler
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import qmc

from search_spaces import Space
from search_spaces.domains import Choice
from tuning.search.ranking import Standing

#: Trials of one generation of `cmaes` and `nsga2`; gangs are few, so that generations must be small.
POPULATION = 16
#: Most trials that a library's model is built from: the best half and the latest half.
MODELLED = 1000


@dataclass
class Observed:
    """A trial as searchers see it."""

    config: Mapping[str, Any]
    results: dict[int, Standing] = field(default_factory=dict)
    """How it stood after an epoch, where it was evaluated in full."""
    over: bool = False
    """It never runs again."""
    failed: bool = False
    """It diverged, failed or ran out of memory."""
    generation: int = 0
    """Of a population method."""
    parent: str | None = None
    """trial_id of the trial from whose checkpoint it started; None: from nothing."""
    parent_epoch: int = 0
    """Epochs of that checkpoint; its own are numbered on from there."""


@dataclass(frozen=True)
class Proposal:
    """A configuration, and what its proposer wants to be remembered with it."""

    config: dict[str, Any]
    generation: int = 0
    parent: str | None = None
    """trial_id of a trial from whose checkpoint after `parent_epoch` epochs it is to start."""
    parent_epoch: int = 0


class Proposer(Protocol):
    """Chooses configurations."""

    def propose(self, number: int, observed: Sequence[Observed]) -> Proposal | None:
        """The configuration of trial `number`; None: there is none left.

        Args:
            number: how many trials there were before.
            observed: these trials, in the order in which they were proposed.
        """


class Random:
    """Independent draws (Bergstra & Bengio 2012)."""

    def __init__(self, space: Space, seed: int):
        self._space, self._seed = space, seed

    def propose(self, number: int, observed: Sequence[Observed]) -> Proposal:
        """A draw that depends on the seed and the number alone."""
        units = np.random.default_rng([self._seed, number]).random(len(self._space)).tolist()
        return Proposal(self._space.at(dict(zip(sorted(self._space), units, strict=True))))


class Sobol:
    """A scrambled Sobol sequence (Owen 1998): covers the space more evenly than independent draws."""

    def __init__(self, space: Space, seed: int):
        self._space, self._seed = space, seed

    @cached_property
    def _points(self) -> qmc.Sobol:
        return qmc.Sobol(len(self._space), scramble=True, rng=np.random.default_rng(self._seed))

    def propose(self, number: int, observed: Sequence[Observed]) -> Proposal:
        """The point of this number."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that only powers of 2 are balanced
            self._points.reset()
            if number:  # the library refuses to skip none
                self._points.fast_forward(number)
            units = self._points.random(1)[0]
        return Proposal(self._space.at(dict(zip(sorted(self._space), map(float, units), strict=True))))


class Grid:
    """Every combination once, in an order drawn by the seed so that a part of it is spread out."""

    def __init__(self, space: Space, seed: int):
        self._configs = list(space.grid())
        np.random.default_rng(seed).shuffle(self._configs)

    def propose(self, number: int, observed: Sequence[Observed]) -> Proposal | None:
        """The first combination that was not tried, or None after the last."""
        tried = {frozenset(trial.config.items()) for trial in observed}
        left = (config for config in self._configs if frozenset(config.items()) not in tried)
        return next(map(Proposal, left), None)


class Replayed:
    """Proposes given configurations, one by one."""

    def __init__(self, configs: Sequence[Mapping[str, Any]]):
        self._configs = configs

    def propose(self, number: int, observed: Sequence[Observed]) -> Proposal | None:
        """The configuration of this number; None after the last."""
        return Proposal(dict(self._configs[number])) if number < len(self._configs) else None


class Modelled:
    """A sampler of Optuna, shown the results of the highest rung that has enough of them as a study of its
    own (Falkner et al. 2018, BOHB): no trial is compared with another that trained for longer.

    `ranked` shows trials that only reached lower rungs as well, ranked behind. Only promoted trials reach the
    highest, and shown these alone, TPE calls the worse half of the good ones bad and turns away from where
    both are (it then searched worse than random).

    Args:
        sampler: makes the sampler of a trial from its seed.
        levels: epochs at which trials are evaluated in full, ascending.
        enough: results that a rung needs before it is learnt from; below that, draws are random.
        ranked: show trials of lower rungs, too; with one objective only.
        earlier: trials of earlier experiments, learnt from as if they were this one's.
    """

    def __init__(
        self,
        space: Space,
        seed: int,
        *,
        sampler: Callable[[int], BaseSampler],
        levels: Sequence[int],
        enough: int,
        ranked: bool = False,
        earlier: Sequence[Observed] = (),
    ):
        self._ranked, self._earlier = ranked, earlier
        self._space, self._seed = space, seed
        self._sampler, self._levels, self._enough = sampler, levels, enough
        self._random = Random(space, seed)

    def propose(self, number: int, observed: Sequence[Observed]) -> Proposal:
        """What the sampler suggests after the results of one rung."""
        observed = [*self._earlier, *observed] if self._earlier else observed
        level = highest_level(observed, self._levels, self._enough)
        if level is None:
            return self._random.propose(number, observed)
        objectives = next(len(o.results[level].losses) for o in observed if _usable(o, level))
        if self._ranked and objectives == 1:
            lower = [each for each in self._levels if each <= level]
            shown = _most_telling(observed, lower, ranked=True)
        else:
            shown = _most_telling(observed, [level])
        study = _study(self._space, shown, self._sampler(_seed(self._seed, number)))
        return Proposal(self._space.suggest(study.ask()))


class Nsga2:
    """NSGA-II (Deb et al. 2002) on the results of the lowest rung, which every trial reaches."""

    def __init__(self, space: Space, seed: int, *, levels: Sequence[int]):
        self._space, self._seed, self._level = space, seed, levels[0]

    def propose(self, number: int, observed: Sequence[Observed]) -> Proposal:
        """A child of the last full generation."""
        shown = [(o, o.results[self._level]) for o in observed if _usable(o, self._level)]
        sampler = NSGAIISampler(population_size=POPULATION, seed=_seed(self._seed, number))
        key = sampler._get_generation_key()
        study = _study(self._space, shown, sampler, note=lambda trial: {key: trial.generation})
        trial = study.ask()
        config = self._space.suggest(trial)
        return Proposal(config, study.get_trials(deepcopy=False)[-1].system_attrs.get(key, 0))


class CmaEs:
    """CMA-ES (Hansen 2016) over numeric hyperparameters, scaled to 0 to 1, on the results of the lowest rung;
    choices are drawn at random."""

    def __init__(self, space: Space, seed: int, *, levels: Sequence[int]):
        self._space, self._seed, self._level = space, seed, levels[0]
        self._numeric = sorted(name for name, domain in space.items() if not isinstance(domain, Choice))

    def propose(self, number: int, observed: Sequence[Observed]) -> Proposal:
        """A draw from the distribution that the full generations lead to."""
        rng = np.random.default_rng([self._seed, number])
        units = dict(zip(sorted(self._space), rng.random(len(self._space)).tolist(), strict=True))
        if len(self._numeric) < 2:  # the library needs two dimensions
            return Proposal(self._space.at(units))
        optimizer = cmaes.CMA(
            mean=np.full(len(self._numeric), 0.5),
            sigma=0.3,
            bounds=np.array([[0.0, 1.0]] * len(self._numeric)),
            population_size=POPULATION,
            seed=_seed(self._seed, number),
        )
        while (told := self._generation(observed, optimizer.generation)) is not None:
            optimizer.tell(told)
        units |= dict(zip(self._numeric, map(float, optimizer.ask()), strict=True))
        return Proposal(self._space.at(units), optimizer.generation)

    def _generation(
        self, observed: Sequence[Observed], generation: int
    ) -> list[tuple[np.ndarray, float]] | None:
        members = [o for o in observed if o.generation == generation and _usable(o, self._level)]
        if len(members) < POPULATION:
            return None
        worst = max(o.results[self._level].losses[0] for o in members)
        return [
            (
                self._point(o.config),
                standing.losses[0] if not standing.violation else worst + standing.violation,
            )
            for o in members[:POPULATION]
            for standing in [o.results[self._level]]
        ]

    def _point(self, config: Mapping[str, Any]) -> np.ndarray:
        return np.array(
            [self._space[n].unit(config[n]) if n in config else 0.5 for n in self._numeric]  # type: ignore[union-attr]
        )


def make_sampler(algorithm: str, startup_trials: int) -> Callable[[int], BaseSampler]:
    """`tpe` or `gp` of Optuna, every option said out loud."""
    if algorithm == "gp":
        return lambda seed: GPSampler(
            seed=seed, n_startup_trials=startup_trials, deterministic_objective=False
        )
    return lambda seed: TPESampler(
        seed=seed,
        n_startup_trials=startup_trials,
        n_ei_candidates=24,
        # Shown only comparable results, Optuna 5's defaults (multivariate, constant_liar) are no better.
        multivariate=False,
        group=False,
        constant_liar=False,
    )


def highest_level(observed: Sequence[Observed], levels: Sequence[int], enough: int) -> int | None:
    """The highest of `levels` at which `enough` trials have a result; None: there is none."""
    for level in reversed(levels):
        if sum(_usable(trial, level) for trial in observed) >= enough:
            return level
    return None


def _most_telling(
    observed: Sequence[Observed], levels: Sequence[int], *, ranked: bool = False
) -> list[tuple[Observed, Standing]]:
    """Trials, each with its result at the last of `levels` that it reached.

    All of them, or where they are many the best half and the latest half of `MODELLED`: models cost by their
    number. It is asked for every proposal, so what it does for each trial is little.

    Args:
        ranked: instead of the result its rank as a loss: the highest rung first, then the better.
    """
    descending = levels[::-1]
    last = [
        (trial, trial.results[level], level)
        for trial in observed
        if (level := next((each for each in descending if _usable(trial, each)), 0))
    ]
    keys = np.array([(standing.losses[0], standing.violation, -level) for _, standing, level in last])
    places = np.argsort(np.lexsort(keys.T)).tolist()
    best, latest = MODELLED // 2, len(last) - MODELLED // 2
    return [
        (trial, Standing((float(place),)) if ranked else standing)
        for index, ((trial, standing, _), place) in enumerate(zip(last, places, strict=True))
        if len(last) <= MODELLED or place < best or index >= latest
    ]


def _usable(trial: Observed, level: int) -> bool:
    standing = trial.results.get(level)
    return standing is not None and standing.finite


class _Told(FrozenTrial):
    """A finished trial that a study takes as it is: copying a thousand of them costs more than TPE itself."""

    def __deepcopy__(self, memo: object) -> _Told:
        return self


def _study(
    space: Space,
    shown: Sequence[tuple[Observed, Standing]],
    sampler: BaseSampler,
    note: Callable[[Observed], dict[str, Any]] = lambda trial: {},
) -> optuna.Study:
    """A study in memory that holds these results, all of them to be minimised."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    objectives = len(shown[0][1].losses) if shown else 2
    study = optuna.create_study(sampler=sampler, directions=["minimize"] * objectives)
    distributions = space.distributions()
    constrained = any(standing.violation for _, standing in shown)
    now = datetime.now()
    for trial, standing in shown:
        told = _Told(
            number=-1,  # the study counts
            trial_id=-1,
            state=TrialState.COMPLETE,
            value=None,
            values=list(standing.losses),
            datetime_start=now,
            datetime_complete=now,
            params=dict(trial.config),
            distributions={name: distributions[name] for name in trial.config},
            user_attrs={},
            system_attrs=note(trial),
            intermediate_values={},
        )
        if constrained:
            told.set_constraint("violation", standing.violation)
        study.add_trial(told)
    return study


def _seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
