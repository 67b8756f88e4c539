"""What one simulated run comes to: what it cost, the best that it found, and when.

Which runs are simulated, and how they compare, is for `tuning/simulation/scheduler_comparison.py`.
"""

from __future__ import annotations

from typing import Any

from tuning.events import Event, TrialEnded, TrialStarted
from tuning.experiment import Experiment
from tuning.search import ranking
from tuning.search.budget import HOUR_S
from tuning.simulation.simulator import SimulatedEpoch
from tuning.tables.comparison import WENT_WRONG, Comparison
from tuning.tables.schema import figure_column


class Outcome:
    """Adds one simulation up; a listener of its events as well, as ends are told there only.

    The best is the one of a search: what keeps the constraints comes first, then the first objective counts,
    and trials that went wrong later are left out.
    """

    def __init__(self, experiment: Experiment):
        self._comparison = Comparison(experiment)
        self._metric = experiment.objectives[0].metric
        self._price = experiment.budget.price_per_hour
        self._started: set[str] = set()
        self._wrong: set[str] = set()
        self._bests: dict[str, tuple[float, float, int, float, float]] = {}  # by trial_id
        self._losses: list[tuple[str, tuple[float, ...]]] = []
        self._worker_s = self._time_s = 0.0
        self.epochs = 0
        """Epochs of all trials."""

    def handle(self, event: Event) -> None:
        """Note what starts and what goes wrong."""
        if isinstance(event, TrialStarted):
            self._started.add(event.trial_id)
        elif isinstance(event, TrialEnded) and event.state in WENT_WRONG:
            self._wrong.add(event.trial_id)

    def tick(self) -> None:
        """Nothing is put off."""

    def close(self) -> None:
        """Nothing to let go of."""

    def take(self, done: SimulatedEpoch) -> None:
        """Count an epoch and compare its figures."""
        self.epochs += 1
        self._worker_s += done.metrics["worker_s"]
        self._time_s = done.at_s
        row = {figure_column(name): value for name, value in done.metrics.items()}
        losses = self._comparison.losses(row)
        if losses is None:
            return
        violation = self._comparison.violation(row)
        best = self._bests.get(done.trial_id)
        if best is None or (violation, losses[0]) < best[:2]:
            value = done.metrics[self._metric]
            self._bests[done.trial_id] = (violation, losses[0], self.epochs, done.at_s, value)
        if len(losses) > 1 and violation == 0:
            self._losses.append((done.trial_id, losses))

    def row(self) -> dict[str, Any]:
        """Columns of a comparison; `cost` only where there is a price, `hypervolume` only where several
        objectives all have a `reference`."""
        row: dict[str, Any] = {
            "trials": len(self._started),
            "epochs": self.epochs,
            "worker_s": self._worker_s,
            "time_s": self._time_s,
        }
        if self._price is not None:
            row["cost"] = self._worker_s / HOUR_S * self._price
        sound = [best for trial_id, best in self._bests.items() if trial_id not in self._wrong]
        if sound:
            _, _, row["best_at_epochs"], row["best_at_s"], row["best"] = min(sound)
        references = [each for each in self._comparison.references if each is not None]
        if 1 < len(references) == len(self._comparison.references):
            losses = [losses for trial_id, losses in self._losses if trial_id not in self._wrong]
            row["hypervolume"] = ranking.hypervolume(losses, references)
        return row
