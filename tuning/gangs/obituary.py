"""Tells a gang's owner what its workers died of; runs where Ray Train's controller does."""

from __future__ import annotations

import contextlib
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError
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
        errors = worker_exceptions
        with contextlib.suppress(Exception):
            told = self._owner.workers_died.remote(cause(errors), ran_out_of_memory(errors))
            ray.get(told, timeout=TELL_S)


def ran_out_of_memory(worker_exceptions: dict[int, Exception]) -> bool:
    """Whether Ray's memory monitor killed one of them."""
    deaths = (getattr(error, "health_check_failure", None) for error in worker_exceptions.values())
    return any(isinstance(death, OutOfMemoryError) or _names_memory(death) for death in deaths)


def _names_memory(death: Exception | None) -> bool:
    return isinstance(death, RayActorError) and "memory monitor" in str(death).lower()


def cause(worker_exceptions: dict[int, Exception]) -> str:
    """What `worker_exceptions`, by rank, come to in a line; a death tells more than what it entailed."""
    by_rank = sorted(worker_exceptions.items())
    deaths = [each for each in by_rank if hasattr(each[1], "health_check_failure")]
    rank, error = (deaths or by_rank)[0]
    lines = str(getattr(error, "health_check_failure", error)).strip().splitlines() or [repr(error)]
    return f"worker {rank}: {lines[-1].strip()}"[:SHOWN]
