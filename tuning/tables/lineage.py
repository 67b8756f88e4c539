"""Which trial started from which: forks, and the stretches of training that led to a trial's weights.

A fork is a trial that starts from another's checkpoint, with a configuration of its own; its epochs are
numbered on. Why there are forks is for `tuning/search/pbt.py` to know. This file knows the columns `parent`
and `parent_epoch` of the table of trials, which tables of earlier versions do not have.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from tuning.tables.configurations import PREFIX

#: Times as many trials of one experiment have seeds of their own.
_SEEDS = 1_000_003


def trial_seed(seed: int, trial_id: str) -> int:
    """Seed of a trial of the experiment with `search.seed: seed`: the same wherever and whenever it runs."""
    return seed * _SEEDS + int(trial_id)


def starts_after(row: Mapping[Any, Any]) -> int:
    """Epochs that a trial had behind it when it started, by its row in the table: 0 unless it is a fork."""
    epoch = row.get("parent_epoch")
    return 0 if epoch is None or pd.isna(epoch) else int(epoch)


def without_forks(trials: pd.DataFrame) -> pd.DataFrame:
    """The trials whose figures are due to their own configuration alone."""
    return trials[trials["parent"].isna()] if "parent" in trials else trials


def schedule(trials: pd.DataFrame, trial_id: str, *, until: int, seed: int) -> pd.DataFrame:
    """The configurations under which a trial's weights were trained, stretch by stretch.

    Args:
        trials: the table.
        trial_id: one of its trials.
        until: the last epoch of interest, at least the trial's first one.
        seed: `search.seed` of the experiment.

    Returns:
        A row per stretch, the earliest first: `from_epoch` and `to_epoch` (from 1, both included),
        `trial_id` of who trained them and the `seed` of that trial, and the columns `config/NAME`. One row
        where the trial is no fork.
    """
    rows = {str(row["trial_id"]): row for row in trials.to_dict("records")}
    stretches: list[dict[str, Any]] = []
    current, last = trial_id, until
    while last:
        before = starts_after(rows[current])
        if last > before:  # else it was forked itself before it had trained an epoch
            by = {"trial_id": current, "seed": trial_seed(seed, current)}
            stretches.append({"from_epoch": before + 1, "to_epoch": last, **by})
        current, last = str(rows[current].get("parent")), min(before, last)
    configs = trials.set_index("trial_id").filter(like=PREFIX)
    found = pd.DataFrame(stretches[::-1])
    return found.join(configs, on="trial_id")
