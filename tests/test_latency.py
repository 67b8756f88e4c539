"""Timing by turns, with clocks that the test moves; once with a core that is really busy."""

import math
import os
import random
import subprocess
import sys
from itertools import cycle

import pytest
import torch
from scipy.stats import quantile_test

from trainables.captioning.compress.latency import (
    Clocks,
    fastest_cpu_seconds,
    median_interval,
    one_thread,
    read_clocks,
    time_by_turns,
)


class Machine:
    """Clocks that stand still until work is done, and who did it."""

    def __init__(self):
        self.now = Clocks(0.0, 0.0)
        self.ran = ""

    def __call__(self):
        return self.now

    def work(self, name, *durations, waits=(0.0,)):
        """A callable that takes each of `durations` in turn, in seconds, and waits for a core as long."""
        durations, waits = cycle(durations), cycle(waits)

        def run():
            self.ran += name
            took = next(durations)
            self.now = Clocks(self.now.wall + took + next(waits), self.now.cpu + took)

        return run


def timed(machine, candidate, reference, seconds=1.0):
    return time_by_turns(candidate, reference, seconds=seconds, clocks=machine)


def test_the_two_take_turns_after_a_warm_up_of_both():
    machine = Machine()
    timing = timed(machine, machine.work("c", 3 / 64), machine.work("r", 2 / 64))
    assert machine.ran == "cr" * (2 + 13)  # 12.8 pairs are a second
    assert timing.median_ms == pytest.approx(46.875) and timing.p90_ms == pytest.approx(46.875)
    assert timing.ratio == pytest.approx(1.5)
    assert timing.ratio_low == pytest.approx(1.5) and timing.ratio_high == pytest.approx(1.5)
    assert not timing.noisy


def test_median_and_p90_are_those_of_the_candidate():
    machine = Machine()
    durations = [0.010] * 15 + [0.050] * 5
    timing = timed(machine, machine.work("c", *durations[-2:], *durations[:-2]), machine.work("r", 0.03))
    assert timing.median_ms == pytest.approx(10) and timing.p90_ms == pytest.approx(50)
    assert not timing.noisy  # the candidate may take now longer and now shorter, the reference may not


def test_what_slows_both_alike_divides_out():
    machine = Machine()
    slower = [1.0 + 0.1 * i for i in range(12)]  # another speed at every pair
    candidate, reference = (machine.work(n, *(t * f for f in slower)) for n, t in (("c", 0.03), ("r", 0.02)))
    timing = timed(machine, candidate, reference)
    assert timing.ratio_low == pytest.approx(1.5) and timing.ratio_high == pytest.approx(1.5)
    assert timing.median_ms > 1.2 * 30
    assert timing.noisy  # the reference shows it


def test_waiting_for_a_core_is_in_the_milliseconds_and_not_in_the_ratio():
    machine = Machine()
    timing = timed(machine, machine.work("c", 0.03, waits=[0.07]), machine.work("r", 0.02))
    assert timing.median_ms == pytest.approx(100)
    assert timing.ratio == pytest.approx(1.5)
    assert timing.noisy


def test_a_slow_candidate_is_run_six_times():
    machine = Machine()
    timed(machine, machine.work("c", 40.0), machine.work("r", 0.02))
    assert machine.ran == "cr" * (2 + 6)


def test_where_cores_are_scarce_three_times_the_seconds_are_enough():
    machine = Machine()
    timed(machine, machine.work("c", 1 / 32, waits=[3 / 32]), machine.work("r", 1 / 32, waits=[3 / 32]))
    assert machine.ran == "cr" * (2 + 12)  # 0.75 s of CPU time


def test_the_fastest_of_at_least_two_runs_counts_and_waiting_does_not():
    machine = Machine()
    run = machine.work("b", 5.0, 3.0, 4.0, waits=[1.0])
    assert fastest_cpu_seconds(run, seconds=0.1, clocks=machine) == pytest.approx(3.0)
    assert machine.ran == "bb"


@pytest.mark.parametrize(
    "count, low, high",  # Conover 1999, table of binomial quantiles; the usual table of ranks for a median
    [(6, 1, 6), (8, 1, 8), (9, 2, 8), (10, 2, 9), (15, 4, 12), (20, 6, 15), (25, 8, 18), (30, 10, 21)],
)
def test_the_interval_of_a_median_lies_between_the_ranks_of_the_table(count, low, high):
    values = random.Random(count).sample(range(1, count + 1), count)
    assert median_interval(values) == (low, high)


def test_the_interval_of_a_median_is_that_of_the_sign_test():
    for count in range(6, 120):
        expected = quantile_test([float(i) for i in range(count)], p=0.5).confidence_interval(0.95)
        assert median_interval(range(count)) == (expected.low, expected.high)


def test_the_interval_holds_the_median_19_times_in_20():
    draw = random.Random(0)
    held = 0
    for _ in range(2000):
        low, high = median_interval([draw.expovariate(1.0) for _ in range(15)])
        held += low <= math.log(2) <= high
    assert 0.95 < held / 2000 < 0.98  # 0.965 exactly


def test_five_values_have_no_interval():
    with pytest.raises(ValueError, match="needs 6 values or more, got 5"):
        median_interval([1.0, 2.0, 3.0, 4.0, 5.0])


def test_threads_are_given_back_also_after_an_error():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(RuntimeError), one_thread():
            assert torch.get_num_threads() == 1
            raise RuntimeError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def compute():
    sum(range(100_000))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be chosen here")
def test_a_core_that_is_really_busy_is_noticed():
    cores = os.sched_getaffinity(0)
    one = {min(cores)}
    busy = f"import os; os.sched_setaffinity(0, {one}); print(flush=True)\nwhile True: pass"
    other = subprocess.Popen([sys.executable, "-c", busy], stdout=subprocess.PIPE)
    try:
        other.stdout.readline()
        os.sched_setaffinity(0, one)
        timing = time_by_turns(compute, compute, seconds=0.3, clocks=read_clocks)
    finally:
        os.sched_setaffinity(0, cores)
        other.kill()
        other.wait()
        other.stdout.close()
    assert timing.noisy
    assert 0.5 < timing.ratio < 2  # both do the same
