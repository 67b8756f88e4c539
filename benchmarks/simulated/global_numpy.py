"""Libraries that draw from numpy's global random numbers, each kept to a state of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np


class GlobalNumpy:
    """A state of numpy's global random numbers, from a seed on; it stands within `own` and nowhere else."""

    def __init__(self, seed: int):
        self._state = np.random.RandomState(seed).get_state()

    @contextlib.contextmanager
    def own(self) -> Iterator[None]:
        """Global draws within are this object's next ones; those of others go on after it as before."""
        others = np.random.get_state()
        np.random.set_state(self._state)
        try:
            yield
        finally:
            self._state = np.random.get_state()
            np.random.set_state(others)
