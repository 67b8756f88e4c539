"""Whom to disturb: the processes of a run by what they are, found and ended with SIGKILL, or made to hang."""

from __future__ import annotations

import contextlib
import random
import time
from typing import Any

import psutil

from benchmarks.disturbed.driver import Driver

#: Ray names its worker processes after the actor and the method they are at.
ACTORS = {
    "worker": "RayTrainWorker",
    "trial actor": "TrialActor",
    "gang owner": "GangOwner",
    "controller": "TrainController",
}
KINDS = (*ACTORS, "driver", "node")
#: Not killed but stopped in mid-epoch (SIGSTOP): only its silence tells.
HUNG = "hung worker"


def kill(kind: str, driver: Driver, rng: random.Random, *, patience_s: float = 60) -> float | None:
    """Kill one of a kind, or make it hang; what a cluster or a person would start again is started again.

    Returns:
        When it was, Unix time; None where there was none for `patience_s`, or the experiment is at its end.
    """
    deadline = time.monotonic() + patience_s
    while driver.runs and time.monotonic() < deadline:
        if kind == "driver":
            driver.kill()
            killed = time.time()
            driver.start()
            return killed
        if kind == "node":
            nodes = [node for node in _at_work(driver) if node != driver.cluster.head]
            if nodes:
                node = rng.choice(nodes)
                driver.cluster.kill(node)
                killed = time.time()
                driver.cluster.add(cpus=node.cpus)
                return killed
        elif found := processes(driver.cluster, ACTORS["worker" if kind == HUNG else kind]):
            with contextlib.suppress(psutil.NoSuchProcess):
                victim = rng.choice(found)
                (victim.suspend if kind == HUNG else victim.kill)()
                return time.time()
        time.sleep(0.1)  # for a moment a process may have no name
    return None


def processes(cluster: Any, actor: str) -> list[psutil.Process]:
    """Processes of the cluster that are such an actor, in a fixed order."""
    return [process for node in cluster.nodes.values() for process in _named(node, actor)]


def _named(node: Any, actor: str) -> list[psutil.Process]:
    found = []
    for process in sorted(node.processes(), key=lambda each: each.pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            title = " ".join(process.cmdline())
            if title.startswith("ray::") and actor in title:
                found.append(process)
    return found


def _at_work(driver: Driver) -> list[Any]:
    """Nodes on which workers of a gang are."""
    return [node for node in driver.cluster.nodes.values() if _named(node, ACTORS["worker"])]
