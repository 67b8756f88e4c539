"""Search methods of others, driven in virtual time over the problems of `problems.py`.

A method says what a free gang trains next and hears of every epoch (`Method`); `drive` is the clock. Of the
libraries, their own classes run, called as their own loops call them; only the trials are stand-ins. Imports
of Ray and Syne Tune wait until one of theirs is made. This file knows nothing of Captune's own search, and
reduction factor and grace period are the same for all: 3, and a ninth of a training (or one epoch).

A training that diverges is one whose script raises: Optuna hears FAIL, Ray an error, Syne Tune an error.

Left out: Syne Tune's promoting ASHA, which 0.16 no longer has.
"""

from __future__ import annotations

import contextlib
import datetime
import heapq
import itertools
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import optuna
from optuna.pruners import BasePruner, HyperbandPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler

from benchmarks.problems import Problem, configuration
from search_spaces import Choice, Float, Int, Space

REDUCTION_FACTOR = 3

Decision = Literal["continue", "pause", "stop"]
Losses = tuple[float, ...]


class Start(NamedTuple):
    """What a free gang is to train."""

    trial_id: str
    config: Mapping[str, Any]
    start_epoch: int = 0
    """Epochs that the trial has behind it; 0 for a new one, more for one that was paused."""


class Method(Protocol):
    """A search method, as `drive` sees it."""

    def next(self) -> Start | None:
        """A gang is free: what it trains now; None: nothing before another report."""

    def report(self, trial_id: str, epoch: int, losses: Losses) -> Decision:
        """An epoch (from 1) is over. A trial is over, whatever is answered, after the problem's last epoch
        and where a loss is NaN; this call is all the method hears of it."""


class Report(NamedTuple):
    """An epoch that was trained."""

    time_s: float
    epochs_spent: int
    """Of all trials together, this one included."""
    losses: Losses
    config: Mapping[str, Any]
    trial_id: str
    epoch: int


def drive(method: Method, problem: Problem, gangs: int, budget_epochs: int, seed: int) -> list[Report]:
    """Every epoch in the order of its end, until `budget_epochs` have been trained or nothing is to do.

    Each of the `gangs` trains one trial at a time. The n-th trial to begin has the same training noise
    under every method; `seed` sets it. No epoch begins that the budget does not cover.
    """
    reports: list[Report] = []
    curves: dict[str, np.ndarray] = {}
    running: list[tuple[float, int, Start, int]] = []  # end of the epoch, order of begin, trial, epoch
    begun = itertools.count(1)
    now, idle, started = 0.0, gangs, 0

    def begin(start: Start, epoch: int) -> None:
        end = now + problem.seconds_per_epoch(start.config)
        heapq.heappush(running, (end, next(begun), start, epoch))

    while True:
        while idle and started < budget_epochs and (start := method.next()) is not None:
            if start.trial_id not in curves:
                curves[start.trial_id] = problem.curve(start.config, seed * 1_000_003 + len(curves))
            begin(start, start.start_epoch + 1)
            idle, started = idle - 1, started + 1
        if not running:
            return reports
        now, _, start, epoch = heapq.heappop(running)
        losses = tuple(curves[start.trial_id][epoch - 1].tolist())
        reports.append(Report(now, len(reports) + 1, losses, start.config, start.trial_id, epoch))
        decision = method.report(start.trial_id, epoch, losses)
        over = epoch == problem.max_epochs or diverged(losses)
        if decision == "continue" and not over and started < budget_epochs:
            begin(start, epoch + 1)
            started += 1
        else:
            idle += 1


def diverged(losses: Losses) -> bool:
    """Whether a training with these losses has failed."""
    return any(map(math.isnan, losses))


def tenth(problem: Problem) -> int:
    """The usual grace period, in epochs: about a tenth of a training, such that the rungs end at its end."""
    return max(1, problem.max_epochs // REDUCTION_FACTOR**2)


class RandomSearch:
    """Uniformly random configurations, trained to the end."""

    def __init__(self, problem: Problem, seed: int):
        self._space = problem.space
        self._rng = np.random.default_rng(seed)
        self._ids = map(str, itertools.count())

    def next(self) -> Start:
        """A random configuration."""
        return Start(next(self._ids), configuration(self._space, self._rng.random(len(self._space))))

    def report(self, trial_id: str, epoch: int, losses: Losses) -> Decision:
        """Whatever it is, the trial goes on."""
        return "continue"


class OptunaStudy:
    """An Optuna study, asked and told as `Study.optimize` does, with a sampler and at will a pruner."""

    def __init__(self, problem: Problem, seed: int, sampler: BaseSampler, pruner: BasePruner | None = None):
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._problem = problem
        self._prunes = pruner is not None
        self._trials: dict[str, optuna.Trial] = {}
        self._study = optuna.create_study(
            study_name=f"{problem.name}-{seed}",  # Hyperband draws brackets by the name
            directions=["minimize"] * len(problem.objectives),
            sampler=sampler,
            pruner=pruner,
        )

    def next(self) -> Start:
        """What the sampler suggests."""
        trial = self._study.ask()
        self._trials[str(trial.number)] = trial
        return Start(str(trial.number), self._problem.space.suggest(trial))

    def report(self, trial_id: str, epoch: int, losses: Losses) -> Decision:
        """Told to the study; the pruner answers."""
        trial = self._trials[trial_id]
        if diverged(losses):
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return "stop"
        if self._prunes:
            trial.report(losses[0], epoch)
        if epoch == self._problem.max_epochs:
            self._study.tell(trial, losses)
        elif self._prunes and trial.should_prune():
            self._study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            return "stop"
        return "continue"


class RayAsha:
    """Ray Tune's AsyncHyperBandScheduler, with its OptunaSearch or with random configurations.

    Called in the order of `TuneController`: the scheduler hears of a result first, the searcher only of
    one that does not end the trial, and a trial that was stopped is complete to both. (Ray also keeps a
    suggestion or more in advance; here a configuration is as fresh as can be.)
    """

    def __init__(self, problem: Problem, seed: int, searcher: Literal["optuna", "random"], grace: int):
        from ray.tune.schedulers import AsyncHyperBandScheduler
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._scheduler: Any = AsyncHyperBandScheduler(
            time_attr="training_iteration",
            metric="loss",
            mode="min",
            max_t=problem.max_epochs,
            grace_period=grace,
            reduction_factor=REDUCTION_FACTOR,
        )
        self._random = RandomSearch(problem, seed)
        self._searcher: Any = None
        if searcher == "optuna":
            self._searcher = OptunaSearch(problem.space.suggest, metric="loss", mode="min", seed=seed)
        self._numpy = _GlobalNumpy(seed)
        self._trials: dict[str, Any] = {}

    def next(self) -> Start:
        """A random configuration, or the searcher's."""
        start = self._random.next()
        if self._searcher is not None:
            start = start._replace(config=self._searcher.suggest(start.trial_id))
        self._trials[start.trial_id] = SimpleNamespace(trial_id=start.trial_id, config=start.config)
        with self._numpy.own():
            self._scheduler.on_trial_add(None, self._trials[start.trial_id])
        return start

    def report(self, trial_id: str, epoch: int, losses: Losses) -> Decision:
        """Told to the scheduler, then to the searcher."""
        trial = self._trials[trial_id]
        if diverged(losses):
            self._scheduler.on_trial_error(None, trial)
            if self._searcher is not None:
                self._searcher.on_trial_complete(trial_id, error=True)
            return "stop"
        result = {"training_iteration": epoch, "loss": losses[0]}
        if self._scheduler.on_trial_result(None, trial, result) == self._scheduler.STOP:
            self._scheduler.on_trial_complete(None, trial, result)
            if self._searcher is not None:
                self._searcher.on_trial_complete(trial_id, result=result)
            return "stop"
        if self._searcher is not None:
            self._searcher.on_trial_result(trial_id, result)
        return "continue"


class SyneTuneAsha:
    """Syne Tune's AsynchronousSuccessiveHalving with its random searcher, or MOASHA for several objectives.

    Called in the order of its `Tuner`. Syne Tune has no conditions: every hyperparameter is drawn, the
    inactive ones are dropped before training.
    """

    def __init__(self, problem: Problem, seed: int, grace: int):
        from syne_tune.backend.trial_status import Trial
        from syne_tune.optimizer.schedulers.asha import AsynchronousSuccessiveHalving
        from syne_tune.optimizer.schedulers.multiobjective.moasha import MOASHA

        logging.getLogger("syne_tune").setLevel(logging.ERROR)  # it warns of each training that diverges
        self._trial_type = Trial
        self._problem = problem
        self._numpy = _GlobalNumpy(seed)
        self._trials: dict[str, Any] = {}
        options = {
            "config_space": _syne_tune_space(problem.space),
            "time_attr": "epoch",
            "max_t": problem.max_epochs,
            "grace_period": grace,
            "reduction_factor": REDUCTION_FACTOR,
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


class _GlobalNumpy:
    """numpy's global random numbers, which some libraries draw from: this method's own ones within `own`."""

    def __init__(self, seed: int):
        self._state = np.random.RandomState(seed).get_state()

    @contextlib.contextmanager
    def own(self) -> Iterator[None]:
        others = np.random.get_state()
        np.random.set_state(self._state)
        try:
            yield
        finally:
            self._state = np.random.get_state()
            np.random.set_state(others)


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


def _successive_halving(problem: Problem, seed: int, grace: int) -> Method:
    pruner = SuccessiveHalvingPruner(min_resource=grace, reduction_factor=REDUCTION_FACTOR)
    return OptunaStudy(problem, seed, TPESampler(seed=seed), pruner)


def _hyperband(problem: Problem, seed: int, grace: int) -> Method:
    pruner = HyperbandPruner(
        min_resource=grace, max_resource=problem.max_epochs, reduction_factor=REDUCTION_FACTOR
    )
    return OptunaStudy(problem, seed, TPESampler(seed=seed), pruner)


Make = Callable[[Problem, int], Method]
"""(problem, seed) -> a fresh method; equal arguments give equal decisions."""


def _with_grace(name: str, make: Callable[[Problem, int, int], Method]) -> dict[str, Make]:
    return {
        name: lambda problem, seed: make(problem, seed, tenth(problem)),
        f"{name}, grace 1": lambda problem, seed: make(problem, seed, 1),
    }


RIVALS: dict[str, Make] = {
    "random": RandomSearch,
    "optuna tpe": lambda problem, seed: OptunaStudy(problem, seed, TPESampler(seed=seed)),
    **_with_grace("optuna tpe + successive halving", _successive_halving),
    **_with_grace("optuna tpe + hyperband", _hyperband),
    **_with_grace("ray asha + optuna", lambda problem, seed, grace: RayAsha(problem, seed, "optuna", grace)),
    **_with_grace("ray asha + random", lambda problem, seed, grace: RayAsha(problem, seed, "random", grace)),
    **_with_grace("syne tune asha", SyneTuneAsha),
}
"""By name, for one objective. What has no `grace` in its name trains to the end or has the usual grace."""

MULTI_OBJECTIVE_RIVALS: dict[str, Make] = {
    "random": RandomSearch,
    "optuna tpe": RIVALS["optuna tpe"],
    "optuna nsga2": lambda problem, seed: OptunaStudy(problem, seed, NSGAIISampler(seed=seed)),
    **_with_grace("syne tune moasha", SyneTuneAsha),
}
"""By name, for several objectives."""
