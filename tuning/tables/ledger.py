"""What happened in an experiment so far, as rows: events in, the two tables out.

In memory only: `tuning/tables/results_writer.py` writes the tables, `tuning/progress.py` shows them.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from tuning.events import FINAL_STATES, EpochReported, Event, GangClosed, TrialStarted
from tuning.search import ranking
from tuning.tables.comparison import WENT_WRONG, Comparison, Row
from tuning.tables.growing_front import GrowingFront
from tuning.tables.schema import (
    COST_NAMES,
    EPOCH_HEAD,
    EPOCH_STRUCTURE,
    FIGURES,
    TRIAL_HEAD,
    epochs_dtypes,
    figure_column,
    searched_columns,
    to_frame,
    trials_dtypes,
)
from tuning.tables.storage import read_table

if TYPE_CHECKING:
    from tuning.events import TrialEnded
    from tuning.experiment import Experiment


class Ledger:
    """Rows of `trials` and `epochs`, kept up by events; columns as in `tuning/tables/schema.py`, gaps are
    absent."""

    def __init__(self, experiment: Experiment):
        self.comparison = Comparison(experiment)
        self._several = len(experiment.objectives) > 1
        self._searched = searched_columns(experiment.space)
        self._figures: dict[str, None] = {}  # reported columns, in the order of their first appearance
        self._front = GrowingFront(self.comparison.references)
        self._best: tuple[tuple[float, ...], str] | None = None  # its key, and its trial_id
        self._places: dict[str, int] = {}  # of the trials, in the order in which they started
        self.trials: dict[str, Row] = {}
        self.epochs: dict[str, dict[int, Row]] = {}

    def apply(self, event: Event) -> None:
        """Take `event` in."""
        if isinstance(event, GangClosed):
            return  # no row is about gangs
        if isinstance(event, TrialStarted):
            self._started(event)
        elif isinstance(event, EpochReported):
            self._reported(event)
        else:
            self._ended(event)
        self._compare_with_best(event.trial_id)

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
        for row in _rows(read_table(trials, TRIAL_HEAD)):
            self.trials[row["trial_id"]] = row
        frame = read_table(epochs, EPOCH_HEAD)
        self._figures = dict.fromkeys(str(name) for name in frame if name not in EPOCH_STRUCTURE)
        for row in _rows(frame):
            # A trial that is only here, after a kill between the two writes, shows again once it is started.
            self.epochs.setdefault(row["trial_id"], {})[row["epoch"]] = row
        for trial_id, row in self.trials.items():
            row |= self._effort(trial_id, row)
            self._summarise(trial_id)
            self._places[trial_id] = len(self._places)
        self._find_best()
        self._regrow_front()

    def best(self) -> Row | None:
        """The row of the best trial so far, by the rules of `Results.best`; None before there is one."""
        return None if self._best is None else self.trials[self._best[1]]

    @property
    def hypervolume(self) -> float | None:
        """Of the front of all results so far; None with one objective or before the reference is known."""
        return self._front.hypervolume if self._several else None

    def best_first(self) -> list[str]:
        """Trials that can be chosen, by the rules of `Results.best`. Looks at every trial."""
        return [trial_id for _, trial_id in self._ordered()]

    def unbeaten(self) -> list[str]:
        """Trials that none which is over beats: the best and the front, and what would be, should any that
        may still go on fail. Looks at every trial."""
        found: list[str] = []
        over: list[ranking.Standing] = []
        for (violation, *losses, _), trial_id in self._ordered():  # what beats a trial comes before it
            standing = ranking.Standing(tuple(losses), violation)
            if not ranking.dominated(standing, over):
                found.append(trial_id)
                if self.trials[trial_id]["state"] in FINAL_STATES:
                    over.append(standing)
        return found

    def front(self) -> list[str]:
        """The trials in the front so far, by the rules of `Results.front`. Looks at every trial."""
        keys = {trial_id: self._key(trial_id) for trial_id in self.trials}
        feasible = {name: key[1:-1] for name, key in keys.items() if key is not None and key[0] == 0}
        return [
            name for name, best in zip(feasible, ranking.front([*feasible.values()]), strict=True) if best
        ]

    def front_size(self) -> int:
        """Number of trials in `front`."""
        return len(self.front())

    def _ordered_figures(self) -> list[str]:
        known = [column.name for column in FIGURES if column.name in self._figures]
        return list(dict.fromkeys([*self.comparison.columns, *known, *self._figures]))

    def _in_trials(self, figure: str) -> bool:
        # worker_s is a sum over epochs there, not a figure of the best one
        return figure not in COST_NAMES or (figure in self.comparison.columns and figure != "worker_s")

    def _started(self, event: TrialStarted) -> None:
        if event.trial_id not in self.trials:
            self._places[event.trial_id] = len(self._places)
            row = self.trials[event.trial_id] = {"trial_id": event.trial_id, "epochs": event.parent_epoch}
            row["chosen"] = event.chosen or None
            if event.parent is not None:
                row |= {"parent": event.parent, "parent_epoch": event.parent_epoch}
            self.trials[event.trial_id] |= self._effort(event.trial_id)
            self._summarise(event.trial_id)  # where only its epochs were written before a kill
        row = self.trials[event.trial_id]
        row.setdefault("started_at", event.at)
        row |= {f"config/{name}": value for name, value in event.config.items()}
        row |= {"state": "running", "reason": event.why or None, "error": None, "finished_at": None}
        row["halvings"] = event.halvings

    def _reported(self, event: EpochReported) -> None:
        trial, done = self.trials[event.trial_id], self.epochs[event.trial_id]
        metrics = {figure_column(name): float(value) for name, value in event.metrics.items()}
        self._figures |= dict.fromkeys(metrics)
        replaced = event.epoch in done
        # An epoch repeated after a restart takes the place of the lost one; the work was done twice, though.
        done[event.epoch] = {
            "trial_id": event.trial_id,
            "epoch": event.epoch,
            "attempt": event.attempt,
            "rung": event.rung,
            "gang": event.gang,
            "checkpoint": event.checkpoint,
            "at": event.at,
            "hypervolume": self.hypervolume,
            **metrics,
        }
        if replaced:
            self._regrow_front()
        else:
            self._grow_front(done[event.epoch])
        trial["worker_s"] += metrics.get("worker_s", 0.0) + event.lost_worker_s
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
        self.trials[event.trial_id]["worker_s"] += event.lost_worker_s
        self.trials[event.trial_id] |= {
            "state": event.state,
            "reason": event.reason,
            "error": event.error or None,
            "finished_at": event.at if event.state in FINAL_STATES else None,
        }

    def _key(self, trial_id: str) -> tuple[float, ...] | None:
        """What trials are compared by, smaller is better: violation, losses, place; None if it is out."""
        row = self.trials[trial_id]
        losses = self.comparison.losses(row)
        if row["state"] in WENT_WRONG or losses is None:
            return None
        return (self.comparison.violation(row), *losses, self._places[trial_id])

    def _ordered(self) -> list[tuple[tuple[float, ...], str]]:
        """Keys and trials that have one, the best first."""
        keys = ((self._key(trial_id), trial_id) for trial_id in self.trials)
        return sorted((key, trial_id) for key, trial_id in keys if key is not None)

    def _compare_with_best(self, trial_id: str) -> None:
        """After a change of one trial; all trials are looked at only where the best one became worse."""
        key = self._key(trial_id)
        if self._best is None or (key is not None and key <= self._best[0]):
            self._best = self._best if key is None else (key, trial_id)
        elif trial_id == self._best[1]:
            self._find_best()

    def _find_best(self) -> None:
        self._best = next(iter(self._ordered()), None)

    def _grow_front(self, row: Row) -> None:
        """Take an epoch into the front and write the hypervolume after it into its row."""
        if self._several:
            losses = self.comparison.losses(row)
            if losses is not None:
                self._front.add(losses, feasible=self.comparison.violation(row) == 0)
            row["hypervolume"] = self._front.hypervolume

    def _regrow_front(self) -> None:
        """Work all hypervolumes out again, in the order of reporting: what is in the tables is what counts.

        The hypervolume never shrinks, so that it tells the order even where the clock was set back.
        """
        self._front = GrowingFront(self.comparison.references)
        rows = (row for done in self.epochs.values() for row in done.values())
        for row in sorted(rows, key=lambda row: (_or_nothing(row.get("hypervolume")), row["at"])):
            self._grow_front(row)

    def _summarise(self, trial_id: str) -> None:
        """Work out the columns of a trial that follow from its epochs."""
        row, done = self.trials[trial_id], self.epochs[trial_id]
        if not done:
            return
        last = done[max(done)]
        rungs = [epoch["rung"] for epoch in done.values() if epoch.get("rung") is not None]
        row |= {"epochs": max(done), "gang": last["gang"], "rung": max(rungs, default=None)}
        best = self.comparison.best_epoch(done.values())
        figures = [name for name in self._figures if self._in_trials(name)]
        row |= {name: best.get(name) if best else None for name in figures}
        row["best_epoch"] = best["epoch"] if best else None
        row["checkpoint"] = best["checkpoint"] if best else None


def _or_nothing(value: float | None) -> float:
    return -math.inf if value is None else value


def _rows(frame: pd.DataFrame) -> list[Row]:
    """Rows of a table as dicts without what is NA."""
    return [
        {str(name): value for name, value in row.items() if not pd.isna(value)}
        for row in frame.to_dict("records")
    ]
