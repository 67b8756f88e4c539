"""Many trials: what a trial costs when there are already thousands, through the real Ray Tune path.

Trials of one epoch without work on one gang, so that what is left is Captune, Ray Tune and the searcher. One
run per searcher; a trial's cost is the time from its start to that of the next. Nothing may grow: the figure
is the median of the last tenth of the trials over that of the second tenth. MANY_TRIALS sets how many (2000),
MANY_TRIALS_SEARCHERS whose (random,tpe,auto).
"""

from __future__ import annotations

import os
import tempfile

import numpy as np
import pandas as pd

from tuning.experiment import Experiment
from tuning.runner import run


def main() -> None:
    """A line per searcher, and the largest growth."""
    trials = int(os.environ.get("MANY_TRIALS", "2000"))
    searchers = os.environ.get("MANY_TRIALS_SEARCHERS", "random,tpe,auto").split(",")
    growths = []
    print(f"{'searcher':10s} {'trials':>7s} {'ms a trial':>11s} {'early':>8s} {'late':>8s} {'growth':>7s}")
    for searcher in searchers:
        cost_ms = costs(searcher, trials).to_numpy() * 1000
        tenth = max(2, trials // 10)
        early, late = np.median(cost_ms[tenth : 2 * tenth]), np.median(cost_ms[-tenth:])
        growths.append(late / early)
        print(
            f"{searcher:10s} {trials:7d} {cost_ms.mean():11.1f} {early:8.1f} {late:8.1f} {growths[-1]:7.2f}",
            flush=True,
        )
    print(f"many_trials ratio={max(growths):.2f}")


def costs(searcher: str, trials: int) -> pd.Series:
    """Seconds from each trial's start to the next one's."""
    with tempfile.TemporaryDirectory() as storage:
        experiment = Experiment.from_dict(
            {
                "name": f"many-{searcher}",
                "trainable": "curves",
                "search_space": {
                    "learning_rate": {"float": [1e-4, 1e-1], "log": True},
                    "momentum": {"float": [0, 0.99]},
                },
                "objectives": [{"metric": "score", "mode": "max"}],
                "search": {"algorithm": searcher},
                "scheduler": {"max_epochs": 1},
                "budget": {"trials": trials},
                "training": {"gangs": 1},
                "storage": storage,
            }
        )
        started = run(experiment).trials["started_at"].sort_values()
    return started.diff().dropna().dt.total_seconds()
