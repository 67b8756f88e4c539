"""How long something takes on one thread: in milliseconds, and relative to a reference run by turns with it.

Milliseconds tell what a user waits on this machine, now. The ratio tells what the model costs: it is one of
CPU times, which stand still while the thread waits for a core, and what slows both alike divides out of it.
Knows nothing of captioners; what is timed are two callables.

Measured 2026-11-25 on 2 cores (Intel Xeon), three captioners of 3, 17 and 31 ms, alone and beside 2 to 10
busy processes, medians of 0.6 s: under load the milliseconds grew up to 45-fold, the ratio of wall-clock
times was anything from a half to four times the quiet one, the ratio of CPU times within 20 % of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

#: Pairs of runs below which the median has no 95 % interval.
FEWEST_PAIRS = 6
_WARM_UPS = 2
# Nine measurements in a row on a nearly idle machine kept within both bounds, none beside busy processes did.
#: Noisy is what was on a core for less than this share of the time.
_LEAST_CPU_SHARE = 0.95
#: Noisy is a reference of which one run in ten took this many times its median, or longer.
_WIDEST_SPREAD = 1.25


class Clocks(NamedTuple):
    """One reading of both clocks, in seconds."""

    wall: float
    cpu: float
    """Time that this thread was on a core."""


def read_clocks() -> Clocks:
    """The clocks now."""
    return Clocks(time.perf_counter(), time.thread_time())


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What `time_by_turns` found."""

    median_ms: float
    """Of wall-clock time."""
    p90_ms: float
    """Nine runs in ten took no longer."""
    ratio: float
    """Median over the pairs: CPU time of the candidate by that of the reference run right after it."""
    ratio_low: float
    ratio_high: float
    """95 % interval of the ratio; see `median_interval`."""
    noisy: bool
    """Whether other work disturbed the runs, so that the milliseconds say little: the thread had to wait for
    a core, or the reference, which always does the same, took now longer and now shorter. A disturbance
    that is the same in every run shows in neither."""


def time_by_turns(
    candidate: Callable[[], object],
    reference: Callable[[], object],
    *,
    seconds: float,
    clocks: Callable[[], Clocks] = read_clocks,
) -> Timing:
    """Times `candidate` and `reference` alternately, after a warm-up of both.

    Args:
        candidate: what is timed; computes on the calling thread.
        reference: what it is compared with, likewise; does the same work at every call.
        seconds: of CPU time, after which no other pair begins; or three times as many on the wall clock,
            where cores are scarce. At least 6 pairs are run.
        clocks: read before and after every run.
    """
    for _ in range(_WARM_UPS):
        candidate()
        reference()
    marks = [clocks()]
    while (
        len(marks) <= 2 * FEWEST_PAIRS
        or marks[-1].cpu - marks[0].cpu < seconds
        and marks[-1].wall - marks[0].wall < 3 * seconds
    ):
        for run in (candidate, reference):
            run()
            marks.append(clocks())
    wall, cpu = np.diff(marks, axis=0).T  # [2 * pairs], candidate first
    ratios = cpu[::2] / cpu[1::2]
    low, high = median_interval(ratios)
    spread = np.quantile(wall[1::2], 0.9) / np.median(wall[1::2])
    return Timing(
        median_ms=float(np.median(wall[::2])) * 1e3,
        p90_ms=float(np.quantile(wall[::2], 0.9)) * 1e3,
        ratio=float(np.median(ratios)),
        ratio_low=low,
        ratio_high=high,
        noisy=bool(cpu.sum() < _LEAST_CPU_SHARE * wall.sum() or spread > _WIDEST_SPREAD),
    )


def fastest_cpu_seconds(
    run: Callable[[], object], *, seconds: float, clocks: Callable[[], Clocks] = read_clocks
) -> float:
    """CPU time of the fastest of at least 2 runs (the first is a warm-up at best) within `seconds`.

    The fastest, for whatever disturbs a run makes it longer.
    """
    marks = [clocks()]
    while len(marks) <= 2 or marks[-1].wall - marks[0].wall < seconds:
        run()
        marks.append(clocks())
    return float(np.diff(marks, axis=0)[:, 1].min())


def median_interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """95 % interval of the median of what `values` were drawn from, whatever its distribution.

    The order statistics between which the median lies by the sign test (Conover 1999, section 3.2): exact
    for independent draws, and conservative, for there are only so many order statistics.

    Raises:
        ValueError: fewer than 6 values; no interval between two of them holds the median with 95 %.
    """
    ordered, count = sorted(map(float, values)), len(values)
    rank, below = 0, 1  # `below` / 2**count: probability that at most `rank` values lie under the median
    while 40 * below <= 2**count:
        rank += 1
        below += math.comb(count, rank)
    if rank == 0:
        raise ValueError(f"a 95 % interval of a median needs {FEWEST_PAIRS} values or more, got {count}")
    return ordered[rank - 1], ordered[count - rank]


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes on the calling thread only."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
