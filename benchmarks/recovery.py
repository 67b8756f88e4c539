"""How long a gang does nothing after a kill, against what Ray's documented pattern needs to begin any trial.

One gang of two workers on a cluster of three nodes with a core each, so that it spans two of them, trains one
trial after the other. In the middle of an epoch one of its processes, the driver (which is resumed at once)
or a node that it is on (there is a spare one) is killed with SIGKILL, or a worker is stopped so that it
hangs. The time until the next epoch is reported holds the epoch that is repeated, and the silence after which
a worker is taken for hung; it is given in seconds, and in trials of one empty epoch, each of which builds a
`TorchTrainer` inside a Tune function (`gang_overhead.py`), taken right afterwards.
The documented pattern pays that for every trial, undisturbed.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.disturbed.driver import Driver, surroundings
from benchmarks.disturbed.victims import HUNG, KINDS, kill
from benchmarks.gang_overhead import WORKERS, documented_seconds
from cluster.connect import connect
from tests.raylets import Raylets

SECONDS_PER_EPOCH = 1.0
KILLS = 2  # of each kind
PATIENCE_S = 120.0
HANG_TIMEOUT_S = 10


def recovery_seconds(folder: Path, kinds: list[str]) -> list[float]:
    """For each kill, seconds from there to the next report of an epoch."""
    with Raylets(3, cpus=1, **surroundings()) as cluster:
        driver = Driver(
            cluster,
            folder / "recovery",
            seconds_per_epoch=SECONDS_PER_EPOCH,
            scheduler={"algorithm": "none", "max_epochs": 9},
            budget={"trials": 1000},
            training={
                "workers": 2,
                "gangs": 1,
                "max_failures": len(kinds),
                "hang_timeout": f"{HANG_TIMEOUT_S}s",
            },
        )
        driver.start()
        try:
            return [_once(driver, kind) for kind in kinds]
        finally:
            driver.kill()


def _once(driver: Driver, kind: str) -> float:
    driver.wait_for_epoch(len(driver.begun()) + 1)
    time.sleep(SECONDS_PER_EPOCH / 2)
    killed = kill(kind, driver, random.Random(0))
    assert killed is not None, f"no {kind} to kill"
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        results = driver.results()
        reported = [] if results is None else [at.timestamp() for at in results.epochs["at"]]
        if later := [at for at in reported if at > killed]:
            print(f"{kind:<12}{min(later) - killed:9.1f} s", flush=True)
            return min(later) - killed
        time.sleep(0.5)
    raise AssertionError(f"no epoch {PATIENCE_S} s after the kill of: {kind}")


def main(kinds: tuple[str, ...] = (*KINDS, HUNG), kills: int = KILLS, documented_trials: int = 2) -> None:
    """Print the table, and the documented pattern's trial over the slowest recovery."""
    with tempfile.TemporaryDirectory(prefix="captune-") as folder:
        taken = recovery_seconds(Path(folder), [*kinds] * kills)
        os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
        with connect("local", cpus=WORKERS + 2):
            documented = documented_seconds(documented_trials, folder)[1]
    print(f"{'killed':<12}{'seconds':>9}{'of a documented trial':>24}")
    medians = {kind: median(taken[place :: len(kinds)]) for place, kind in enumerate(kinds)}
    for kind, seconds in medians.items():
        print(f"{kind:<12}{seconds:9.1f}{seconds / documented:24.2f}")
    print(f"a worker is taken for hung after {HANG_TIMEOUT_S} s")
    print(f"an epoch takes {SECONDS_PER_EPOCH:.1f} s, a documented trial of an empty one {documented:.1f} s")
    print(f"recovery ratio={documented / max(medians.values()):.2f}")
