"""The best trial so far, of several objectives by the first; and the front that they have reached."""

from __future__ import annotations

from itertools import chain

from tuning.search.ranking import Standing, dominated


class Incumbent:
    """Starts with nothing known."""

    def __init__(self) -> None:
        self.trial_id: str | None = None
        """The best of all trials that did not go wrong."""
        self._results: dict[str, list[Standing]] = {}  # by trial_id, the finite ones
        self._front: list[Standing] = []  # of several objectives
        self._gained = False

    def compare(self, trial_id: str, standing: Standing) -> None:
        """Take a result in; one that is not finite is nobody's best."""
        if not standing.finite:
            return
        if self.trial_id is None or standing.key < self._best_key(self.trial_id):
            self.trial_id = trial_id
            self._gained = True
        self._results.setdefault(trial_id, []).append(standing)
        if self._enter(standing):
            self._gained = True

    def forget(self, trial_id: str) -> None:
        """Recommend another one; what it alone had beaten is on the front again."""
        gone = self._results.pop(trial_id, [])
        if gone:
            self.trial_id = min(self._results, key=self._best_key, default=None)
        if any(standing in self._front for standing in gone):
            self._front = []
            for standing in chain.from_iterable(self._results.values()):
                self._enter(standing)

    def take_gain(self) -> bool:
        """Whether there was a better best, or a point on the front, since this was last asked."""
        gained, self._gained = self._gained, False
        return gained

    def _best_key(self, trial_id: str) -> tuple[float, float]:
        return min(standing.key for standing in self._results[trial_id])

    def _enter(self, standing: Standing) -> bool:
        if len(standing.losses) == 1 or dominated(standing, self._front):
            return False
        self._front = [each for each in self._front if not dominated(each, [standing])] + [standing]
        return True
