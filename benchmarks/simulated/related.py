"""Problems like others: what is learnt on one is worth something on the other, the more the nearer they are.

As with other data: the best configuration lies elsewhere, and losses are on another scale.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.simulated.problem import Config, Problem
from search_spaces import Choice

#: Losses there are so many times as large, and that much more.
TIMES, MORE = 3.0, 1.0


def related(problem: Problem, distance: float, seed: int) -> Problem:
    """`problem`, moved by `distance` along every hyperparameter, as a share of its range, in a direction that
    is drawn; beyond an end it turns back. With a chance of as much the values of a choice change places."""
    number = int(hashlib.sha256(problem.name.encode()).hexdigest()[:8], 16)
    rng = np.random.default_rng([seed, number])
    step = {name: distance * rng.choice([-1, 1]) for name in problem.space}
    turned = {name: rng.random() < distance for name in problem.space}
    parents = {parent for domain in problem.space.values() for parent in domain.when or ()}

    def moved(config: Config) -> Mapping[str, Any]:
        there: dict[str, Any] = {}
        for name, value in config.items():
            domain = problem.space[name]
            if not isinstance(domain, Choice):
                unit = abs(domain.unit(value) + step[name])
                there[name] = domain.at(min(unit, 2 - unit))
            elif turned[name] and name not in parents:  # what a parent activates stays
                there[name] = domain.values[domain.values.index(value) - 1]
            else:
                there[name] = value
        return there

    return replace(
        problem,
        curve=lambda config, training: MORE + TIMES * problem.curve(moved(config), training),
        truth=lambda config: MORE + TIMES * problem.truth(moved(config)),
    )
