"""The front of an experiment as it grows: its hypervolume after each result, from a reference that stays.

Pure numbers. Which epochs are results is for `tuning/tables/ledger.py`; ranks are
`tuning/search/ranking.py`'s business.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tuning.search.ranking import hypervolume

#: Results after which a reference that nobody gave is set to the worst of them.
REFERENCE_RESULTS = 10


class GrowingFront:
    """The results that no other dominates, taken in one at a time.

    A result costs one comparison with each point of the front, and where it enters the front a hypervolume.
    """

    def __init__(self, references: Sequence[float | None]):
        """Start without results.

        Args:
            references: for each objective the loss from which the hypervolume is measured; None: the
                largest among the first `REFERENCE_RESULTS` results.
        """
        self._given = tuple(references)
        self._first: list[Sequence[float]] = []
        self._reference: tuple[float, ...] | None = None
        self._points = np.empty((0, len(self._given)))
        self.hypervolume: float | None = None
        """Volume between front and reference; None until the reference is known."""
        if None not in self._given:
            self._fix_reference()

    def add(self, losses: Sequence[float], *, feasible: bool = True) -> None:
        """Take in a result: finite losses, one for each objective.

        One that misses the constraints (not `feasible`) helps to fix the reference and nothing else.
        """
        grown = feasible and self._enter(np.asarray(losses, dtype=float))
        if self._reference is None:
            self._first.append(losses)
            if len(self._first) == REFERENCE_RESULTS:
                self._fix_reference()
        elif grown:
            self.hypervolume = hypervolume(self._points, self._reference)

    def _enter(self, losses: np.ndarray) -> bool:
        """Put a point into the front unless it has one that is as good in everything."""
        if (self._points <= losses).all(axis=1).any():
            return False
        beaten = (losses <= self._points).all(axis=1)
        self._points = np.vstack([self._points[~beaten], losses])
        return True

    def _fix_reference(self) -> None:
        self._reference = tuple(
            max(losses[index] for losses in self._first) if given is None else given
            for index, given in enumerate(self._given)
        )
        self.hypervolume = hypervolume(self._points, self._reference)
