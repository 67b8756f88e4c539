"""Search: what Captune's `auto` finds with a budget, against others' methods, over problems of known truth.

Everything runs in virtual time: `tuning.simulator` drives Captune's own objects, `rivals.py` the rivals'. The
figure is the normalised regret of what a user would ship, the best fully trained trial so far (before there
is one, the best of the longest trained): 0 is the best configuration there is, 1 the median random one.
Settings were chosen on `TUNING`; the tables are of `REPORTED`. Sizes may be set in the environment:
SEARCH_SEEDS, SEARCH_GANGS (as 4,64), SEARCH_SET (TUNING).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from benchmarks.problems import REPORTED, TUNING, Problem
from benchmarks.rivals import MULTI_OBJECTIVE_RIVALS, RIVALS, diverged, drive
from trainables.order import Failure
from tuning.experiment import Experiment
from tuning.simulator import simulate

OURS = "captune auto"
SHARES = (0.25, 0.5, 1.0)
#: Full trainings that a run may cost: fifty, or four for each gang where they are many.
TRAININGS, TRAININGS_PER_GANG = 50, 4


class Seen(NamedTuple):
    """An epoch of a run, whoever drove it."""

    epochs_spent: int
    losses: Sequence[float]
    config: Mapping[str, Any]
    epoch: int


class Task(NamedTuple):
    """One run."""

    problem: int
    """Index in the set."""
    method: str
    gangs: int
    seed: int


def main() -> None:
    """Print a table for each number of gangs, one for several objectives, and the ratio to the best rival."""
    seeds = int(os.environ.get("SEARCH_SEEDS", "20"))
    widths = [int(number) for number in os.environ.get("SEARCH_GANGS", "1,4,8,64").split(",")]
    problems = TUNING if os.environ.get("SEARCH_SET") == "TUNING" else REPORTED
    single = [index for index, problem in enumerate(problems) if len(problem.objectives) == 1]
    several = [index for index in range(len(problems)) if index not in single]
    ratio = math.nan
    for gangs in widths:
        table = measure(single, [OURS, *RIVALS], gangs, seeds)
        show(f"mean regret, {gangs} gangs", table, [problems[index].name for index in single])
        if gangs == 4 or len(widths) == 1:
            ours = table[OURS][:, :, -1].mean()
            ratio = min(runs[:, :, -1].mean() for name, runs in table.items() if name != OURS) / ours
    for gangs in widths:
        table = measure(several, [OURS, *MULTI_OBJECTIVE_RIVALS], gangs, seeds)
        show(f"share of the hypervolume, {gangs} gangs", table, [problems[index].name for index in several])
    print(f"search ratio={ratio:.2f}")


def measure(
    problems: Sequence[int], methods: Sequence[str], gangs: int, seeds: int
) -> dict[str, np.ndarray]:
    """Figures [problems, seeds, shares of the budget] by method."""
    tasks = [Task(p, m, gangs, s) for m in methods for p in problems for s in range(seeds)]
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        figures = np.array(list(pool.map(run, tasks, chunksize=4)))
    shaped = figures.reshape(len(methods), len(problems), seeds, len(SHARES))
    return dict(zip(methods, shaped, strict=True))


def run(task: Task) -> list[float]:
    """The figure of one run after each share of its budget."""
    problems = TUNING if os.environ.get("SEARCH_SET") == "TUNING" else REPORTED
    problem = problems[task.problem]
    budget = max(TRAININGS, TRAININGS_PER_GANG * task.gangs) * problem.max_epochs
    if task.method == OURS:
        seen = ours(problem, task.gangs, budget, task.seed)
    else:
        rivals = RIVALS if len(problem.objectives) == 1 else MULTI_OBJECTIVE_RIVALS
        method = rivals[task.method](problem, task.seed)
        seen = (
            Seen(r.epochs_spent, r.losses, r.config, r.epoch)
            for r in drive(method, problem, task.gangs, budget, task.seed)
        )
    figure = regrets if len(problem.objectives) == 1 else hypervolumes
    return list(at_shares(figure(problem, seen), budget))


def ours(problem: Problem, gangs: int, budget: int, seed: int, **sections: Any) -> Iterator[Seen]:
    """Captune's own search of `problem`; `sections` replace those of the experiment."""
    experiment = Experiment.from_dict(
        {
            "name": problem.name,
            "trainable": "curves",
            "search_space": problem.space,
            "objectives": [{"metric": name, "mode": "min"} for name in problem.objectives],
            "search": {"algorithm": "auto", "seed": seed},
            "scheduler": {"max_epochs": problem.max_epochs},
            "budget": {"epochs": budget},
            **sections,
        }
    )
    for spent, done in enumerate(simulate(experiment, _curves(problem, seed), gangs=gangs), start=1):
        losses = [done.metrics[name] for name in problem.objectives]
        yield Seen(spent, losses, done.config, done.epoch)


def _curves(problem: Problem, seed: int) -> Callable[..., Mapping[str, float] | Failure]:
    known: dict[str, np.ndarray] = {}

    def curves(trial_id: str, config: Mapping[str, Any], epoch: int) -> Mapping[str, float] | Failure:
        if trial_id not in known:
            known[trial_id] = problem.curve(config, seed * 1_000_003 + int(trial_id))
        losses = known[trial_id][epoch - 1].tolist()
        if diverged(tuple(losses)):
            return Failure(state="diverged", reason="loss is nan")
        seconds = {"seconds": problem.seconds_per_epoch(config)}
        return dict(zip(problem.objectives, losses, strict=True)) | seconds

    return curves


def regrets(problem: Problem, seen: Iterator[Seen]) -> Iterator[tuple[int, float]]:
    """(epochs spent, regret of what would be shipped) after every epoch."""
    place, regret = (0, math.inf), 1.0
    for report in seen:
        loss = report.losses[0]
        if not math.isnan(loss) and (-report.epoch, loss) < (-place[0], place[1]):
            place, regret = (report.epoch, loss), problem.regret(report.config)
        yield report.epochs_spent, regret


def hypervolumes(problem: Problem, seen: Iterator[Seen]) -> Iterator[tuple[int, float]]:
    """(epochs spent, share of the true front's hypervolume) after every epoch; any checkpoint could ship."""
    found = np.empty((0, len(problem.objectives)))
    share = 0.0
    for report in seen:
        losses = np.array(report.losses)
        if np.isfinite(losses).all() and not (found <= losses).all(axis=1).any():
            found = np.vstack([found[~(losses <= found).all(axis=1)], losses])
            share = problem.share(found)
        yield report.epochs_spent, share


def at_shares(figures: Iterator[tuple[int, float]], budget: int) -> Iterator[float]:
    """The figure that stood when each of `SHARES` of the budget was spent."""
    history = list(figures)
    for share in SHARES:
        reached = [figure for spent, figure in history if spent <= share * budget]
        yield reached[-1]


def show(title: str, table: Mapping[str, np.ndarray], problems: Sequence[str]) -> None:
    """Means over problems with the half-width of a 95 % interval over seeds, then each problem's last."""
    print(f"\n{title}: after {', '.join(f'{share:.0%}' for share in SHARES)} of the budget; each problem's last")
    print(f"{'':28s} {'':30s} {' '.join(f'{name[:12]:>12s}' for name in problems)}")
    for name, runs in table.items():
        by_seed = runs.mean(axis=0)  # [seeds, shares]
        mean = by_seed.mean(axis=0)
        half = 1.96 * by_seed.std(axis=0, ddof=1) / math.sqrt(len(by_seed)) if len(by_seed) > 1 else mean * 0
        cells = "  ".join(f"{m:.3f}±{h:.3f}" for m, h in zip(mean, half, strict=True))
        print(f"{name:28s} {cells:36s} {' '.join(f'{v:12.3f}' for v in runs[:, :, -1].mean(axis=1))}", flush=True)
