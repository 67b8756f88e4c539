"""Compression methods against each other at equal bytes, untrained and fine-tuned, on drawn scenes.

For each seed one captioner is trained whole, and of it every child is made that a method and a ratio name:
judged at once, then after three epochs of fine-tuning, as `captune compress` does it. `none` is the captioner
as it is, trained as many epochs longer: what the others' fine-tuned figures are set against. Number formats
alone remove what they remove. Sizes are of the file that ships; times are CPU times on one thread relative to
`compress/reference.py`: work beside them hardly moves them, but widens their intervals.

A method is *smaller* where its file is, and *faster* where a caption takes less than .95 of the parent's time
and their 95 % intervals do not touch; both in every seed and at every ratio, else it is not. The last line is
the best mean CIDEr at the largest ratio over that of `none`, all fine-tuned: what the smallest keep.

From the environment: COMPRESSION_SEEDS (3), COMPRESSION_IMAGES (400), COMPRESSION_EPOCHS (9).
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.trained.forks import Course, name, shapes
from trainables.captioning.trial import Captioning
from trainables.trial import Metrics

#: Methods, and the ratios at which each is tried.
CONTEST: tuple[tuple[tuple[str, ...], tuple[float, ...]], ...] = (
    (("prune", "prune_units", "low_rank", "distil"), (0.5, 0.75)),
    (("none", "fp16", "int8", "int8_per_tensor", "int4", "share"), (0.5,)),  # the ratio is not theirs
    (("prune+int8", "prune_units+int8", "low_rank+int8", "distil+int8"), (0.9,)),
)
FINE_TUNE_EPOCHS = 3
#: A child's time over its parent's from which on it is called no faster.
FASTER = 0.95


class Outcome(NamedTuple):
    """One child of one seed."""

    label: str
    """Method and the ratio asked for."""
    method: str
    parent: Metrics
    untrained: Metrics
    fine_tuned: Metrics

    @property
    def size(self) -> float:
        """Of the file that ships, over the parent's."""
        return self.fine_tuned["size_mb"] / self.parent["size_mb"]

    @property
    def latency(self) -> float:
        """CPU time of one caption over the parent's."""
        return self.fine_tuned["latency_ratio"] / self.parent["latency_ratio"]

    @property
    def faster(self) -> bool:
        """Whether it is, beyond the uncertainty of both measurements."""
        apart = self.fine_tuned["latency_ratio_high"] < self.parent["latency_ratio_low"]
        return self.latency < FASTER and apart


def main() -> None:
    """Print a row for each child, a line for each method, and the ratio."""
    began = time.monotonic()
    seeds, images, epochs = (
        int(os.environ.get(f"COMPRESSION_{key}", default))
        for key, default in (("SEEDS", "3"), ("IMAGES", "400"), ("EPOCHS", "9"))
    )
    with tempfile.TemporaryDirectory() as kept:
        course = Course(shapes(images, Path(kept) / "cache"), epochs, FINE_TUNE_EPOCHS)
        outcomes = [each for seed in range(seeds) for each in children(course, seed, Path(kept))]
    show(outcomes)
    verdicts(outcomes)
    print(f"\ntook {(time.monotonic() - began) / 60:.1f} minutes")
    print(f"compression ratio={kept_cider(outcomes):.3f}")


def children(course: Course, seed: int, folder: Path) -> Iterator[Outcome]:
    """Train a parent, then all its children one by one; prints what is out of reach."""
    checkpoint = folder / f"parent{seed}"
    parent = course.parent(seed, checkpoint).evaluate(full=True)
    print(
        f"seed {seed}: parent CIDEr {parent['cider']:.3f}, {parent['size_mb'] * 1000:.0f} kB,"
        f" {parent['latency_ms']:.1f} ms{' (noisy)' * bool(parent['latency_noisy'])}",
        flush=True,
    )
    for methods, ratios in CONTEST:
        points, refused = Captioning.variants(checkpoint, methods, ratios)
        print("".join(f"out of reach: {line}\n" for line in refused), end="")
        for point in points:
            child = course.child(seed, point)
            untrained = child.evaluate(full=True)
            method = point["compression.method"]
            yield Outcome(name(point), method, parent, untrained, course.fine_tuned(child))


def show(outcomes: Sequence[Outcome]) -> None:
    """The table; mean and range over seeds, the smallest files last."""
    seeds = len({id(each.parent) for each in outcomes})
    print(f"\nmean (least to most) of {seeds} seeds; size and latency relative to the parent's")
    print(
        f"{'':21}{'removed':>8}{'CIDEr untrained':>23}{'fine-tuned':>23}{'loss untr.':>12}{'fine-tuned':>12}"
        f"{'size':>7}{'latency':>21}"
    )
    groups = by(outcomes, "label")
    for label in sorted(groups, key=lambda each: -mean([outcome.size for outcome in groups[each]])):
        group = groups[label]
        states = [[each.untrained for each in group], [each.fine_tuned for each in group]]
        ciders = "".join(f"{spread([m['cider'] for m in state], 3):>23}" for state in states)
        losses = "".join(f"{mean([m['val_loss'] for m in state]):12.3f}" for state in states)
        removed = mean([each.fine_tuned["compression_ratio"] for each in group])
        size, latency = mean([each.size for each in group]), spread([each.latency for each in group], 2)
        print(f"{label:21}{removed:8.2f}{ciders}{losses}{size:7.2f}{latency:>21}")


def verdicts(outcomes: Sequence[Outcome]) -> None:
    """A line for each method: what it really makes better."""
    print()
    for method, group in by(outcomes, "method").items():
        smaller, faster = all(each.size < 1 for each in group), all(each.faster for each in group)
        said = " and ".join(["smaller"] * smaller + ["faster"] * faster) or "neither smaller nor faster"
        print(f"{method:21}{said}")


def kept_cider(outcomes: Sequence[Outcome]) -> float:
    """The best mean CIDEr of a method at the largest ratio, over that of `none`; fine-tuned."""
    ciders = {
        label: mean([each.fine_tuned["cider"] for each in group])
        for label, group in by(outcomes, "label").items()
    }
    methods, ratios = CONTEST[-1]
    smallest = [
        ciders[label]
        for method in methods
        for ratio in ratios
        if (label := name({"compression.method": method, "compression.ratio": ratio})) in ciders
    ]
    return max(smallest, default=0.0) / ciders["none"]


def by(outcomes: Sequence[Outcome], key: str) -> dict[str, list[Outcome]]:
    """Outcomes of equal `label` or `method` together, in the order in which these come first."""
    groups: dict[str, list[Outcome]] = {}
    for each in outcomes:
        groups.setdefault(getattr(each, key), []).append(each)
    return groups


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and range of `values`."""
    low, high = min(values), max(values)
    return f"{mean(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
