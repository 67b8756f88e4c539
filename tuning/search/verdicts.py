"""What becomes of a trial after an epoch: its figures are judged, and the decision is carried out."""

from __future__ import annotations

import math
from collections.abc import Mapping

from search_spaces.nearest import nearest
from trainables.order import Report
from tuning.experiment import Experiment
from tuning.search.budget import BudgetGuard
from tuning.search.open_trials import OpenTrials
from tuning.search.ranking import Standing
from tuning.search.scheduler import Decision, Scheduler
from tuning.search.searcher import Searcher
from tuning.search.trial import Trial

NOT_FINITE = "not a finite number"
KEPT_FOR_THE_BEST = "what is left of the budget is kept for the best trial"


class Verdicts:
    """Scheduler, searcher and budget, asked about one epoch at a time; `experiment` says what is a figure."""

    def __init__(
        self,
        experiment: Experiment,
        *,
        trials: OpenTrials,
        searcher: Searcher,
        scheduler: Scheduler,
        budget: BudgetGuard,
    ):
        self._objectives = experiment.objectives
        self._constraints = experiment.constraints
        self._full_epochs = experiment.full_epochs()
        self._max_epochs = experiment.scheduler.max_epochs
        self._trials = trials
        self._searcher = searcher
        self._scheduler = scheduler
        self._budget = budget
        self._to_the_end: set[str] = set()

    def count_epoch(self, trial: Trial, metrics: Mapping[str, float]) -> None:
        """An epoch was spent, whatever came of it: if it waited at a rung before, it does not any more."""
        self._scheduler.went_on(trial.trial_id, trial.epoch)
        seconds = metrics.get("seconds", 0.0)
        trial.slowest_epoch_s = max(trial.slowest_epoch_s, seconds)
        trial.seconds += seconds
        self._budget.count_epoch(metrics.get("worker_s", 0.0), seconds)

    def count_failure(self, trial: Trial) -> None:
        """Its next epoch was begun, and went wrong."""
        self._scheduler.went_on(trial.trial_id, trial.epoch + 1)
        self._budget.count_failure()

    def missing_figure(self, report: Report) -> str | None:
        """What is wrong with the figures of an epoch after which a trial is evaluated in full."""
        if report.epoch not in self._full_epochs:
            return None
        asked = [("objective", each.metric) for each in self._objectives]
        asked += [("constraint", each.metric) for each in self._constraints]
        for what, name in asked:
            if name not in report.metrics:
                near = nearest(name, report.metrics)
                return f"the {what} {name!r} is not among the reported figures{near}"
        return None

    def all_figures(self, epoch: int, metrics: Mapping[str, float]) -> Mapping[str, float]:
        """The figures of an epoch of the table, where NaN is an empty cell."""
        if epoch not in self._full_epochs:
            return metrics
        return {objective.metric: math.nan for objective in self._objectives} | dict(metrics)

    def decide(self, trial: Trial, metrics: Mapping[str, float]) -> Decision:
        """What scheduler and searcher make of an epoch; objectives may be absent between rungs."""
        values = [metrics.get(objective.metric) for objective in self._objectives]
        if any(value is None for value in values):
            return Decision("continue")
        violations = [each.excess(metrics.get(each.metric, math.nan)) for each in self._constraints]
        standing = Standing(
            tuple(o.loss(value) for o, value in zip(self._objectives, values, strict=True)),  # type: ignore[arg-type]
            sum(max(0.0, v) if v == v else math.inf for v in violations),
        )
        trial.finite = standing.finite
        self._searcher.report(trial.trial_id, trial.epoch, standing, violations)
        self._trials.incumbent.compare(trial.trial_id, standing)
        return self._scheduler.report(trial.trial_id, trial.epoch, standing)

    def to_the_end(self, trial: Trial) -> None:
        """From now on it stops at no rung."""
        self._scheduler.drop(trial.trial_id)
        self._to_the_end.add(trial.trial_id)

    def carry_out(self, trial: Trial, decision: Decision) -> Decision:
        """Do what was decided, unless the trial's end or the budget's goes before; what came of it."""
        if trial.trial_id in self._to_the_end:
            self._scheduler.drop(trial.trial_id)  # it does not wait at the rung that it passes
        if not trial.finite:
            names = ", ".join(objective.metric for objective in self._objectives)
            reason = f"{names} after epoch {trial.epoch}: {NOT_FINITE}"
            decision = Decision("stop", reason, decision.rung)
            self._trials.end(trial, "diverged", decision.reason)
        elif trial.epoch >= self._max_epochs:
            decision = Decision("stop", f"all {self._max_epochs} epochs done", decision.rung)
            self._trials.end(trial, "completed", decision.reason)
        elif decision.action == "stop":
            self._trials.end(trial, "stopped", decision.reason)
        elif decision.action == "pause" and trial.trial_id not in self._to_the_end:
            self._trials.pause(trial, decision.reason)
        elif self._budget.exhausted:
            decision = Decision("pause", self._budget.why_exhausted, decision.rung)
            self._trials.put_aside(trial, decision.reason)
        elif not self._trials.has_room(trial):
            decision = Decision("pause", self._budget.why_flat or KEPT_FOR_THE_BEST, decision.rung)
            self._trials.put_aside(trial, decision.reason)
        else:
            decision = Decision("continue", decision.reason, decision.rung)
        return decision
