"""Trials on a cluster whose processes and nodes are killed every few seconds: what is lost, what it costs.

An experiment of `TRIALS` trials, ASHA over real DDP on two gangs of two workers, runs twice on a cluster of
three nodes: undisturbed, then with a worker, a trial's actor, a gang's owner, a Train controller, the driver
(which is resumed) or a whole node (another joins) killed with SIGKILL every few seconds. A seed gives trials,
kills, their order and distance; who is hit depends on who lives.

At the end each trial must be there once and paused or completed, each epoch once and with the loss that
training has in closed form; tables, checkpoints and the study's journal must fit together; and there must be
no actor, placement group, process, shared memory or temporary file of the runs any more. Else this fails.

An epoch that was begun and did not get into the tables is begun again; a diary that the trials keep counts
these. The nodes have processes, ports, folders and addresses of their own, and one kernel.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.disturbed.driver import Driver, surroundings
from benchmarks.disturbed.traces import Traces
from benchmarks.disturbed.victims import KINDS, kill
from tests.raylets import Raylets

TRIALS = 60
SECONDS_PER_EPOCH = 0.3
ROUNDS = 2  # each kind is killed so often
PAUSES_S = (2.0, 6.0)  # between two kills
TIMEOUT_S = 400.0
SEED = 0


def disturb(driver: Driver, kinds: Sequence[str], rng: random.Random) -> list[str]:
    """Kill one of each of `kinds` with pauses, until the experiment is over; which were killed, in order."""
    killed = []
    driver.wait_for_epoch(0)
    for kind in kinds:
        time.sleep(rng.uniform(*PAUSES_S))
        if kill(kind, driver, rng) is not None:
            killed.append(kind)
            print(f"{time.strftime('%X')} killed: {kind}", flush=True)
    return killed


class Arena:
    """A cluster on which experiments are run, disturbed or not, and what was wrong with them so far."""

    def __init__(self, home: Path, *, nodes: int, cpus: int):
        self._home = home
        scratch = home / "tmp"
        scratch.mkdir()
        self._traces = Traces(scratch)
        self._cluster = Raylets(1, cpus=cpus, TMPDIR=str(scratch), **surroundings())
        for _ in range(nodes - 1):  # one by one: Ray gives up a node that has not started after 30 s
            self._cluster.add(cpus=cpus)
        self._traces.follow(self._cluster)
        self.problems: list[str] = []

    def __enter__(self) -> Arena:
        return self

    def __exit__(self, *_: object) -> None:
        self._cluster.close()
        self.problems += self._traces.on_machine()

    def run(self, name: str, *, trials: int, kinds: Sequence[str], rng: random.Random) -> dict[str, Any]:
        """Run an experiment while one of each of `kinds` is killed.

        Returns:
            `killed` (kinds in order), `seconds` from the driver's start to the end of its last, `begun` and
            `epochs`: how many epochs were begun, and how many there are.
        """
        driver = Driver(
            self._cluster,
            self._home / name,
            seconds_per_epoch=SECONDS_PER_EPOCH,
            scheduler={"algorithm": "asha", "min_epochs": 1, "max_epochs": 9, "reduction_factor": 3},
            budget={"trials": trials},
            training={"workers": 2, "gangs": 2, "max_failures": len(kinds) + 1},
        )
        begin = time.perf_counter()
        driver.start()
        killed = disturb(driver, kinds, rng)
        driver.finish(TIMEOUT_S)
        seconds = time.perf_counter() - begin
        problems = [*driver.problems(trials), *self._traces.on_cluster()]
        self.problems += [f"{name}: {problem}" for problem in problems]
        begun, epochs = len(driver.begun()), len(set(driver.begun()))
        again = f"{begun - epochs} begun again ({(begun - epochs) / epochs:.1%})"
        print(f"{name:<5}{seconds:7.0f} s, {trials} trials, {epochs} epochs, {again}", flush=True)
        return {"killed": killed, "seconds": seconds, "begun": begun, "epochs": epochs}


def main() -> None:
    """Print the kills, what was repeated and the ratio of times."""
    rng = random.Random(SEED)
    kinds = list(KINDS) * ROUNDS
    rng.shuffle(kinds)
    with (
        tempfile.TemporaryDirectory(prefix="captune-chaos-") as home,
        Arena(Path(home), nodes=3, cpus=2) as arena,
    ):
        calm, hit = (
            arena.run(name, trials=TRIALS, kinds=kills, rng=rng)
            for name, kills in (("calm", []), ("hit", kinds))
        )
    for kind in KINDS:
        print(f"{kind:<12} killed {hit['killed'].count(kind)} times")
    print("\n".join(arena.problems) or "tables whole, nothing left behind")
    assert not arena.problems
    print(f"chaos ratio={hit['seconds'] / calm['seconds']:.2f}")
