"""Ctrl-C, and the polite end of a service manager or a cluster, taken where nothing is half done.

Python raises KeyboardInterrupt wherever it happens to be: in the middle of a decision, a table, or the lock
of the study's journal, which then reports another error. While a search is carried out, an interruption
waits for the loop to come round, a tenth of a second; a second one does not wait, for whatever may hang.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Whether the run was asked to end. Use as a context manager, from the main thread to have any effect.

    SIGTERM is taken as Ctrl-C is (Ray's own handler just dies). What ignores one, such as a command that a
    shell started in the background, goes on to do so.
    """

    def __init__(self) -> None:
        self._held = self._asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for each in SIGNALS:
                if signal.getsignal(each) is not signal.SIG_IGN:
                    self._before[each] = signal.signal(each, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Inside, only `check` raises, and a second interruption; at the end, too, where one was missed."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        self.check()

    def check(self) -> None:
        """Nothing is half done here.

        Raises:
            KeyboardInterrupt: the run was asked to end.
        """
        if self._asked:
            raise KeyboardInterrupt

    def _take(self, signum: int, frame: Any) -> None:
        if self._held and not self._asked:
            self._asked = True
            return
        raise KeyboardInterrupt
