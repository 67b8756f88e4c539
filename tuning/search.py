"""One experiment's search: what runs next, what happens to a trial after an epoch, what is written down.

`Search` joins searcher, scheduler and budget, and tells the listeners (tables, progress) everything that
happens. It knows no driver: Ray Tune drives it through `tuning.tune_adapter`, a test or a simulator by a
loop of a few lines:

    while (run := search.next_run()) is not None:
        while not search.report(run.trial_id, *train_one_epoch(run)).ends:
            ...

A trial's identity is its number in the Optuna study, "00012". A driver may send the same trial several
times (after a crash, or when a killed experiment is resumed); what was reported before is not counted twice.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from search_spaces.space import nearest
from trainables.order import Failure, Report
from tuning.budget import BudgetGuard
from tuning.events import FINAL_STATES, EpochReported, Event, Listener, TrialEnded, TrialStarted, TrialState
from tuning.experiment import Experiment, ExperimentError
from tuning.scheduler import Decision, make_scheduler
from tuning.searcher import Searcher

INTERRUPTED = "the run was interrupted"


@dataclass
class Trial:
    """A trial that is not over, as the search sees it."""

    trial_id: str
    config: Mapping[str, Any]
    epoch: int = 0
    """Epochs reported."""
    attempt: int = 1
    value: float | None = None
    """Objective at the last full evaluation."""
    lost: int = field(default=0)
    """How often a driver lost the trial (its actor or its node died)."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A trial to be run now, from the epoch after `epoch`."""

    trial_id: str
    config: Mapping[str, Any]
    epoch: int
    attempt: int


class Search:
    """See the module's text.

    Args:
        searcher: where new configurations come from.
        budget: whether another trial may start, and until when.
        listeners: told of every event, in order.
        now: the clock of the events.
    """

    def __init__(
        self,
        experiment: Experiment,
        *,
        searcher: Searcher,
        budget: BudgetGuard,
        listeners: Sequence[Listener] = (),
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ):
        self._objective = experiment.objectives[0]
        self._full_epochs = experiment.scheduler.full_epochs()
        self._max_epochs = experiment.scheduler.max_epochs
        self._max_failures = experiment.training.max_failures
        self._constraints = experiment.constraints
        self._searcher = searcher
        self._scheduler = make_scheduler(experiment.scheduler, mode=self._objective.mode)
        self._budget = budget
        self._listeners = listeners
        self._now = now
        self._trials: dict[str, Trial] = {}  # not over: running, or waiting to be taken up
        self._waiting: deque[str] = deque()

    # What a driver calls.

    def next_run(self) -> Run | None:
        """The next trial to run: one that was interrupted, else a new one; None where there is none now."""
        if self._budget.time_is_up:
            return None
        if self._waiting:
            trial = self._trials[self._waiting.popleft()]
        else:
            new = self._new_trial()
            if new is None:
                return None
            trial = new
        self._tell(self._started(trial))
        return Run(trial_id=trial.trial_id, config=trial.config, epoch=trial.epoch, attempt=trial.attempt)

    def report(self, trial_id: str, report: Report, *, gang: str = "") -> Decision:
        """Take an epoch's figures and decide: go on, or the trial is over (`Decision.ends`)."""
        trial = self._trials.get(trial_id)
        if trial is None:
            return Decision("stop", "over already")
        if report.epoch <= trial.epoch:
            return Decision("continue")  # a restarted trial repeats what was told before
        trial.epoch, trial.attempt = report.epoch, report.attempt
        if report.epoch in self._full_epochs and self._objective.metric not in report.metrics:
            self._end(trial, "failed", self._unknown_objective(report.metrics))
            return Decision("stop", "no objective")
        decision = self._decide(trial, report.metrics)
        self._tell(
            EpochReported(
                trial_id=trial_id,
                epoch=report.epoch,
                attempt=report.attempt,
                metrics=report.metrics,
                checkpoint=f"checkpoints/{trial_id}/{report.epoch:04d}",
                gang=gang,
                node=report.node,
                at=self._now(),
                rung=decision.rung,
            )
        )
        if decision.ends:
            self._end(trial, "stopped", decision.reason)
        elif report.epoch >= self._max_epochs:
            decision = Decision("stop", f"all {self._max_epochs} epochs done", decision.rung)
            self._end(trial, "completed", decision.reason)
        elif self._budget.time_is_up:
            decision = Decision("stop", self._budget.why_exhausted, decision.rung)
            self._pause(trial, decision.reason)
        return decision

    def fail(self, trial_id: str, failure: Failure) -> None:
        """The trial's own code failed, diverged or ran out of memory: it is over."""
        trial = self._trials.get(trial_id)
        if trial is not None:
            self._end(trial, failure.state, failure.reason, failure.error)

    def lose(self, trial_id: str, error: str) -> None:
        """The driver lost a running trial through no fault of its own: it waits to be taken up again."""
        trial = self._trials.get(trial_id)
        if trial is None:
            return
        trial.lost += 1
        if trial.lost > self._max_failures:
            last = error.strip().rpartition("\n")[2]
            reason = f"lost {trial.lost} times, training.max_failures allows {self._max_failures}: {last}"
            self._end(trial, "failed", reason, error)
            return
        trial.attempt += 1
        self._pause(trial, "the driver lost it")

    def interrupt(self) -> None:
        """The driver gives up: what runs is put aside, to go on when the experiment is resumed."""
        for trial in self._trials.values():
            if trial.trial_id not in self._waiting:
                self._pause(trial, INTERRUPTED)

    def tick(self) -> None:
        """Let the listeners do what they put off; call it several times a second."""
        for listener in self._listeners:
            listener.tick()

    @property
    def finished(self) -> bool:
        """Nothing runs and nothing more will start."""
        if self._budget.time_is_up:
            return len(self._waiting) == len(self._trials)
        return not self._trials and not self._budget.may_start

    # Going on with an earlier run's tables.

    def replay(self, trials: Sequence[Mapping[str, Any]], epochs: Sequence[Mapping[str, Any]]) -> None:
        """Take in what earlier runs of the experiment wrote down, in the order in which it happened.

        Args:
            trials: rows of the trials table (`trial_id`, `state`).
            epochs: rows of the epochs table (`trial_id`, `epoch`, `attempt`, `metrics`).

        Rungs are filled again, the budget counts what was started, and trials that were not over wait to
        go on. The study is ahead of tables that a killed driver had no time to write: what it knows and
        they do not is run as it was suggested, and what it calls finished and they do not is run from the
        last epoch that they know.

        Raises:
            ExperimentError: the tables have trials that the study has not.
        """
        states = {row["trial_id"]: row["state"] for row in trials}
        configs = self._searcher.configs()
        unknown = sorted({*states, *(row["trial_id"] for row in epochs)} - set(configs))
        if unknown:
            raise ExperimentError(
                [f"the tables have trials that study.journal does not know: {', '.join(unknown)}"]
            )
        for trial_id, config in configs.items():
            self._budget.count_trial()
            self._trials[trial_id] = Trial(trial_id, config)
        decisions: dict[str, Decision] = {}
        for row in epochs:
            trial = self._trials[row["trial_id"]]
            trial.epoch, trial.attempt = row["epoch"], row["attempt"]
            decisions[trial.trial_id] = self._decide(trial, self._as_reported(row), remembered=True)
        for trial_id in configs:
            decision = decisions.get(trial_id, Decision("continue"))
            self._settle(self._trials[trial_id], states.get(trial_id), decision)

    def _as_reported(self, row: Mapping[str, Any]) -> Mapping[str, float]:
        """The figures of an epoch of the table, where NaN is an empty cell."""
        full = row["epoch"] in self._full_epochs
        return {self._objective.metric: math.nan, **row["metrics"]} if full else row["metrics"]

    def _settle(self, trial: Trial, state: TrialState | None, decision: Decision) -> None:
        """After the replay: a trial is over, was about to be, or waits to go on. `state`: in the table."""
        if state in FINAL_STATES:
            self._searcher.finish(trial.trial_id, state, trial.value)  # the study may have missed it
            del self._trials[trial.trial_id]
        elif decision.ends or trial.epoch >= self._max_epochs:
            if state is None:
                self._tell(self._started(trial))
            reason = decision.reason if decision.ends else f"all {self._max_epochs} epochs done"
            self._end(trial, "stopped" if decision.ends else "completed", reason)
        elif state == "running":
            self._pause(trial, INTERRUPTED)
        else:
            self._waiting.append(trial.trial_id)

    # Inside.

    def _started(self, trial: Trial) -> TrialStarted:
        return TrialStarted(trial_id=trial.trial_id, config=trial.config, at=self._now())

    def _new_trial(self) -> Trial | None:
        if not self._budget.may_start:
            return None
        suggestion = self._searcher.suggest()
        if suggestion is None:
            return None
        self._budget.count_trial()
        trial = Trial(suggestion.trial_id, suggestion.config)
        self._trials[trial.trial_id] = trial
        return trial

    def _decide(self, trial: Trial, metrics: Mapping[str, float], *, remembered: bool = False) -> Decision:
        """What scheduler and searcher make of an epoch; the objective is absent between rungs."""
        value = metrics.get(self._objective.metric)
        if value is None:
            return Decision("continue")
        trial.value = value
        if not remembered:
            self._searcher.report(trial.trial_id, trial.epoch, value, self._violations(metrics))
        return self._scheduler.report(trial.trial_id, trial.epoch, value)

    def _unknown_objective(self, metrics: Mapping[str, float]) -> str:
        name = self._objective.metric
        return f"the objective {name!r} is not among the reported figures{nearest(name, metrics)}"

    def _violations(self, metrics: Mapping[str, float]) -> list[float]:
        """By how much each constraint is broken; at most 0 where it holds."""
        return [
            constraint.excess(metrics.get(constraint.metric, math.nan)) for constraint in self._constraints
        ]

    def _end(self, trial: Trial, state: TrialState, reason: str, error: str = "") -> None:
        del self._trials[trial.trial_id]
        self._searcher.finish(trial.trial_id, state, trial.value)
        self._tell(
            TrialEnded(trial_id=trial.trial_id, state=state, reason=reason, at=self._now(), error=error)
        )

    def _pause(self, trial: Trial, reason: str) -> None:
        self._waiting.append(trial.trial_id)
        self._tell(TrialEnded(trial_id=trial.trial_id, state="paused", reason=reason, at=self._now()))

    def _tell(self, event: Event) -> None:
        for listener in self._listeners:
            listener.handle(event)
