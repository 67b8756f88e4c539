"""What it is worth to begin a training that may be given up at each of its rungs, or to go on with one.

Numbers only. A configuration's loss after its last epoch is normally distributed, and each rung on the way
tells something of it. Who trains may stop there: so what is uncertain, and soon less so, is worth more than
its expected improvement over the price of a whole training says. The measure is the *highest price* of an
epoch at which it still pays to begin, with the right to stop (the fair price of Gittins 1979, for boxes that
are opened in steps, as Weitzman 1979's are in one; Bayesian optimization by it: Xie et al. 2024). For a
training of one step it is the expected improvement over its epochs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from tuning.search.ranking import EXACT, front, hypervolume

Array = NDArray[np.float64]
#: float64 [..., objectives] means and standard deviations -> float64 [...] expected improvements
Gain = Callable[[Array, Array], Array]

#: Points of each objective at which what a rung may tell is looked at, by how many objectives there are.
NODES = {1: 6, 2: 3}
#: Draws behind the expected gain of hypervolume.
SAMPLES = 64
#: Points at which the hypervolume is counted that is added to more objectives than it can be worked out for,
#: and how far beyond the best in each of them it counts.
COUNTED, BEYOND = 8192, 0.5
#: Halvings of the interval in which the logarithm of a price is looked for, and its width.
HALVINGS, WIDTH = 24, 30.0


def highest_prices(mean: Array, steps: Array, epochs: Sequence[float], gain: Gain) -> Array:
    """float64 [M]: logarithm of the highest price of an epoch at which it pays to begin each of M trainings.

    With three objectives and more, where each gain takes long, it is that of a training without rungs.

    Args:
        mean: float64 [M, objectives], what is expected after the last epoch.
        steps: float64 [M, stages, objectives], standard deviations: how far that expectation moves at each
            rung on the way, and last how uncertain the end is then still.
        epochs: of each stage.
        gain: the expected improvement, of ends where nothing more will be learnt.
    """
    if mean.shape[1] not in NODES:
        steps, epochs = np.sqrt(np.square(steps).sum(axis=1, keepdims=True)), [sum(epochs)]
    nodes, weights = _nodes(mean.shape[1])
    points = mean[:, None, :]  # [M, paths, objectives]
    for step in range(steps.shape[1] - 1):
        moved = points[:, :, None, :] + steps[:, None, None, step, :] * nodes
        points = moved.reshape(len(mean), -1, mean.shape[1])
    ends = gain(points, np.broadcast_to(steps[:, None, -1, :], points.shape))  # [M, paths]
    high = np.log(np.maximum(ends.max(axis=1), 1e-300) / epochs[0])
    low = high - WIDTH
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        pays = _value(ends, np.exp(middle), epochs, weights) > 0
        low, high = np.where(pays, middle, low), np.where(pays, high, middle)
    return low


def _nodes(objectives: int) -> tuple[Array, Array]:
    """Standard normal points [Q, objectives] and their weights [Q]: a grid of Gauss and Hermite's."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES.get(objectives, 1))
    grid = np.stack(np.meshgrid(*[nodes] * objectives), -1).reshape(-1, objectives)
    shares = np.stack(np.meshgrid(*[weights / weights.sum()] * objectives), -1).reshape(-1, objectives)
    return grid, shares.prod(axis=1)


def _value(ends: Array, price: Array, epochs: Sequence[float], weights: Array) -> Array:
    """float64 [M]: what beginning is worth at a price [M], where whoever loses by going on stops."""
    value = ends - price[:, None] * epochs[-1]
    for count in reversed(epochs[:-1]):
        kept = np.maximum(value, 0).reshape(len(ends), -1, len(weights))
        value = kept @ weights - price[:, None] * count
    return value[:, 0]


def expected_gain(known: Array, rng: np.random.Generator) -> Gain:
    """By how much normal variables improve on `known` [n, objectives] on average; where worse, by nothing.

    Of one objective the improvement on the least (Jones et al. 1998), of several the hypervolume that is
    added (Emmerich et al. 2006), from a reference beyond all that is known, by SAMPLES draws (of more than
    two objectives a quarter of them) that are the same at every call.
    """
    objectives = known.shape[1]
    if objectives == 1:
        return lambda mean, spread: _improvement(known.min(), mean[..., 0], spread[..., 0])
    reference, best = known.max(axis=0) + 0.1, known[front(known)]
    draws = rng.standard_normal((SAMPLES, objectives))
    exact = objectives <= EXACT
    added = _worked_out(best, reference) if exact else _counted(best, reference, rng)

    def volume(mean: Array, spread: Array) -> Array:
        sampled = mean[..., None, :] + spread[..., None, :] * draws
        if objectives == 2:  # one after the other: together a long front would take a gigabyte
            return np.array([_added_area(best, each, reference).mean(axis=-1) for each in sampled])
        flat = sampled[..., : SAMPLES // 4, :].reshape(-1, objectives)
        return np.array([added(point) for point in flat]).reshape(*mean.shape[:-1], -1).mean(axis=-1)

    return volume


def chance_to_improve(known: Array, mean: Array, spread: Array) -> float:
    """Probability that a normal variable, `mean` and `spread` [objectives], is beaten by none of `known`
    [n, objectives]; of several objectives by draws, the same at every call."""
    if len(mean) == 1:
        return float(norm.cdf((known.min() - mean[0]) / spread[0]))
    draws = mean + spread * np.random.default_rng(0).standard_normal((10 * SAMPLES, len(mean)))
    beaten = (known[front(known)][:, None] <= draws).all(-1).any(0)
    return float(1 - beaten.mean())


def _improvement(best: float, mean: Array, spread: Array) -> Array:
    z = (best - mean) / spread
    return spread * (z * norm.cdf(z) + norm.pdf(z))


def _worked_out(best: Array, reference: Array) -> Callable[[Array], float]:
    """Hypervolume that a point adds to that of the front `best` [n, objectives]."""
    before = hypervolume(best, reference)
    return lambda point: hypervolume(np.vstack([best, point]), reference) - before


def _counted(best: Array, reference: Array, rng: np.random.Generator) -> Callable[[Array], float]:
    """The same by how many draws it beats that the front does not: cheap however many there are."""
    low = best.min(axis=0) - BEYOND
    drawn = rng.uniform(low, reference, (COUNTED, len(reference)))
    left = drawn[~(best[:, None] <= drawn).all(-1).any(0)].T.copy()  # [objectives, draws]
    volume = float(np.prod(reference - low)) / COUNTED
    return lambda point: volume * np.count_nonzero((point[:, None] <= left).all(0))


def _added_area(best: Array, points: Array, reference: Array) -> Array:
    """float64 [...]: area that each of `points` [..., 2] alone adds to that of the front `best` [n, 2]."""
    stairs = best[best[:, 0].argsort()]
    left = np.concatenate([[-np.inf], stairs[:, 0]])
    right = np.concatenate([stairs[:, 0], [reference[0]]])
    top = np.concatenate([[reference[1]], stairs[:, 1]])
    width = np.clip(right - np.maximum(left, points[..., :1]), 0, None)
    return (width * np.clip(top - points[..., 1:], 0, None)).sum(-1)
