"""The tables of an experiment, written as it happens.

Columns are defined in `tuning/tables/schema.py`, rows made in `tuning/tables/ledger.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pandas as pd

from trainables.patience import PATIENCE_S, StorageFailed, patiently
from tuning.events import Event
from tuning.experiment import Experiment
from tuning.tables.ledger import Ledger
from tuning.tables.storage import write_table

#: Writing the tables takes at most about one part in this many of a run's time.
WRITE_SPACING = 20


class ResultsWriter:
    """Keeps `trials.parquet` and `epochs.parquet` of an experiment up to date; a listener of its events.

    Both tables are kept in memory and rewritten whole, aside and then renamed, so that a reader or a killed
    run never has half a table. After a write that took d seconds the next one waits 20 d. Tables that exist
    already are continued.
    """

    def __init__(self, experiment: Experiment, *, clock: Callable[[], float] = time.monotonic):
        self._folder = experiment.folder
        self._folder.mkdir(parents=True, exist_ok=True)
        self.ledger = Ledger(experiment)
        self.ledger.take_up(self._folder)
        self._clock = clock
        self._dirty = False
        self._failed: StorageFailed | None = None
        self.make_room: Callable[[], bool] = lambda: False
        """Called where the disk is full: deletes what nobody needs, and says whether there was any."""
        self.write()

    @property
    def trials(self) -> pd.DataFrame:
        """The table of trials as of now, on disk or not yet."""
        return self.ledger.trials_table()

    @property
    def epochs(self) -> pd.DataFrame:
        """The table of epochs as of now."""
        return self.ledger.epochs_table()

    @property
    def saved(self) -> bool:
        """Whether the tables on disk hold everything that was told."""
        return not self._dirty

    def handle(self, event: Event) -> None:
        """Take the event into the tables, and write them if that is due."""
        self.ledger.apply(event)
        self._dirty = True
        self.tick()

    def tick(self) -> None:
        """Write the tables if they have changed and a write is due."""
        if self._dirty and self._clock() >= self._next_write:
            self.write()

    def close(self) -> None:
        """Write what is not written yet."""
        if self._dirty:
            self.write()

    def write(self) -> None:
        """Rewrite both tables now; while the storage is away, again and again.

        Raises:
            StorageFailed: see `patiently`, and raised again without patience where it fails again: the run is
                taken down then, and each listener's end would wait. The tables on disk are as they were.
        """
        begin = self._clock()
        try:
            patiently(self._write_both, patience_s=0.0 if self._failed else PATIENCE_S)
        except StorageFailed as error:
            if not error.full or not self.make_room():
                self._failed = self._failed or error
                raise self._failed from self._failed.__cause__
            patiently(self._write_both)
        end = self._clock()
        self._dirty = False
        self._next_write = end + WRITE_SPACING * (end - begin)

    def _write_both(self) -> None:
        # Epochs first: after a kill in between, `trials` is behind, and is worked out from them again.
        write_table(self.epochs, self._folder / "epochs.parquet")
        write_table(self.trials, self._folder / "trials.parquet")
