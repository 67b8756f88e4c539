"""Problems whose truth is known in closed form, to measure search methods in virtual time.

A problem is a search space, a learning curve for every configuration and training seed, and what an epoch
costs. This file knows no search method; `rivals.py` drives them. Settings are chosen on `TUNING` and
reported on `REPORTED`; no problem of one set has the function of another set with the same constants.

Two kinds. *MFHartmann* (Kandasamy et al. 2017, with the bias and noise of mf-prior-bench, Mallik et al.
2023): early epochs are a flattened, noisy Hartmann function, the last epoch is the function itself; in
`TUNING` its axes are mirrored. *Networks*: `asymptote + gap * (1 + speed * epoch) ** -power`, a power law as
fitted to real learning curves (Domhan et al. 2015), plus a late rise where a network overfits; speed and
asymptote depend on hyperparameters in different ways, so curves cross. Names end in what epoch 1 says of
the end, as Spearman's rank correlation over random configurations that converge: `honest` (above 0.6),
`misleading` (0.15 to 0.6), `reversed` (below 0.1); Hartmann keeps the names of mf-prior-bench.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import moocore
import numpy as np
from numpy.typing import NDArray

from search_spaces import Choice, Float, Int, Space

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


# ---------------------------------------------------------------------------------------- MFHartmann

_ALPHA = np.array([1.0, 1.2, 3.0, 3.2])
_A = {
    3: np.array([[3.0, 10, 30], [0.1, 10, 35], [3.0, 10, 30], [0.1, 10, 35]]),
    6: np.array(
        [
            [10, 3, 17, 3.5, 1.7, 8],
            [0.05, 10, 17, 0.1, 8, 14],
            [3, 3.5, 1.7, 10, 17, 8],
            [17, 8, 0.05, 10, 0.1, 14],
        ]
    ),
}
_P = {
    3: np.array([[3689, 1170, 2673], [4699, 4387, 7470], [1091, 8732, 5547], [381, 5743, 8828]]) * 1e-4,
    6: np.array(
        [
            [1312, 1696, 5569, 124, 8283, 5886],
            [2329, 4135, 8307, 3736, 1004, 9991],
            [2348, 1451, 3522, 2883, 3047, 6650],
            [4047, 8828, 8732, 5743, 1091, 381],
        ]
    )
    * 1e-4,
}
#: Bias of the four heights and standard deviation of the noise, both in full at fidelity 1 and none at 100.
_QUALITY = {"good": (2.5, 2.0), "moderate": (3.0, 3.0), "bad": (3.5, 4.0), "terrible": (4.0, 5.0)}


def hartmann(dims: int, quality: str, max_epochs: int, mirrored: bool = False) -> Problem:
    """MFHartmann in `dims` (3 or 6) dimensions; the last epoch is the fidelity 100 of
    mf-prior-bench, the epochs before it the corresponding share of 100."""
    bias, noise = _QUALITY[quality]
    names = [f"x{index}" for index in range(dims)]
    missing = -np.log(np.arange(1, max_epochs + 1) / max_epochs) / math.log(100)
    heights = _ALPHA - bias * missing[:, None] ** 2  # [max_epochs, 4]
    steep, centres = _A[dims], _P[dims]

    def wells(config: Config) -> Array:
        x = np.array([config[name] for name in names])
        return np.exp(-(steep * ((1 - x if mirrored else x) - centres) ** 2).sum(axis=1))

    def curve(config: Config, seed: int) -> Array:
        errors = np.random.default_rng(seed).standard_normal(max_epochs) * noise * missing
        return (errors - heights @ wells(config))[:, None]

    return Problem(
        name=f"hartmann{dims}-{quality}",
        space=Space({name: Float(0.0, 1.0) for name in names}),
        max_epochs=max_epochs,
        curve=curve,
        truth=lambda config: np.array([-(_ALPHA @ wells(config))]),
    )


# ------------------------------------------------------------------------------------------ networks


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


def _bowl(value: float, centre: float, width: float) -> float:
    """0 at the centre, 0.7 a width away, then ever flatter: far off is bad, however far."""
    return math.log1p(((value - centre) / width) ** 2)


def _perceptron(c: Config) -> Terms:
    """Early epochs tell the truth: what learns well learns fast."""
    rate, batch, width = math.log10(c["learning_rate"]), math.log2(c["batch_size"]), math.log2(c["width"])
    ridge = _bowl(rate, -2.6 + 0.15 * (batch - 6), 0.4)
    shape = _bowl(width, 8.2, 1.2) + _bowl(math.log10(c["weight_decay"]), -3.5 + 0.2 * (width - 8), 0.7)
    shape += 0.5 * _bowl(batch, 5.0, 1.0)
    speed = 1.5 * 10 ** (-0.1 * ridge) * 2 ** (0.2 * (6 - batch))
    return Terms(0.20 + 0.15 * ridge + 0.13 * shape, 1.2, speed, 0.8, excess=rate + 0.6)


def _residual(c: Config) -> Terms:
    """High learning rates and no augmentation start fast and end high."""
    rate, batch = math.log10(c["learning_rate"] / (1 - c["momentum"])), math.log2(c["batch_size"])
    policy = {"none": 0.0, "flip": 0.35, "crop": 0.7, "mix": 1.0}[c["augmentation"]]
    decay = math.log10(c["weight_decay"])
    cosine = c["schedule"] == "cosine"
    ridge = _bowl(rate, (-1.3 if cosine else -1.7) + 0.12 * (batch - 7), 0.5)
    # Augmentation stands in for weight decay: the more of one, the less of the other.
    over = _bowl(policy, 0.75, 0.3) + _bowl(decay + 1.5 * policy, -2.6, 0.7)
    asymptote = 0.25 + 0.12 * ridge + 0.11 * over + 0.12 * _bowl(c["label_smoothing"], 0.08, 0.08)
    asymptote += 0.0 if cosine else 0.04
    speed = 0.4 * 10 ** (0.25 * (rate + 1.5) - 0.9 * policy) * (0.7 if cosine else 1.0)
    gap = 1.5 + 2 * c["label_smoothing"]
    return Terms(asymptote, gap, speed, 1.5, spread=0.012, jitter=0.02, excess=rate + 0.1 - 0.05 * batch)


def _recurrent(c: Config) -> Terms:
    """Conditional: each optimizer has its own learning rates; without clipping it diverges soon. Noisy."""
    rate, hidden = math.log10(c["learning_rate"]), math.log2(c["hidden"])
    if c["optimizer"] == "sgd":
        off, floor = rate - math.log10(1 - c["momentum"]) + 1.5, 0.05
    else:
        off, floor = rate + 3.2, 0.1 * _bowl(math.log10(1 - c["beta2"]), -2.3, 0.5)
    asymptote = 0.6 + floor + 0.2 * _bowl(off, -0.15 * (hidden - 7), 0.5) + 0.2 * _bowl(hidden, 8.5, 1.0)
    asymptote += 0.2 * _bowl(c["dropout"], 0.1 + 0.08 * max(hidden - 6, 0), 0.12)
    noise = 0.02 + 0.03 * max(0.0, 1 + off)
    speed = 1.5 * 10 ** (0.2 * off - 1.2 * c["dropout"]) * 2 ** (-0.35 * (hidden - 7))
    edge = 0.9 + 0.25 * (1 - math.log10(c["clip"]))
    gap = 2.2 + 0.3 * (hidden - 7) + c["dropout"]
    return Terms(asymptote, gap, speed, 1.8, spread=0.5 * noise, jitter=noise, excess=off - edge)


def _regularised(c: Config) -> Terms:
    """What regularises slows the start and matters only late: epoch 1 ranks the wrong way round."""
    rate, decay = math.log10(c["learning_rate"]), math.log10(c["weight_decay"])
    strength = 0.5 * c["dropout"] / 0.6 + 0.5 * (decay + 6) / 5  # 0..1
    overfit = 0.9 * max(0.0, 0.75 - strength + 0.04 * (c["depth"] - 4)) + 0.3 * max(0.0, strength - 0.85)
    asymptote = 0.3 + 0.06 * _bowl(rate, -2.9 - 0.6 * strength, 0.5) + 0.06 * _bowl(c["depth"], 5, 2.0)
    asymptote += 0.05 * _bowl(c["dropout"], 0.42, 0.1) + 0.02 * (c["norm"] == "batch")
    speed = 5.0 * 10 ** (0.2 * (rate + 3) - 1.2 * strength) / c["depth"] ** 0.3
    return Terms(asymptote, 1.0, speed, 1.1, drift=overfit, spread=0.01, jitter=0.015, excess=rate + 1.6)


def _encoder(c: Config) -> Terms:
    """Early epochs tell the truth; a narrow valley between learning rate, layers and their decay."""
    rate, layers = math.log10(c["learning_rate"]), c["layers"]
    valley = _bowl(rate + 0.1 * layers + 0.5 * (c["layer_decay"] - 0.8) / 0.2, -3.6, 0.35)
    pool = {"mean": 0.0, "first": 0.05, "attention": 0.02}[c["pooling"]]
    asymptote = 0.12 + 0.12 * valley + 0.10 * _bowl(layers, 8, 2.0) + pool
    asymptote += 0.08 * _bowl(math.log2(c["batch_size"]), 5.0, 0.8) + 0.08 * _bowl(
        c["layer_decay"], 0.88, 0.05
    )
    speed = 2.2 * 10 ** (-0.1 * valley) / layers**0.2
    return Terms(asymptote, 0.8, speed, 0.9, spread=0.006, jitter=0.008, excess=rate + 2.0)


def _transformer(c: Config) -> Terms:
    """Nine dimensions: wide and deep is slow at first and best at last; unstable without warm-up."""
    rate, width = math.log10(c["learning_rate"]), math.log2(c["width"])
    depth, warm = c["depth"], math.log10(c["warmup_steps"])
    lion = c["optimizer"] == "lion"
    off = rate + 3.4 + 0.25 * (width - 8) + (0.5 if lion else 0.0) - 0.1 * (warm - 2)
    capacity = 2 * width + math.log2(depth) - 19.0
    overfit = 0.05 * max(0.0, capacity + 1 - 10 * c["dropout"]) + 0.6 * max(0.0, c["dropout"] - 0.35)
    inner = math.log10(1 - c["beta2"]) if "beta2" in c else math.log10(c["weight_decay"])
    asymptote = 1.0 + 0.13 * _bowl(off, 0.0, 0.6) + 0.13 * _bowl(capacity, 1.5, 2.0)
    asymptote += 0.06 * _bowl(inner, -1.8 if "beta2" in c else -1.0, 0.6) + (0.02 if lion else 0.0)
    asymptote += 0.04 * abs(math.log2(c["heads"]) - (width - 6)) + (0.0 if c["tied"] else 0.05)
    asymptote += 0.08 * _bowl(warm, 2.8, 0.6)
    speed = 0.4 * 10 ** (0.25 * off - c["dropout"] - 0.2 * (warm - 2)) * 2 ** (-0.35 * capacity)
    noise = 0.01 + 0.01 * max(0.0, 1 + off)
    excess = off - 0.9 - 0.2 * (warm - 1) + 0.03 * depth
    return Terms(asymptote, 2.5, speed, 1.5, drift=overfit, spread=noise, jitter=noise, excess=excess)


def _speech(c: Config) -> Terms:
    """Small batches: noise as large as the differences among the better half, shrinking with the rate."""
    rate, batch = math.log10(c["learning_rate"]), math.log2(c["batch_size"])
    off = rate + 3.4 - 0.3 * (batch - 4)
    asymptote = 0.4 + 0.18 * _bowl(off, 0.0, 0.5) + 0.16 * _bowl(c["masking"], 0.45, 0.12)
    asymptote += 0.08 * _bowl(c["kernel"], 11 if c["norm"] == "layer" else 21, 4.0)
    asymptote += 0.07 * _bowl(math.log2(c["stride_ms"]), 4.6, 0.6) + 0.06 * _bowl(batch, 3.5, 1.0)
    noise = min(0.3, 0.03 * 10 ** (0.4 * (off + 0.5)) * 2 ** (-0.2 * (batch - 4)))
    speed = 1.5 * 10 ** (0.3 * off - 1.5 * c["masking"])
    return Terms(asymptote, 2.5, speed, 1.6, spread=0.2 * noise, jitter=noise, excess=off - 1.0)


def _annealed(c: Config) -> Terms:
    """The learning rate falls at the end of training: long high plateaus end lowest, so early losses lie."""
    rate, hold = math.log10(c["peak_rate"]), c["hold_fraction"]
    momentum = -math.log10(1 - c["momentum"])
    heat = rate + 0.5 * momentum + 0.8 * hold  # how hot the plateau is
    asymptote = 0.5 + 0.2 * _bowl(heat, 0.3, 0.5) + 0.10 * _bowl(math.log2(c["averaged_epochs"]), 2.0, 0.8)
    asymptote += 0.12 * _bowl(math.log10(c["weight_decay"]) + 0.5 * heat, -3.6, 0.6) + 0.05 * c["restart"]
    asymptote += 0.10 * _bowl(hold, 0.6, 0.15)
    speed = 1.2 * 10 ** (-0.75 * (heat + 0.5)) * (1.4 if c["restart"] else 1.0)
    return Terms(asymptote, 1.8, speed, 1.6, spread=0.01, jitter=0.02, excess=heat - 1.0)


def _mobile(c: Config) -> Terms:
    """Error and megabytes: width, depth and how many weights are kept; deep ones learn slowly."""
    width, depth, kept = math.log2(c["width"]), c["depth"], c["kept_weights"]
    megabytes = 4e-6 * kept * depth * (9 * c["width"] ** 2) + 0.02 * 2 ** (width - 4)
    off = math.log10(c["learning_rate"]) + 2.6 + 0.2 * (width - 6)
    error = 0.05 + 0.22 * (1 + megabytes / kept**0.75) ** -0.45 + 0.03 * _bowl(depth / width, 1.1, 0.4)
    error += 0.06 * (1 - kept) ** 4 + 0.05 * _bowl(off, 0.0, 0.3)
    error += 0.04 * _bowl(c["dropout"], 0.02 * width + 0.02, 0.06)
    speed = 0.8 * 10 ** (0.25 * off) / depth**0.7
    return Terms(error, 0.6, speed, 1.6, spread=0.003, jitter=0.006, excess=off - 0.9, size=megabytes)


def _mobile_front() -> Iterable[Config]:
    widths = sorted({round(16 * 1.075**k) for k in range(39)})
    for width, depth, kept in itertools.product(widths, range(2, 21), np.linspace(0.1, 1, 19)):
        for off in (0.0, 0.03, 0.08):
            rate = 10 ** (off - 2.6 - 0.2 * (math.log2(width) - 6))
            yield dict(
                width=width,
                depth=depth,
                kept_weights=float(kept),
                learning_rate=rate,
                dropout=0.02 * math.log2(width) + 0.02,
            )


#: How large an encoder is, relative to some usual one.
_ENCODERS = {"small": 0.35, "medium": 0.8, "large": 1.9}


def _captioner(c: Config) -> Terms:
    """Error and milliseconds: encoder, resolution, decoder layers, beam; big ones start behind."""
    pixels, layers, beam = c["pixels"], c["layers"], c["beam"]
    encoder = _ENCODERS[c["encoder"]]
    milliseconds = 2.0 + 9.0 * encoder * (pixels / 224) ** 2 + 1.1 * layers * (1 + 0.35 * (beam - 1))
    off = math.log10(c["learning_rate"]) + 3.5 + 0.5 * math.log2(encoder) + 0.05 * layers
    error = 0.30 + 0.10 * encoder**-0.4 + 0.16 / layers**0.6 + 0.035 * beam**-1.2
    error += 0.20 * max(0.0, math.log2((160 + 60 * encoder) / pixels)) + 0.07 * _bowl(off, 0.0, 0.35)
    error += 0.05 * _bowl(math.log2(c["batch_size"]), 6.0, 0.7)
    error += 0.06 * _bowl(c["label_smoothing"], 0.1, 0.05)
    speed = 0.9 * 10 ** (0.25 * off - 2.0 * c["label_smoothing"]) * encoder**-0.8 / layers**0.5
    return Terms(error, 1.2, speed, 1.6, spread=0.004, jitter=0.01, excess=off - 0.8, size=milliseconds)


def _captioner_front() -> Iterable[Config]:
    shapes = itertools.product(_ENCODERS, range(96, 321, 16), range(1, 9), range(1, 7))
    for encoder, pixels, layers, beam in shapes:
        for off, smoothing in itertools.product(np.linspace(0.0, 0.15, 4), np.linspace(0.07, 0.1, 4)):
            rate = 10 ** (off - 3.5 - 0.5 * math.log2(_ENCODERS[encoder]) - 0.05 * layers)
            yield dict(
                encoder=encoder,
                pixels=pixels,
                layers=layers,
                beam=beam,
                learning_rate=rate,
                batch_size=64,
                label_smoothing=float(smoothing),
            )


# ------------------------------------------------------------------------------------- the two sets

TUNING = (
    hartmann(3, "good", 27, mirrored=True),
    hartmann(6, "bad", 81, mirrored=True),
    network(
        "perceptron-honest",
        Space(
            {
                "learning_rate": Float(1e-5, 1.0, log=True),
                "batch_size": Int(8, 512, log=True),
                "width": Int(16, 1024, log=True),
                "weight_decay": Float(1e-6, 1e-1, log=True),
            }
        ),
        27,
        _perceptron,
    ),
    network(
        "residual-misleading",
        Space(
            {
                "learning_rate": Float(1e-3, 1.0, log=True),
                "momentum": Float(0.5, 0.99),
                "batch_size": Int(16, 1024, log=True),
                "weight_decay": Float(1e-6, 1e-2, log=True),
                "augmentation": Choice(["none", "flip", "crop", "mix"]),
                "label_smoothing": Float(0.0, 0.3),
                "schedule": Choice(["constant", "cosine"]),
            }
        ),
        81,
        _residual,
        seconds_per_epoch=lambda c: 20.0 + 400.0 / c["batch_size"],
    ),
    network(
        "recurrent-misleading",
        Space(
            {
                "optimizer": Choice(["sgd", "adam"]),
                "learning_rate": Float(1e-4, 1e-1, log=True),
                "momentum": Float(0.0, 0.95, when={"optimizer": ["sgd"]}),
                "beta2": Float(0.9, 0.9999, when={"optimizer": ["adam"]}),
                "hidden": Int(32, 1024, log=True),
                "dropout": Float(0.0, 0.6),
                "clip": Float(0.1, 10.0, log=True),
            }
        ),
        27,
        _recurrent,
        seconds_per_epoch=lambda c: 5.0 + c["hidden"] / 50,
    ),
    network(
        "regularised-reversed",
        Space(
            {
                "learning_rate": Float(1e-5, 1e-1, log=True),
                "weight_decay": Float(1e-6, 1e-1, log=True),
                "dropout": Float(0.0, 0.6),
                "depth": Int(2, 12),
                "norm": Choice(["layer", "batch"]),
            }
        ),
        27,
        _regularised,
        seconds_per_epoch=lambda c: 2.0 + c["depth"],
    ),
    network(
        "mobile",
        Space(
            {
                "width": Int(16, 256, log=True),
                "depth": Int(2, 20),
                "kept_weights": Float(0.1, 1.0),
                "learning_rate": Float(1e-4, 1e-1, log=True),
                "dropout": Float(0.0, 0.5),
            }
        ),
        27,
        _mobile,
        objectives=("error", "megabytes"),
        seconds_per_epoch=lambda c: 5.0 + 0.01 * c["depth"] * c["width"],
        reference=(0.4, 10.0),
        candidates=_mobile_front,
    ),
)
"""Problems on which settings are chosen; the last has two objectives."""

REPORTED = (
    hartmann(3, "bad", 27),
    hartmann(6, "good", 27),
    hartmann(6, "terrible", 81),
    network(
        "encoder-honest",
        Space(
            {
                "learning_rate": Float(1e-6, 1e-1, log=True),
                "layers": Int(1, 12),
                "layer_decay": Float(0.6, 1.0),
                "pooling": Choice(["mean", "first", "attention"]),
                "batch_size": Choice([8, 16, 32, 64, 128]),
            }
        ),
        27,
        _encoder,
        seconds_per_epoch=lambda c: 3.0 + c["layers"],
    ),
    network(
        "transformer-misleading",
        Space(
            {
                "learning_rate": Float(1e-5, 1e-2, log=True),
                "optimizer": Choice(["adamw", "lion"]),
                "beta2": Float(0.9, 0.9999, when={"optimizer": ["adamw"]}),
                "weight_decay": Float(1e-3, 10.0, log=True, when={"optimizer": ["lion"]}),
                "warmup_steps": Int(10, 10_000, log=True),
                "width": Int(64, 1024, log=True),
                "depth": Int(1, 16),
                "heads": Choice([1, 2, 4, 8, 16]),
                "dropout": Float(0.0, 0.5),
                "tied": Choice([True, False]),
            }
        ),
        81,
        _transformer,
        seconds_per_epoch=lambda c: 10.0 + 2e-3 * c["depth"] * c["width"],
    ),
    network(
        "speech-misleading",
        Space(
            {
                "learning_rate": Float(3e-5, 1e-2, log=True),
                "batch_size": Int(2, 64, log=True),
                "kernel": Int(3, 31, step=2),
                "norm": Choice(["layer", "batch"]),
                "masking": Float(0.0, 0.8),
                "stride_ms": Choice([10, 20, 30, 40]),
            }
        ),
        27,
        _speech,
        seconds_per_epoch=lambda c: 10.0 + 60.0 / c["batch_size"] ** 0.5,
    ),
    network(
        "annealed-reversed",
        Space(
            {
                "peak_rate": Float(1e-3, 10.0, log=True),
                "hold_fraction": Float(0.0, 0.9),
                "momentum": Float(0.0, 0.95),
                "weight_decay": Float(1e-6, 1e-2, log=True),
                "averaged_epochs": Int(1, 20, log=True),
                "restart": Choice([False, True]),
            }
        ),
        27,
        _annealed,
    ),
    network(
        "captioner",
        Space(
            {
                "encoder": Choice(["small", "medium", "large"]),
                "pixels": Int(96, 320, step=16),
                "layers": Int(1, 8),
                "beam": Int(1, 6),
                "learning_rate": Float(1e-5, 1e-2, log=True),
                "batch_size": Int(16, 256, log=True),
                "label_smoothing": Float(0.0, 0.3),
            }
        ),
        27,
        _captioner,
        objectives=("error", "milliseconds"),
        seconds_per_epoch=lambda c: 10.0 + {"small": 5.0, "medium": 10.0, "large": 20.0}[c["encoder"]],
        reference=(0.85, 40.0),
        candidates=_captioner_front,
    ),
)
"""Problems on which figures are reported, never settings chosen; the last has two objectives."""
