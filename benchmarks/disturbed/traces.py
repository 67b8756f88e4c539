"""What a run leaves on machine and cluster: processes, shared memory, temporary files, actors, groups."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from typing import Any

import psutil

LOOK_S = 1.0
GRACE_S = 40.0
#: Actors that Ray starts once for a cluster, and keeps.
RAYS_OWN = frozenset({"_AutoscalingCoordinatorActor", "TrainStateActor"})
#: The socket of the server from which Ray's dashboard forks its modules, one for each head; and a folder for
#: compiled kernels that torch makes once for a user, and leaves empty.
NOT_OURS = ("pymp-*", "torchinductor_*")


class Traces:
    """Follows the processes of a cluster, and their segments of shared memory, as long as the block lasts.

    A machine may have other work: what is found at the end counts only if it was seen in these processes.

    Args:
        scratch: the folder that the processes have for temporary files, `TMPDIR`.
    """

    def __init__(self, scratch: Path):
        self._scratch = scratch
        self._processes: set[psutil.Process] = set()
        self._segments: set[Path] = set()
        self._cluster: Any = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def follow(self, cluster: Any) -> None:
        """Begin, with this cluster."""
        self._cluster = cluster
        self._thread.start()

    def on_cluster(self) -> list[str]:
        """Actors and placement groups that are there though no run is, after a moment of grace."""
        return _settled(self._actors_and_groups)

    def on_machine(self) -> list[str]:
        """What is there after the cluster was ended."""
        self._over.set()
        self._thread.join()
        return _settled(self._left)

    def _follow(self) -> None:
        while not self._over.wait(LOOK_S):
            for node in list(self._cluster.nodes.values()):
                for process in node.processes():
                    self._processes.add(process)
                    self._segments |= _segments(process)

    def _actors_and_groups(self) -> list[str]:
        asked = {
            kind: self._cluster.ask(f"/api/v0/{kind}?limit=10000") for kind in ("actors", "placement_groups")
        }
        found = {kind: answer["data"]["result"]["result"] for kind, answer in asked.items()}
        actors = [each["class_name"] for each in found["actors"] if each["state"] != "DEAD"]
        groups = [each for each in found["placement_groups"] if each["state"] != "REMOVED"]
        return [
            *(f"actor {name}" for name in actors if name not in RAYS_OWN),
            *(f"placement group {each['placement_group_id']} {each['state']}" for each in groups),
        ]

    def _left(self) -> list[str]:
        alive = [process for process in self._processes if process.is_running()]
        names = [_name(process) for process in alive]
        return [
            *(f"process {name}" for name in names if name),
            *(f"shared memory {path}" for path in sorted(self._segments) if path.exists()),
            *(f"temporary file {path.name}" for path in self._files()),
        ]

    def _files(self) -> list[Path]:
        every = sorted(self._scratch.iterdir())
        return [path for path in every if not any(path.match(pattern) for pattern in NOT_OURS)]


def _segments(process: psutil.Process) -> set[Path]:
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
        words = [line.split(maxsplit=5) for line in lines if "/dev/shm/" in line]
        return {Path(each[5]) for each in words if not each[5].endswith("(deleted)")}
    return set()


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess):
        if process.status() != psutil.STATUS_ZOMBIE:
            return " ".join(process.cmdline())[:80]
    return ""


def _settled(look: Any) -> list[str]:
    """What `look` finds still after a moment of grace."""
    deadline = time.monotonic() + GRACE_S
    while (found := look()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return found
