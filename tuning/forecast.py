"""How long a run will still take, from what its epochs took so far and what the budget allows.

Follows events and reads the ledger; what is shown of it is for `tuning/progress.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from tuning.events import EpochReported, Event, TrialEnded, TrialStarted
from tuning.plan import expected_epochs
from tuning.search.budget import BudgetGuard
from tuning.tables.comparison import WENT_WRONG
from tuning.tables.lineage import starts_after

if TYPE_CHECKING:
    from tuning.experiment import Experiment
    from tuning.tables.ledger import Ledger


class Forecast:
    """Estimates the time left, and counts what is spent.

    Args:
        experiment: what runs.
        ledger: its rows, kept up by somebody else; those that are there already count as spent.
        clock: seconds that only grow.
    """

    def __init__(self, experiment: Experiment, ledger: Ledger, *, clock: Callable[[], float]):
        self._experiment, self._budget = experiment, experiment.budget
        self._ledger, self._clock = ledger, clock
        # Without its time, which begins with the first event and not here.
        self.spent = BudgetGuard(experiment.budget.model_copy(update={"time": None}), clock=clock)
        """Epochs, work and money of all runs so far."""
        for done in ledger.epochs.values():
            for row in done.values():
                self.spent.count_epoch(row.get("worker_s", 0.0), row.get("seconds", 0.0))
        self.spent.count_total(sum(row.get("worker_s", 0.0) for row in ledger.trials.values()))
        self._since: dict[str, float] = {}  # when the present epoch of each running trial began
        self._gangs = 1
        self._epochs = 0  # that were seen to end
        self._took_s = 0.0

    def handle(self, event: Event) -> None:
        """Take notice of an event that the ledger has taken in."""
        now = self._clock()
        if isinstance(event, EpochReported):
            self.spent.count_epoch(event.metrics.get("worker_s", 0.0), event.metrics.get("seconds", 0.0))
            self._epochs += 1
            self._took_s += now - self._since.get(event.trial_id, now)
        if isinstance(event, (EpochReported, TrialEnded)):
            self.spent.count_lost(event.lost_worker_s)
        if isinstance(event, TrialEnded):
            self._since.pop(event.trial_id, None)
        elif isinstance(event, (TrialStarted, EpochReported)):
            self._since[event.trial_id] = now
            self._gangs = max(self._gangs, len(self._since))

    def time_left(self, elapsed_s: float) -> float | None:
        """Seconds until the budget is used up, `elapsed_s` into the run; None while nothing is known."""
        estimates = []
        if self._budget.time_s is not None:
            estimates.append(self._budget.time_s - elapsed_s)
        left = min(self.spent.epochs_left, self._epochs_to_come())
        if math.isfinite(left) and self._epochs:
            begun_s = sum(self._clock() - since for since in self._since.values())
            estimates.append((left * self._took_s / self._epochs - begun_s) / self._gangs)
        return max(0.0, min(estimates)) if estimates else None

    def _epochs_to_come(self) -> float:
        """Epochs until all trials of the budget are done, if as many pass each rung as one should expect."""
        if self._budget.trials is None:
            return math.inf
        done = [(row["state"], row["epochs"] - starts_after(row)) for row in self._ledger.trials.values()]
        wrong = [epochs for state, epochs in done if state in WENT_WRONG]
        expected = expected_epochs(self._experiment, self._budget.trials - len(wrong)) + sum(wrong)
        return max(0.0, expected - sum(epochs for _, epochs in done))
