"""Optuna's samplers as proposers: `tpe`, `gp` and `nsga2`, each shown a study of what may be compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from search_spaces import Space
from tuning.search.proposers import POPULATION, Observed, Proposal, Random, seed_of
from tuning.search.ranking import Standing

#: Most trials that a library's model is built from: the best half and the latest half.
MODELLED = 1000


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
            proposal = self._random.propose(number, observed)
            return replace(proposal, why=f"{proposal.why}: fewer than {self._enough} have a result")
        objectives = next(len(o.results[level].losses) for o in observed if o.comparable_at(level))
        if self._ranked and objectives == 1:
            lower = [each for each in self._levels if each <= level]
            shown = _most_telling(observed, lower, ranked=True)
        else:
            shown = _most_telling(observed, [level])
        sampler = self._sampler(seed_of(self._seed, number))
        study = _study(self._space, shown, sampler)
        why = f"{type(sampler).__name__}, from {len(shown)} results up to epoch {level}"
        return Proposal(self._space.suggest(study.ask()), why=why)


class Nsga2:
    """NSGA-II (Deb et al. 2002) on the results of the lowest rung, which every trial reaches."""

    def __init__(self, space: Space, seed: int, *, levels: Sequence[int]):
        self._space, self._seed, self._level = space, seed, levels[0]

    def propose(self, number: int, observed: Sequence[Observed]) -> Proposal:
        """A child of the last full generation."""
        shown = [(o, o.results[self._level]) for o in observed if o.comparable_at(self._level)]
        sampler = NSGAIISampler(population_size=POPULATION, seed=seed_of(self._seed, number))
        key = sampler._get_generation_key()
        study = _study(self._space, shown, sampler, note=lambda trial: {key: trial.generation})
        trial = study.ask()
        config = self._space.suggest(trial)
        generation = study.get_trials(deepcopy=False)[-1].system_attrs.get(key, 0)
        return Proposal(config, generation, why=f"NSGA-II, generation {generation}")


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
        if sum(trial.comparable_at(level) for trial in observed) >= enough:
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
        if (level := next((each for each in descending if trial.comparable_at(each)), 0))
    ]
    keys = np.array([(standing.losses[0], standing.violation, -level) for _, standing, level in last])
    places = np.argsort(np.lexsort(keys.T)).tolist()
    best, latest = MODELLED // 2, len(last) - MODELLED // 2
    return [
        (trial, Standing((float(place),)) if ranked else standing)
        for index, ((trial, standing, _), place) in enumerate(zip(last, places, strict=True))
        if len(last) <= MODELLED or place < best or index >= latest
    ]


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
