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
* a scheduler (`tuning.search.scheduler`): `report(trial_id, epoch, standing) -> continue | pause | stop`;
  `next_promotion()` and `next_stop()`, each `-> trial_id, reason | None`, both told whether a new trial may
  begin instead (`or_new`); `went_on(trial_id, epoch)`, `drop(trial_id)` and, when a run is resumed,
  `was_paused(trial_id, reason)`. One that also proposes (`auto`, `pbt`) is shown the searcher's trials once
  (`watch`), as `tuning/search/strategies.py` does;
* a budget (`tuning.search.budget`): told what is spent (`count_*`, `trial_over`), it says whether another
  trial `may_start` and whether it `has_room_for` more epochs, and when it is `exhausted` or flat, why.

A trial's identity is its number in the Optuna study, "00012". A driver may send the same trial several
times (after a promotion, a crash, or when a killed experiment is resumed); what was reported before is not
counted twice. One that starts from another's checkpoint (a fork, see `tuning/search/pbt.py`) begins with that
one's epochs behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from trainables.order import Failure, Report
from tuning.events import EpochReported, GangClosed, Listener
from tuning.experiment import Experiment
from tuning.search.budget import BudgetGuard
from tuning.search.open_trials import INTERRUPTED, OpenTrials
from tuning.search.replay import Replay
from tuning.search.scheduler import Decision, Scheduler
from tuning.search.searcher import Searcher
from tuning.search.trial import Run, Trial
from tuning.search.verdicts import Verdicts

LOST = "the driver lost it"


class Search:
    """See the module's text.

    The best trial is always trained to the end: where nothing else can start, and in time before a limit of
    the budget. Up to the epochs of one trial may be left unspent for that: a trial that might take the lead
    and could not be finished is not gone on with, nor, before there is any result, one that would leave
    nobody the epochs to the end. How long a new trial's epochs take is not known: one that is slower than the
    others, and better, may be cut off. With several objectives, the best by the first is meant.

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
        self._max_epochs = experiment.scheduler.max_epochs
        self._max_failures = experiment.training.max_failures
        self._workers = experiment.training.workers
        self._searcher = searcher
        self._scheduler = scheduler
        self._budget = budget
        self._listeners = listeners
        self._can_halve = can_halve
        self._now = now
        self._trials = OpenTrials(
            max_epochs=self._max_epochs,
            searcher=searcher,
            scheduler=scheduler,
            budget=budget,
            listeners=listeners,
            now=now,
        )
        self._verdicts = Verdicts(
            experiment, trials=self._trials, searcher=searcher, scheduler=scheduler, budget=budget
        )
        self._next: Trial | None = None  # chosen, not handed out yet
        self._halted_at: datetime | None = None

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
        trial.since = self._now()
        self._trials.tell_started(trial)
        self._trials.running.add(trial.trial_id)  # now: who never heard that it began hears of no end
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
        if trial is None or trial_id not in self._trials.running:
            return Decision("stop", "does not run any more")
        if report.epoch <= trial.epoch:
            return Decision("continue")  # a restarted trial repeats what was told before
        replaced = report.attempt > trial.attempt  # workers that had begun the same epoch
        worker_s = report.metrics.get("worker_s", 0.0)
        lost_worker_s = self._count_lost(trial, but=worker_s) if replaced else 0.0
        trial.epoch, trial.attempt, trial.since = report.epoch, report.attempt, self._now()
        self._verdicts.count_epoch(trial, report.metrics)
        missing = self._verdicts.missing_figure(report)
        if missing is not None:
            self._trials.end(trial, "failed", missing, lost_worker_s=worker_s + lost_worker_s)
            return Decision("stop", "no such figure")
        decision = self._verdicts.decide(trial, report.metrics)
        self._trials.tell(
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
                lost_worker_s=lost_worker_s,
            )
        )
        return self._verdicts.carry_out(trial, decision)

    def fail(self, trial_id: str, failure: Failure) -> None:
        """The trial's own code failed, diverged or ran out of memory: it is over, or tried with less."""
        trial = self._trials.get(trial_id)
        if trial is None:
            return
        lost_worker_s = self._count_lost(trial)
        if failure.state == "out_of_memory" and self._can_halve(trial.config, trial.halvings):
            trial.halvings += 1
            trial.attempt += 1
            reason = f"out of memory, goes on with smaller parts of a batch: {failure.reason}"
            self._trials.put_aside(trial, reason, lost_worker_s=lost_worker_s)
        else:
            self._verdicts.count_failure(trial)
            self._trials.end(trial, failure.state, failure.reason, failure.error, lost_worker_s=lost_worker_s)

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
        lost_worker_s = self._count_lost(trial)
        last = error.strip().rpartition("\n")[2]
        if trial.lost > self._max_failures:
            reason = f"lost {trial.lost} times, training.max_failures allows {self._max_failures}: {last}"
            self._verdicts.count_failure(trial)
            self._trials.end(trial, "failed", reason, error, lost_worker_s=lost_worker_s)
            return
        trial.attempt += times
        self._trials.put_aside(trial, f"{LOST}: {last}", lost_worker_s=lost_worker_s)

    def gang_closed(self, gang: str, reason: str) -> None:
        """The driver closed a gang: the listeners are told."""
        self._trials.tell(GangClosed(gang=gang, reason=reason, at=self._now()))

    def halt(self) -> None:
        """The driver is about to end the gangs: what they do from now on is no work. Tells nobody."""
        self._halted_at = self._now()

    def interrupt(self) -> None:
        """The driver gives up: what runs is put aside, to go on when the experiment is resumed."""
        for trial_id in sorted(self._trials.running):
            trial = self._trials[trial_id]
            self._trials.put_aside(trial, INTERRUPTED, lost_worker_s=self._count_lost(trial))

    def tick(self) -> None:
        """Let the listeners do what they put off; call it several times a second."""
        for listener in self._listeners:
            listener.tick()

    @property
    def finished(self) -> bool:
        """Nothing runs and nothing more will start."""
        if self._trials.running:
            return False
        if self._next is None and not self._budget.exhausted:
            self._next = self._choose()
        return self._next is None or self._budget.exhausted

    @property
    def given_up(self) -> str:
        """Why no new trial starts any more, though the budget has room: all went wrong. Else empty."""
        suspected = self._trials.false_start.suspected(trial.epoch for trial in self._trials)
        return str(self._trials.false_start) if suspected and self._budget.may_start else ""

    def close(self) -> None:
        """Tell the study which trials are left paused; to be called when the search is finished."""
        for trial in self._trials:
            self._searcher.finish(trial.trial_id, "paused")

    def replay(self, trials: Sequence[Mapping[str, Any]], epochs: Sequence[Mapping[str, Any]]) -> None:
        """Take in what earlier runs of the experiment wrote down, in the order in which it happened.

        Args:
            trials: rows of the trials table (`trial_id`, `state`, `reason`, `halvings`, `worker_s`, and of
                those that are over `finished_at`).
            epochs: rows of the epochs table (`trial_id`, `epoch`, `attempt`, `metrics`, `at`), by `at`.

        Raises:
            ExperimentError: the tables have trials that the study has not.
        """
        replay = Replay(self._trials, self._verdicts, self._scheduler, self._max_epochs)
        replay.take_in(list(self._searcher.configs()), trials, epochs)
        self._budget.count_total(sum(row.get("worker_s") or 0.0 for row in trials))

    def _count_lost(self, trial: Trial, but: float = 0.0) -> float:
        """Count the work since its last epoch, `but` what came to something; seconds, summed over workers."""
        lost = 0.0
        if trial.since is not None and trial.trial_id in self._trials.running:
            until = self._halted_at or self._now()
            lost = max(0.0, (until - trial.since).total_seconds() * self._workers - but)
        self._budget.count_lost(lost)
        return lost

    # What runs next.

    def _choose(self) -> Trial | None:
        if self._budget.exhausted:
            return None
        if (taken_up := self._take_up()) is not None:
            return taken_up
        if not self._trials.has_room():
            return self._unfinished_best()
        self._stop_paused()
        promoted = self._scheduler.next_promotion(or_new=self._budget.may_start)
        if promoted is not None:
            trial_id, why = promoted
            self._trials[trial_id].why = why
            return self._trials[trial_id]
        if (new := self._new_trial()) is not None:
            return new
        return None if self._scheduler.synchronous and self._trials.running else self._unfinished_best()

    def _stop_paused(self) -> None:
        while (found := self._scheduler.next_stop(or_new=self._budget.may_start)) is not None:
            trial_id, reason = found
            self._trials.stop(self._trials[trial_id], reason)

    def _take_up(self) -> Trial | None:
        """The first that was interrupted or lost and has room for its next epoch. A fork waits for its parent
        to come where it forks, which the tables of a killed driver did not know that it had."""
        for trial_id in self._trials.waiting:
            trial = self._trials[trial_id]
            parent = self._trials.get(trial.parent)
            there = not trial.new_fork or parent is None or parent.epoch >= trial.parent_epoch
            if there and self._trials.has_room(trial):
                self._trials.waiting.remove(trial_id)
                if trial.epoch > trial.parent_epoch:
                    trial.why = "taken up again"
                return trial
        return None

    def _new_trial(self) -> Trial | None:
        if not self._budget.may_start or self.given_up:
            return None
        suggestion = self._searcher.suggest()
        if suggestion is None:
            return None
        return self._trials.open(suggestion.trial_id)

    def _unfinished_best(self) -> Trial | None:
        """The best trial, if it neither is over nor runs: from here on it stops at no rung.

        While none has a result, the farthest, until it has one. Not yet, while others run that may take the
        lead and then could not be finished.
        """
        trial = self._trials.get(self._trials.leader)
        if trial is None or trial.trial_id in self._trials.running:
            return None
        if not self._trials.has_room(trial):
            return None
        if trial.trial_id in self._trials.waiting:
            self._trials.waiting.remove(trial.trial_id)
        trial.why = "went farthest, and none has a result yet"
        if self._trials.incumbent.trial_id is not None:
            self._verdicts.to_the_end(trial)
            trial.why = "the best so far, trained to its end"
        return trial
