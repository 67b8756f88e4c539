"""Syne Tune's own schedulers, called as its `Tuner` calls them; only the trials are stand-ins.

Syne Tune (the extra `rivals`) is imported when one is made. Left out: its promoting ASHA, which 0.16 no
longer has.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Mapping
from typing import Any

from benchmarks.simulated.driving import Decision, Losses, Start, diverged
from benchmarks.simulated.global_numpy import GlobalNumpy
from benchmarks.simulated.problem import Problem
from search_spaces import Choice, Float, Int, Space


class SyneTuneAsha:
    """Syne Tune's AsynchronousSuccessiveHalving with its random searcher, or MOASHA for several objectives.

    Called in the order of its `Tuner`. Syne Tune has no conditions: every hyperparameter is drawn, the
    inactive ones are dropped before training.
    """

    def __init__(self, problem: Problem, seed: int, grace: int, eta: int):
        from syne_tune.backend.trial_status import Trial
        from syne_tune.optimizer.schedulers.asha import AsynchronousSuccessiveHalving
        from syne_tune.optimizer.schedulers.multiobjective.moasha import MOASHA

        logging.getLogger("syne_tune").setLevel(logging.ERROR)  # it warns of each training that diverges
        self._trial_type = Trial
        self._problem = problem
        self._numpy = GlobalNumpy(seed)
        self._trials: dict[str, Any] = {}
        options = {
            "config_space": _syne_tune_space(problem.space),
            "time_attr": "epoch",
            "max_t": problem.max_epochs,
            "grace_period": grace,
            "reduction_factor": eta,
            "random_seed": seed,
        }
        self._scheduler: Any
        if len(problem.objectives) == 1:
            self._scheduler = AsynchronousSuccessiveHalving(metric=problem.objectives[0], **options)
        else:
            self._scheduler = MOASHA(metrics=list(problem.objectives), **options)

    def next(self) -> Start:
        """What the scheduler suggests."""
        with self._numpy.own():
            suggestion = self._scheduler.suggest()
            number = len(self._trials)
            trial = self._trial_type(number, suggestion.config, datetime.datetime.fromtimestamp(0))
            self._scheduler.on_trial_add(trial)
        self._trials[str(number)] = trial
        return Start(str(number), _active(self._problem.space, suggestion.config))

    def report(self, trial_id: str, epoch: int, losses: Losses) -> Decision:
        """Told to the scheduler."""
        trial = self._trials[trial_id]
        if diverged(losses):
            self._scheduler.on_trial_error(trial)
            return "stop"
        result = {"epoch": epoch, **dict(zip(self._problem.objectives, losses, strict=True))}
        with self._numpy.own():
            if self._scheduler.on_trial_result(trial, result) == "STOP":
                self._scheduler.on_trial_remove(trial)
                return "stop"
        return "continue"


def _syne_tune_space(space: Space) -> dict[str, Any]:
    from syne_tune import config_space as syne

    domains: dict[str, Any] = {}
    for name, domain in space.items():
        if isinstance(domain, Choice):
            domains[name] = syne.choice(list(domain.values))
        elif isinstance(domain, Int) and domain.step == 1:
            domains[name] = (syne.lograndint if domain.log else syne.randint)(domain.low, domain.high)
        elif isinstance(domain, Int):
            steps = (domain.top - domain.low) // domain.step + 1
            domains[name] = syne.finrange(domain.low, domain.top, steps, cast_int=True)
        elif isinstance(domain, Float):
            domains[name] = (syne.loguniform if domain.log else syne.uniform)(domain.low, domain.high)
    return domains


def _active(space: Space, values: Mapping[str, Any]) -> dict[str, Any]:
    def active(name: str) -> bool:
        return all(active(p) and values[p] in allowed for p, allowed in (space[name].when or {}).items())

    return {name: values[name] for name in space if active(name)}
