"""What the model of all results expects of new configurations and of paused trials, at one moment.

The best of either kind is an `Option`: it has a price, how much an epoch of it may cost and still pay
(`tuning/search/worth.py`), so that whoever decides takes the dearest, and can say why.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuning.search.encoding import Encoding
from tuning.search.evidence import MODELLED, Evidence
from tuning.search.gaussian_process import GaussianProcess
from tuning.search.ranking import Standing, best_first
from tuning.search.worth import chance_to_improve, expected_gain, highest_prices

Array = NDArray[np.float64]

#: Candidates: as many independent draws as neighbours of the best; of so many the epochs are priced.
CANDIDATES, LEADERS, PRICED = 150, 8, 24
#: Most that a reason says of how much more something is worth.
MOST_TIMES = 1000


@dataclass(frozen=True)
class Option:
    """A paused trial by its number, or a new configuration."""

    price: float
    """Logarithm of the highest price of an epoch at which it pays to go on, or to begin."""
    point: Array
    """float64 [dimensions]"""
    paused: int | None = None
    config: dict[str, Any] | None = None


class Outlook:
    """Of an experiment with this `evidence`.

    Args:
        running: numbers of the trials of which more is to be expected.
        waiting: number of each that is paused -> epoch of its rung.
        rng: for the draws.
    """

    def __init__(
        self,
        encoding: Encoding,
        evidence: Evidence,
        running: Sequence[int],
        waiting: Mapping[int, int],
        rng: np.random.Generator,
    ):
        self._encoding, self._evidence, self._waiting, self._rng = encoding, evidence, waiting, rng
        self._processes, modelled = evidence.model(running)
        best = sorted(waiting, key=lambda n: (evidence.standing(n, waiting[n]).key, n))[:MODELLED]
        self._seen = sorted({*modelled, *best})
        self._ends, _ = _predict(self._processes, np.array([evidence.point(n) for n in self._seen]))
        self._gain = expected_gain(self._ends, rng)
        self.order = [self._seen[i] for i in best_first([Standing(tuple(row)) for row in self._ends])]
        """Numbers of the trials that are looked at, by what is expected of their ends, the best first."""

    def new(self, stops: Sequence[int] | None) -> Option:
        """The best of many configurations that are not tried yet: drawn, and near those of the best trials.

        Args:
            stops: epochs at which it may be given up, ascending, and last that of its end; None: epochs are
                not ours to spare, what is expected of the end decides.
        """
        leaders = self.order[:LEADERS]
        drawn = self._encoding.draw(self._rng, CANDIDATES)
        near = []
        for _ in range(CANDIDATES):
            leader = self._evidence.trial(leaders[int(self._rng.integers(len(leaders)))])
            near.append(self._encoding.near(leader.config, self._rng))
        candidates = [config for config in drawn + near if not self._evidence.tried(config)] or drawn
        points = self._encoding.points(candidates)
        price, best = self._dearest(points, 0, stops)
        return Option(price, points[best], config=candidates[best])

    def paused(self, epoch: int, stops: Sequence[int]) -> Option | None:
        """The best of those that wait at this rung; None: none of them is looked at."""
        numbers = [number for number in self._seen if self._waiting.get(number) == epoch]
        if not numbers:
            return None
        points = np.array([self._evidence.point(number) for number in numbers])
        price, best = self._dearest(points, epoch, stops)
        return Option(price, points[best], paused=numbers[best])

    def why(self, best: Option, options: Sequence[Option]) -> str:
        """One line: how likely it is to end better than what is expected of all others, and how much more
        its epochs are worth than those of the best of the other kind."""
        mean, spread = _predict(self._processes, best.point[None])
        chance = chance_to_improve(self._ends, mean[0], spread[0])
        line = f"{chance:.0%} chance to end {'best' if self._ends.shape[1] == 1 else 'on the front'}"
        other = [each.price for each in options if (each.paused is None) != (best.paused is None)]
        if not other:
            return line
        times = math.exp(min(best.price - max(other), math.log(MOST_TIMES)))
        what = "the best paused trial" if best.paused is None else "a new trial"
        return f"{line}, an epoch worth {times:.1f} times that of {what}"

    def _dearest(self, points: Array, epoch: int, stops: Sequence[int] | None) -> tuple[float, int]:
        """Of trainings at `points` that have `epoch` epochs behind them, the one that may cost most, as a
        logarithm, and its index; without stops the largest gain."""
        mean, spread = _predict(self._processes, points)
        gains = self._gain(mean, spread)
        if stops is None:
            return float(gains.max()), int(gains.argmax())
        best = np.argsort(-gains, kind="stable")[:PRICED]
        times = [self._evidence.time(each) for each in stops]
        steps = np.stack([process.futures(points[best], times) for process in self._processes], -1)
        prices = highest_prices(mean[best], steps, np.diff([epoch, *stops]).tolist(), self._gain)
        return float(prices.max()), int(best[prices.argmax()])


def _predict(processes: Sequence[GaussianProcess], points: Array) -> tuple[Array, Array]:
    """Means and standard deviations at the last epoch: float64 [points, objectives] each."""
    predicted = [process.predict(points, np.ones(len(points))) for process in processes]
    return np.stack([mean for mean, _ in predicted], 1), np.stack([spread for _, spread in predicted], 1)
