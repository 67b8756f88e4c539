"""One experiment's search: what runs next, what becomes of a trial after an epoch, what is written down.

`Search` joins searcher, scheduler and budget, and tells the listeners (tables, progress) everything that
happens. It knows no driver: Ray Tune drives it through `tuning.tune_adapter`, virtual time through
`tuning.simulation.simulator`, anybody else by a loop of a few lines, on as many gangs as there are:

    while (run := search.next_run()) is not None:          # promotes, takes up again, or suggests
        epoch = run.epoch
        while True:
            epoch += 1
            decision = search.report(run.trial_id, train_one_epoch(run, epoch))
            if decision.leaves:                            # "pause" or "stop"; else "continue"
                break

The parts, each usable alone:

* a searcher (`tuning.search.searcher`): `suggest() -> trial_id, config`, `report(trial_id, epoch, standing)`,
  `finish(trial_id, state)`;
* a scheduler (`tuning.search.scheduler`): `report(trial_id, epoch, standing) -> continue | pause | stop`,
  `next_promotion() -> trial_id | None`, `next_stop() -> trial_id, reason | None`, `drop(trial_id)`;
* a budget (`tuning.search.budget`): `may_start`, `exhausted`, `epochs_left`.

A trial's identity is its number in the Optuna study, "00012". A driver may send the same trial several
times (after a promotion, a crash, or when a killed experiment is resumed); what was reported before is not
counted twice. One that starts from another's checkpoint (a fork, see `tuning/search/pbt.py`) begins with that
one's epochs behind it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from search_spaces.nearest import nearest
from trainables.order import Failure, Report
from tuning.events import (
    FINAL_STATES,
    EpochReported,
    Event,
    GangClosed,
    Listener,
    TrialEnded,
    TrialStarted,
    TrialState,
)
from tuning.experiment import Experiment, ExperimentError
from tuning.search.budget import BudgetGuard
from tuning.search.false_start import FalseStart
from tuning.search.incumbent import Incumbent
from tuning.search.ranking import Standing
from tuning.search.scheduler import Decision, Scheduler
from tuning.search.searcher import Searcher
from tuning.search.trial import Run, Trial
from tuning.tables.comparison import WENT_WRONG

INTERRUPTED = "the run was interrupted"
LOST = "the driver lost it"
KEPT_FOR_THE_BEST = "what is left of the budget is kept for the best trial"


class Search:
    """See the module's text.

    The best trial is always trained to the end: where nothing else can start, and in time before a limit of
    the budget. Up to the epochs of one trial may be left unspent for that: a trial that might take the lead
    and could not be finished is not gone on with. With several objectives, the best by the first is meant.

    Args:
        searcher: where new configurations come from.
        scheduler: decides about trials that have begun.
        budget: whether another trial may start, and until when.
        listeners: told of every event, in order.
        can_halve: whether a trial of this configuration, whose micro batch was halved so often, can be tried
            with less memory once more; without it, one that runs out of memory is over.
        now: the clock of the events.
    """

    def __init__(
        self,
        experiment: Experiment,
        *,
        searcher: Searcher,
        scheduler: Scheduler,
        budget: BudgetGuard,
        listeners: Sequence[Listener] = (),
        can_halve: Callable[[Mapping[str, Any], int], bool] = lambda config, halvings: False,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ):
        self._objectives = experiment.objectives
        self._full_epochs = experiment.full_epochs()
        self._max_epochs = experiment.scheduler.max_epochs
        self._max_failures = experiment.training.max_failures
        self._constraints = experiment.constraints
        self._searcher = searcher
        self._scheduler = scheduler
        self._budget = budget
        self._listeners = listeners
        self._can_halve = can_halve
        self._now = now
        self._trials: dict[str, Trial] = {}  # not over: running, paused, or waiting to be taken up
        self._running: set[str] = set()
        self._waiting: deque[str] = deque()  # to be taken up again, in this order
        self._to_the_end: set[str] = set()  # paused at no rung any more
        self._next: Trial | None = None  # chosen, not handed out yet
        self._incumbent = Incumbent()
        self._false_start = FalseStart()

    # What a driver calls.

    def next_run(self) -> Run | None:
        """The next trial to run; None where there is none now.

        In this order: one that was interrupted or lost, one to be promoted, a new one, the best to its end.
        """
        if self._next is None:
            self._next = self._choose()
        if self._next is None or self._budget.exhausted:
            return None
        trial, self._next = self._next, None
        self._running.add(trial.trial_id)
        self._tell(self._started(trial))
        return Run(
            trial_id=trial.trial_id,
            config=trial.config,
            epoch=trial.epoch,
            attempt=trial.attempt,
            slowest_epoch_s=trial.slowest_epoch_s,
            lost=trial.lost,
            halvings=trial.halvings,
        )

    def report(self, trial_id: str, report: Report, *, gang: str = "") -> Decision:
        """Take an epoch's figures and decide: the trial goes on, or leaves its gang (`Decision.leaves`)."""
        trial = self._trials.get(trial_id)
        if trial is None or trial_id not in self._running:
            return Decision("stop", "does not run any more")
        if report.epoch <= trial.epoch:
            return Decision("continue")  # a restarted trial repeats what was told before
        trial.epoch, trial.attempt = report.epoch, report.attempt
        self._count_epoch(trial, report.metrics)
        missing = self._missing_objective(report)
        if missing is not None:
            self._end(trial, "failed", missing)
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
        return self._carry_out(trial, decision)

    def fail(self, trial_id: str, failure: Failure) -> None:
        """The trial's own code failed, diverged or ran out of memory: it is over, or tried with less."""
        trial = self._trials.get(trial_id)
        if trial is None:
            return
        if failure.state == "out_of_memory" and self._can_halve(trial.config, trial.halvings):
            trial.halvings += 1
            trial.attempt += 1
            self._put_aside(trial, f"out of memory, goes on with smaller parts of a batch: {failure.reason}")
        else:
            self._budget.count_epoch(0.0, 0.0)  # else a budget of epochs never ends where every trial fails
            self._end(trial, failure.state, failure.reason, failure.error)

    def lose(self, trial_id: str, error: str, *, times: int = 1) -> None:
        """The driver lost a running trial through no fault of its own: it waits to be taken up again.

        Args:
            error: why, the last line in short.
            times: how often that counts against `training.max_failures`.
        """
        trial = self._trials.get(trial_id)
        if trial is None:
            return
        trial.lost += times
        last = error.strip().rpartition("\n")[2]
        if trial.lost > self._max_failures:
            reason = f"lost {trial.lost} times, training.max_failures allows {self._max_failures}: {last}"
            self._end(trial, "failed", reason, error)
            return
        trial.attempt += times
        self._put_aside(trial, f"{LOST}: {last}")

    def gang_closed(self, gang: str, reason: str) -> None:
        """The driver closed a gang: the listeners are told."""
        self._tell(GangClosed(gang=gang, reason=reason, at=self._now()))

    def interrupt(self) -> None:
        """The driver gives up: what runs is put aside, to go on when the experiment is resumed."""
        for trial_id in sorted(self._running):
            self._put_aside(self._trials[trial_id], INTERRUPTED)

    def tick(self) -> None:
        """Let the listeners do what they put off; call it several times a second."""
        for listener in self._listeners:
            listener.tick()

    @property
    def finished(self) -> bool:
        """Nothing runs and nothing more will start."""
        if self._running:
            return False
        if self._next is None and not self._budget.exhausted:
            self._next = self._choose()
        return self._next is None or self._budget.exhausted

    @property
    def given_up(self) -> str:
        """Why no new trial starts any more, though the budget has room: all went wrong. Else empty."""
        suspected = self._false_start.suspected(trial.epoch for trial in self._trials.values())
        return str(self._false_start) if suspected and self._budget.may_start else ""

    def close(self) -> None:
        """Tell the study which trials are left paused; to be called when the search is finished."""
        for trial_id in self._trials:
            self._searcher.finish(trial_id, "paused")

    # Going on with an earlier run's tables.

    def replay(self, trials: Sequence[Mapping[str, Any]], epochs: Sequence[Mapping[str, Any]]) -> None:
        """Take in what earlier runs of the experiment wrote down, in the order in which it happened.

        Args:
            trials: rows of the trials table (`trial_id`, `state`, `halvings`, and of those that are over
                `finished_at`).
            epochs: rows of the epochs table (`trial_id`, `epoch`, `attempt`, `metrics`, `at`), by `at`.

        Rungs are filled again, the budget counts what was spent, and trials that were not over wait to go
        on, or at their rung. The study is ahead of tables that a killed driver had no time to write: what
        it knows and they do not is run as it was suggested, and what it calls finished and they do not is
        run from the last epoch that they know. A promotion of which no epoch is known is decided again.

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
        halvings = {row["trial_id"]: row.get("halvings") or 0 for row in trials}
        for trial_id in configs:
            self._budget.count_trial()
            self._open(trial_id).halvings = halvings.get(trial_id, 0)
        decisions: dict[str, Decision] = {}
        for row in _as_it_happened(trials, epochs):
            trial = self._trials[row["trial_id"]]
            if "state" in row:
                self._was_over(trial, row["state"])
                continue
            trial.epoch, trial.attempt = row["epoch"], row["attempt"]
            self._count_epoch(trial, row["metrics"])
            decision = decisions[trial.trial_id] = self._decide(trial, self._as_reported(row))
            if decision.leaves or trial.epoch >= self._max_epochs:
                self._left_its_gang()
        for trial_id, trial in list(self._trials.items()):
            self._settle(trial, states.get(trial_id), decisions.get(trial_id, Decision("continue")))
        self._false_start.resumed()

    def _count_epoch(self, trial: Trial, metrics: Mapping[str, float]) -> None:
        seconds = metrics.get("seconds", 0.0)
        trial.slowest_epoch_s = max(trial.slowest_epoch_s, seconds)
        self._budget.count_epoch(metrics.get("worker_s", 0.0), seconds)

    def _as_reported(self, row: Mapping[str, Any]) -> Mapping[str, float]:
        """The figures of an epoch of the table, where NaN is an empty cell."""
        if row["epoch"] not in self._full_epochs:
            return row["metrics"]
        return {objective.metric: math.nan for objective in self._objectives} | row["metrics"]

    def _was_over(self, trial: Trial, state: TrialState) -> None:
        """During the replay: the table has the end of a trial here."""
        if state in WENT_WRONG:
            if trial.finite:  # else the epoch that went wrong is in the table, and counted
                self._budget.count_epoch(0.0, 0.0)
            self._false_start.went_wrong(trial.trial_id, trial.epoch, "in an earlier run")
            self._left_its_gang()
        else:
            self._false_start.worked()
        self._close_trial(trial, state)  # the study may have missed it

    def _settle(self, trial: Trial, state: TrialState | None, decision: Decision) -> None:
        """After the replay: a trial was about to be over, or waits. `state`: in the table."""
        over = decision.action == "stop" or trial.epoch >= self._max_epochs or not trial.finite
        if over:
            if state is None:
                self._tell(self._started(trial))
            self._carry_out(trial, decision)
        elif decision.action == "pause":
            self._false_start.worked()
            if state != "paused":
                self._tell(self._started(trial))
                self._tell(self._paused(trial, decision.reason))
        else:
            self._waiting.append(trial.trial_id)
            if trial.new_fork:
                self._tell(self._started(trial))  # it takes its checkpoint before its parent goes on
            if trial.new_fork or state == "running":
                self._tell(self._paused(trial, INTERRUPTED))

    # What runs next.

    def _choose(self) -> Trial | None:
        if self._budget.exhausted:
            return None
        if (taken_up := self._take_up()) is not None:
            return taken_up
        if not self._has_room(0):
            return self._unfinished_best()
        self._stop_paused()
        promoted = self._scheduler.next_promotion(or_new=self._budget.may_start)
        if promoted is not None:
            return self._trials[promoted]
        if (new := self._new_trial()) is not None:
            return new
        return None if self._scheduler.synchronous and self._running else self._unfinished_best()

    def _stop_paused(self) -> None:
        while (found := self._scheduler.next_stop(or_new=self._budget.may_start)) is not None:
            trial_id, reason = found
            self._close_trial(self._trials[trial_id], "stopped")
            self._tell(TrialEnded(trial_id=trial_id, state="stopped", reason=reason, at=self._now()))

    def _take_up(self) -> Trial | None:
        """The first that was interrupted or lost and has room for its next epoch. A fork waits for its parent
        to come where it forks, which the tables of a killed driver did not know that it had."""
        for trial_id in self._waiting:
            trial = self._trials[trial_id]
            parent = self._trials.get(trial.parent or "")
            there = not trial.new_fork or parent is None or parent.epoch >= trial.parent_epoch
            if there and self._has_room(trial.epoch):
                self._waiting.remove(trial_id)
                return trial
        return None

    def _new_trial(self) -> Trial | None:
        if not self._budget.may_start or self.given_up:
            return None
        suggestion = self._searcher.suggest()
        if suggestion is None:
            return None
        self._budget.count_trial()
        return self._open(suggestion.trial_id)

    def _open(self, trial_id: str) -> Trial:
        known = self._searcher.observed[int(trial_id)]
        trial = self._trials[trial_id] = Trial(
            trial_id,
            known.config,
            epoch=known.parent_epoch,
            parent=known.parent,
            parent_epoch=known.parent_epoch,
        )
        return trial

    def _unfinished_best(self) -> Trial | None:
        """The best trial, if it neither is over nor runs: from here on it stops at no rung."""
        trial = self._trials.get(self._incumbent.trial_id or "")
        if trial is None or trial.trial_id in self._running:
            return None
        if trial.trial_id in self._waiting:
            self._waiting.remove(trial.trial_id)
        self._scheduler.drop(trial.trial_id)
        self._to_the_end.add(trial.trial_id)
        return trial

    def _has_room(self, epoch: int, but: str = "") -> bool:
        """Whether a trial with `epoch` epochs may run another, and whoever leads then can still be finished.

        `but`: that trial, if it has just reported and so is not in the middle of an epoch.
        """
        best = self._incumbent.trial_id
        if best is None:
            return True
        running = self._running - {but}
        done = [epoch + 1, *(self._trials[each].epoch + 1 for each in running)]
        if best in self._trials and best not in running:
            done.append(self._trials[best].epoch)
        return self._budget.has_room_for(self._max_epochs - min(done), in_flight=len(running))

    # What becomes of a trial.

    def _decide(self, trial: Trial, metrics: Mapping[str, float]) -> Decision:
        """What scheduler and searcher make of an epoch; objectives may be absent between rungs."""
        values = [metrics.get(objective.metric) for objective in self._objectives]
        if any(value is None for value in values):
            self._scheduler.went_on(trial.trial_id, trial.epoch)
            return Decision("continue")
        violations = [each.excess(metrics.get(each.metric, math.nan)) for each in self._constraints]
        standing = Standing(
            tuple(o.loss(value) for o, value in zip(self._objectives, values, strict=True)),  # type: ignore[arg-type]
            sum(max(0.0, v) if v == v else math.inf for v in violations),
        )
        trial.finite = standing.finite
        self._searcher.report(trial.trial_id, trial.epoch, standing, violations)
        self._incumbent.compare(trial.trial_id, standing)
        return self._scheduler.report(trial.trial_id, trial.epoch, standing)

    def _carry_out(self, trial: Trial, decision: Decision) -> Decision:
        if trial.trial_id in self._to_the_end:
            self._scheduler.drop(trial.trial_id)  # it does not wait at the rung that it passes
        if not trial.finite:
            names = ", ".join(objective.metric for objective in self._objectives)
            reason = f"{names} after epoch {trial.epoch}: not a finite number"
            decision = Decision("stop", reason, decision.rung)
            self._end(trial, "diverged", decision.reason)
        elif trial.epoch >= self._max_epochs:
            decision = Decision("stop", f"all {self._max_epochs} epochs done", decision.rung)
            self._end(trial, "completed", decision.reason)
        elif decision.action == "stop":
            self._end(trial, "stopped", decision.reason)
        elif decision.action == "pause" and trial.trial_id not in self._to_the_end:
            self._false_start.worked()
            self._leave(trial)
            self._tell(self._paused(trial, decision.reason))
        elif self._budget.exhausted:
            decision = Decision("pause", self._budget.why_exhausted, decision.rung)
            self._put_aside(trial, decision.reason)
        elif trial.trial_id != self._incumbent.trial_id and not self._has_room(
            trial.epoch, but=trial.trial_id
        ):
            decision = Decision("pause", KEPT_FOR_THE_BEST, decision.rung)
            self._put_aside(trial, decision.reason)
        else:
            decision = Decision("continue", decision.reason, decision.rung)
        return decision

    def _may_go_on(self, trial: Trial) -> bool:
        """Whether the budget bears another epoch of it, and the best to its end."""
        best = trial.trial_id == self._incumbent.trial_id
        return best or self._has_room(trial.epoch, but=trial.trial_id)

    def _missing_objective(self, report: Report) -> str | None:
        if report.epoch not in self._full_epochs:
            return None
        for name in (objective.metric for objective in self._objectives):
            if name not in report.metrics:
                return (
                    f"the objective {name!r} is not among the reported figures{nearest(name, report.metrics)}"
                )
        return None

    def _end(self, trial: Trial, state: TrialState, reason: str, error: str = "") -> None:
        self._leave(trial)
        if state in WENT_WRONG:
            self._false_start.went_wrong(trial.trial_id, trial.epoch, reason)
        else:
            self._false_start.worked()
        self._close_trial(trial, state)
        self._tell(
            TrialEnded(trial_id=trial.trial_id, state=state, reason=reason, at=self._now(), error=error)
        )

    def _close_trial(self, trial: Trial, state: TrialState) -> None:
        del self._trials[trial.trial_id]
        self._searcher.finish(trial.trial_id, state)
        self._scheduler.drop(trial.trial_id)
        if state in WENT_WRONG:
            self._incumbent.forget(trial.trial_id)  # never recommended, however good it was before

    def _put_aside(self, trial: Trial, reason: str) -> None:
        """Not the scheduler's pause: the trial goes on as soon as anything may."""
        self._running.discard(trial.trial_id)
        self._waiting.append(trial.trial_id)
        self._tell(self._paused(trial, reason))

    def _leave(self, trial: Trial) -> None:
        self._running.discard(trial.trial_id)
        self._left_its_gang()

    def _left_its_gang(self) -> None:
        self._budget.trial_over(self._incumbent.take_gain())

    def _started(self, trial: Trial) -> TrialStarted:
        return TrialStarted(
            trial_id=trial.trial_id,
            config=trial.config,
            at=self._now(),
            parent=trial.parent,
            parent_epoch=trial.parent_epoch,
            halvings=trial.halvings,
        )

    def _paused(self, trial: Trial, reason: str) -> TrialEnded:
        return TrialEnded(trial_id=trial.trial_id, state="paused", reason=reason, at=self._now())

    def _tell(self, event: Event) -> None:
        for listener in self._listeners:
            listener.handle(event)


def _as_it_happened(
    trials: Sequence[Mapping[str, Any]], epochs: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """Rows of epochs, and of trials that are over where they ended; never before an epoch of their own."""
    last = {row["trial_id"]: row["at"] for row in epochs}
    timed = [(row["at"], row) for row in epochs]
    for row in trials:
        if row["state"] in FINAL_STATES:
            at = row["finished_at"]
            timed.append((max(at, last.get(row["trial_id"], at)), row))
    return [row for _, row in sorted(timed, key=lambda each: each[0])]
