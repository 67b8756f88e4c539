"""Ways to choose the next configuration, each a function of what has been observed and nothing else.

The same number and the same observations give the same configuration, in a process that was restarted, too:
what a proposer keeps only spares it work. This file knows the search space; it knows neither files nor Ray
nor when a trial starts or ends. Optuna's models are in `optuna_proposers.py`, what breeds generations in
`population_proposers.py`; our own method, `auto`, is `tuning/search/auto.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from scipy.stats import qmc

from search_spaces import Space
from tuning.search.ranking import Standing


@dataclass
class Observed:
    """A trial as searchers see it."""

    config: Mapping[str, Any]
    results: dict[int, Standing] = field(default_factory=dict)
    """How it stood after an epoch, where it was evaluated in full."""
    over: bool = False
    """It never runs again."""
    failed: bool = False
    """It diverged, failed or ran out of memory."""
    generation: int = 0
    """Of a population method."""
    parent: str | None = None
    """trial_id of the trial from whose checkpoint it started; None: from nothing."""
    parent_epoch: int = 0
    """Epochs of that checkpoint; its own are numbered on from there."""
    why: str = ""
    """One line for a person: why its configuration was proposed."""

    def comparable_at(self, epoch: int) -> bool:
        """Whether it has a finite result after this epoch."""
        standing = self.results.get(epoch)
        return standing is not None and standing.finite


@dataclass(frozen=True)
class Proposal:
    """A configuration, and what its proposer wants to be remembered with it."""

    config: dict[str, Any]
    generation: int = 0
    parent: str | None = None
    """trial_id of a trial from whose checkpoint after `parent_epoch` epochs it is to start."""
    parent_epoch: int = 0
    why: str = ""
    """One line for a person."""


class Proposer(Protocol):
    """Chooses configurations."""

    def propose(self, number: int, observed: Sequence[Observed]) -> Proposal | None:
        """The configuration of trial `number`; None: there is none left.

        Args:
            number: how many trials there were before.
            observed: these trials, in the order in which they were proposed.
        """


class Random:
    """Independent draws (Bergstra & Bengio 2012)."""

    def __init__(self, space: Space, seed: int):
        self._space, self._seed = space, seed

    def propose(self, number: int, observed: Sequence[Observed]) -> Proposal:
        """A draw that depends on the seed and the number alone."""
        units = np.random.default_rng([self._seed, number]).random(len(self._space)).tolist()
        return Proposal(
            self._space.at(dict(zip(sorted(self._space), units, strict=True))), why="drawn at random"
        )


class Sobol:
    """A scrambled Sobol sequence (Owen 1998): covers the space more evenly than independent draws."""

    def __init__(self, space: Space, seed: int):
        self._space, self._seed = space, seed

    @cached_property
    def _points(self) -> qmc.Sobol:
        return qmc.Sobol(len(self._space), scramble=True, rng=np.random.default_rng(self._seed))

    def propose(self, number: int, observed: Sequence[Observed]) -> Proposal:
        """The point of this number."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that only powers of 2 are balanced
            self._points.reset()
            if number:  # the library refuses to skip none
                self._points.fast_forward(number)
            units = self._points.random(1)[0]
        config = self._space.at(dict(zip(sorted(self._space), map(float, units), strict=True)))
        return Proposal(config, why=f"point {number} of the Sobol sequence")


class Grid:
    """Every combination once, in an order drawn by the seed so that a part of it is spread out."""

    def __init__(self, space: Space, seed: int):
        self._configs = list(space.grid())
        np.random.default_rng(seed).shuffle(self._configs)

    def propose(self, number: int, observed: Sequence[Observed]) -> Proposal | None:
        """The first combination that was not tried, or None after the last."""
        tried = {frozenset(trial.config.items()) for trial in observed}
        left = (config for config in self._configs if frozenset(config.items()) not in tried)
        config = next(left, None)
        return None if config is None else Proposal(config, why=f"one of {len(self._configs)} of the grid")


class Replayed:
    """Proposes given configurations, one by one."""

    def __init__(self, configs: Sequence[Mapping[str, Any]]):
        self._configs = configs

    def propose(self, number: int, observed: Sequence[Observed]) -> Proposal | None:
        """The configuration of this number; None after the last."""
        return Proposal(dict(self._configs[number])) if number < len(self._configs) else None


def seed_of(seed: int, number: int) -> int:
    """The seed of one trial's draws."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
