"""This machine as a Ray cluster that stays up: started, found again, ended whole.

The cluster is one `ray start --head --block`, the leader of a session of its own, in a folder of its own. A
file remembers its pid and when it was created, as pids are used again; whatever else runs in that session,
or descends from it, belongs to it, and nothing else is ever ended. What runs on it is asked of `jobs.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import filelock
import psutil

from tuning.driver import SAME_S, created_after_boot_s

START_S = 120.0
LEAVE_S = 10.0
LOG = "ray_start.log"
LOOPBACK = "127.0.0.1"
#: Ray's GCS, raylet and workers then listen on loopback, too, as they do on a Mac, not on all interfaces. Who
#: joins must have it: else Ray takes 127.0.0.1 for this machine's address to the outside.
LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


class PortTaken(ValueError):
    """Something listens on the port that the dashboard should have."""


class StartFailed(RuntimeError):
    """Ray did not come up; the message ends with what it said."""


@dataclass(frozen=True, kw_only=True)
class LocalCluster:
    """A cluster that `up` started, as the file of its state remembers it."""

    pid: int
    """Of `ray start`, which leads the session of all its processes."""
    since_boot_s: float
    """When that process was created, see `created_after_boot_s`."""
    gcs_address: str
    """What `RAY_ADDRESS` must be to join it: `127.0.0.1:PORT`."""
    dashboard: str
    """The dashboard's URL, which is the job server's, too."""
    folder: str
    """Where Ray keeps its sockets and logs; removed with the cluster."""

    @property
    def runs(self) -> bool:
        """Whether its first process does."""
        return _lives_since(self.pid) is not None and not self._pid_is_used_again

    def processes(self) -> set[psutil.Process]:
        """All that lives of it."""
        return set() if self._pid_is_used_again else family(self.pid)

    @property
    def _pid_is_used_again(self) -> bool:
        """Then nothing of the cluster lives: a session keeps its number to itself."""
        since = _lives_since(self.pid)
        return since is not None and abs(since - self.since_boot_s) > SAME_S


def state_file() -> Path:
    """Where the cluster of this user is remembered: under `XDG_STATE_HOME`, by default `~/.local/state`."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "captune" / "cluster.json"


def find() -> LocalCluster | None:
    """The cluster that `up` started, or None where it is not, or no longer, up."""
    remembered = _remembered()
    return remembered if remembered is not None and remembered.runs else None


@contextlib.contextmanager
def changing() -> Iterator[None]:
    """One process at a time starts or ends the cluster. Wrap `find` together with what depends on it."""
    state_file().parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(state_file().with_suffix(".lock")):
        yield


def up(*, port: int, cpus: int | None = None, gpus: int | None = None) -> LocalCluster:
    """Start a head node on this machine, on loopback; it asks for the token that `ensure_token` made sure of.

    Args:
        port: of the dashboard.
        cpus: cores to offer; default: all.
        gpus: GPUs to offer; default: those that Ray finds.

    Raises:
        PortTaken: `port` is in use.
        StartFailed: Ray ended, or was not up within two minutes.
    """
    forget()
    if not _is_free(port):
        raise PortTaken(f"port {port} is in use: choose another for the dashboard with --port")
    # Ray's sockets lie in it, and their paths must be short: a folder of the user's may be too deep.
    folder = Path(tempfile.mkdtemp(prefix="captune-ray-"))
    client, metrics, agent = _free_ports(3)
    options = {
        "port": 0,
        "dashboard-host": LOOPBACK,
        "dashboard-port": port,
        "ray-client-server-port": client,
        "metrics-export-port": metrics,
        "dashboard-agent-listen-port": agent,
        "min-worker-port": 0,
        "max-worker-port": 0,
        "temp-dir": folder,
        "num-cpus": cpus,
        "num-gpus": gpus,
    }
    words = [f"--{name}={value}" for name, value in options.items() if value is not None]
    with (folder / LOG).open("w") as log:
        leader = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", *words],
            env={**os.environ, **LOOPBACK_ONLY, "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    cluster = LocalCluster(
        pid=leader.pid,
        since_boot_s=created_after_boot_s(psutil.Process(leader.pid)),
        gcs_address="",
        dashboard=f"http://{LOOPBACK}:{port}",
        folder=str(folder),
    )
    _remember(cluster)  # from here on `down` ends it, whatever happens to this process
    try:
        cluster = dataclasses.replace(cluster, gcs_address=_await_address(leader, folder))
    except BaseException:
        down(cluster)
        raise
    _remember(cluster)
    return cluster


def down(cluster: LocalCluster) -> None:
    """End all of `cluster`'s processes, by force where they do not go, and remove its folder."""
    everything = cluster.processes()
    if cluster.runs:
        with contextlib.suppress(ProcessLookupError):
            os.kill(cluster.pid, signal.SIGTERM)
        psutil.wait_procs(everything, timeout=LEAVE_S)
    while alive := {process for process in everything if _lives(process)} | cluster.processes():
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=1)
    shutil.rmtree(cluster.folder, ignore_errors=True)
    state_file().unlink(missing_ok=True)


def forget() -> None:
    """Take away what is left of a cluster that ended by itself."""
    if (dead := _remembered()) is not None:
        down(dead)


def family(leader: int) -> set[psutil.Process]:
    """All living processes of the session that `leader` began, and whatever descends from these.

    A job's command has a session of its own. Workers that lost their parents are still in the session.
    """
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.NoSuchProcess):
            if os.getsid(process.pid) == leader:
                found |= {process, *process.children(recursive=True)}
    return {process for process in found if _lives(process)}


def _lives_since(pid: int) -> float | None:
    """When the living process `pid` was created, see `created_after_boot_s`; None where there is none."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return created_after_boot_s(process) if _lives(process) else None
    return None


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _await_address(leader: subprocess.Popen, folder: Path) -> str:
    """Where Ray listens; it writes that down when it is up."""
    address, deadline = folder / "ray_current_cluster", time.monotonic() + START_S
    while not address.exists() or not address.read_text():
        if leader.poll() is not None or time.monotonic() > deadline:
            said = (folder / LOG).read_text().strip().splitlines()[-5:]
            raise StartFailed("\n".join(["Ray did not come up; the last that it said:", *said]))
        time.sleep(0.2)
    return address.read_text().strip()


def _remembered() -> LocalCluster | None:
    try:
        return LocalCluster(**json.loads(state_file().read_text()))
    except (FileNotFoundError, ValueError, TypeError):  # none, or not of this version
        return None


def _remember(cluster: LocalCluster) -> None:
    aside = state_file().with_suffix(".aside")
    aside.write_text(json.dumps(dataclasses.asdict(cluster)))
    aside.rename(state_file())


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((LOOPBACK, 0))
        return [probe.getsockname()[1] for probe in probes]
