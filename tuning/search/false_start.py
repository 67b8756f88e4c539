"""Whether a run goes wrong from its very start: what all trials share is broken, not their configurations.

Pure: told what becomes of trials, asked whether more may start. Ending the run is for
`tuning/search/search.py`.
"""

from __future__ import annotations

from collections.abc import Iterable

#: Trials that must all go wrong before a run is given up. Where half of a space cannot be trained, one run in
#: a thousand begins like that; where four in five cannot, one in ten, and somebody should look at the space.
GIVEN_UP_AFTER = 10


class FalseStart:
    """Counts the trials that went wrong until the first that did not."""

    def __init__(self) -> None:
        self._wrong = 0  # all runs of the experiment together
        self._counts = 0  # of these, what speaks against going on in this run
        self._furthest = 0
        self._worked = False
        self._last = ""

    def went_wrong(self, trial_id: str, epochs: int, reason: str) -> None:
        """A trial diverged, failed or ran out of memory after so many whole epochs."""
        self._wrong += 1
        self._counts += 1
        self._furthest = max(self._furthest, epochs)
        self._last = f"the last, {trial_id}: {reason}"

    def worked(self) -> None:
        """A trial came to its end, or to a rung: whatever goes wrong from now on is its own fault."""
        self._worked = True

    def resumed(self) -> None:
        """All before this was in earlier runs: the cause may have been removed, so one more trial may try."""
        self._counts = min(self._counts, GIVEN_UP_AFTER - 1)

    def suspected(self, epochs: Iterable[int]) -> bool:
        """Whether no new trial should start.

        Args:
            epochs: of all trials that are not over. One that came further than any that went wrong is a sign
                of life; without one, what runs is waited for.
        """
        if self._worked or self._counts < GIVEN_UP_AFTER:
            return False
        return all(each <= self._furthest for each in epochs)

    def __str__(self) -> str:
        return f"all of the first {self._wrong} trials went wrong; {self._last}"
