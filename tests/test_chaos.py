"""A run whose processes are killed one after the other: all trials accounted for, nothing left behind."""

import random
import subprocess
import sys
import time
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest

from benchmarks.chaos import Arena
from benchmarks.disturbed.traces import Traces
from benchmarks.disturbed.victims import ACTORS, processes


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_kills_lose_nothing_and_nothing_remains(monkeypatch):
    monkeypatch.setattr("benchmarks.chaos.PAUSES_S", (0.5, 1.5))  # before the other gang is through with all
    kinds = ["worker", "trial actor", "driver"]
    # Not pytest's folder: sockets lie in it, whose paths may have some hundred characters.
    with TemporaryDirectory() as home, Arena(Path(home), nodes=1, cpus=4) as arena:
        figures = arena.run("hit", trials=24, kinds=kinds, rng=random.Random(0))
    assert figures["killed"] == kinds
    assert arena.problems == []
    # Each kill hits an epoch of one gang, that of the driver of all.
    assert figures["begun"] - figures["epochs"] <= 2 * len(kinds)


class Node:
    """A cluster of one node, whose only process is this one."""

    def __init__(self, actors=(), groups=()):
        self.answers = {"actors": list(actors), "placement_groups": list(groups)}
        self.nodes = {"only": self}

    def processes(self):
        return {psutil.Process()}

    def ask(self, path):
        kind = path.removeprefix("/api/v0/").partition("?")[0]
        return {"data": {"result": {"result": self.answers[kind]}}}


@pytest.fixture
def no_grace(monkeypatch):
    monkeypatch.setattr("benchmarks.disturbed.traces.GRACE_S", 0.0)
    monkeypatch.setattr("benchmarks.disturbed.traces.LOOK_S", 0.05)


def test_what_lives_on_the_cluster_is_named(tmp_path, no_grace):
    traces = Traces(tmp_path)
    traces.follow(
        Node(
            actors=[
                {"class_name": "GangOwner", "state": "ALIVE"},
                {"class_name": "TrialActor", "state": "DEAD"},
                {"class_name": "TrainStateActor", "state": "ALIVE"},
            ],
            groups=[
                {"placement_group_id": "ab", "state": "CREATED"},
                {"placement_group_id": "cd", "state": "REMOVED"},
            ],
        )
    )
    assert traces.on_cluster() == ["actor GangOwner", "placement group ab CREATED"]


def test_processes_segments_and_files_are_named(tmp_path, no_grace):
    (tmp_path / "tmpabc").touch()
    (tmp_path / "pymp-abc").mkdir()
    segment = SharedMemory(create=True, size=16)
    try:
        traces = Traces(tmp_path)
        traces.follow(Node())
        time.sleep(0.5)
        found = traces.on_machine()
    finally:
        segment.close()
        segment.unlink()
    process, memory, file = found
    assert process.startswith("process ") and Path(sys.executable).name in process
    assert memory == f"shared memory /dev/shm/{segment.name}"
    assert file == "temporary file tmpabc"


def test_victims_are_found_by_what_they_are():
    sleeper = subprocess.Popen(["ray::RayTrainWorker.execute", "60"], executable="/bin/sleep")
    try:
        cluster = Node()
        cluster.processes = lambda: {psutil.Process(), psutil.Process(sleeper.pid)}
        assert [each.pid for each in processes(cluster, ACTORS["worker"])] == [sleeper.pid]
        assert processes(cluster, ACTORS["gang owner"]) == []
    finally:
        sleeper.kill()
        sleeper.wait()
