"""The search methods of others that Captune is compared with, by name and with their settings.

Of the libraries, their own classes run, called as their own loops call them (`optuna_rivals.py`,
`ray_rivals.py`, `syne_tune_rivals.py`). Reduction factor and grace period are the same for all: 3, and a
ninth of a training or one epoch. A training that diverges is one whose script raises: Optuna hears FAIL, Ray
an error, Syne Tune an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from optuna.pruners import HyperbandPruner, SuccessiveHalvingPruner
from optuna.samplers import NSGAIISampler, TPESampler

from benchmarks.simulated.driving import Method, RandomSearch
from benchmarks.simulated.optuna_rivals import OptunaStudy
from benchmarks.simulated.problem import Problem
from benchmarks.simulated.ray_rivals import RayAsha
from benchmarks.simulated.syne_tune_rivals import SyneTuneAsha

REDUCTION_FACTOR = 3


def tenth(problem: Problem) -> int:
    """The usual grace period, in epochs: about a tenth of a training, such that the rungs end at its end."""
    return max(1, problem.max_epochs // REDUCTION_FACTOR**2)


def _successive_halving(problem: Problem, seed: int, grace: int) -> Method:
    pruner = SuccessiveHalvingPruner(min_resource=grace, reduction_factor=REDUCTION_FACTOR)
    return OptunaStudy(problem, seed, TPESampler(seed=seed), pruner)


def _hyperband(problem: Problem, seed: int, grace: int) -> Method:
    pruner = HyperbandPruner(
        min_resource=grace, max_resource=problem.max_epochs, reduction_factor=REDUCTION_FACTOR
    )
    return OptunaStudy(problem, seed, TPESampler(seed=seed), pruner)


def _ray(searcher: Literal["optuna", "random"]) -> Callable[[Problem, int, int], Method]:
    return lambda problem, seed, grace: RayAsha(problem, seed, searcher, grace, REDUCTION_FACTOR)


def _syne_tune(problem: Problem, seed: int, grace: int) -> Method:
    return SyneTuneAsha(problem, seed, grace, REDUCTION_FACTOR)


Make = Callable[[Problem, int], Method]
"""(problem, seed) -> a fresh method; equal arguments give equal decisions."""


def _with_grace(name: str, make: Callable[[Problem, int, int], Method]) -> dict[str, Make]:
    return {
        name: lambda problem, seed: make(problem, seed, tenth(problem)),
        f"{name}, grace 1": lambda problem, seed: make(problem, seed, 1),
    }


RIVALS: dict[str, Make] = {
    "random": RandomSearch,
    "optuna tpe": lambda problem, seed: OptunaStudy(problem, seed, TPESampler(seed=seed)),
    **_with_grace("optuna tpe + successive halving", _successive_halving),
    **_with_grace("optuna tpe + hyperband", _hyperband),
    **_with_grace("ray asha + optuna", _ray("optuna")),
    **_with_grace("ray asha + random", _ray("random")),
    **_with_grace("syne tune asha", _syne_tune),
}
"""By name, for one objective. What has no `grace` in its name trains to the end or has the usual grace."""

MULTI_OBJECTIVE_RIVALS: dict[str, Make] = {
    "random": RandomSearch,
    "optuna tpe": RIVALS["optuna tpe"],
    "optuna nsga2": lambda problem, seed: OptunaStudy(problem, seed, NSGAIISampler(seed=seed)),
    **_with_grace("syne tune moasha", _syne_tune),
}
"""By name, for several objectives."""
