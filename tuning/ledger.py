"""What happened in an experiment so far, as rows: events in, the two tables out.

In memory only: `tuning/results.py` writes the tables, `tuning/progress.py` shows them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from tuning.events import FINAL_STATES, EpochReported, Event, TrialStarted
from tuning.schema import (
    COST_NAMES,
    EPOCH_STRUCTURE,
    FIGURES,
    epochs_dtypes,
    figure_column,
    searched_columns,
    to_frame,
    trials_dtypes,
)
from tuning.storage import read_table

if TYPE_CHECKING:
    from tuning.events import TrialEnded
    from tuning.experiment import Experiment

Row = dict[str, Any]

#: Trials in these states are never recommended, however good their figures were before.
WENT_WRONG = frozenset({"diverged", "failed", "out_of_memory"})


class Ledger:
    """Rows of `trials` and `epochs`, kept up by events; columns as in `tuning/schema.py`, gaps are absent."""

    def __init__(self, experiment: Experiment):
        self._objectives = [(figure_column(each.metric), each.mode) for each in experiment.objectives]
        self._constraints = [(figure_column(each.metric), each.excess) for each in experiment.constraints]
        self._searched = searched_columns(experiment.space)
        wanted = [name for name, _ in self._objectives] + [name for name, _ in self._constraints]
        self._wanted = list(dict.fromkeys(wanted))
        self._figures: dict[str, None] = {}  # reported columns, in the order of their first appearance
        self.trials: dict[str, Row] = {}
        self.epochs: dict[str, dict[int, Row]] = {}

    def apply(self, event: Event) -> None:
        """Take `event` in."""
        if isinstance(event, TrialStarted):
            self._started(event)
        elif isinstance(event, EpochReported):
            self._reported(event)
        else:
            self._ended(event)

    def trials_table(self) -> pd.DataFrame:
        """The table of trials as of now, in the order in which they started."""
        return to_frame(
            self.trials.values(),
            trials_dtypes(self._searched, filter(self._in_trials, self._ordered_figures())),
        )

    def epochs_table(self) -> pd.DataFrame:
        """The table of epochs as of now: trial by trial, each in order."""
        rows = (row for trial_id in self.trials for _, row in sorted(self.epochs[trial_id].items()))
        return to_frame(rows, epochs_dtypes(self._ordered_figures()))

    def take_up(self, folder: Path) -> None:
        """Go on with the tables of an earlier run in `folder`, if there are any."""
        trials, epochs = (folder / f"{name}.parquet" for name in ("trials", "epochs"))
        if not trials.exists():
            return
        for row in _rows(read_table(trials)):
            self.trials[row["trial_id"]] = row
        frame = read_table(epochs)
        self._figures = dict.fromkeys(str(name) for name in frame if name not in EPOCH_STRUCTURE)
        for row in _rows(frame):
            # A trial that is only here, after a kill between the two writes, shows again once it is started.
            self.epochs.setdefault(row["trial_id"], {})[row["epoch"]] = row
        for trial_id, row in self.trials.items():
            row |= self._effort(trial_id, row)
            self._summarise(trial_id)

    def best(self) -> Row | None:
        """The row of the best trial so far, by the rules of `Results.best`; None before there is one."""
        name, mode = self._objectives[0]
        usable = [
            row
            for row in self.trials.values()
            if row["state"] not in WENT_WRONG and _is_number(row.get(name))
        ]
        sign = 1 if mode == "min" else -1
        return min(usable, key=lambda row: (self.violation(row), sign * row[name]), default=None)

    def violation(self, row: Row) -> float:
        """By how much a trial misses the constraints, 0 if it meets them all."""
        return sum(
            max(0.0, excess(row[name])) if _is_number(row.get(name)) else float("inf")
            for name, excess in self._constraints
        )

    def _ordered_figures(self) -> list[str]:
        known = [column.name for column in FIGURES if column.name in self._figures]
        return list(dict.fromkeys([*self._wanted, *known, *self._figures]))

    def _in_trials(self, figure: str) -> bool:
        # worker_s is a sum over epochs there, not a figure of the best one
        return figure not in COST_NAMES or (figure in self._wanted and figure != "worker_s")

    def _started(self, event: TrialStarted) -> None:
        if event.trial_id not in self.trials:
            self.trials[event.trial_id] = {"trial_id": event.trial_id, "epochs": 0}
            self.trials[event.trial_id] |= self._effort(event.trial_id)
            self._summarise(event.trial_id)  # where only its epochs were written before a kill
        row = self.trials[event.trial_id]
        row.setdefault("started_at", event.at)
        row |= {f"config/{name}": value for name, value in event.config.items()}
        row |= {"state": "running", "reason": None, "error": None, "finished_at": None}

    def _reported(self, event: EpochReported) -> None:
        trial, done = self.trials[event.trial_id], self.epochs[event.trial_id]
        metrics = {figure_column(name): float(value) for name, value in event.metrics.items()}
        self._figures |= dict.fromkeys(metrics)
        # An epoch repeated after a restart takes the place of the lost one; the work was done twice, though.
        done[event.epoch] = {
            "trial_id": event.trial_id,
            "epoch": event.epoch,
            "attempt": event.attempt,
            "rung": event.rung,
            "gang": event.gang,
            "checkpoint": event.checkpoint,
            "at": event.at,
            **metrics,
        }
        trial["worker_s"] += metrics.get("worker_s", 0.0)
        trial["node"] = event.node
        trial["restarts"] = max(trial["restarts"], event.attempt - 1)
        self._summarise(event.trial_id)

    def _effort(self, trial_id: str, counted: Row | None = None) -> Row:
        """What a trial has cost: as `counted` in its row, but no less than its epochs say."""
        done, counted = self.epochs.setdefault(trial_id, {}).values(), counted or {}
        seconds = sum(epoch.get("worker_s", 0.0) for epoch in done)
        attempts = max((epoch["attempt"] for epoch in done), default=1)
        return {
            "worker_s": max(counted.get("worker_s", 0.0), seconds),
            "restarts": max(counted.get("restarts", 0), attempts - 1),
        }

    def _ended(self, event: TrialEnded) -> None:
        self.trials[event.trial_id] |= {
            "state": event.state,
            "reason": event.reason,
            "error": event.error or None,
            "finished_at": event.at if event.state in FINAL_STATES else None,
        }

    def _summarise(self, trial_id: str) -> None:
        """Work out the columns of a trial that follow from its epochs."""
        row, done = self.trials[trial_id], self.epochs[trial_id]
        if not done:
            return
        last = done[max(done)]
        rungs = [epoch["rung"] for epoch in done.values() if epoch.get("rung") is not None]
        row |= {"epochs": max(done), "gang": last["gang"], "rung": max(rungs, default=None)}
        best = best_epoch(done.values(), self._objectives)
        figures = [name for name in self._figures if self._in_trials(name)]
        row |= {name: best.get(name) if best else None for name in figures}
        row["best_epoch"] = best["epoch"] if best else None
        row["checkpoint"] = best["checkpoint"] if best else None


def best_epoch(epochs: Iterable[Row], objectives: Sequence[tuple[str, str]]) -> Row | None:
    """The fully evaluated epoch with the best first objective, the earliest of equals; None if there is none.

    Fully evaluated means: every objective is there, and no other such epoch carries more figures (between
    rungs a trainable may leave out those that cost much, like generated captions).
    """
    names = [name for name, _ in objectives]
    candidates = [
        (_figure_count(row), row) for row in epochs if all(_is_number(row.get(name)) for name in names)
    ]
    if not candidates:
        return None
    fullest = max(count for count, _ in candidates)
    first, mode = objectives[0]
    sign = 1 if mode == "min" else -1
    return min(
        (row for count, row in candidates if count == fullest),
        key=lambda row: (sign * row[first], row["epoch"]),
    )


def _figure_count(row: Row) -> int:
    return sum(_is_number(row[name]) for name in row.keys() - EPOCH_STRUCTURE - COST_NAMES)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _rows(frame: pd.DataFrame) -> list[Row]:
    """Rows of a table as dicts without what is NA."""
    return [
        {str(name): value for name, value in row.items() if not pd.isna(value)}
        for row in frame.to_dict("records")
    ]
