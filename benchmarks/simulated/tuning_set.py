"""The problems on which Captune's settings were chosen: `TUNING`.

None has the function of one in `reported_set.py` with the same constants: Hartmann's axes are mirrored, the
networks have other hyperparameters, which act in other ways. Names of networks end in what epoch 1 says of
the end, as Spearman's rank correlation over random configurations that converge: `honest` (above 0.6),
`misleading` (0.15 to 0.6), `reversed` (below 0.1).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import numpy as np

from benchmarks.simulated.hartmann import hartmann
from benchmarks.simulated.networks import Terms, bowl, network
from benchmarks.simulated.problem import Config
from search_spaces import Choice, Float, Int, Space


def _perceptron(c: Config) -> Terms:
    """Early epochs tell the truth: what learns well learns fast."""
    rate, batch, width = math.log10(c["learning_rate"]), math.log2(c["batch_size"]), math.log2(c["width"])
    ridge = bowl(rate, -2.6 + 0.15 * (batch - 6), 0.4)
    shape = bowl(width, 8.2, 1.2) + bowl(math.log10(c["weight_decay"]), -3.5 + 0.2 * (width - 8), 0.7)
    shape += 0.5 * bowl(batch, 5.0, 1.0)
    speed = 1.5 * 10 ** (-0.1 * ridge) * 2 ** (0.2 * (6 - batch))
    return Terms(0.20 + 0.15 * ridge + 0.13 * shape, 1.2, speed, 0.8, excess=rate + 0.6)


def _residual(c: Config) -> Terms:
    """High learning rates and no augmentation start fast and end high."""
    rate, batch = math.log10(c["learning_rate"] / (1 - c["momentum"])), math.log2(c["batch_size"])
    policy = {"none": 0.0, "flip": 0.35, "crop": 0.7, "mix": 1.0}[c["augmentation"]]
    decay = math.log10(c["weight_decay"])
    cosine = c["schedule"] == "cosine"
    ridge = bowl(rate, (-1.3 if cosine else -1.7) + 0.12 * (batch - 7), 0.5)
    # Augmentation stands in for weight decay: the more of one, the less of the other.
    over = bowl(policy, 0.75, 0.3) + bowl(decay + 1.5 * policy, -2.6, 0.7)
    asymptote = 0.25 + 0.12 * ridge + 0.11 * over + 0.12 * bowl(c["label_smoothing"], 0.08, 0.08)
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
        off, floor = rate + 3.2, 0.1 * bowl(math.log10(1 - c["beta2"]), -2.3, 0.5)
    asymptote = 0.6 + floor + 0.2 * bowl(off, -0.15 * (hidden - 7), 0.5) + 0.2 * bowl(hidden, 8.5, 1.0)
    asymptote += 0.2 * bowl(c["dropout"], 0.1 + 0.08 * max(hidden - 6, 0), 0.12)
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
    asymptote = 0.3 + 0.06 * bowl(rate, -2.9 - 0.6 * strength, 0.5) + 0.06 * bowl(c["depth"], 5, 2.0)
    asymptote += 0.05 * bowl(c["dropout"], 0.42, 0.1) + 0.02 * (c["norm"] == "batch")
    speed = 5.0 * 10 ** (0.2 * (rate + 3) - 1.2 * strength) / c["depth"] ** 0.3
    return Terms(asymptote, 1.0, speed, 1.1, drift=overfit, spread=0.01, jitter=0.015, excess=rate + 1.6)


def _mobile(c: Config) -> Terms:
    """Error and megabytes: width, depth and how many weights are kept; deep ones learn slowly."""
    width, depth, kept = math.log2(c["width"]), c["depth"], c["kept_weights"]
    megabytes = 4e-6 * kept * depth * (9 * c["width"] ** 2) + 0.02 * 2 ** (width - 4)
    off = math.log10(c["learning_rate"]) + 2.6 + 0.2 * (width - 6)
    error = 0.05 + 0.22 * (1 + megabytes / kept**0.75) ** -0.45 + 0.03 * bowl(depth / width, 1.1, 0.4)
    error += 0.06 * (1 - kept) ** 4 + 0.05 * bowl(off, 0.0, 0.3)
    error += 0.04 * bowl(c["dropout"], 0.02 * width + 0.02, 0.06)
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
