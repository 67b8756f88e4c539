"""Tells a gang's owner what its workers died of; runs where Ray Train's controller does."""

from __future__ import annotations

import contextlib
from typing import Any

import ray
from ray.train import UserCallback

TELL_S = 10.0  # how long an owner may take to listen
SHOWN = 200  # characters of a cause


class Obituary(UserCallback):
    """Called by Ray Train whenever workers died or raised.

    Args:
        owner: actor handle of the gang's owner.
    """

    def __init__(self, owner: Any):
        self._owner = owner

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Tell the owner; where it does not answer, it will see new workers."""
        with contextlib.suppress(Exception):
            ray.get(self._owner.workers_died.remote(cause(worker_exceptions)), timeout=TELL_S)


def cause(worker_exceptions: dict[int, Exception]) -> str:
    """What `worker_exceptions`, by rank, come to in a line; a death tells more than what it entailed."""
    by_rank = sorted(worker_exceptions.items())
    deaths = [each for each in by_rank if hasattr(each[1], "health_check_failure")]
    rank, error = (deaths or by_rank)[0]
    lines = str(getattr(error, "health_check_failure", error)).strip().splitlines() or [repr(error)]
    return f"worker {rank}: {lines[-1].strip()}"[:SHOWN]
