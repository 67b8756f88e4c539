"""Whether a gang that fails is to be given up: a decision over its failures in a row, pure.

Workers that die or hang do so because of their trial (too little memory, a crash in a library) or because of
their gang (a broken GPU, a full disk, a node that swaps), and nothing tells which. So a trial under which
they die again is tried on another gang, where it fails for good if it is to blame; and a gang under which one
trial after the other fails, without a single epoch in between, is closed.
"""

from __future__ import annotations

#: Deaths in a row under one trial after which another gang has it.
DEATHS = 2
#: Trials in a row that failed so: three bad ones in a row are rarer than a bad gang.
TRIALS = 3
#: Deaths in a row with no trial at all: nothing but the gang can be to blame.
STARTS = 3


class Quarantine:
    """Follows one gang."""

    def __init__(self) -> None:
        self._deaths: list[str] = []  # trials under which workers died since the last epoch, "" for none

    def worked(self) -> None:
        """An epoch was done: whatever was before, this gang works."""
        self._deaths.clear()

    def died(self, trial_id: str = "") -> None:
        """The workers died, or hung and were killed, under `trial_id`; empty: they had no trial."""
        self._deaths.append(trial_id)

    def moves(self, trial_id: str) -> bool:
        """Whether `trial_id` is to be tried elsewhere."""
        return self._deaths[-DEATHS:] == [trial_id] * DEATHS or bool(self.verdict())

    def verdict(self) -> str:
        """Why the gang is to be closed, in a line; empty where it is not."""
        trials = dict.fromkeys(filter(None, self._deaths))
        if len(trials) >= TRIALS:
            times = f"died {len(self._deaths)} times in a row, under trials {', '.join(trials)}"
        elif self._deaths.count("") >= STARTS:
            times = f"died {len(self._deaths)} times in a row, {STARTS} of them without a trial"
        else:
            return ""
        return f"its workers {times}"
