"""What a problem is whose truth is known: search space, learning curves, the price of an epoch, regret.

This file has no problem of its own (`tuning_set.py` and `reported_set.py` have them) and knows no search
method (`driving.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import moocore
import numpy as np
from numpy.typing import NDArray

from search_spaces import Choice, Int, Space

Config = Mapping[str, Any]
Array = NDArray[np.float64]

SAMPLES = 4000
"""Random configurations behind `median` and at the start of the search for `best`."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What a method searches, and the truth to measure it by. All objectives are minimised."""

    name: str
    space: Space
    max_epochs: int
    curve: Callable[[Config, int], Array]
    """(configuration, training seed) -> losses [max_epochs, objectives]; NaN from the epoch at which it
    diverges. The same arguments give the same losses; another seed is another training."""
    truth: Callable[[Config], Array]
    """Losses [objectives] after `max_epochs` without noise; infinite where the configuration diverges."""
    objectives: tuple[str, ...] = ("loss",)
    seconds_per_epoch: Callable[[Config], float] = lambda config: 1.0
    reference: tuple[float, ...] | None = None
    """Where hypervolume is measured from; with several objectives only."""
    candidates: Callable[[], Iterable[Config]] | None = None
    """Configurations that hold the Pareto front; with several objectives only."""

    @cached_property
    def best(self) -> float:
        """The least loss that any configuration has: random search, then a climb from each of the best."""
        rng = np.random.default_rng(0)
        losses, units = self._sample
        found = []
        for start in np.argsort(losses)[:24]:
            least, point = losses[start], units[start]
            for step in np.geomspace(0.5, 1e-5, 400):
                moved = rng.random(len(point)) < 0.4
                near = np.clip(point + step * rng.standard_normal(len(point)) * moved, 0, 1)
                loss = float(self.truth(configuration(self.space, near))[0])
                if loss < least:
                    least, point = loss, near
            found.append(least)
        return min(found)

    @cached_property
    def median(self) -> float:
        """The loss of the median random configuration, divergent ones among the worst."""
        return float(np.median(self._sample[0]))

    def regret(self, config: Config) -> float:
        """Of the configuration, trained to the end: 0 is the best there is, 1 the median random one,
        infinite one that diverges."""
        return (float(self.truth(config)[0]) - self.best) / (self.median - self.best)

    @cached_property
    def front(self) -> Array:
        """The Pareto front [points, objectives], on a fine grid."""
        assert self.candidates is not None, f"{self.name} has one objective"
        losses = np.array([self.truth(config) for config in self.candidates()])
        losses = losses[moocore.is_nondominated(losses, keep_weakly=False)]
        return losses[np.argsort(losses[:, 0])]

    def share(self, losses: Array) -> float:
        """Hypervolume of `losses` [points, objectives] as a share of the front's."""
        within = losses[np.isfinite(losses).all(axis=1)]
        if not len(within):
            return 0.0
        return float(moocore.hypervolume(within, ref=self.reference)) / self.front_hypervolume

    @cached_property
    def front_hypervolume(self) -> float:
        """What `front` dominates, up to `reference`."""
        return float(moocore.hypervolume(self.front, ref=self.reference))

    @cached_property
    def _sample(self) -> tuple[list[float], Array]:
        units = np.random.default_rng(1).random((SAMPLES, len(self.space)))
        return [float(self.truth(configuration(self.space, row))[0]) for row in units], units


def configuration(space: Space, units: Array) -> dict[str, Any]:
    """The configuration at a point [hyperparameters] of the unit cube, in the order of the space's names;
    coordinates of inactive hyperparameters go unused. Uniform points give uniform configurations."""
    config: dict[str, Any] = {}
    for name, index in _parents_first(space):
        domain = space[name]
        if domain.when and not all(config.get(p, _ABSENT) in values for p, values in domain.when.items()):
            continue
        unit = float(units[index])
        if isinstance(domain, Choice):
            config[name] = domain.values[min(int(unit * len(domain.values)), len(domain.values) - 1)]
        elif isinstance(domain, Int) and domain.log:
            value = math.exp(
                math.log(domain.low - 0.5) + unit * math.log((domain.high + 0.5) / (domain.low - 0.5))
            )
            config[name] = min(max(round(value), domain.low), domain.high)
        elif isinstance(domain, Int):
            steps = (domain.top - domain.low) // domain.step + 1
            config[name] = domain.low + domain.step * min(int(unit * steps), steps - 1)
        elif domain.log:
            value = math.exp(math.log(domain.low) + unit * math.log(domain.high / domain.low))
            config[name] = min(max(value, domain.low), domain.high)
        else:
            config[name] = domain.low + unit * (domain.high - domain.low)
    return config


_ABSENT = object()


@lru_cache(maxsize=64)
def _order(names: tuple[tuple[str, tuple[str, ...]], ...]) -> tuple[tuple[str, int], ...]:
    order: list[tuple[str, int]] = []
    while len(order) < len(names):
        done = {name for name, _ in order}
        order += [
            (name, index)
            for index, (name, parents) in enumerate(names)
            if name not in done and done.issuperset(parents)
        ]
    return tuple(order)


def _parents_first(space: Space) -> tuple[tuple[str, int], ...]:
    return _order(tuple((name, tuple(domain.when or ())) for name, domain in space.items()))
