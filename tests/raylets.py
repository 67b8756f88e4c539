"""A real Ray cluster of several nodes on this machine, for tests: nodes join, are killed, and leave no trace.

Every node is a `ray start --block`, as on a machine of its own: with its processes, ports, folder, object
store and address in 127.0.0.0/8, so that tables and dashboard tell the nodes apart. All ask for a token.

Ray's own `ray.cluster_utils.Cluster` is not used: it takes the token of the test's process, where Ray reads
one only once and the session's Ray needs another; it writes the address that every `ray.init()` on this
machine finds; and it kills a node's services, not its workers.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil

from cluster.local import family

#: Ray's command; the kernel tells it when the tests die, and it ends with all that it started.
RAY = [
    sys.executable,
    "-c",
    "import ctypes, signal; ctypes.CDLL(None).prctl(1, signal.SIGTERM)\n"
    "from ray.scripts.scripts import main; main()",
]
#: A node sees its own processes only: a driver on it takes it for its own, as on a real machine,
#: and not the head beside it. Needs the right to make PID namespaces.
APART = ["unshare", "--pid", "--fork", "--mount-proc"]
OBJECT_STORE_BYTES = 100 * 1024**2
START_S = 120


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Raylet:
    """One node: `name`, `ip`, `cpus`, `pid` of its `ray start`, and whatever that has started since."""

    def __init__(self, name, ip, cpus, folder, options, environment, apart=False):
        self.name, self.ip, self.cpus, self.folder = name, ip, cpus, folder
        folder.mkdir()
        ports = ["dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port"]
        ports = [f"--{each}={port}" for each, port in zip(ports, free_ports(len(ports)), strict=True)]
        command = [
            *(APART if apart else []),
            *RAY,
            "start",
            "--block",
            "--disable-usage-stats",
            f"--node-name={name}",
            *ports,
        ]
        command += [f"--node-ip-address={ip}", f"--object-store-memory={OBJECT_STORE_BYTES}"]
        command += [f"--temp-dir={folder}", "--min-worker-port=0", "--max-worker-port=0"]
        command += [f"--num-cpus={cpus}", *options]
        with (folder / "ray_start.log").open("w") as log:
            # A session of its own, by which its processes are found even where their parents are gone.
            self._starter = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        self.pid = self._starter.pid

    @property
    def log(self):
        """What its `ray start` said."""
        return (self.folder / "ray_start.log").read_text()

    @property
    def runs(self):
        """Whether its `ray start` does."""
        return self._starter.poll() is None

    def processes(self):
        """All that lives of the node: its services, agents, workers, and the commands of jobs on it."""
        return family(self.pid)

    def kill(self):
        """End it as a power cut would: nothing of it gets to say a word."""
        while family := self.processes():
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(family, timeout=1)
        self._starter.wait()


class Raylets:
    """A cluster of nodes with `cpus` cores each, the head, the first, with `head_cpus`. A context manager.

    The others see each their own processes only where they are to be `apart`. With `most`, Ray's autoscaler
    adds nodes of `cpus` cores, up to so many beside the head; they are processes of the head's.

    `address` is the dashboard's, `environment` what a process needs to have the right token (and whatever is
    given as `environment`), `nodes` those that were not killed, by name.
    """

    def __init__(self, count, *, cpus=1, head_cpus=None, apart=False, most=None, **environment):
        # Ray's sockets lie in its folders, and their paths must be short.
        self.folder = Path(tempfile.mkdtemp(prefix="captune-"))
        self._token = secrets.token_hex(32)
        (self.folder / "token").write_text(self._token)
        outer = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.folder / "token")}
        self.environment = outer | token | environment
        self.nodes, self._started, self._apart = {}, 0, apart
        try:
            names = ["port", "dashboard-port", "ray-client-server-port"]
            ports = dict(zip(names, free_ports(len(names)), strict=True))
            self.address = f"http://127.0.0.1:{ports['dashboard-port']}"
            options = [f"--{name}={port}" for name, port in ports.items()]
            self._head_options = ["--head", "--dashboard-host=127.0.0.1", *options]
            self._head_cpus = cpus if head_cpus is None else head_cpus
            if most is not None:
                self._scale(most, cpus, f"127.0.0.2:{ports['port']}")
            self.head = self._start(*self._head_options, cpus=self._head_cpus)
            self.gcs_address = f"{self.head.ip}:{ports['port']}"
            self._wait_for_nodes()
            for _ in range(count - 1):
                self._join(cpus)
            self._wait_for_nodes()
        except BaseException:
            self.close()
            raise

    def _scale(self, most, cpus, gcs_address):
        """As `ray.cluster_utils.AutoscalingCluster` does it."""
        worker = {"resources": {"CPU": cpus}, "node_config": {}, "min_workers": 0, "max_workers": most}
        head = {"resources": {"CPU": self._head_cpus}, "node_config": {}, "max_workers": 0}
        steps = (
            "initialization",
            "setup",
            "head_setup",
            "worker_setup",
            "head_start_ray",
            "worker_start_ray",
        )
        config = {
            **{f"{step}_commands": [] for step in steps},
            **{"file_mounts": {}, "cluster_synced_files": [], "auth": {}},
            "cluster_name": "fake",
            "max_workers": most,
            "idle_timeout_minutes": 0.1,
            "provider": {
                "type": "fake_multinode",
                "gcs_address": gcs_address,
                "disable_node_updaters": True,
                "use_node_id_as_ip": True,
            },
            "available_node_types": {"ray.head.default": head, "worker": worker},
            "head_node_type": "ray.head.default",
        }
        (self.folder / "autoscaling.json").write_text(json.dumps(config))
        self._head_options.append(f"--autoscaling-config={self.folder / 'autoscaling.json'}")
        self.environment |= {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
        self.environment["RAY_OVERRIDE_NODE_ID_FOR_TESTING"] = "f" * 51 + "0" * 5  # the head's

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def add(self, *, cpus=1):
        """Let a node join; returns it when the cluster knows it."""
        node = self._join(cpus)
        self._wait_for_nodes()
        return node

    def kill(self, node):
        """Kill -9 a whole node, as if its machine were gone."""
        del self.nodes[node.name]
        node.kill()

    def restart_head(self, *, down_s):
        """Kill -9 the head, and start it again at the same address, which a proxy or DNS would see to."""
        self.kill(self.head)
        time.sleep(down_s)
        self.head = self._start(*self._head_options, cpus=self._head_cpus, ip=self.head.ip)
        self._wait_for_nodes()

    def ask(self, path):
        """What the dashboard's API answers under `path`, as JSON."""
        header = {"Authorization": f"Bearer {self._token}"}
        with urllib.request.urlopen(urllib.request.Request(self.address + path, headers=header)) as answer:
            return json.load(answer)

    def close(self):
        """End everything, and remove its folder. By force: in good order takes Ray up to half a minute."""
        for node in [*self.nodes.values()][::-1]:  # the head last
            node.kill()
        self.nodes.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _join(self, cpus):
        return self._start(f"--address={self.gcs_address}", "--include-log-monitor=false", cpus=cpus)

    def _start(self, *options, cpus, ip=None):
        self._started += 1
        # From 127.0.0.2 on: Ray takes 127.0.0.1 for this machine's address to the outside.
        name, ip = f"node-{self._started}", ip or f"127.0.0.{self._started + 1}"
        folder = self.folder / str(self._started)
        apart = self._apart and "--head" not in options
        self.nodes[name] = Raylet(name, ip, cpus, folder, options, self.environment, apart)
        return self.nodes[name]

    def _wait_for_nodes(self):
        deadline = time.monotonic() + START_S
        while not set(self.nodes) <= self._alive():
            for node in self.nodes.values():
                assert node.runs and time.monotonic() < deadline, node.log
            time.sleep(0.3)

    def _alive(self):
        with contextlib.suppress(urllib.error.URLError, ConnectionError, KeyError, TypeError):
            found = self.ask("/api/v0/nodes")["data"]["result"]["result"]
            return {node["node_name"] for node in found if node["state"] == "ALIVE"}
        return set()
