"""The study's journal on storage that may be away for a moment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from trainables.patience import patiently


class PatientJournal(JournalFileBackend):
    """A journal that one process writes; a line is there whole or not at all, however often it was tried."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append lines, patiently.

        Raises:
            trainables.patience.StorageFailed: see `patiently`.
        """
        size = patiently(lambda: os.path.getsize(self._file_path))

        def append() -> None:
            if os.path.getsize(self._file_path) > size:  # what an attempt before wrote of it
                os.truncate(self._file_path, size)
            super(PatientJournal, self).append_logs(logs)

        patiently(append)


def open_journal(path: Path) -> BaseStorage:
    """The journal, repaired after a killed driver: half a last line cut off, its lock broken after 3 s."""
    if path.exists():
        with path.open("r+b") as journal:
            content = journal.read()
            journal.truncate(content.rfind(b"\n") + 1)
    lock = JournalFileSymlinkLock(str(path), grace_period=3)
    return JournalStorage(PatientJournal(str(path), lock_obj=lock))
