"""A worker whose node is about to be taken away: told by its gang's owner, asked by its trial.

Of a process, not of a trial: whoever leaves runs no other.
"""

from __future__ import annotations

import threading

_told = threading.Event()


def leave_early() -> None:
    """The trial that runs here should break off its epoch, if it can; called in the worker's process."""
    _told.set()


def leaving() -> bool:
    """Whether this worker was told."""
    return _told.is_set()
