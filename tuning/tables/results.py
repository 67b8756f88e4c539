"""The tables of an experiment, read back with the dtypes they were written with, and the best trial picked.

Columns are defined in `tuning/tables/schema.py`. Nothing here decides what runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pandas as pd

from search_spaces.nearest import nearest
from tuning.choosing import pareto
from tuning.choosing.pareto import Figures
from tuning.search import ranking
from tuning.tables.comparison import WENT_WRONG
from tuning.tables.copies import origin_of
from tuning.tables.fidelity import agreement
from tuning.tables.lineage import schedule
from tuning.tables.schema import BETTER, EPOCH_HEAD, TRIAL_HEAD, VARIANT_HEAD, figure_column
from tuning.tables.storage import UnreadableResults, find_folder, read_table

if TYPE_CHECKING:
    from tuning.experiment import Experiment


@dataclass(frozen=True)
class Results:
    """The tables of one experiment as they were when read."""

    folder: Path
    """The experiment's folder; where `storage` is a URL, a copy of it without models."""
    trials: pd.DataFrame
    """One row per trial, in the order in which they started."""
    epochs: pd.DataFrame
    """One row per trial and epoch."""

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self.folder.name

    @property
    def place(self) -> str:
        """Where the results are: the folder, or the URL that it is a copy of."""
        return origin_of(self.folder) or str(self.folder)

    @cached_property
    def experiment(self) -> Experiment:
        """The experiment as it was run, from its resolved file; its trainable is not imported.

        Raises:
            UnreadableResults: the file is damaged.
        """
        from tuning.experiment import Experiment, ExperimentError  # heavy, and tables are often all

        try:
            return Experiment.read_back(self.folder / "experiment.yaml")
        except ExperimentError as error:
            raise UnreadableResults(str(error)) from error

    @cached_property
    def variants(self) -> pd.DataFrame:
        """One row per compressed or uncompressed variant of a trained trial; empty where there are none.

        Raises:
            UnreadableResults: the table is damaged or not one.
        """
        path = self.folder / "variants.parquet"
        return read_table(path, VARIANT_HEAD) if path.exists() else pd.DataFrame()

    def candidates(self, *, feasible: bool = True) -> pd.DataFrame:
        """What can be chosen: the variants where there are any, else the trials; none that went wrong.

        Args:
            feasible: only what meets every constraint.
        """
        rows = self.trials if self.variants.empty else self.variants
        rows = rows[~rows["state"].isin(WENT_WRONG)]
        return rows[self._violation(rows) == 0] if feasible else rows

    def pareto(
        self,
        figures: Sequence[str] | None = None,
        *,
        at_most: Mapping[str, float] | None = None,
        at_least: Mapping[str, float] | None = None,
    ) -> pd.DataFrame:
        """The `candidates` that no other beats in every one of `figures`; by the first, the best first.

        Args:
            figures: names such as `cider`, or `NAME:min` and `NAME:max` where it is not known what is good;
                default: the objectives, and `size_mb` and `latency_ms` where they were measured.
            at_most: largest values allowed, by figure.
            at_least: smallest values allowed. Limits leave the front as it is: it shows what they cost.

        Returns:
            Their rows, with a boolean column `knee` (see `pareto.knee`) and, with limits, `within_limits`.

        Raises:
            QueryError: an unknown figure, one that holds no numbers, or that is not known to be good large
                or small.
        """
        candidates = self.candidates()
        front = pareto.front(candidates, self.figures(candidates, figures))
        limits = pareto.limits(candidates, at_most, at_least)
        return front.assign(within_limits=pareto.violation(front, limits) == 0) if limits else front

    def figures(self, candidates: pd.DataFrame, names: Sequence[str] | None = None) -> Figures:
        """What `candidates` are compared by, and which direction is good; see `pareto`."""
        objectives = {figure_column(each.metric): each.mode for each in self.experiment.objectives}
        if names is None:
            measured = [name for name in ("size_mb", "latency_ms") if name in candidates]
            measured = [name for name in measured if candidates[name].notna().any()]
            names = list(dict.fromkeys([*objectives, *measured]))
        return pareto.directions(candidates, names, objectives)

    def feasible(self) -> pd.Series:
        """For each trial, whether it meets every constraint; one without the constrained figure does not."""
        return self._violation(self.trials) == 0

    def best(self, metric: str | None = None, *, mode: Literal["min", "max"] | None = None) -> pd.Series:
        """The row of the best trial. Several objectives: by the first, the others decide among equals.

        Trials that meet every constraint come first; if none does, the one that violates them least (by the
        sum of relative excesses) is returned. Trials that diverged or failed are left out.

        Args:
            metric: a figure in `trials`; default: the experiment's first objective.
            mode: which direction is good; needed only where neither an objective nor the schema says it.

        Raises:
            ValueError: no trial has the figure, there is no such figure, or its direction is not known.
        """
        objectives = {figure_column(each.metric): each.mode for each in self.experiment.objectives}
        figures = [str(name) for name in self.trials.select_dtypes("number")]
        if metric is None:
            column = next(iter(objectives))
        else:
            column = metric if metric in figures else figure_column(metric)
        if column not in figures:
            raise ValueError(f"{column!r} is not a figure of {self.name!r}{nearest(column, figures)}")
        direction = mode or objectives.get(column) or BETTER.get(column)
        if direction not in ("min", "max"):
            raise ValueError(f"is a small or a large {metric!r} better? Say mode='min' or mode='max'")
        usable = self._usable(column)
        if not usable.any():
            states = ", ".join(
                f"{count} {state}" for state, count in self.trials["state"].value_counts().items()
            )
            raise ValueError(
                f"no trial of {self.name!r} has a {column} to compare (trials: {states or 'none'})"
            )
        return self._ranked(column, direction).iloc[0]

    def ranked(self) -> pd.DataFrame:
        """All trials, the best first; last those that went wrong or lack an objective.

        With one objective in the order in which `best` sees them. With several, what keeps the constraints
        comes first, front by front, within one by what the hypervolume would lose without the trial.
        """
        if len(self.experiment.objectives) == 1:
            (objective,) = self.experiment.objectives
            return self._ranked(figure_column(objective.metric), objective.mode)
        losses = self._losses().mask(self.trials["state"].isin(WENT_WRONG), math.nan)
        standings = [
            ranking.Standing(tuple(each), violation)
            for each, violation in zip(losses.to_numpy(), self._violation(self.trials), strict=True)
        ]
        return self.trials.iloc[ranking.best_first(standings)]

    def schedule(self, trial_id: str | None = None) -> pd.DataFrame:
        """Under which configurations a trial was trained up to its best epoch: what to train again.

        Args:
            trial_id: default: the best trial.

        Returns:
            A row per stretch of epochs, the earliest first: `from_epoch`, `to_epoch` (both included),
            `trial_id` of who trained them, that trial's `seed`, and `config/NAME`. One row, unless the trial
            is a fork (`search.algorithm: pbt`).

        Raises:
            ValueError: there is no such trial, or it has trained no epoch.
        """
        known = list(self.trials["trial_id"])
        if trial_id is not None and trial_id not in known:
            raise ValueError(f"trial {trial_id!r} is not in {self.name!r}{nearest(trial_id, known)}")
        row = self.best() if trial_id is None else self.trials.iloc[known.index(trial_id)]
        until = row["epochs"] if pd.isna(row["best_epoch"]) else row["best_epoch"]
        if not until:
            raise ValueError(f"trial {trial_id!r} has trained no epoch")
        seed = self.experiment.search.seed
        return schedule(self.trials, row["trial_id"], until=int(until), seed=seed)

    def front(self) -> pd.DataFrame:
        """The trials that no other beats in every objective, sorted by the first objective, the best first.

        Only trials that meet every constraint; of several with equal objectives, the first. A trial stands
        there with its row's figures, those of its best epoch by the first objective.
        """
        losses = self._losses()
        candidates = losses[
            losses.map(math.isfinite).all(axis=1) & ~self.trials["state"].isin(WENT_WRONG) & self.feasible()
        ]
        best = candidates[ranking.front(candidates.to_numpy())]
        return self.trials.loc[best.sort_values([*best], kind="stable").index]

    def fidelity(self) -> pd.DataFrame:
        """How well each rung ranks the trials that reached the last epoch: Spearman's rank correlation.

        Returns:
            One row per rung and objective: `epoch`, `objective`, `correlation` (NA where fewer than 4 trials
            tell) and `trials`. Mostly promoted trials are compared, which tends to make it too low.
        """
        objectives, levels = self.experiment.objectives, sorted(self.experiment.full_epochs())
        wanted = ["trial_id", "epoch", *(figure_column(each.metric) for each in objectives)]
        rows = self.epochs.loc[self.epochs["epoch"].isin(levels), wanted].to_dict("records")
        return agreement(rows, objectives, levels)  # type: ignore[arg-type]

    def _ranked(self, column: str, direction: Literal["min", "max"]) -> pd.DataFrame:
        order = pd.DataFrame(
            {
                "useless": ~self._usable(column),
                "violation": self._violation(self.trials),
                "figure": self.trials[column].astype(float) * (1 if direction == "min" else -1),
                **self._losses().add_prefix("then by "),
            }
        )
        return self.trials.loc[order.sort_values([*order], kind="stable").index]

    def _losses(self) -> pd.DataFrame:
        """A float column per objective, smaller is better, NaN where it is missing; index as in `trials`."""
        columns = {figure_column(each.metric): each.loss for each in self.experiment.objectives}
        return pd.DataFrame({name: self.trials[name].astype(float).map(f) for name, f in columns.items()})

    def _usable(self, column: str) -> pd.Series:
        return self.trials[column].astype(float).map(math.isfinite) & ~self.trials["state"].isin(WENT_WRONG)

    def _violation(self, rows: pd.DataFrame) -> pd.Series:
        total = pd.Series(0.0, index=rows.index)
        for constraint in self.experiment.constraints:
            column = figure_column(constraint.metric)
            value = rows[column].astype(float) if column in rows else total * float("nan")
            total += value.map(constraint.excess, na_action="ignore").clip(lower=0).fillna(float("inf"))
        return total


def load(name_or_folder: str | Path, storage: str | Path = "captune-results") -> Results:
    """The tables of an experiment, by its name in `storage` or by its folder; each may be a URL, too.

    Raises:
        UnknownExperiment: there is none; names the nearest.
        UnreadableResults: a table is damaged or not one.
        OSError: the URL cannot be reached, or refuses.
    """
    folder = find_folder(name_or_folder, storage)
    tables = [folder / f"{name}.parquet" for name in ("trials", "epochs")]
    for table in tables:
        if not table.exists():
            raise UnreadableResults(f"{table} does not exist: the run ended before it had written its tables")
    return Results(folder, *map(read_table, tables, (TRIAL_HEAD, EPOCH_HEAD)))
