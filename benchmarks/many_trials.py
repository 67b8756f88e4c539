"""Many trials: what a trial costs when there are already thousands, through the real Ray Tune path.

Trials of one epoch without work on one gang, so that what is left is Captune, Ray Tune and the searcher. One
run per searcher; a trial's cost is the time from its start to that of the next. Nothing may grow: the figure
is the median of the last tenth of the trials over that of the second tenth. MANY_TRIALS sets how many (2000),
MANY_TRIALS_SEARCHERS whose: `gp` is left out, as its proposals take a third of a second each. `auto` decides
what runs next, too; `auto+asha` only proposes.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from tuning.experiment import Experiment
from tuning.runner import run

SEARCHERS = "random,sobol,tpe,cmaes,nsga2,auto+asha,auto"
#: What a trial costs is shown after so many of them.
AFTER = (100, 1000, 5000)


def main() -> None:
    """A line per searcher, and the largest growth."""
    trials = int(os.environ.get("MANY_TRIALS", "2000"))
    searchers = os.environ.get("MANY_TRIALS_SEARCHERS", SEARCHERS).split(",")
    marks = [*(mark for mark in AFTER if mark < trials), trials]
    growths = []
    print(f"{'ms a trial after':20s}{''.join(f'{mark:>8d}' for mark in marks)}   growth")
    for searcher in searchers:
        cost_ms = costs(searcher, trials).to_numpy() * 1000
        tenth = max(2, trials // 10)
        growths.append(np.median(cost_ms[-tenth:]) / np.median(cost_ms[tenth : 2 * tenth]))
        cells = "".join(f"{cost:8.1f}" for cost in around(cost_ms, marks))
        print(f"{searcher:20s}{cells} {growths[-1]:8.2f}", flush=True)
    print(f"many_trials ratio={max(growths):.2f}")


def around(cost_ms: np.ndarray, marks: Sequence[int]) -> list[float]:
    """Medians of the half of the trials before each mark that is nearest to it, at most a hundred."""
    return [float(np.median(cost_ms[max(mark // 2, mark - 100) : mark])) for mark in marks]


def costs(searcher: str, trials: int) -> pd.Series:
    """Seconds from each trial's start to the next one's."""
    several = [{"metric": name, "mode": mode} for name, mode in (("score", "max"), ("seconds", "min"))]
    with tempfile.TemporaryDirectory() as storage:
        description: dict[str, Any] = {
            "name": "many",
            "trainable": "curves",
            "search_space": {
                "learning_rate": {"float": [1e-4, 1e-1], "log": True},
                "momentum": {"float": [0, 0.99]},
            },
            "objectives": several if searcher == "nsga2" else several[:1],
            "search": {"algorithm": searcher.split("+")[0]},
            "scheduler": {"max_epochs": 1, "algorithm": "asha" if searcher.endswith("+asha") else "auto"},
            "budget": {"epochs" if searcher == "auto" else "trials": trials},
            "training": {"gangs": 1},
            "storage": storage,
        }
        started = run(Experiment.from_dict(description)).trials["started_at"].sort_values()
    return started.diff().dropna().dt.total_seconds()
