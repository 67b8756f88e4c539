"""Problems that look like training a network: learning curves in closed form that cross and diverge.

A power law as fitted to real learning curves (Domhan et al. 2015), plus a late rise where a network
overfits. What the terms are, for a configuration, is for `tuning_set.py` and `reported_set.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.simulated.problem import Array, Config, Problem
from search_spaces import Space


@dataclass(frozen=True, slots=True)
class Terms:
    """A learning curve: `asymptote + gap * (1 + speed * e) ** -power + drift * (e / max_epochs) ** 2`."""

    asymptote: float
    gap: float
    speed: float
    power: float
    drift: float = 0.0
    spread: float = 0.01
    """Standard deviation between seeds, the same in all epochs of a training."""
    jitter: float = 0.01
    """Standard deviation between epochs."""
    excess: float = 0.0
    """By how many orders of magnitude the learning rate is beyond stability; the more, the sooner NaN."""
    size: float | None = None
    """The second objective, the same at all epochs."""

    def diverges_at(self) -> float:
        """The first epoch without a loss; infinite for a stable training."""
        return 2 + int(2 / self.excess) if self.excess > 0 else math.inf


def network(
    name: str, space: Space, max_epochs: int, terms: Callable[[Config], Terms], **rest: Any
) -> Problem:
    """The problem whose learning curves have these terms; `rest` as in `Problem`."""
    epochs = np.arange(1, max_epochs + 1)
    late = (epochs / max_epochs) ** 2

    def curve(config: Config, seed: int) -> Array:
        t = terms(config)
        errors = np.random.default_rng(seed).standard_normal(max_epochs + 1)
        losses = t.asymptote + t.gap * (1 + t.speed * epochs) ** -t.power + t.drift * late
        losses += t.spread * errors[0] + t.jitter * errors[1:]
        columns = [losses] if t.size is None else [losses, np.full(max_epochs, t.size)]
        table = np.stack(columns, axis=1)
        if (diverges_at := t.diverges_at()) <= max_epochs:
            table[int(diverges_at) - 1 :] = math.nan
        return table

    def truth(config: Config) -> Array:
        t = terms(config)
        loss = t.asymptote + t.gap * (1 + t.speed * max_epochs) ** -t.power + t.drift
        losses = np.array([loss] if t.size is None else [loss, t.size])
        return losses if t.diverges_at() > max_epochs else np.full_like(losses, math.inf)

    return Problem(name=name, space=space, max_epochs=max_epochs, curve=curve, truth=truth, **rest)


def bowl(value: float, centre: float, width: float) -> float:
    """0 at the centre, 0.7 a width away, then ever flatter: far off is bad, however far."""
    return math.log1p(((value - centre) / width) ** 2)
