"""Optuna's samplers and pruners, asked and told as `Study.optimize` does; only the trials are stand-ins."""

from __future__ import annotations

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from benchmarks.simulated.driving import Decision, Losses, Start, diverged
from benchmarks.simulated.problem import Problem


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
