"""Which of several results is better: feasible before infeasible, then by Pareto rank, then by hypervolume.

Pure numbers: knows neither trials nor rungs nor who asks. With one objective it is an ordinary sort.

Ranks are by non-dominated sorting, ties within a front by the hypervolume that would be lost without the
point (Emmerich et al. 2005, SMS-EMOA); constraints by feasibility first (Deb et al. 2002, NSGA-II). Of more
than `EXACT` objectives, crowding (NSGA-II's, too) takes the place of that hypervolume.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray

#: Most objectives of which hypervolume decides: with each more it takes some ten times as long.
EXACT = 4


@dataclass(frozen=True, slots=True)
class Standing:
    """How a trial stands after an epoch."""

    losses: tuple[float, ...]
    """One per objective; smaller is better whatever the objective's mode."""
    violation: float = 0.0
    """Sum of the relative excesses over the constraints; 0 where all are kept."""

    finite: bool = field(init=False, compare=False, repr=False)
    """Whether it can be compared at all."""

    def __post_init__(self) -> None:
        finite = all(map(math.isfinite, self.losses)) and not math.isnan(self.violation)
        object.__setattr__(self, "finite", finite)  # asked for thousands of trials, at every proposal

    @property
    def key(self) -> tuple[float, float]:
        """Sorts by feasibility, then by the first objective; the smaller the better."""
        return self.violation, self.losses[0]


def best_first(standings: Sequence[Standing]) -> list[int]:
    """Indices of `standings`, the best first, the earlier of equals first; what is not finite comes last."""
    finite = [index for index, standing in enumerate(standings) if standing.finite]
    order = sorted(finite, key=lambda index: standings[index].key)
    if order and len(standings[order[0]].losses) > 1:
        feasible = [index for index in finite if standings[index].violation == 0]
        places = pareto_order(np.array([standings[index].losses for index in feasible]))
        order = [feasible[place] for place in places] + [i for i in order if standings[i].violation > 0]
    return order + [index for index, standing in enumerate(standings) if not standing.finite]


def dominated(standing: Standing, others: Iterable[Standing]) -> bool:
    """Whether one of `others` is at least as good in every objective, or less of a violation."""
    return any(
        other.violation < standing.violation
        or (
            other.violation == standing.violation
            and all(o <= s for o, s in zip(other.losses, standing.losses, strict=True))
        )
        for other in others
    )


def pareto_order(losses: NDArray[np.float64]) -> list[int]:
    """Rows of `losses` (float64 [points, objectives]) by front, within it by `contributions`."""
    if len(losses) < 2:
        return list(range(len(losses)))
    scaled, ranks = ranked(losses)
    contribution = np.zeros(len(losses))
    for rank in np.unique(ranks):
        contribution[ranks == rank] = contributions(scaled[ranks == rank])
    return [int(index) for index in np.lexsort((np.arange(len(losses)), -contribution, ranks))]


def ranked(losses: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Rows of `losses` [points, objectives], scaled to 0 to 1 in each objective so that no unit decides; and
    the front of each, 0 for what no other dominates."""
    low, span = losses.min(axis=0), np.ptp(losses, axis=0)
    scaled = (losses - low) / np.where(span > 0, span, 1.0)
    return scaled, moocore.pareto_rank(scaled)


def contributions(scaled: NDArray[np.float64]) -> NDArray[np.float64]:
    """Hypervolume that a front of `ranked` losses would lose without each, from a tenth beyond the worst; of
    more than `EXACT` objectives how far each is from its neighbours."""
    if scaled.shape[1] > EXACT:
        return _crowding(scaled)
    return moocore.hv_contributions(scaled, ref=np.full(scaled.shape[1], 1.1))


def _crowding(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance between the neighbours of each, summed over the objectives. At the ends the paper has it
    infinite; here the best in one is a whole range from the next, and the worst, which is no merit, at it."""
    distances = np.zeros(len(points))
    for column in points.T:
        values, places = np.unique(column, return_inverse=True)
        padded = np.concatenate([values[:1] - 1, values, values[-1:]])
        distances += (padded[2:] - padded[:-2])[places]
    return distances


def hypervolume(losses: ArrayLike, reference: Sequence[float] | NDArray[np.float64]) -> float:
    """Volume that the rows of `losses` ([points, objectives]) dominate, up to `reference`; 0 for no rows."""
    points = np.asarray(losses, dtype=float).reshape(-1, len(reference))
    return float(moocore.hypervolume(points, ref=np.asarray(reference, dtype=float))) if len(points) else 0.0


def front(losses: ArrayLike) -> NDArray[np.bool_]:
    """Which rows of `losses` ([points, objectives]) no other row dominates; of equals, the first."""
    points = np.asarray(losses, dtype=float)
    return moocore.is_nondominated(points) if len(points) else np.zeros(0, dtype=bool)
