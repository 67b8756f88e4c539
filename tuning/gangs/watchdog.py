"""Whether the workers of a gang still get on: a decision over signs of life, pure, with the clock passed in.

Ray Train notices workers that die. One that is alive and stuck, in a collective, in a loader, in the
trial's own code, would hold its gang for ever. The first worker speaks to the gang's owner whenever it has
done an epoch, and every few seconds while it waits for work; all ranks must have come along for it to do so.
Silence for longer than an epoch can take is therefore taken for a hang, whichever rank hangs.
"""

from __future__ import annotations

import time
from collections.abc import Callable

#: `auto`: an epoch at a rung, with captions generated and a busy machine, takes some times as long as others.
EPOCHS = 10
#: No epoch is taken for hung before: epochs of seconds vary by far more than that factor.
FLOOR_S = 300.0
#: Of a trial without an epoch nothing is known but that its model may be a hundred times another trial's. One
#: that is killed in error fails for good, so this is only there to end a wait that nobody looks after.
FIRST_EPOCH_S = 6 * 3600.0


class Watchdog:
    """Watches one gang.

    Args:
        timeout_s: the longest silence allowed, seconds; None: as the trial's epochs so far suggest.
        clock: seconds that only grow.
    """

    def __init__(self, timeout_s: float | None = None, *, clock: Callable[[], float] = time.monotonic):
        self._timeout_s, self._clock = timeout_s, clock
        self._heard_at: float | None = None  # None: nobody is expected to speak
        self._slowest_epoch_s = 0.0

    def watch(self, slowest_epoch_s: float) -> None:
        """Another trial begins; its slowest epoch so far took `slowest_epoch_s`, 0.0 before the first."""
        self._slowest_epoch_s = slowest_epoch_s

    def heard(self, epoch_s: float = 0.0) -> None:
        """The workers gave a sign of life, perhaps after an epoch that took `epoch_s`."""
        self._heard_at = self._clock()
        self._slowest_epoch_s = max(self._slowest_epoch_s, epoch_s)

    def rest(self) -> None:
        """There are no workers; the next sign of life will be that of new ones."""
        self._heard_at = None

    @property
    def patience_s(self) -> float:
        """The longest silence allowed now, seconds."""
        if self._timeout_s is not None:
            return self._timeout_s
        return max(FLOOR_S, EPOCHS * self._slowest_epoch_s) if self._slowest_epoch_s else FIRST_EPOCH_S

    def hang(self) -> str:
        """Why the workers are taken for hung, in a line; empty where they are not."""
        silence_s = 0.0 if self._heard_at is None else self._clock() - self._heard_at
        if silence_s <= self.patience_s:
            return ""
        allowed = f"training.hang_timeout allows {self.patience_s:.0f} s"
        return f"hung: no sign of life for {silence_s:.0f} s, {allowed}"
