"""What else there is on the Ray cluster that this process is connected to: its nodes."""

from __future__ import annotations

from tuning.gangs.resources import NodeResources


def alive_nodes() -> list[NodeResources]:
    """What each node that lives has, whoever uses it."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
