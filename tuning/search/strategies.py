"""What an experiment's `search` and `scheduler` sections stand for: a searcher and a scheduler, put together.

The only place that knows all algorithms by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tuning.experiment import Experiment
from tuning.plan import grid_size
from tuning.search.auto import Auto
from tuning.search.earlier import Earlier
from tuning.search.front_scheduler import FrontScheduler
from tuning.search.optuna_proposers import Modelled
from tuning.search.pbt import Pbt
from tuning.search.population_proposers import CmaEs, Nsga2
from tuning.search.proposers import Grid, Observed, Proposal, Proposer, Random, Sobol
from tuning.search.scheduler import PromotingAsha, Scheduler, StoppingAsha
from tuning.search.searcher import Searcher


def open_strategy(
    experiment: Experiment,
    *,
    path: Path | None,
    earlier: Earlier | None = None,
    proposer: Proposer | None = None,
) -> tuple[Searcher, Scheduler]:
    """The searcher and the scheduler of `experiment`.

    Args:
        path: journal of its study; None: in memory.
        earlier: what is known of earlier experiments.
        proposer: one of the caller's own, in the place of that which `search.algorithm` names.
    """
    earlier = earlier or Earlier()
    proposer = proposer or make_proposer(experiment, earlier.trials)
    start = [
        Proposal(dict(config), why=f"number {number} of search.start")
        for number, config in enumerate(experiment.search.start, 1)
    ]
    searcher = Searcher(
        path=path,
        name=experiment.name,
        space=experiment.space,
        modes=[objective.mode for objective in experiment.objectives],
        proposer=proposer,
        start=[*start, *earlier.first],
    )
    if isinstance(proposer, Pbt):
        proposer.watch(searcher.observed)
        return searcher, proposer
    if isinstance(proposer, Auto):
        proposer.watch(searcher.observed, searcher.reported, decides=experiment.model_promotes)
        if experiment.model_promotes:
            return searcher, proposer
    return searcher, make_scheduler(experiment)


def make_scheduler(experiment: Experiment) -> Scheduler:
    """The scheduler alone; `auto` where the model does not decide is ASHA, `none` is one without rungs."""
    settings, trials = experiment.scheduler, experiment.budget.trials
    if settings.algorithm == "front":
        assert trials is not None
        if experiment.search.algorithm == "grid":
            trials = min(trials, grid_size(experiment.space))
        return FrontScheduler(rung=min(settings.rungs(), default=None), expected=trials)
    kind = PromotingAsha if settings.algorithm in ("auto", "asha") else StoppingAsha
    return kind(rungs=settings.rungs(), reduction_factor=settings.reduction_factor)


def make_proposer(experiment: Experiment, earlier: Sequence[Observed] = ()) -> Proposer:
    """The proposer that `search.algorithm` names; those that do not learn ignore `earlier`."""
    space, settings = experiment.space, experiment.search
    levels = sorted(experiment.full_epochs())
    match settings.algorithm:
        case "auto":
            return Auto(
                space,
                settings.seed,
                levels=levels,
                objectives=len(experiment.objectives),
                reduction_factor=experiment.scheduler.reduction_factor,
                trials=experiment.budget.trials,
                earlier=earlier,
            )
        case "random":
            return Random(space, settings.seed)
        case "sobol":
            return Sobol(space, settings.seed)
        case "grid":
            return Grid(space, settings.seed)
        case "cmaes":
            return CmaEs(space, settings.seed, levels=levels)
        case "pbt":
            return Pbt(
                space,
                settings.seed,
                rungs=experiment.rungs(),
                population=settings.places(),
                replaced=settings.replaced(),
            )
        case "nsga2":
            return Nsga2(space, settings.seed, levels=levels)
        case "tpe" | "gp":
            return Modelled(
                space,
                settings.seed,
                algorithm=settings.algorithm,
                levels=levels,
                enough=settings.startup_trials,
                ranked=settings.algorithm == "tpe",
                earlier=earlier,
            )
