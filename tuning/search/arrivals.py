"""The results at a rung, as they arrive: the order of `ranking.best_first`, worked out no further than asked.

A rung may have ten thousand members, and is asked about after each of them: sorting them all every time
would take longer than a short epoch. Pure numbers: knows neither trials nor rungs.
"""

from __future__ import annotations

import bisect
import heapq
from array import array

import numpy as np

from tuning.search.ranking import Standing, contributions, ranked


class Arrivals:
    """Finite results that are compared with each other. Each has an index, from 0, and is free at first."""

    def __init__(self) -> None:
        self._count = 0
        # Of one objective, and of what breaks constraints, the keys tell the order.
        self._keys: list[tuple[float, float]] = []  # ascending
        self._heap: list[tuple[float, float, int]] = []  # of those that may be free
        self._taken: set[int] = set()
        # Of several objectives, the order of what keeps the constraints changes with every arrival.
        self._losses = array("d")  # row after row
        self._free = bytearray()  # by row
        self._indices: list[int] = []  # by row
        self._last: tuple[float, float] | None = None  # key of the last to come, where it has one

    def __len__(self) -> int:
        return self._count

    def add(self, standing: Standing) -> int:
        """Another one; its index."""
        index, self._count = self._count, self._count + 1
        if len(standing.losses) > 1 and not standing.violation:
            self._losses.extend(standing.losses)
            self._free.append(True)
            self._indices.append(index)
            self._last = None
        else:
            bisect.insort(self._keys, standing.key)
            heapq.heappush(self._heap, (*standing.key, index))
            self._last = standing.key
        return index

    def take(self, index: int) -> None:
        """It is not free any more."""
        self._taken.add(index)
        row = bisect.bisect_left(self._indices, index)
        if row < len(self._indices) and self._indices[row] == index:
            self._free[row] = False

    def take_best(self) -> int | None:
        """The best that is free, and from now on is not; None: there is none."""
        if (row := self._best_row()) is not None:
            self.take(self._indices[row])
            return self._indices[row]
        while self._heap:
            *_, index = heapq.heappop(self._heap)
            if index not in self._taken:
                self._taken.add(index)
                return index
        return None

    def place_of_last(self) -> int:
        """How many come before the one that came last, which is behind its equals."""
        if self._last is not None:
            return len(self._indices) + bisect.bisect_right(self._keys, self._last) - 1
        scaled, ranks = self._ranked()
        front = contributions(scaled[ranks == ranks[-1]])
        return int((ranks < ranks[-1]).sum() + (front[:-1] >= front[-1]).sum())

    def _best_row(self) -> int | None:
        free = np.frombuffer(self._free, dtype=bool)
        if not free.any():
            return None
        scaled, ranks = self._ranked()
        front = np.flatnonzero(ranks == ranks[free].min())
        return int(front[np.where(free[front], contributions(scaled[front]), -1).argmax()])

    def _ranked(self) -> tuple[np.ndarray, np.ndarray]:
        return ranked(np.frombuffer(self._losses).reshape(len(self._indices), -1))
