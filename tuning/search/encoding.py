"""Configurations as points that a model of distances can work with.

Numbers are scaled to 0 to 1 on their domain's own scale; a choice has a coordinate per value, so that all of
its values are equally far apart; a number that is not active lies in the middle, a choice at none. Knows
the search space only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search_spaces import Space
from search_spaces.domains import Choice

Array = NDArray[np.float64]

#: Coordinate of the value that was chosen: two values then are 1 apart, as the ends of a range are.
CHOSEN = 2**-0.5


class Encoding:
    """Points for the configurations of a space, and configurations near others."""

    def __init__(self, space: Space):
        self._space = space
        self._names = sorted(space)
        self._columns: dict[str, int] = {}
        self.dimensions = 0
        """Coordinates of a point."""
        for name in self._names:
            domain = space[name]
            self._columns[name] = self.dimensions
            self.dimensions += len(domain.values) if isinstance(domain, Choice) else 1

    def points(self, configs: Sequence[Mapping[str, Any]]) -> Array:
        """float64 [configs, dimensions]."""
        points = np.zeros((len(configs), self.dimensions))
        for point, config in zip(points, configs, strict=True):
            for name in self._names:
                domain, column = self._space[name], self._columns[name]
                if isinstance(domain, Choice):
                    if name in config:
                        point[column + domain.values.index(config[name])] = CHOSEN
                else:
                    point[column] = domain.unit(config[name]) if name in config else 0.5
        return points

    def draw(self, rng: np.random.Generator, count: int) -> list[dict[str, Any]]:
        """Independent configurations."""
        units = rng.random((count, len(self._names)))
        return [self._space.at(dict(zip(self._names, row, strict=True))) for row in units.tolist()]

    def near(self, config: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """A configuration that differs from `config` in some hyperparameters, in numbers by a little.

        How many and by how much is drawn as well, so that many of these search all scales.
        """
        width = 10 ** rng.uniform(-2, -0.5)
        moved = rng.random(len(self._names)) < max(0.3, 1.5 / len(self._names))
        units = rng.random(len(self._names))
        for index, name in enumerate(self._names):
            domain = self._space[name]
            if name not in config:
                continue  # where it becomes active, it is drawn
            if isinstance(domain, Choice):
                if not moved[index]:
                    units[index] = (domain.values.index(config[name]) + 0.5) / len(domain.values)
            else:
                step = width * rng.standard_normal() if moved[index] else 0.0
                units[index] = min(max(domain.unit(config[name]) + step, 0.0), 1.0)
        return self._space.complete(
            {
                name: config[name]
                for name, m in zip(self._names, moved, strict=True)
                if name in config and not m
            },
            self._space.at(dict(zip(self._names, units.tolist(), strict=True))),
        )
