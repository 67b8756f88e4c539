"""Going on with what earlier runs of an experiment wrote down.

Rungs are filled again, the budget counts what was spent, and trials that were not over wait to go on, or at
their rung. The study is ahead of tables that a killed driver had no time to write: what it knows and they do
not is run as it was suggested, and what it calls finished and they do not is run from the last epoch that
they know. A promotion of which no epoch is known is decided again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from tuning.events import FINAL_STATES, TrialState
from tuning.experiment import ExperimentError
from tuning.search.open_trials import INTERRUPTED, OpenTrials
from tuning.search.scheduler import Decision, Scheduler
from tuning.search.trial import Trial
from tuning.search.verdicts import NOT_FINITE, Verdicts
from tuning.tables.comparison import WENT_WRONG


class Replay:
    """Takes rows in as if they happened now, and tells only what the tables do not know."""

    def __init__(self, trials: OpenTrials, verdicts: Verdicts, scheduler: Scheduler, max_epochs: int):
        self._trials = trials
        self._verdicts = verdicts
        self._scheduler = scheduler
        self._max_epochs = max_epochs

    def take_in(
        self,
        known: Sequence[str],
        trials: Sequence[Mapping[str, Any]],
        epochs: Sequence[Mapping[str, Any]],
    ) -> None:
        """See `Search.replay`; `known`: the trials of the study."""
        states = {row["trial_id"]: row["state"] for row in trials}
        unknown = sorted({*states, *(row["trial_id"] for row in epochs)} - set(known))
        if unknown:
            raise ExperimentError(
                [f"the tables have trials that study.journal does not know: {', '.join(unknown)}"]
            )
        self._over = {row["trial_id"] for row in trials if row["state"] in FINAL_STATES}
        halvings = {row["trial_id"]: row.get("halvings") or 0 for row in trials}
        for trial_id in known:
            self._trials.open(trial_id).halvings = halvings.get(trial_id, 0)
        for row in trials:
            if row["state"] == "paused":
                self._scheduler.was_paused(row["trial_id"], row.get("reason") or "")
        decisions: dict[str, Decision] = {}
        for row in _as_it_happened(trials, epochs):
            trial = self._trials[row["trial_id"]]
            if "state" in row:
                self._was_over(trial, row["state"], row.get("reason") or "")
            else:
                decisions[trial.trial_id] = self._reported(trial, row)
        for trial in list(self._trials):  # some are over then
            decision = decisions.get(trial.trial_id, Decision("continue"))
            self._settle(trial, states.get(trial.trial_id), decision)
        self._trials.false_start.resumed()

    def _reported(self, trial: Trial, row: Mapping[str, Any]) -> Decision:
        """The table has an epoch here."""
        trial.epoch, trial.attempt = row["epoch"], row["attempt"]
        self._verdicts.count_epoch(trial, row["metrics"])
        decision = self._verdicts.decide(trial, self._verdicts.all_figures(row["epoch"], row["metrics"]))
        ends = decision.action == "stop" or trial.epoch >= self._max_epochs
        if trial.finite and (trial.trial_id in self._over if ends else decision.leaves):
            self._trials.left_its_gang()  # else it is, when its end is taken in or settled
        return decision

    def _was_over(self, trial: Trial, state: TrialState, reason: str) -> None:
        """The table has the end of a trial here."""
        if state in WENT_WRONG:
            if not reason.endswith(NOT_FINITE):  # else the epoch that went wrong is in the table, and counted
                self._verdicts.count_failure(trial)
            self._trials.false_start.went_wrong(trial.trial_id, trial.epoch, "in an earlier run")
            self._trials.left_its_gang()
        else:
            self._trials.false_start.worked()
        self._trials.close(trial, state)  # the study may have missed it

    def _settle(self, trial: Trial, state: TrialState | None, decision: Decision) -> None:
        """At the end: a trial was about to be over, or waits. `state`: in the table."""
        over = decision.action == "stop" or trial.epoch >= self._max_epochs or not trial.finite
        if over:
            if state is None:
                self._trials.tell_started(trial)
            self._verdicts.carry_out(trial, decision)
        elif decision.action == "pause":
            self._trials.false_start.worked()
            if state != "paused":
                self._trials.tell_started(trial)
                self._trials.tell_paused(trial, decision.reason)
        else:
            self._trials.waiting.append(trial.trial_id)
            if trial.new_fork:
                self._trials.tell_started(trial)  # it takes its checkpoint before its parent goes on
            if trial.new_fork or state == "running":
                self._trials.tell_paused(trial, INTERRUPTED)


def _as_it_happened(
    trials: Sequence[Mapping[str, Any]], epochs: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """Rows of epochs, and of trials that are over where they ended; never before an epoch of their own."""
    last: dict[str, datetime] = {}
    timed = []
    for row in sorted(epochs, key=lambda row: row["epoch"]):  # clocks may have been put back meanwhile
        last[row["trial_id"]] = max(row["at"], last.get(row["trial_id"], row["at"]))
        timed.append((last[row["trial_id"]], row))
    for row in trials:
        if row["state"] in FINAL_STATES:
            at = row["finished_at"]
            timed.append((max(at, last.get(row["trial_id"], at)), row))
    return [row for _, row in sorted(timed, key=lambda each: each[0])]
