"""What a node must see of what an experiment names, and what is said where it does not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: What can be done about data that only some nodes have.
REMEDY = (
    "put the data into a folder that every node sees under the same path (NFS, a shared volume), "
    "or copy them there on each"
)


def missing_data(data: Mapping[str, Any], node: str) -> str:
    """Why the `data` section cannot be used on this machine: its `path` is not there; empty where it is.

    Args:
        node: what this machine is called.
    """
    path = data.get("path")
    if path is None or Path(path).expanduser().exists():
        return ""
    return f"data.path: {path} is not there on node {node}: {REMEDY}"
