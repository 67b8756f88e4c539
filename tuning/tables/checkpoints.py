"""Which checkpoints of an experiment stay on disk: of each trial the best epoch's and the last.

The last is where a trial goes on after a crash, the best is what is exported. A trial that is over keeps
only its best. A trial that starts from another's checkpoint is given it as its own, so that the other's may
come and go. What is best and last is asked of the tables *on disk*: a driver that is killed is followed by
one that knows no more than these, and looks for the checkpoint that they name.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from tuning.events import FINAL_STATES, EpochReported, Event, TrialEnded, TrialStarted
from tuning.tables.lineage import starts_after
from tuning.tables.results import ResultsWriter


class CheckpointKeeper:
    """Listener that deletes the checkpoints nobody will need, and hands them on to forks.

    A fork's start is told before its parent goes on, so that the checkpoint is still there.

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
        """Take note that a trial may have superfluous checkpoints, or give a fork the one it starts from."""
        if isinstance(event, (EpochReported, TrialEnded)):
            self._to_sweep.add(event.trial_id)
        elif not isinstance(event, TrialStarted):
            return
        elif event.parent is not None and not self._writer.ledger.epochs[event.trial_id]:
            hand_on(self._folder / "checkpoints", event.parent, event.parent_epoch, event.trial_id)
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
        reported.add(f"checkpoints/{trial_id}/{starts_after(self._writer.ledger.trials[trial_id]):04d}")
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


def hand_on(checkpoints: Path, parent: str, epoch: int, fork: str) -> None:
    """Give `fork` the checkpoint of `parent` after `epoch`, in a folder of its own; nothing if it has it.

    The files are hard links, which take no room; copies where the file system has none. Where the parent's
    checkpoint is gone, nothing is done: the gang will say which folder is missing, and the fork fails.

    Args:
        checkpoints: folder of all trials' checkpoints.
    """
    source = checkpoints / parent / f"{epoch:04d}"
    target = checkpoints / fork / source.name
    if target.exists() or not source.is_dir():
        return
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        shutil.copytree(source, aside, copy_function=os.link)
    except (shutil.Error, OSError):
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(source, aside)
    with contextlib.suppress(FileExistsError):
        aside.rename(target)
