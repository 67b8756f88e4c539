"""Which checkpoints of an experiment stay on disk: of each trial the best epoch's and the last.

The last is where a trial goes on after a crash, the best is what is exported. A trial that is over keeps
only its best, one that went wrong keeps nothing. Under a quota the best ones of the worst
trials go, too, but neither what a trial may go on from nor the best trial's (see `quota.py`). A trial that
starts from another's checkpoint is given it as its own, so that the other's may come and go. What is best and
last is asked of the tables *on disk*: a driver that is killed is followed by one that knows no more than
these, and looks for the checkpoint that they name.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Protocol

from trainables.order import WITHIN
from tuning.events import FINAL_STATES, EpochReported, Event, TrialEnded, TrialStarted
from tuning.tables.comparison import WENT_WRONG
from tuning.tables.lineage import starts_after
from tuning.tables.quota import Checkpoint, superfluous
from tuning.tables.results_writer import ResultsWriter


class Checkpoints(Protocol):
    """Where the checkpoints of an experiment lie, by trial and name (the epoch, four digits)."""

    def clear(self, trial_id: str, keep: Collection[str], reported: Collection[str], over: bool) -> None:
        """Delete those that are `reported` but not to `keep`; if the trial is `over`, all but these."""

    def hand_on(self, parent: str, epoch: int, fork: str) -> None:
        """Give `fork` the checkpoint of `parent` after `epoch`; nothing if it has it, or there is none."""


class CheckpointKeeper:
    """Listener that deletes the checkpoints nobody will need, and hands them on to forks.

    A fork's start is told before its parent goes on, so that the checkpoint is still there.

    Args:
        checkpoints: where they lie.
        writer: writes the tables; hears of an event, and is closed, before the keeper is.
        max_mb: what all of them may take, 10^6 bytes; 0.0: only what is needed is kept.
        parents: so many of the best trials that ran all their epochs keep theirs whatever the quota, as do
            those that no trial which is over beats: the best, with several objectives the front, and what
            would take a place there should an open trial fail.
    """

    def __init__(
        self, checkpoints: Checkpoints, writer: ResultsWriter, *, max_mb: float = math.inf, parents: int = 0
    ):
        self._place = checkpoints
        self._writer = writer
        self._max_mb, self._parents = max_mb, parents
        self._dropped: set[str] = set()  # for the quota
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
            self._place.hand_on(event.parent, event.parent_epoch, event.trial_id)
        self.tick()

    def tick(self) -> None:
        """Delete what the tables on disk do not need."""
        if not self._writer.saved:
            return
        for trial_id in self._to_sweep:
            over = self._writer.ledger.trials[trial_id]["state"] in FINAL_STATES
            self._sweep(trial_id, everything=over)
        if self._to_sweep:
            self._keep_to(self._max_mb)
        self._to_sweep.clear()

    def make_room(self) -> bool:
        """Delete all that is not needed; whether there was anything."""
        return self._keep_to(0.0)

    def close(self) -> None:
        """Delete the last of it; no gang runs any more.

        Of paused trials also what a killed worker left half written: the others lost that when they ended.
        """
        self.tick()
        for trial_id, trial in self._writer.ledger.trials.items():
            if self._writer.saved and trial["state"] not in FINAL_STATES:
                self._sweep(trial_id, everything=True)

    def _keep_to(self, max_mb: float) -> bool:
        if max_mb == math.inf:
            return False
        found = superfluous(self._checkpoints(), max_mb)
        self._dropped.update(found)
        for trial_id in dict.fromkeys(name.split("/")[1] for name in found):
            self._sweep(trial_id, everything=False)
        return bool(found)

    def _checkpoints(self) -> Iterator[Checkpoint]:
        """All that are kept, as the tables tell their sizes."""
        ledger = self._writer.ledger
        places = {trial_id: place for place, trial_id in enumerate(ledger.best_first())}
        completed = [name for name in places if ledger.trials[name]["state"] == "completed"]
        chosen = {*ledger.unbeaten(), *completed[: self._parents]}
        for trial_id, trial in ledger.trials.items():
            epochs = ledger.epochs[trial_id]
            sizes = {row["checkpoint"]: row.get("checkpoint_mb", 0.0) for row in epochs.values()}
            for name in self._kept(trial_id) if epochs else ():
                last = trial["state"] not in FINAL_STATES and name == epochs[max(epochs)]["checkpoint"]
                yield Checkpoint(
                    name=name,
                    size_mb=sizes[name],
                    needed=last or (trial_id in chosen and name == trial.get("checkpoint")),
                    place=places.get(trial_id, math.inf),
                )

    def _sweep(self, trial_id: str, *, everything: bool) -> None:
        """Delete the checkpoints of reported epochs; `everything`: also what no report speaks of.

        That would be what a gang is writing just now, or has written and will report.
        """
        trial, epochs = self._writer.ledger.trials[trial_id], self._writer.ledger.epochs[trial_id]
        over, start = trial["state"] in FINAL_STATES, f"{starts_after(trial):04d}"
        if not epochs:
            if over:  # it left its first gang within its first epoch
                self._place.clear(trial_id, (), {start + WITHIN}, over=False)
            return
        reported = {start, *(_name(row["checkpoint"]) for row in epochs.values())}
        kept, within = {_name(each) for each in self._kept(trial_id)}, max(reported) + WITHIN
        if not over:  # where it left its last gang, if that was within an epoch
            kept.add(within)
        reported |= {before + WITHIN for before in reported}
        self._place.clear(trial_id, kept, reported, over=everything)

    def _kept(self, trial_id: str) -> set[str]:
        ledger = self._writer.ledger
        trial, epochs = ledger.trials[trial_id], ledger.epochs[trial_id]
        best, last = trial.get("checkpoint"), epochs[max(epochs)]["checkpoint"]
        if trial["state"] in WENT_WRONG:
            return set()
        kept = {best} if trial["state"] in FINAL_STATES and best is not None else {best, last}
        return {name for name in kept if name is not None} - self._dropped


class CheckpointFolders:
    """Checkpoints on a disk that all nodes see: `FOLDER/TRIAL/NAME/`; see `Checkpoints`."""

    def __init__(self, folder: Path):
        self._folder = folder

    def clear(self, trial_id: str, keep: Collection[str], reported: Collection[str], over: bool) -> None:
        """At once."""
        folder = self._folder / trial_id
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.name not in keep and (over or path.name in reported):
                shutil.rmtree(path, ignore_errors=True)

    def hand_on(self, parent: str, epoch: int, fork: str) -> None:
        """The files are hard links, which take no room; copies where the file system has none.

        Where the parent's checkpoint is gone, the gang will say which folder is missing, and the fork fails.
        """
        source = self._folder / parent / f"{epoch:04d}"
        target = self._folder / fork / source.name
        if target.exists() or not source.is_dir():
            return
        aside = target.with_name(f".{target.name}.fork")
        shutil.rmtree(aside, ignore_errors=True)
        try:
            shutil.copytree(source, aside, copy_function=os.link)
        except (shutil.Error, OSError):
            shutil.rmtree(aside, ignore_errors=True)
            shutil.copytree(source, aside)
        with contextlib.suppress(FileExistsError):
            aside.rename(target)


def _name(checkpoint: str) -> str:
    """Of `checkpoints/00003/0009`, the last part."""
    return checkpoint.rpartition("/")[2]
