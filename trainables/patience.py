"""What to do about storage that fails: wait where it may come back, tell apart where it is full."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: A network file system that is not there for a moment says one of these.
AWAY = frozenset(
    {
        *(errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENODEV, errno.ENXIO, errno.EAGAIN, errno.ETIMEDOUT),
        *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ESHUTDOWN),
        *(errno.ECONNRESET, errno.ECONNABORTED, errno.ECONNREFUSED),
    }
)
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
#: How full disks are told of by libraries that raise errors of their own (safetensors, torch).
FULL_WORDS = ("no space left on device", "disk quota exceeded")
PATIENCE_S = 120.0
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 10.0


class StorageFailed(RuntimeError):
    """Storage was full, or away for too long, or has not what it had. `full` tells the first from the others.

    No fault of any trial's: the run ends, and goes on when that is mended.
    """

    def __init__(self, reason: str, full: bool):
        super().__init__(reason, full)  # both in args: survives pickling between processes
        self.reason, self.full = reason, full

    def __str__(self) -> str:
        return self.reason


def is_full(error: BaseException) -> bool:
    """Whether `error` says that there is no room on the storage."""
    text = str(error).lower()
    return getattr(error, "errno", None) in FULL or any(words in text for words in FULL_WORDS)


def is_away(error: BaseException) -> bool:
    """Whether `error` says that the storage cannot be reached, which may pass."""
    return isinstance(error, OSError) and error.errno in AWAY


def patiently(
    action: Callable[[], T],
    *,
    patience_s: float = PATIENCE_S,
    away: Callable[[BaseException], bool] = is_away,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Do `action`, which can be repeated, again and again while the storage is away, less and less often.

    Args:
        away: whether an error says that the storage is away.

    Raises:
        StorageFailed: it is full, or still away after `patience_s`.
    """
    begun, wait_s = clock(), FIRST_WAIT_S
    while True:
        try:
            return action()
        except Exception as error:
            if is_full(error):
                raise StorageFailed(f"storage is full: {error}", full=True) from error
            if not away(error):
                raise
            if clock() + wait_s > begun + patience_s:
                reason = f"storage was away for {clock() - begun:.0f} s: {error}"
                raise StorageFailed(reason, full=False) from error
        sleep(wait_s)
        wait_s = min(2 * wait_s, LONGEST_WAIT_S)
