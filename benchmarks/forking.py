"""Worker-seconds to the same front of CIDEr and size: forking a trained captioner, or training each anew.

*Forking* trains one captioner whole, makes every child of it, judges them all after the epoch that only
compresses, and fine-tunes those that no other beats, the best first (`tuning/search/front_scheduler.py`). The
*joint* search trains every point anew for as many epochs as the parent, compressed at half of them, in a
random order. Both have the same methods and ratios; distilling is left out, for without a parent there is
nothing to distil. The front's hypervolume is that of CIDEr and of the share of the whole captioner's bytes
that is saved: from the reference point of no CIDEr at the whole size. The target is a share of what the joint
search ends with.

Worker-seconds are the processor time of training, compressing and full evaluations. What a captioner costs
beyond its bytes is not measured: it would take each side about the same time per point. One process and
thread, no Ray, drawn scenes.

From the environment: FORKING_SEEDS (2), FORKING_IMAGES (800), FORKING_EPOCHS (18; a child is fine-tuned for
a third as many).
"""

from __future__ import annotations

import math
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.trained.forks import Course, name, shapes
from benchmarks.trained.problems import Captioner
from trainables.captioning.trial import Captioning
from trainables.trial import Metrics
from tuning.search.ranking import Standing, best_first, dominated, hypervolume

METHODS = (
    (("int8", "int4"), (0.5,)),  # the ratio is not theirs
    (("prune", "prune_units", "low_rank"), (0.5, 0.75)),
    (("prune+int8", "prune_units+int8", "low_rank+int8"), (0.9,)),
)
#: Shares of the joint search's last hypervolume; the last line is of the middle one.
TARGETS = (0.9, 0.95, 1.0)

Losses = tuple[float, float]
"""Minus CIDEr, and size_mb."""
Found = Iterator[tuple[str, Losses]]
"""Every captioner that a search has evaluated, by name, as it comes."""
T = TypeVar("T")
Curve = list[tuple[float, float]]
"""Worker-seconds spent, and the hypervolume so far."""


def main() -> None:
    """Print the time to each target, and how forking's compares with the joint search's."""
    began = time.monotonic()
    seeds, images, epochs = (
        int(os.environ.get(f"FORKING_{key}", default))
        for key, default in (("SEEDS", "2"), ("IMAGES", "800"), ("EPOCHS", "18"))
    )
    ratios = []
    with tempfile.TemporaryDirectory() as kept:
        course = Course(shapes(images, Path(kept) / "cache"), epochs, math.ceil(epochs / 3), Captioner)
        for seed in range(seeds):
            ratios.append(contest(course, seed, Path(kept) / f"parent{seed}"))
    print(f"\ntook {(time.monotonic() - began) / 60:.1f} minutes")
    print(f"forking ratio={sum(ratios) / len(ratios):.3f}")  # inf where a seed never reached its target


def contest(course: Course, seed: int, folder: Path) -> float:
    """Both searches of one seed; forking's worker-seconds over the joint search's."""
    parent, seconds = timed(lambda: course.parent(seed, folder))
    points = [
        point
        for methods, ratios in METHODS
        for point in Captioning.variants(folder, methods, ratios)[0]  # what is out of reach is so for both
    ]
    whole_mb = losses(parent.evaluate(full=True))[1]
    searches: dict[str, tuple[Found, float]] = {
        "forking": (forking(course, seed, parent, points), seconds),
        "joint": (joint(course, seed, points), 0.0),
    }
    curves = {}
    for title, (search, spent) in searches.items():
        found, curves[title] = measured(search, whole_mb, spent)
        spent, reached = curves[title][-1]
        print(f"\nseed {seed}, {title}: {spent:.0f} worker-seconds, hypervolume {reached:.4f}; CIDEr at kB:")
        best = best_first([Standing(each) for _, each in found])[: len(points)]
        print(", ".join(f"{found[i][0]} {-found[i][1][0]:.3f} at {found[i][1][1] * 1000:.0f}" for i in best))
    print(f"{'target':>8}{'forking s':>11}{'joint s':>9}{'ratio':>8}")
    ratios = []
    for share in TARGETS:
        target = share * curves["joint"][-1][1]
        ours, theirs = (seconds_to(curves[title], target) for title in searches)
        ratios.append(ours / theirs)
        print(f"{target:8.4f}{ours:11.1f}{theirs:9.1f}{ratios[-1]:8.3f}", flush=True)
    return ratios[1]


def forking(course: Course, seed: int, parent: Captioning, points: Sequence[Mapping[str, Any]]) -> Found:
    """The parent, all its children, then those of the front again, fine-tuned."""
    yield "whole", losses(parent.evaluate(full=True))
    children, standings = [], []
    for point in points:
        children.append(course.child(seed, point))
        standings.append(Standing(losses(children[-1].evaluate(full=True))))
        yield f"{name(point)}, untrained", _pair(standings[-1])
    for index in best_first(standings):
        if not dominated(standings[index], [*standings[:index], *standings[index + 1 :]]):
            yield name(points[index]), losses(course.fine_tuned(children[index]))


def joint(course: Course, seed: int, points: Sequence[Mapping[str, Any]]) -> Found:
    """Every point trained anew."""
    for point in random.Random(seed).sample(points, len(points)):
        settings = {key: value for key, value in point.items() if key != "compression.parent"}
        settings["compression.warmup_epochs"] = course.epochs // 2
        yield name(point), losses(course.anew(seed, settings).evaluate(full=True))


def measured(search: Found, whole_mb: float, spent: float) -> tuple[list[tuple[str, Losses]], Curve]:
    """What a search found, and its hypervolume over worker-seconds, `spent` of which were before."""
    found, curve = list[tuple[str, Losses]](), Curve()
    while True:
        one, seconds = timed(lambda: next(search, None))
        if one is None:
            return found, curve
        spent += seconds
        found.append(one)
        scaled = [(cider, size / whole_mb) for _, (cider, size) in found]
        curve.append((spent, hypervolume(scaled, (0.0, 1.0))))


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What `work` returns, and the processor time it took."""
    began = time.process_time()
    result = work()
    return result, time.process_time() - began


def seconds_to(curve: Curve, target: float) -> float:
    """Worker-seconds until the hypervolume is `target`; infinite where it never is."""
    return next((spent for spent, reached in curve if reached >= target), math.inf)


def losses(figures: Metrics) -> Losses:
    """What both searches minimise."""
    return -figures["cider"], figures["size_mb"]


def _pair(standing: Standing) -> Losses:
    return standing.losses[0], standing.losses[1]
