"""Who works on an experiment whose storage is a URL: one process at a time, said in a file at the URL.

Whoever works writes `lease.json` again and again; one that is too old is of a process that was killed.
"""

from __future__ import annotations

import json
import os
import platform
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainables.store import Store
from tuning.experiment_file import ExperimentError
from tuning.tables.copies import ORIGIN

#: The file, seconds after which it is written again, and when it is taken for that of a dead process.
LEASE, BEAT_S, DEAD_AFTER_S = "lease.json", 30.0, 180.0


class ExperimentBusy(ExperimentError):
    """Another process is running this experiment."""


class Lease:
    """This process's claim to the experiment in `store`, whose copy here is `copy` (see `identity`)."""

    def __init__(self, store: Store, copy: str):
        self._store = store
        self._me = {"copy": copy, "host": platform.node(), "pid": os.getpid()}
        self._me["started"] = uuid.uuid4().hex[:12]
        self._next_beat = 0.0
        self.lost_to = ""
        """Which process has taken the experiment over, if one has."""

    def take(self, before: dict[str, Any]) -> None:
        """Become the one who works on the experiment.

        Args:
            before: what `read_lease` found.

        Raises:
            ExperimentBusy: another process works on it.
            OSError: the store cannot be reached, or refuses.
        """
        if before.get("copy") != self._me["copy"] and _is_alive(before):
            raise ExperimentBusy([f"{self._store.url}: {_who(before)} is running this experiment"])
        self._write(running=True)
        # Two who start in the same moment both come this far; no store that pyarrow knows lets one of them
        # write only if the other has not. Whoever wrote last is read by both.
        if not self._is_mine(now := read_lease(self._store)):
            raise ExperimentBusy([f"{self._store.url}: {_who(now)} is running this experiment"])

    def renew(self) -> None:
        """Write it again if that is due, unless somebody else has taken it (`lost_to`)."""
        if time.monotonic() < self._next_beat:
            return
        if self._is_mine(now := read_lease(self._store)):
            self._write(running=True)
        else:
            self.lost_to = _who(now)

    def release(self) -> None:
        """Let go of the experiment."""
        self._write(running=False)

    def _is_mine(self, lease: dict[str, Any]) -> bool:
        return lease.get("started") == self._me["started"]

    def _write(self, *, running: bool) -> None:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        self._store.put(LEASE, json.dumps({**self._me, "at": at, "running": running}, indent=2).encode())
        self._next_beat = time.monotonic() + BEAT_S


def is_driven(folder: Path) -> bool:
    """Whether a process works on the experiment, by the reader's copy in `folder`; False if it is none."""
    try:
        return _is_alive(json.loads((folder / LEASE).read_text()))
    except FileNotFoundError:
        return False


def _is_alive(driver: dict[str, Any]) -> bool:
    """Whether what `lease.json` holds is of a process that works on the experiment, if the clocks agree."""
    if not driver.get("running"):
        return False
    age = datetime.now(UTC) - datetime.fromisoformat(driver["at"])
    return age.total_seconds() < DEAD_AFTER_S


def identity(folder: Path, url: str) -> str:
    """What tells this folder from the copies that other machines work in."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ORIGIN
    try:
        return json.loads(path.read_text())["copy"]
    except (FileNotFoundError, ValueError, LookupError):
        identity = uuid.uuid4().hex
        path.write_text(json.dumps({"url": url, "copy": identity}))
        return identity


def read_lease(store: Store) -> dict[str, Any]:
    """What stands in the file; empty where nobody has worked on the experiment."""
    try:
        return json.loads(store.read(LEASE))
    except FileNotFoundError:
        return {}


def _who(driver: dict[str, Any]) -> str:
    return f"process {driver.get('pid', '?')} on {driver.get('host', 'another machine')}"
