"""What other schedulers, and more gangs, would have made of an experiment: its search run in virtual time.

This file knows which runs to simulate and how they are summed up. The simulation is
`tuning/simulation/simulator.py`'s, the curves are those of `tuning/simulation/curve_tables.py` or
`tuning/simulation/trainable_curves.py`.

    compare(Experiment.load("again.yaml"), load("flickr8k"), gangs=[1, 4, 64])
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, get_args

import pandas as pd

from search_spaces.nearest import nearest
from trainables.order import Failure
from tuning.experiment import Experiment, Scheduler
from tuning.experiment_file import ExperimentError
from tuning.search.proposers import Replayed
from tuning.search.warm_start import earlier_trials
from tuning.simulation.curve_tables import CurveTable
from tuning.simulation.simulated_outcome import Outcome
from tuning.simulation.simulator import simulate
from tuning.simulation.trainable_curves import TrainableCurves
from tuning.tables.configurations import in_domain
from tuning.tables.lineage import without_forks
from tuning.tables.results import Results
from tuning.tables.schema import FLOAT, INT, STRING, to_frame

#: What may be compared: the choices of `scheduler.algorithm`.
SCHEDULERS = get_args(Scheduler.model_fields["algorithm"].annotation)

#: Columns of a comparison, one row per run.
COLUMNS = {
    "scheduler": STRING,
    "gangs": INT,
    "seed": INT,  # of the search
    "trials": INT,  # started
    "epochs": INT,
    "of_none": FLOAT,  # epochs as a share of those that scheduler `none` took, same gangs and seed
    "worker_s": FLOAT,  # seconds of work, summed over workers
    "cost": FLOAT,  # of that work, at `budget.price_per_hour`
    "time_s": FLOAT,  # virtual time to the end
    "best": FLOAT,  # first objective of the best trial, constraints respected
    "best_at_s": FLOAT,  # virtual time at which it was found
    "best_at_epochs": INT,  # epochs of all trials until then
    "hypervolume": FLOAT,  # several objectives that all have a `reference`
    "estimated": FLOAT,  # share of the epochs that the table of curves does not have
    "borrowed": FLOAT,  # share of the epochs of configurations that it does not have
}


class Curves(Protocol):
    """Curves of one simulation, and what of them is made up."""

    epochs: int
    estimated: int
    borrowed: int

    def __call__(self, trial_id: str, config: Mapping[str, Any], epoch: int) -> Mapping[str, float] | Failure:
        """Figures of an epoch, or the failure in it."""

    def close(self) -> None:
        """Let go of everything."""


def compare(
    experiment: Experiment,
    earlier: Results | None = None,
    *,
    gangs: Sequence[int] = (1,),
    schedulers: Sequence[str] | None = None,
    seeds: int = 3,
    replay: bool = False,
    tell: Callable[[int, int, int], None] = lambda run, runs, epochs: None,
) -> pd.DataFrame:
    """Simulate `experiment` under each scheduler on each number of gangs.

    Args:
        experiment: its search (without `search.from`), scheduler and budget; its trainable is run only
            where `earlier` is None.
        earlier: whose learning curves are taken; None: those of the experiment's own trainable.
        gangs: trials at the same time.
        schedulers: of `SCHEDULERS`; None: all that fit.
        seeds: runs that are repeated, with `search.seed` and those after it.
        replay: try the configurations of `earlier` in their order, all of them and once, instead of the
            searcher's within the budget.
        tell: called as (run from 1, number of runs, its epochs) while it goes on.

    Returns:
        One row per run, columns as in `COLUMNS`.

    Raises:
        ExperimentError: a scheduler that does not exist, or `earlier` is of another space or other figures.
    """
    if experiment.search.algorithm == "pbt" and earlier is not None and not replay:
        rule = "changes hyperparameters in mid-training, which a table of learning curves tells nothing of"
        raise ExperimentError([f"search.algorithm: 'pbt' {rule}; simulate it with --curves trainable"])
    possible = fitting(experiment, replay=replay)
    for name in schedulers or ():
        if name not in SCHEDULERS or (replay and name not in possible):
            raise ExperimentError([f"schedulers: got {name!r}{nearest(name, possible)}"])
    if replay and earlier is None:
        raise ValueError("a replay needs an earlier experiment")
    if replay and earlier is not None and earlier.trials.empty:
        raise ExperimentError([f"{earlier.name!r} has no trials to replay"])
    variants = [
        _variant(experiment, scheduler, experiment.search.seed + offset, earlier if replay else None)
        for offset in range(1 if replay else seeds)
        for scheduler in schedulers or possible
    ]
    # What is measured when depends on the rungs, so there is one table for each scheduler.
    tables = {} if earlier is None else {v.scheduler.algorithm: CurveTable(earlier, v) for v in variants}
    runs = [(variant, width) for width in gangs for variant in variants]
    rows = []
    for number, (variant, width) in enumerate(runs, 1):
        table = tables.get(variant.scheduler.algorithm)
        curves: Curves = TrainableCurves(variant) if table is None else table.open()
        configs = _configs_of(table, variant) if replay and table is not None else None
        try:
            rows.append(_run(variant, curves, width, configs, partial(tell, number, len(runs))))
        finally:
            curves.close()
    epochs_of_none = {(r["gangs"], r["seed"]): r["epochs"] for r in rows if r["scheduler"] == "none"}
    for row in rows:
        none = epochs_of_none.get((row["gangs"], row["seed"]))
        row["of_none"] = row["epochs"] / none if none else None
    return to_frame(rows, COLUMNS)


def fitting(experiment: Experiment, *, replay: bool) -> list[str]:
    """The schedulers that differ here: `auto` is one only beside the searcher that it is part of, `front`
    where there are several objectives and a number of trials to wait for."""
    if experiment.search.algorithm == "pbt" and not replay:
        return ["auto"]  # it decides itself
    out = set()
    if experiment.search.algorithm != "auto" or replay:
        out.add("auto")
    if len(experiment.objectives) == 1 or (experiment.budget.trials is None and not replay):
        out.add("front")
    return [name for name in SCHEDULERS if name not in out]


def ran_under(earlier: Results) -> str:
    """The scheduler with which a replay of `earlier` is compared: its own, or `asha` for `auto`."""
    algorithm = earlier.experiment.scheduler.algorithm
    return algorithm if algorithm in fitting(earlier.experiment, replay=True) else "asha"


def averaged(frame: pd.DataFrame) -> pd.DataFrame:
    """Means over the seeds of a comparison and, last, `best_sd`; in the order of the runs."""
    groups = frame.groupby(["scheduler", "gangs"], sort=False)
    means = groups.mean(numeric_only=True).drop(columns="seed")
    means["best_sd"] = groups["best"].std()
    return means.reset_index()


def savings(frame: pd.DataFrame, baseline: str) -> list[str]:
    """Lines on what every other scheduler would have saved against `baseline`, by number of gangs."""
    lines = []
    rows = averaged(frame).to_dict("records")
    before = {row["gangs"]: row for row in rows if row["scheduler"] == baseline}
    for row in rows:
        if row["scheduler"] == baseline:
            continue
        old = before[row["gangs"]]
        saved = 100 * (1 - row["epochs"] / old["epochs"]) if old["epochs"] else 0.0
        line = (
            f"with {_label(row['scheduler'])} instead of {_label(baseline)}: {row['epochs']:.0f} epochs "
            f"instead of {old['epochs']:.0f}, {abs(saved):.0f} % {'saved' if saved >= 0 else 'more'}; "
            f"best {_figure(row['best'])} instead of {_figure(old['best'])}"
        )
        lines.append(line if len(before) == 1 else f"{row['gangs']} gangs, {line}")
    return lines


def _run(
    experiment: Experiment,
    curves: Curves,
    gangs: int,
    configs: Sequence[Mapping[str, Any]] | None,
    tell: Callable[[int], None],
) -> dict[str, Any]:
    outcome = Outcome(experiment)
    listeners: list[Any] = [outcome, *([curves] if isinstance(curves, TrainableCurves) else [])]
    proposer = None if configs is None else Replayed(configs)
    earlier = earlier_trials(experiment, experiment.storage)
    driven = simulate(
        experiment, curves, gangs=gangs, listeners=listeners, proposer=proposer, earlier=earlier
    )
    for done in driven:
        outcome.take(done)
        tell(outcome.epochs)
    return {
        "scheduler": experiment.scheduler.algorithm,
        "gangs": gangs,
        "seed": experiment.search.seed,
        **outcome.row(),
        "estimated": curves.estimated / max(1, curves.epochs),
        "borrowed": curves.borrowed / max(1, curves.epochs),
    }


def _variant(experiment: Experiment, scheduler: str, seed: int, replayed: Results | None) -> Experiment:
    """`experiment` under another scheduler and seed; where it replays, its budget is the trials replayed."""
    tree = experiment.to_dict()
    tree["scheduler"]["algorithm"] = scheduler
    tree["search"]["seed"] = seed
    if replayed is not None:
        tree["budget"] = {"trials": len(without_forks(replayed.trials))}
        tree["search"] = {"seed": seed, "algorithm": "random"}  # it is never asked
    return Experiment.from_dict(tree)


def _configs_of(table: CurveTable, experiment: Experiment) -> list[Mapping[str, Any]]:
    """The configurations to replay, as the experiment's own space has them."""
    space = experiment.space
    configs: list[Mapping[str, Any]] = [
        {name: in_domain(space[name], value) for name, value in config.items() if name in space}
        for config in table.configs
    ]
    problems = [
        f"search_space: {config} of {table.name!r} cannot be replayed, it is not in the space"
        for config in configs
        if not space.contains(config)
    ]
    if problems:
        raise ExperimentError(problems)
    return configs


def _label(scheduler: str) -> str:
    return "asha (promoting)" if scheduler == "asha" else scheduler


def _figure(value: Any) -> str:
    return "none" if pd.isna(value) else f"{value:.4g}"
