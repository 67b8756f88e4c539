"""Search: what Captune's `auto` finds with a budget, against others' methods, over problems of known truth.

Everything runs in virtual time: `tuning.simulation.simulator` drives Captune's own objects,
`simulated/driving.py` the rivals'. With one objective the figure is the normalised regret of what a user
would ship, the best fully trained trial so far: 0 is the best configuration there is, 1 the median random
one. With several it is the hypervolume of all checkpoints, as a share of the true front's. The epoch in which
a training diverges is spent as well.

Settings were chosen on `TUNING`; the tables are of `REPORTED`. Sizes may be set in the environment:
SEARCH_SEEDS (20; with many gangs half of them), SEARCH_GANGS (1,4,8,64), SEARCH_SET (REPORTED). SEARCH_ALL=1
runs the slow rivals too, and all seeds with many gangs: hours.
"""

from __future__ import annotations

import importlib.util
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from benchmarks.simulated.driving import Report, diverged, drive
from benchmarks.simulated.figures import (
    POINTS,
    at_shares,
    half_width,
    hypervolumes,
    regrets,
    share_of_epochs,
)
from benchmarks.simulated.problem import Array, Problem
from benchmarks.simulated.reported_set import REPORTED
from benchmarks.simulated.rivals import MULTI_OBJECTIVE_RIVALS, RIVALS
from benchmarks.simulated.tuning_set import TUNING
from trainables.order import Failure
from tuning.events import Listener
from tuning.experiment import Experiment
from tuning.plan import expected_epochs
from tuning.search.warm_start import earlier_trials
from tuning.simulation.simulator import simulate

OURS, BASELINE = "captune auto", "random"
#: Captune's own: with a budget of epochs; with one of as many trials as ASHA would train in these; and its
#: model beside ASHA, which promotes.
OWN = {OURS: "epochs", "captune auto, trials": "trials", "captune auto, asha promotes": "asha"}
SETS = {"TUNING": TUNING, "REPORTED": REPORTED}
PROBLEMS = {problem.name: problem for problem in (*TUNING, *REPORTED)}
#: Shares of the budget that the tables show.
SHARES = (0.25, 0.5, 1.0)
#: Full trainings that a run may cost: fifty, or four for each gang where they are many.
TRAININGS, TRAININGS_PER_GANG = 50, 4
#: The last line's ratio is taken with so many gangs; the rivals' other grace period is compared there.
RATIO_GANGS = 4
#: Rivals that take long: with thousands of trials, each of which they look at again for the next.
SLOW = frozenset(
    {"optuna tpe + successive halving, grace 1", "ray asha + optuna, grace 1", "syne tune moasha, grace 1"}
)
MANY_GANGS = 32
#: Of the column of names, in characters.
WIDTH = 41


class Task(NamedTuple):
    """One run."""

    problem: str
    method: str
    gangs: int
    seed: int


class Outcome(NamedTuple):
    """What came of a run."""

    curve: Array
    """Figures [POINTS]."""
    cpu_s: float
    failure: str
    """The method's exception, which ended it there; empty where there was none."""


class Runs(NamedTuple):
    """All runs of a method with one number of gangs."""

    curves: Array
    """Figures [problems, seeds, POINTS]."""
    cpu_s: float
    """Of a run, on the average."""
    failures: list[str]


def main() -> None:
    """Tables for each number of gangs, with one objective and with several; the ratio to the best rival."""
    began = time.monotonic()
    seeds = int(os.environ.get("SEARCH_SEEDS", "20"))
    widths = [int(number) for number in os.environ.get("SEARCH_GANGS", "1,4,8,64").split(",")]
    every = os.environ.get("SEARCH_ALL") == "1"
    problems = SETS[os.environ.get("SEARCH_SET", "REPORTED")]
    single = [problem.name for problem in problems if len(problem.objectives) == 1]
    several = [problem.name for problem in problems if len(problem.objectives) > 1]
    ratio = math.nan
    # Fresh processes: a fork would copy this one's threads, whatever ran here before.
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        for gangs in widths:
            count = seeds if every or gangs < MANY_GANGS else math.ceil(seeds / 2)
            table = measure(single, methods(RIVALS, gangs, every), gangs, count, pool.map)
            show(f"mean regret, {gangs} gangs, {count} seeds", table, single)
            show_epochs(table, gangs)
            if gangs == RATIO_GANGS or len(widths) == 1:
                ratio = ratio_to_best(table)
            table = measure(several, methods(MULTI_OBJECTIVE_RIVALS, gangs, every), gangs, count, pool.map)
            title = f"share of the hypervolume, {gangs} gangs, {count} seeds"
            show(title, table, several, larger_is_better=True)
    print(f"\ntook {(time.monotonic() - began) / 60:.1f} minutes")
    print(f"search ratio={ratio:.2f}")


def methods(rivals: Iterable[str], gangs: int, every: bool) -> list[str]:
    """Captune and those of `rivals` that are run with so many gangs, or `every` one; says which are not."""
    installed = importlib.util.find_spec("syne_tune") is not None
    wanted = [*OWN]
    for name in rivals:
        if "syne tune" in name and not installed:
            print(f"{name} left out: not installed, it is of the extra `rivals`")
        elif not every and (name in SLOW or (name.endswith("grace 1") and gangs != RATIO_GANGS)):
            print(f"{name} left out with {gangs} gangs to save time: SEARCH_ALL=1 runs it")
        else:
            wanted.append(name)
    return wanted


def measure(
    problems: Sequence[str],
    methods: Sequence[str],
    gangs: int,
    seeds: int,
    each: Callable[[Callable[[Task], Outcome], list[Task]], Iterable[Outcome]] = map,
) -> dict[str, Runs]:
    """All runs, by method; `each` as `map`, over processes for instance."""
    tasks = [Task(p, m, gangs, s) for m in methods for p in problems for s in range(seeds)]
    outcomes = list(each(run, tasks))
    per_method = len(problems) * seeds
    table = {}
    for index, method in enumerate(methods):
        own = outcomes[index * per_method : (index + 1) * per_method]
        curves = np.array([outcome.curve for outcome in own]).reshape(len(problems), seeds, POINTS)
        seconds = sum(outcome.cpu_s for outcome in own) / per_method
        table[method] = Runs(curves, seconds, [outcome.failure for outcome in own if outcome.failure])
    return table


def run(task: Task) -> Outcome:
    """One run. Where the method raises, it ends, and what it had found stands for the rest of the budget."""
    problem = PROBLEMS[task.problem]
    one_objective = len(problem.objectives) == 1
    budget = max(TRAININGS, TRAININGS_PER_GANG * task.gangs) * problem.max_epochs
    history, failure, began = [], "", time.process_time()
    try:
        if task.method in OWN:
            reports = ours(described(problem, budget, task.seed, OWN[task.method]), problem, task.gangs)
        else:
            make = (RIVALS if one_objective else MULTI_OBJECTIVE_RIVALS)[task.method]
            reports = drive(make(problem, task.seed), problem, task.gangs, budget, task.seed)
        for entry in (regrets if one_objective else hypervolumes)(problem, reports):
            history.append(entry)
    except Exception as error:  # anything that a library may raise: the other methods go on
        failure = f"{type(error).__name__}: {error}"
        history = history or [(0, 1.0 if one_objective else 0.0)]
    return Outcome(at_shares(history, budget), time.process_time() - began, failure)


def described(
    problem: Problem, budget: int, seed: int, variant: str = "epochs", **changes: Any
) -> Experiment:
    """The search of `problem` with a budget of epochs, in a variant of `OWN`, as an experiment of Captune's.

    `changes`: other sections.
    """
    experiment = Experiment.from_dict(
        {
            "name": problem.name,
            "trainable": "curves",
            "search_space": problem.space,
            "objectives": [{"metric": name, "mode": "min"} for name in problem.objectives],
            "search": {"algorithm": "auto", "seed": seed},
            "scheduler": {
                "max_epochs": problem.max_epochs,
                "algorithm": "asha" if variant == "asha" else "auto",
            },
            "budget": {"epochs": budget},
            **changes,
        }
    )
    if variant == "trials":
        trials = max(n for n in range(1, budget + 1) if expected_epochs(experiment, n) <= budget)
        limits = experiment.budget.model_copy(update={"trials": trials})
        experiment = experiment.model_copy(update={"budget": limits})
    return experiment


def ours(
    experiment: Experiment, problem: Problem, gangs: int, listeners: Sequence[Listener] = ()
) -> Iterator[Report]:
    """Captune's own search, as `described`."""
    seed = experiment.search.seed
    known: dict[str, Array] = {}
    lost = 0

    def curves(trial_id: str, config: Mapping[str, Any], epoch: int) -> Mapping[str, float] | Failure:
        nonlocal lost
        if trial_id not in known:
            known[trial_id] = problem.curve(config, seed * 1_000_003 + int(trial_id))
        losses = known[trial_id][epoch - 1].tolist()
        if diverged(tuple(losses)):
            lost += 1
            return Failure(state="diverged", reason="loss is nan")
        seconds = {"seconds": problem.seconds_per_epoch(config)}
        return dict(zip(problem.objectives, losses, strict=True)) | seconds

    earlier = earlier_trials(experiment, experiment.storage)
    epochs = simulate(experiment, curves, gangs=gangs, listeners=listeners, earlier=earlier)
    for reported, done in enumerate(epochs, start=1):
        losses = tuple(done.metrics[name] for name in problem.objectives)
        yield Report(done.at_s, reported + lost, losses, done.config, done.trial_id, done.epoch)


def ratio_to_best(table: Mapping[str, Runs]) -> float:
    """The final mean regret of the best rival over ours."""
    final = {name: runs.curves[:, :, -1].mean() for name, runs in table.items()}
    return min(regret for name, regret in final.items() if name not in OWN) / final[OURS]


def show(
    title: str, table: Mapping[str, Runs], problems: Sequence[str], larger_is_better: bool = False
) -> None:
    """Means over problems with 95 % intervals over seeds, then each problem's figure at the end.

    A `!` marks a figure that is worse than random search's by more than the interval of their difference.
    """
    shares = ", ".join(f"{share:.0%}" for share in SHARES)
    print(f"\n{title}: after {shares} of the budget, ± 95 %; each problem's last (!: worse than random)")
    print(f"{'':{WIDTH}s}{'':36s}{''.join(f'{name[:12]:>13s} ' for name in problems)} cpu s/run")
    shown = [round(share * POINTS) - 1 for share in SHARES]
    random = table[BASELINE].curves[:, :, -1]  # [problems, seeds]
    for name, runs in table.items():
        by_seed = runs.curves.mean(axis=0)[:, shown]  # [seeds, shares]
        means = zip(by_seed.mean(axis=0), half_width(by_seed), strict=True)
        last = runs.curves[:, :, -1]
        behind = (random - last if larger_is_better else last - random).T  # [seeds, problems]
        marks = np.where(behind.mean(axis=0) > half_width(behind), "!", " ")
        cells = "".join(f"{v:13.3f}{mark}" for v, mark in zip(last.mean(axis=1), marks, strict=True))
        average = " ".join(f"{mean:.3f}±{half:.3f}" for mean, half in means)
        print(f"{name:{WIDTH}s}{average:36s}{cells} {runs.cpu_s:9.1f}", flush=True)
        if runs.failures:
            print(f"  {len(runs.failures)} of its {last.size} runs failed, the first: {runs.failures[0]}")


def show_epochs(table: Mapping[str, Runs], gangs: int) -> None:
    """For each method, the share of random search's epochs from which on it is as good as that at its end."""
    print(f"\nepochs that random search needs for its final regret, {gangs} gangs: a method's, as a share")
    for name, runs in table.items():
        shares = share_of_epochs(runs.curves, table[BASELINE].curves)
        # Where it is never reached, the whole budget and more is needed: the mean is a lower bound.
        mean = f"{'>' if np.isinf(shares).any() else ''}{np.where(np.isinf(shares), 1.0, shares).mean():.2f}"
        cells = "".join(f"{'never' if math.isinf(share) else f'{share:.2f}':>13s} " for share in shares)
        print(f"{name:{WIDTH}s}{mean:36s}{cells}", flush=True)
