"""Optuna's models as proposers: `tpe` and `gp`, each shown a study of what may be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Literal

import numpy as np
import optuna
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from search_spaces import Space
from tuning.search.proposers import Observed, Proposal, Random, seed_of
from tuning.search.ranking import Standing

#: Most trials that a model is built from, the best half and the latest half: a proposal of `tpe` from so many
#: takes 20 ms, one of `gp` .3 s.
MODELLED = {"tpe": 1000, "gp": 300}


class Modelled:
    """A sampler of Optuna, shown the results of the highest rung that has enough of them as a study of its
    own (Falkner et al. 2018, BOHB): no trial is compared with another that trained for longer.

    `ranked` shows trials that only reached lower rungs as well, ranked behind. Only promoted trials reach the
    highest, and shown these alone, TPE calls the worse half of the good ones bad and turns away from where
    both are (it then searched worse than random).

    Args:
        algorithm: `tpe` or `gp`.
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
        algorithm: Literal["tpe", "gp"],
        levels: Sequence[int],
        enough: int,
        ranked: bool = False,
        earlier: Sequence[Observed] = (),
    ):
        self._ranked, self._earlier = ranked, earlier
        self._space, self._seed = space, seed
        self._algorithm, self._levels, self._enough = algorithm, levels, enough
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
            shown = _most_telling(observed, lower, MODELLED[self._algorithm], ranked=True)
        else:
            shown = _most_telling(observed, [level], MODELLED[self._algorithm])
        study = study_of(self._space, shown, self._sampler(number))
        why = f"{self._algorithm}, from {len(shown)} results up to epoch {level}"
        return Proposal(self._space.suggest(study.ask()), why=why)

    def _sampler(self, number: int) -> BaseSampler:
        seed = seed_of(self._seed, number)
        if self._algorithm == "gp":
            return GPSampler(
                seed=seed,
                n_startup_trials=self._enough,
                independent_sampler=RandomSampler(seed=seed),  # of what is conditional
                warn_independent_sampling=False,
                deterministic_objective=False,
            )
        return TPESampler(
            seed=seed,
            n_startup_trials=self._enough,
            n_ei_candidates=24,
            gamma=None,  # a tenth is good, with one objective at most 25
            weights=None,  # all the same, but the latest 25 count more
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
    observed: Sequence[Observed], levels: Sequence[int], most: int, *, ranked: bool = False
) -> list[tuple[Observed, Standing]]:
    """Trials, each with its result at the last of `levels` that it reached.

    All of them, or where they are many the best half and the latest half of `most`: models cost by their
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
    best, latest = most // 2, len(last) - most // 2
    return [
        (trial, Standing((float(place),)) if ranked else standing)
        for index, ((trial, standing, _), place) in enumerate(zip(last, places, strict=True))
        if len(last) <= most or place < best or index >= latest
    ]


class _Told(FrozenTrial):
    """A finished trial that a study takes as it is: copying a thousand of them costs more than TPE itself."""

    def __deepcopy__(self, memo: object) -> _Told:
        return self


def study_of(
    space: Space,
    shown: Sequence[tuple[Observed, Standing]],
    sampler: BaseSampler,
    notes: Sequence[dict[str, Any]] = (),
) -> optuna.Study:
    """A study in memory that holds these results, all of them to be minimised.

    Args:
        shown: trials with how they stand; none: it has two objectives.
        notes: what the sampler's own notes on each of them are; none: it has none.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    objectives = len(shown[0][1].losses) if shown else 2
    study = optuna.create_study(sampler=sampler, directions=["minimize"] * objectives)
    distributions = space.distributions()
    constrained = any(standing.violation for _, standing in shown)
    now = datetime.now()
    for (trial, standing), note in zip(shown, notes or [{}] * len(shown), strict=True):
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
            system_attrs=dict(note),
            intermediate_values={},
        )
        if constrained:
            told.set_constraint("violation", standing.violation)
        study.add_trial(told)
    return study
