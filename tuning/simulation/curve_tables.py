"""Learning curves out of the tables of an earlier experiment, for `tuning.simulation.simulator.simulate`.

A table holds few configurations, and ASHA trained most of them for a few epochs only, so three things are
made up, and counted:

* a configuration that is not in the table gets the curve of the nearest one (Gower 1971: per hyperparameter
  0 to 1, the difference on the domain's own scale for numbers, equal or not for choices, 1 where only one of
  the two configurations has it);
* beyond the last epoch of a trial its figures change as the others' did on average between these two
  epochs, `seconds` by their ratio; beyond the last epoch of all trials they stand still. An objective never
  becomes better than the best that was measured up to that epoch;
* an epoch at which a figure was not measured, between two at which it was, lies on the line between them.

A trial that diverged, failed or ran out of memory does so in the same epoch again; if it was never evaluated,
it has the others' mean curve until then. Nothing corrects for the selection that earlier scheduling made:
those that went far are those that were good early.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from search_spaces.domains import Choice, Domain
from search_spaces.nearest import nearest
from trainables.order import Failure
from tuning.experiment_file import ExperimentError
from tuning.search.verdicts import NOT_FINITE
from tuning.tables.comparison import WENT_WRONG
from tuning.tables.configurations import configurations
from tuning.tables.lineage import without_forks
from tuning.tables.schema import figure_column

if TYPE_CHECKING:
    from tuning.experiment import Experiment
    from tuning.tables.results import Results

SECONDS = "seconds"


class CurveTable:
    """The curves of all trials of an earlier experiment, up to the last epoch of the one to be simulated.

    Forks are left out: their figures are not due to their own configuration alone. Only objectives,
    constraints and `seconds` are kept; `worker_s` follows from the workers simulated.

    Raises:
        ExperimentError: hyperparameters or figures are missing in one of the two, or no trial has a curve.
    """

    def __init__(self, results: Results, experiment: Experiment):
        self.name = results.name
        _refuse_other_space(results, experiment)
        self._metrics = _metrics(results, experiment)
        self._full_epochs = experiment.full_epochs()
        self._fixed = experiment.model
        self._domains = dict(results.experiment.space)
        trials = without_forks(results.trials)
        self._configs = configurations(trials, results.experiment.space)
        epochs = experiment.scheduler.max_epochs
        measured = {  # float [trials, epochs], NaN where it was not measured
            metric: _matrix(results, column, list(self._configs)) for metric, column in self._metrics.items()
        }
        states = trials.set_index("trial_id")[["state", "reason", "epochs"]]
        wrong = states["state"].isin(WENT_WRONG).to_numpy(dtype=bool)
        # The last epoch that the table has of a trial whose figure was none is the one in which it diverged.
        in_it = states["reason"].fillna("").str.endswith(NOT_FINITE).to_numpy(dtype=bool)
        reached = states["epochs"].fillna(0).to_numpy(dtype=int) - (wrong & in_it)
        modes = {each.metric: each.mode for each in experiment.objectives}
        objectives = list(modes)
        learnt = np.all([np.isfinite(measured[metric]).any(axis=1) for metric in objectives], axis=0)
        rows = np.flatnonzero(learnt | wrong)
        if not learnt.any():
            raise ExperimentError([f"no trial of {self.name!r} has {' and '.join(objectives)} to simulate"])
        self._ids = [list(self._configs)[row] for row in rows]
        self._points = np.array([self._point(self._configs[trial_id]) for trial_id in self._ids])
        self._failures = {
            place: Failure(state=states["state"].iloc[row], reason=str(states["reason"].iloc[row]))
            for place, row in enumerate(rows)
            if wrong[row]
        }
        self._reached = reached[rows]
        deepest = reached.max(initial=0)
        # A figure that costs much is not measured in every epoch; there it is reported at rungs only.
        self._everywhere = {
            metric: metric == SECONDS or np.isfinite(values[:, :deepest]).any(axis=0).all()
            for metric, values in measured.items()
        }
        self._measured = np.all([np.isfinite(measured[metric][rows]) for metric in objectives], axis=0)
        self._curves = {
            metric: _complete(
                values[rows], epochs, ~wrong[rows], mode=modes.get(metric), ratio=metric == SECONDS
            )
            for metric, values in measured.items()
        }

    @property
    def configs(self) -> list[Mapping[str, Any]]:
        """The configurations of all trials, in the order in which they were started."""
        return list(self._configs.values())

    def open(self) -> TableCurves:
        """The curves for one simulation."""
        return TableCurves(self)

    def nearest(self, config: Mapping[str, Any]) -> tuple[list[int], bool]:
        """Places of the trials nearest to `config`, and whether it is theirs."""
        point = self._point({**self._fixed, **config})
        choice = np.array([isinstance(domain, Choice) for domain in self._domains.values()])
        absent = np.isnan(self._points) | np.isnan(point)
        difference = np.abs(self._points - point)
        apart = np.where(choice, difference > 0, np.minimum(difference, 1.0))
        apart = np.where(absent, np.isnan(self._points) != np.isnan(point), apart)
        distances = apart.sum(axis=1)
        return [int(place) for place in np.flatnonzero(distances == distances.min())], distances.min() == 0

    def figures(self, place: int, epoch: int) -> tuple[Mapping[str, float] | Failure, bool]:
        """Figures of the trial at `place` after `epoch`, or its failure; and whether all were measured."""
        trained = self._reached[place]
        if place in self._failures and epoch > trained:
            return self._failures[place], True
        figures = {
            metric: float(values[place, epoch - 1])
            for metric, values in self._curves.items()
            if self._everywhere[metric] or epoch in self._full_epochs
        }
        full = epoch in self._full_epochs
        known = epoch <= trained and (not full or bool(self._measured[place, epoch - 1]))
        return figures, known

    def _point(self, config: Mapping[str, Any]) -> np.ndarray:
        return np.array([_coordinate(domain, config.get(name)) for name, domain in self._domains.items()])


class TableCurves:
    """The curves of a table for one simulation; counts what of them is made up."""

    def __init__(self, table: CurveTable):
        self._table = table
        self._places: dict[str, tuple[int, bool]] = {}
        self._taken: dict[int, int] = {}
        self.epochs = 0
        """Epochs asked for."""
        self.estimated = 0
        """Of these, epochs that were not measured: beyond a trial's last one, or between evaluations."""
        self.borrowed = 0
        """Of these, epochs of configurations that are not in the table."""

    def __call__(self, trial_id: str, config: Mapping[str, Any], epoch: int) -> Mapping[str, float] | Failure:
        """Figures of an epoch with its `seconds`, or the failure in it."""
        if trial_id not in self._places:
            self._places[trial_id] = self._place(config)
        place, own = self._places[trial_id]
        figures, known = self._table.figures(place, epoch)
        self.epochs += 1
        self.estimated += not known
        self.borrowed += not own
        return figures

    def close(self) -> None:
        """Nothing to let go of."""

    def _place(self, config: Mapping[str, Any]) -> tuple[int, bool]:
        """The nearest trial; of several that are equally near, one after the other."""
        candidates, own = self._table.nearest(config)
        place = min(candidates, key=lambda candidate: (self._taken.get(candidate, 0), candidate))
        self._taken[place] = self._taken.get(place, 0) + 1
        return place, own


def _refuse_other_space(results: Results, experiment: Experiment) -> None:
    there, here = results.experiment.space, experiment.space
    problems = [
        f"search_space.{name}: {results.name!r} did not search it, so its curves cannot tell its effect"
        f"{nearest(name, there)}"
        for name in here
        if name not in there
    ]
    problems += [
        f"search_space: {results.name!r} searched {name!r}; search it here, too, or fix it in `model`"
        for name in there
        if name not in here and name not in experiment.model
    ]
    if problems:
        raise ExperimentError(problems)


def _metrics(results: Results, experiment: Experiment) -> dict[str, str]:
    """Column in `epochs` of each figure that is needed."""
    named = [("objectives", each.metric) for each in experiment.objectives]
    named += [("constraints", each.metric) for each in experiment.constraints]
    columns = {metric: figure_column(metric) for _, metric in named}
    there = [
        str(name) for name in results.epochs.select_dtypes("number") if results.epochs[name].notna().any()
    ]
    problems = [
        f"{section}: {metric!r} is no figure of {results.name!r}{nearest(metric, there)}"
        for section, metric in named
        if columns[metric] not in there
    ]
    if problems:
        raise ExperimentError(problems)
    return columns | ({SECONDS: SECONDS} if SECONDS in there else {})


def _matrix(results: Results, column: str, trial_ids: list[str]) -> np.ndarray:
    """float64 [trials, epochs] of a column, NaN where the table has nothing."""
    wide = results.epochs.pivot(index="trial_id", columns="epoch", values=column)
    wide = wide.reindex(index=trial_ids, columns=range(1, int(results.epochs["epoch"].max()) + 1))
    return wide.astype("Float64").to_numpy(dtype=float, na_value=math.nan)


def _complete(
    measured: np.ndarray, epochs: int, exemplary: np.ndarray, *, mode: str | None, ratio: bool
) -> np.ndarray:
    """Curves without gaps, float64 [trials, epochs]. A row that was never measured stays NaN if exemplary;
    else it is the mean of those that are.

    Args:
        measured: float64 [trials, any epochs], NaN where it was not measured.
        exemplary: bool [trials], those from which the others are extrapolated.
        mode: `max` or `min`, the direction in which nothing measured is surpassed; None: no such bound.
        ratio: extrapolate by the ratio of sums instead of the mean difference.
    """
    length = max(epochs, measured.shape[1])
    known = np.full((len(measured), length), math.nan)
    last = np.zeros(len(measured), dtype=int)  # epochs up to the last that was measured
    for row, values in enumerate(measured):
        (there,) = np.nonzero(np.isfinite(values))
        if len(there):
            last[row] = there[-1] + 1
            known[row, : last[row]] = np.interp(np.arange(last[row]), there, values[there])
    curves = known.copy()
    better, worse = (np.fmax, np.fmin) if mode == "max" else (np.fmin, np.fmax)
    bounds = np.full(length, math.nan)  # the best of all exemplary trials up to each epoch
    if mode is not None and exemplary.any():
        bounds = better.accumulate(better.reduce(known[exemplary], axis=0))
    for end in np.unique(last[last > 0]):
        rows = last == end
        change = 1.0 if ratio else 0.0
        for epoch in range(end, length):
            both = exemplary & np.isfinite(known[:, epoch])
            if both.any():
                before, after = known[both, end - 1], known[both, epoch]
                change = after.sum() / before.sum() if ratio else (after - before).mean()
            start = known[rows, end - 1]
            guess = start * change if ratio else start + change
            curves[rows, epoch] = worse(guess, bounds[epoch])  # where there is no bound, the guess
    for like in (last > 0, exemplary & (last > 0)):  # where none is exemplary, whatever there is
        if like.any():
            curves[~exemplary & (last == 0)] = curves[like].mean(axis=0)
    return curves[:, :epochs]


def _coordinate(domain: Domain, value: Any) -> float:
    """Where `value` lies, comparable with others of the domain; NaN where there is none."""
    if value is None or pd.isna(value):
        return math.nan
    if isinstance(domain, Choice):
        return float(domain.values.index(value)) if domain.contains(value) else -1.0
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.inf  # as far from every number as can be
    return domain.unit(min(max(value, domain.low), domain.high))  # type: ignore[arg-type]
