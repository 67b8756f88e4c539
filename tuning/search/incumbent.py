"""The best trial so far, of several objectives by the first; and the front that they have reached."""

from __future__ import annotations

from tuning.search.ranking import Standing, dominated


class Incumbent:
    """Starts with nothing known."""

    def __init__(self) -> None:
        self.trial_id: str | None = None
        """The best of all trials that did not go wrong."""
        self._bests: dict[str, Standing] = {}  # by trial_id
        self._front: list[Standing] = []
        self._gained = False

    def compare(self, trial_id: str, standing: Standing) -> None:
        """Take a result in; one that is not finite is nobody's best."""
        if not standing.finite:
            return
        before = self._bests.get(trial_id)
        leader = None if self.trial_id is None else self._bests[self.trial_id]
        if before is None or standing.key < before.key:
            self._bests[trial_id] = standing
        if leader is None or standing.key < leader.key:
            self.trial_id = trial_id
            self._gained = True
        if len(standing.losses) > 1 and not dominated(standing, self._front):
            self._front = [each for each in self._front if not dominated(each, [standing])] + [standing]
            self._gained = True

    def forget(self, trial_id: str) -> None:
        """Recommend another one."""
        if self._bests.pop(trial_id, None) is not None:
            self.trial_id = min(self._bests, key=lambda name: self._bests[name].key, default=None)

    def take_gain(self) -> bool:
        """Whether there was a better best, or a point on the front, since this was last asked."""
        gained, self._gained = self._gained, False
        return gained
