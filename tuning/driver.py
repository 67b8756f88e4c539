"""The process that runs an experiment: which it is, whether it lives, and how it is asked to end.

A run holds the lock in its experiment's folder and names itself in `.driver.json` beside it. The lock tells
whether anybody runs; the file whom to ask, with the time when that process began: its id alone may be another
process's by now.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import filelock
import psutil

#: Like all that begins with a dot it is never sent to a URL.
DRIVER = ".driver.json"
#: Between two processes of one number lies more.
SAME_S = 0.1


class NotOurs(RuntimeError):
    """The driver cannot be asked from here; the message says where it is."""


@dataclass(frozen=True, kw_only=True)
class Driver:
    """A process that runs an experiment."""

    pid: int
    host: str
    created_s: float
    """When the process began; see `created_after_boot_s`."""
    started_at: str
    """When the run began, UTC."""

    def ask_to_end(self) -> None:
        """Have it end in good order, as Ctrl-C does; `--resume` goes on from there.

        Raises:
            NotOurs: it runs on another machine, or has just ended.
        """
        if self.host != socket.gethostname():
            raise NotOurs(f"its driver runs on {self.host}, as process {self.pid}: stop it there")
        try:
            process = psutil.Process(self.pid)
            if abs(created_after_boot_s(process) - self.created_s) > SAME_S:
                raise psutil.NoSuchProcess(self.pid)
            process.terminate()
        except psutil.NoSuchProcess:
            raise NotOurs("its driver has just ended") from None
        except psutil.AccessDenied:
            raise NotOurs(f"its driver, process {self.pid}, is another user's") from None


def created_after_boot_s(process: psutil.Process) -> float:
    """When a process began, in seconds after its machine did: the same however its clock is set meanwhile."""
    return process.create_time() - psutil.boot_time()


def lock_of(folder: Path) -> filelock.BaseFileLock:
    """The lock that whoever runs the experiment in `folder` holds."""
    return filelock.FileLock(folder / ".lock")


def is_running(folder: Path) -> bool:
    """Whether somebody holds the lock; False, too, where that cannot be known."""
    if not (folder / ".lock").exists():
        return False
    try:
        with lock_of(folder).acquire(timeout=0):
            return False
    except filelock.Timeout:
        return True
    except OSError:  # somebody else's folder
        return False


@contextlib.contextmanager
def announced(folder: Path) -> Iterator[None]:
    """Name this process as the driver of `folder` while the block runs; the lock is held."""
    me = Driver(
        pid=os.getpid(),
        host=socket.gethostname(),
        created_s=created_after_boot_s(psutil.Process()),
        started_at=f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}",
    )
    path = folder / DRIVER
    with contextlib.suppress(OSError):  # a full disk is for others to tell
        path.write_text(json.dumps(asdict(me), indent=2))
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def find_driver(folder: Path) -> Driver | None:
    """Who runs the experiment in `folder` now; None: nobody does, or nobody has said so yet."""
    if not is_running(folder):
        return None
    try:
        return Driver(**json.loads((folder / DRIVER).read_text()))
    except (OSError, ValueError, TypeError):
        return None
