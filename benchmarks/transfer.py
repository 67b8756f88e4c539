"""Transfer: what `search.from` gains, where the earlier experiment was the same, a near or a far problem.

Virtual time, problems and figures are those of `search.py`, with 4 gangs. The earlier experiment is a search
with half the budget and another seed, written as tables and read as any user's. Of the same problem figures
count; near and far ones (`simulated/related.py`) are of other data: the best configuration lies elsewhere, a
tenth and three tenths of every range away, and losses are on another scale. What the earlier experiment cost
is not charged: it was there.

From the environment: TRANSFER_SEEDS (10), TRANSFER_SET (REPORTED).
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from benchmarks.search import PROBLEMS, SETS, SHARES, TRAININGS, described, ours
from benchmarks.simulated.figures import POINTS, at_shares, half_width, hypervolumes, regrets
from benchmarks.simulated.problem import Array
from benchmarks.simulated.related import related
from tuning.tables.results_writer import ResultsWriter
from tuning.tables.storage import write_description

GANGS = 4
NOTHING, NEAR = "nothing", "near"
#: How far away the earlier experiment's problem was; 0: it was the same, on the same scale.
SOURCES = {NOTHING: None, "the same": 0.0, NEAR: 0.1, "far": 0.3}
NAME, CELL = 12, 18


class Task(NamedTuple):
    """One run."""

    problem: str
    source: str
    seed: int


def main() -> None:
    """A table of regrets and one of hypervolumes; how much less regret a near problem leaves early on."""
    began = time.monotonic()
    seeds = int(os.environ.get("TRANSFER_SEEDS", "10"))
    problems = SETS[os.environ.get("TRANSFER_SET", "REPORTED")]
    tasks = [Task(p.name, source, seed) for source in SOURCES for p in problems for seed in range(seeds)]
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        curves = np.array(list(pool.map(run, tasks))).reshape(len(SOURCES), len(problems), seeds, POINTS)
    several = np.array([len(problem.objectives) > 1 for problem in problems])
    for title, chosen in (("mean regret", ~several), ("share of the hypervolume", several)):
        if chosen.any():
            show(f"{title}, {GANGS} gangs, {seeds} seeds", curves[:, chosen].mean(axis=1))
    early = curves[:, ~several][..., round(SHARES[0] * POINTS) - 1].mean(axis=(1, 2))
    print(f"\ntook {(time.monotonic() - began) / 60:.1f} minutes")
    print(f"transfer ratio={early[0] / early[list(SOURCES).index(NEAR)]:.2f}")


def show(title: str, curves: Array) -> None:
    """Print means and 95 % intervals over seeds, after SHARES; `curves` [sources, seeds, POINTS]."""
    after = ", ".join(f"{share:.0%}" for share in SHARES)
    print(f"\n{title}, after {after} of the budget ± 95 %, with an earlier experiment on")
    for source, own in zip(SOURCES, curves, strict=True):
        by_share = own[:, [round(share * POINTS) - 1 for share in SHARES]]
        cells = [f"{v:.3f} ± {h:.3f}" for v, h in zip(by_share.mean(0), half_width(by_share), strict=True)]
        print(f"{source:{NAME}}" + "".join(f"{cell:{CELL}}" for cell in cells), flush=True)


def run(task: Task) -> Array:
    """The figures [POINTS] of one search, after its earlier experiment."""
    problem, distance = PROBLEMS[task.problem], SOURCES[task.source]
    budget = TRAININGS * problem.max_epochs
    with tempfile.TemporaryDirectory() as storage:
        here: dict[str, Any] = {"storage": storage, "data": {"distance": 0.0}}
        if distance is not None:
            there = {"name": "before", "storage": storage, "data": {"distance": distance}}
            before = described(problem, budget // 2, 1000 + task.seed, **there)
            write_description(before, command=["captune"])
            writer = ResultsWriter(before)
            like = related(problem, distance, task.seed) if distance else problem
            list(ours(before, like, GANGS, [writer]))
            writer.close()
            here["search"] = {"algorithm": "auto", "seed": task.seed, "from": ["before"]}
        reports = ours(described(problem, budget, task.seed, **here), problem, GANGS)
        figures = regrets if len(problem.objectives) == 1 else hypervolumes
        return at_shares(list(figures(problem, reports)), budget)
