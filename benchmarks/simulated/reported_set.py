"""The problems on which figures are reported, and no setting was chosen: `REPORTED`.

Names of networks end in what epoch 1 says of the end, as Spearman's rank correlation over random
configurations that converge: `honest` (above 0.6), `misleading` (0.15 to 0.6), `reversed` (below 0.1).
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


def _encoder(c: Config) -> Terms:
    """Early epochs tell the truth; a narrow valley between learning rate, layers and their decay."""
    rate, layers = math.log10(c["learning_rate"]), c["layers"]
    valley = bowl(rate + 0.1 * layers + 0.5 * (c["layer_decay"] - 0.8) / 0.2, -3.6, 0.35)
    pool = {"mean": 0.0, "first": 0.05, "attention": 0.02}[c["pooling"]]
    asymptote = 0.12 + 0.12 * valley + 0.10 * bowl(layers, 8, 2.0) + pool
    asymptote += 0.08 * bowl(math.log2(c["batch_size"]), 5.0, 0.8) + 0.08 * bowl(c["layer_decay"], 0.88, 0.05)
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
    asymptote = 1.0 + 0.13 * bowl(off, 0.0, 0.6) + 0.13 * bowl(capacity, 1.5, 2.0)
    asymptote += 0.06 * bowl(inner, -1.8 if "beta2" in c else -1.0, 0.6) + (0.02 if lion else 0.0)
    asymptote += 0.04 * abs(math.log2(c["heads"]) - (width - 6)) + (0.0 if c["tied"] else 0.05)
    asymptote += 0.08 * bowl(warm, 2.8, 0.6)
    speed = 0.4 * 10 ** (0.25 * off - c["dropout"] - 0.2 * (warm - 2)) * 2 ** (-0.35 * capacity)
    noise = 0.01 + 0.01 * max(0.0, 1 + off)
    excess = off - 0.9 - 0.2 * (warm - 1) + 0.03 * depth
    return Terms(asymptote, 2.5, speed, 1.5, drift=overfit, spread=noise, jitter=noise, excess=excess)


def _speech(c: Config) -> Terms:
    """Small batches: noise as large as the differences among the better half, shrinking with the rate."""
    rate, batch = math.log10(c["learning_rate"]), math.log2(c["batch_size"])
    off = rate + 3.4 - 0.3 * (batch - 4)
    asymptote = 0.4 + 0.18 * bowl(off, 0.0, 0.5) + 0.16 * bowl(c["masking"], 0.45, 0.12)
    asymptote += 0.08 * bowl(c["kernel"], 11 if c["norm"] == "layer" else 21, 4.0)
    asymptote += 0.07 * bowl(math.log2(c["stride_ms"]), 4.6, 0.6) + 0.06 * bowl(batch, 3.5, 1.0)
    noise = min(0.3, 0.03 * 10 ** (0.4 * (off + 0.5)) * 2 ** (-0.2 * (batch - 4)))
    speed = 1.5 * 10 ** (0.3 * off - 1.5 * c["masking"])
    return Terms(asymptote, 2.5, speed, 1.6, spread=0.2 * noise, jitter=noise, excess=off - 1.0)


def _annealed(c: Config) -> Terms:
    """The learning rate falls at the end of training: long high plateaus end lowest, so early losses lie."""
    rate, hold = math.log10(c["peak_rate"]), c["hold_fraction"]
    momentum = -math.log10(1 - c["momentum"])
    heat = rate + 0.5 * momentum + 0.8 * hold  # how hot the plateau is
    asymptote = 0.5 + 0.2 * bowl(heat, 0.3, 0.5) + 0.10 * bowl(math.log2(c["averaged_epochs"]), 2.0, 0.8)
    asymptote += 0.12 * bowl(math.log10(c["weight_decay"]) + 0.5 * heat, -3.6, 0.6) + 0.05 * c["restart"]
    asymptote += 0.10 * bowl(hold, 0.6, 0.15)
    speed = 1.2 * 10 ** (-0.75 * (heat + 0.5)) * (1.4 if c["restart"] else 1.0)
    return Terms(asymptote, 1.8, speed, 1.6, spread=0.01, jitter=0.02, excess=heat - 1.0)


#: How large an encoder is, relative to some usual one.
_ENCODERS = {"small": 0.35, "medium": 0.8, "large": 1.9}


def _captioner(c: Config) -> Terms:
    """Error and milliseconds: encoder, resolution, decoder layers, beam; big ones start behind."""
    pixels, layers, beam = c["pixels"], c["layers"], c["beam"]
    encoder = _ENCODERS[c["encoder"]]
    milliseconds = 2.0 + 9.0 * encoder * (pixels / 224) ** 2 + 1.1 * layers * (1 + 0.35 * (beam - 1))
    off = math.log10(c["learning_rate"]) + 3.5 + 0.5 * math.log2(encoder) + 0.05 * layers
    error = 0.30 + 0.10 * encoder**-0.4 + 0.16 / layers**0.6 + 0.035 * beam**-1.2
    error += 0.20 * max(0.0, math.log2((160 + 60 * encoder) / pixels)) + 0.07 * bowl(off, 0.0, 0.35)
    error += 0.05 * bowl(math.log2(c["batch_size"]), 6.0, 0.7)
    error += 0.06 * bowl(c["label_smoothing"], 0.1, 0.05)
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
