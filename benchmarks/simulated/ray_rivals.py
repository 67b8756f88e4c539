"""Ray Tune's own scheduler and searcher, called as `TuneController` does; only the trials are stand-ins.

Ray is imported when one is made. No cluster is started.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Literal

import optuna

from benchmarks.simulated.driving import Decision, Losses, RandomSearch, Searched, Start, diverged
from benchmarks.simulated.global_numpy import GlobalNumpy


class RayAsha:
    """Ray Tune's AsyncHyperBandScheduler, with its OptunaSearch or with random configurations.

    Called in the order of `TuneController`: the scheduler hears of a result first, the searcher only of
    one that does not end the trial, and a trial that was stopped is complete to both. (Ray also keeps a
    suggestion or more in advance; here a configuration is as fresh as can be.)
    """

    def __init__(
        self, problem: Searched, seed: int, searcher: Literal["optuna", "random"], grace: int, eta: int
    ):
        from ray.tune.schedulers import AsyncHyperBandScheduler
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._scheduler: Any = AsyncHyperBandScheduler(
            time_attr="training_iteration",
            metric="loss",
            mode="min",
            max_t=problem.max_epochs,
            grace_period=grace,
            reduction_factor=eta,
        )
        self._random = RandomSearch(problem, seed)
        self._searcher: Any = None
        if searcher == "optuna":
            self._searcher = OptunaSearch(problem.space.suggest, metric="loss", mode="min", seed=seed)
        self._numpy = GlobalNumpy(seed)
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
