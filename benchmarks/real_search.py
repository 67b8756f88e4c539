"""Real search: the best CIDEr against epochs and worker-seconds spent, when every trial is really trained.

Captune's `auto` (searcher and scheduler as shipped) against Ray's own ASHA with its OptunaSearch, and random
search: the same space, the same epochs, one trial at a time on one thread, in one process without Ray
(`trained/searches.py`), so that an epoch costs the same under every method. ASHA and Captune have a trial
evaluated in full, which is what CIDEr costs, at the same rungs, after 1 and 3 of 9 epochs.
The figure is the best CIDEr so far on the validation split, of any trial at a rung or its end: what a
user would ship. Worker-seconds are processor time, which waiting does not add to, but which work beside it
makes up to twice as long: they want a quiet machine, epochs do not. Their shares are of what the cheapest
method of the same seed spent, so that all have a figure there. What the methods themselves take is in the
column `search s`. On photographs there is a row more: Captune with `search.from` an equal search of drawn
scenes, whose cost is not charged.

Data: drawn scenes; and photographs, where REAL_SEARCH_FLICKR8K names a folder in the layout of Flickr8k.
Also from the environment: REAL_SEARCH_SEEDS (3), REAL_SEARCH_TRAININGS (12, the budget in full trainings),
REAL_SEARCH_PROCESSES (runs at a time, default all cores), REAL_SEARCH_RESULTS (default a folder of this name
among the machine's temporary files). Every finished run lies there, and is not run again: an interrupted
benchmark goes on, and one that is to measure anew needs another folder.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.simulated.problem import Array
from benchmarks.trained.problems import Problem, flickr8k, shapes
from benchmarks.trained.searches import METHODS, OURS, WARM, search
from trainables.trial import resolve_trainable

#: Shares of the budget that the tables show.
SHARES = (0.25, 0.5, 1.0)
#: Width of the column of names and of a figure, in characters.
NAME, CELL = 27, 23


class Task(NamedTuple):
    """One run."""

    problem: Problem
    method: str
    seed: int
    budget_epochs: int
    results: Path
    """Folder of the finished runs."""

    @property
    def settings(self) -> dict[str, Any]:
        """All that the result depends on, but for the code."""
        problem = self.problem
        return {
            "data": {key: value for key, value in problem.data.items() if key != "cache"},
            "model": dict(problem.model),
            "space": problem.space.to_dict(),
            "max_epochs": problem.max_epochs,
            "budget_epochs": self.budget_epochs,
            "method": self.method,
            "seed": self.seed,
        }

    @property
    def file(self) -> Path:
        """Where the result is, or will be."""
        return self.results / f"{self.problem.name}-{self.method.replace(' ', '')}-{self.seed}.json"

    def earlier(self) -> dict[str, Any] | None:
        """The result of this very run, if it was finished before."""
        if not self.file.exists():
            return None
        kept = json.loads(self.file.read_text(encoding="utf-8"))
        return kept["run"] if kept["settings"] == self.settings else None


def main() -> None:
    """A table for each data set; the ratio of ours to the better rival after all worker-seconds."""
    began = time.monotonic()
    seeds = int(os.environ.get("REAL_SEARCH_SEEDS", "3"))
    trainings = int(os.environ.get("REAL_SEARCH_TRAININGS", "12"))
    results = Path(
        os.environ.get("REAL_SEARCH_RESULTS") or Path(tempfile.gettempdir()) / "captune-real-search"
    )
    results.mkdir(parents=True, exist_ok=True)
    problems = chosen(results / "cache")
    for problem in problems:
        resolve_trainable("captioning").prepare(problem.data, problem.model)  # once, not in every process
    tasks = [
        Task(problem, method, seed, trainings * problem.max_epochs, results)
        for problem in problems
        for seed in range(seeds)
        for method in methods_for(problem)
    ]
    there = sum(task.earlier() is not None for task in tasks)
    print(f"{there} of {len(tasks)} runs are in {results}", flush=True)
    runs = finish(tasks)
    ratios = []
    for problem in problems:
        own = {
            method: [run for task, run in zip(tasks, runs, strict=True) if task[:2] == (problem, method)]
            for method in methods_for(problem)
        }
        ratios.append(show(problem.name, own, trainings * problem.max_epochs))
    print(f"\ntook {(time.monotonic() - began) / 60:.1f} minutes")
    print(f"real_search ratio={np.mean(ratios):.3f}")


def methods_for(problem: Problem) -> list[str]:
    """All, but for the one that learns from an earlier experiment where the problem has none."""
    return [method for method in METHODS if method != WARM or problem.earlier is not None]


def chosen(cache: Path) -> list[Problem]:
    """The data sets that there are."""
    problems = [shapes(cache)]
    photographs = os.environ.get("REAL_SEARCH_FLICKR8K")
    if photographs:
        problems.append(flickr8k(Path(photographs), cache))
    else:
        print("flickr8k left out: REAL_SEARCH_FLICKR8K names no folder")
    return problems


def finish(tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """The results, in the order of the tasks; what was not finished before is run."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that follow
    processes = int(os.environ.get("REAL_SEARCH_PROCESSES") or os.cpu_count() or 1)
    runs = []
    with ProcessPoolExecutor(max_workers=processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        for task, run in zip(tasks, pool.map(perform, tasks), strict=True):
            runs.append(run)
            best = max((cider for cider in run["cider"] if cider is not None), default=0.0)
            print(f"{task.problem.name}, seed {task.seed}, {task.method}: {best:.3f}", flush=True)
    return runs


def perform(task: Task) -> dict[str, Any]:
    """What `searches.search` returns, from an earlier time or run now and then kept."""
    run = task.earlier()
    if run is None:
        run = search(task.problem, task.method, task.seed, task.budget_epochs)
        aside = task.file.with_suffix(f".{os.getpid()}")
        aside.write_text(json.dumps({"settings": task.settings, "run": run}), encoding="utf-8")
        aside.replace(task.file)  # whole or not at all
    return run


def best_so_far(run: Mapping[str, Any], spent: Sequence[float] | Array, points: Array) -> Array:
    """The best CIDEr [points] when each of `points` was spent, 0 before there is one.

    `spent` [epochs] is what each epoch of the run cost, in the unit of `points`.
    """
    best = np.maximum.accumulate([0.0, *(cider or 0.0 for cider in run["cider"])])
    total = np.cumsum([0.0, *spent])
    reached = np.searchsorted(total, points * (1 + 1e-9), side="right")  # they are sums of floats
    return best[reached - 1]


def shown(runs: Mapping[str, Sequence[Mapping[str, Any]]], budget_epochs: int) -> dict[str, Array]:
    """Best CIDEr [seeds, 2 x SHARES] of each method: by shares of the epochs, then of the worker-seconds."""
    cheapest = [min(sum(run["worker_s"]) for run in seed) for seed in zip(*runs.values(), strict=True)]
    epochs, shares = budget_epochs * np.array(SHARES), np.array(SHARES)
    return {
        method: np.array(
            [
                [*best_so_far(run, np.ones(len(run["cider"])), epochs)]
                + [*best_so_far(run, run["worker_s"], shares * total)]
                for run, total in zip(own, cheapest, strict=True)
            ]
        )
        for method, own in runs.items()
    }


def show(title: str, runs: Mapping[str, Sequence[Mapping[str, Any]]], budget_epochs: int) -> float:
    """Print the table of one data set; ours over the better rival after all worker-seconds.

    `runs`: of each method, by seed.
    """
    figures = shown(runs, budget_epochs)
    after = ", ".join(f"{share:.0%}" for share in SHARES)
    width = len(SHARES) * CELL
    print(f"\n{title}: best CIDEr after {after}, mean (least to most) of {len(figures[OURS])} seeds")
    print(f"{'':{NAME}}{'of the epochs':{width}}{'of the worker-seconds':{width}}worker s trials search s")
    for method, own in runs.items():
        columns = figures[method].T
        cells = [f"{column.mean():.3f} ({column.min():.3f} to {column.max():.3f})" for column in columns]
        worker_s = np.mean([sum(run["worker_s"]) for run in own])
        trials, search_s = (np.mean([run[name] for run in own]) for name in ("trials", "search_s"))
        line = "".join(f"{cell:{CELL}}" for cell in cells)
        print(f"{method:{NAME}}{line}{worker_s:8.0f} {trials:6.0f} {search_s:8.1f}")
    means = {method: figure.mean(axis=0) for method, figure in figures.items()}
    rivals = [method for method in runs if method not in (OURS, WARM)]
    for rival in rivals:
        with np.errstate(divide="ignore", invalid="ignore"):  # before the rival's first figure
            cells = [f"{ratio:.2f}" for ratio in means[OURS] / means[rival]]
        print(f"{'ours / ' + rival:{NAME}}{''.join(f'{cell:{CELL}}' for cell in cells)}".rstrip())
    return means[OURS][-1] / max(means[rival][-1] for rival in rivals)
