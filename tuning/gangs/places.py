"""Whether every node sees the folders that a run names, asked before anything starts.

A gang may be anywhere, and what it trains there it reads from `data.path` and writes into `storage`. A folder
that only the head has would fail trial by trial, or worse: results would lie about on the nodes.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainables.places import missing_data
from tuning.experiment import Experiment, ExperimentError

#: A node that does not answer for so long is left out: it may be on its way out.
ANSWER_S = 60.0
#: How long a network file system may take to show what another node has written.
SHOW_S = 5.0


def refuse_unseen_folders(experiment: Experiment) -> None:
    """Ask each node that can train whether it sees the data and the experiment's folder; Ray is connected.

    Raises:
        ExperimentError: one does not. The message names the nodes, the folder and the remedy.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    nodes = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
    nodes = [node for node in nodes if node["Resources"].get("CPU") or node["Resources"].get("GPU")]
    if not nodes:
        return
    ask = ray.remote(num_cpus=0, max_retries=0)(unseen)
    asked: dict[Any, str] = {}
    problems: list[str] = []
    with _marker(experiment) as marker:
        for node in nodes:
            name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked[ask.options(scheduling_strategy=there).remote(experiment.data, marker, name)] = name
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S)
        for answer in answered:
            try:
                problems += ray.get(answer)
            except ray.exceptions.RayTaskError as error:  # Captune is not there, or another version
                problems.append(f"node {asked[answer]} cannot run Captune: {error.cause}")
            except ray.exceptions.RayError:
                pass  # the node is gone by now
    if problems:
        raise ExperimentError(sorted(problems))


def unseen(data: dict[str, Any], marker: Path | None, node: str, show_s: float = SHOW_S) -> list[str]:
    """What this machine, called `node`, does not see, a line each.

    Args:
        data: the experiment's `data` section.
        marker: a file in the experiment's folder, written by the driver; None: storage is no folder.
        show_s: how long it may take until it is seen here, seconds.
    """
    problems = [problem] if (problem := missing_data(data, node)) else []
    if marker is None:
        return problems
    deadline = time.monotonic() + show_s
    while not marker.exists():
        if time.monotonic() > deadline:
            there = "is another folder" if marker.parent.exists() else "is not there"
            remedy = "name a folder that every node sees under the same path (NFS, a shared volume)"
            return [*problems, f"storage: {marker.parent} {there} on node {node}: {remedy}"]
        time.sleep(0.2)
    mine = marker.with_name(f"{marker.name}-{secrets.token_hex(4)}")
    try:
        mine.touch()
        mine.unlink()
    except OSError as error:
        problems.append(f"storage: {marker.parent} cannot be written on node {node}: {error.strerror}")
    return problems


@contextlib.contextmanager
def _marker(experiment: Experiment) -> Iterator[Path | None]:
    """A new file in the experiment's folder while the block runs; None where storage is a URL."""
    if "://" in experiment.storage:
        yield None
        return
    marker = experiment.folder.absolute() / f".seen-{secrets.token_hex(8)}"
    marker.touch()
    try:
        yield marker
    finally:
        marker.unlink(missing_ok=True)
