"""Which checkpoints of an experiment stay on disk: of each trial the best epoch's and the last.

The last is where a trial goes on after a crash, the best is what is exported. A trial that is over keeps
only its best. What is best and last is asked of the tables *on disk*: a driver that is killed is followed by
one that knows no more than these, and looks for the checkpoint that they name.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tuning.events import FINAL_STATES, Event, TrialStarted
from tuning.results import ResultsWriter


class CheckpointKeeper:
    """Listener that deletes the checkpoints nobody will need.

    Args:
        folder: the experiment's folder.
        writer: writes the tables; hears of an event, and is closed, before the keeper is.
    """

    def __init__(self, folder: Path, writer: ResultsWriter):
        self._folder = folder
        self._writer = writer
        self._to_sweep: set[str] = set()
        for trial_id in writer.ledger.trials:  # no gang runs yet: whatever an interrupted run left may go
            self._sweep(trial_id, everything=True)

    def handle(self, event: Event) -> None:
        """Take note that a trial may have superfluous checkpoints."""
        if not isinstance(event, TrialStarted):
            self._to_sweep.add(event.trial_id)
        self.tick()

    def tick(self) -> None:
        """Delete what the tables on disk do not need."""
        if not self._writer.saved:
            return
        for trial_id in self._to_sweep:
            over = self._writer.ledger.trials[trial_id]["state"] in FINAL_STATES
            self._sweep(trial_id, everything=over)
        self._to_sweep.clear()

    def close(self) -> None:
        """Delete the last of it."""
        self.tick()

    def _sweep(self, trial_id: str, *, everything: bool) -> None:
        """Delete the checkpoints of reported epochs; `everything`: also what no report speaks of.

        That would be what a gang is writing just now, or has written and will report.
        """
        epochs, folder = self._writer.ledger.epochs[trial_id], self._folder / "checkpoints" / trial_id
        if not epochs or not folder.is_dir():
            return
        kept = self._kept(trial_id)
        reported = {row["checkpoint"] for row in epochs.values()}
        for path in folder.iterdir():
            name = f"checkpoints/{trial_id}/{path.name}"
            if name not in kept and (everything or name in reported):
                shutil.rmtree(path, ignore_errors=True)

    def _kept(self, trial_id: str) -> set[str]:
        ledger = self._writer.ledger
        trial, epochs = ledger.trials[trial_id], ledger.epochs[trial_id]
        best, last = trial.get("checkpoint"), epochs[max(epochs)]["checkpoint"]
        if trial["state"] in FINAL_STATES and best is not None:
            return {best}
        return {best, last}
