"""What passes between a gang and its owner: a trial one way, its reports or its failure the other.

Plain values, without Ray and torch, so that whoever only decides about trials imports neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from trainables.store import under
from trainables.trial import Metrics


@dataclass(frozen=True, kw_only=True)
class Order:
    """One trial as it is sent to a gang; everything a worker needs to know."""

    run_id: str
    """Unique per sending; tells a trial sent a second time from the first."""
    trial_id: str
    trainable: str
    """A shipped name or `package.module:Class`."""
    config: Mapping[str, Any]
    """Fixed settings and searched hyperparameters, by dotted name; a `CheckpointUrl` is fetched first."""
    data: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    max_epochs: int = 1
    full_epochs: frozenset[int] = frozenset()
    """Epochs after which `evaluate(full=True)` is due: rungs and the last."""
    folder: str = ""
    """Where the trial's checkpoints go, a folder or a URL; below it one for each epoch."""
    epoch: int = 0
    """Epochs done before; training goes on with the next."""
    attempt: int = 1
    slowest_epoch_s: float = 0.0
    """Duration of its slowest epoch so far, seconds; 0.0 before the first."""
    lost: int = 0
    """How often gangs lost it before: workers died under it, and it was moved."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """An epoch is done and its checkpoint stands in `checkpoint_place(order, epoch)`."""

    epoch: int
    metrics: Metrics
    attempt: int
    node: str


@dataclass(frozen=True, kw_only=True)
class Failure:
    """The trial ended badly; its gang lives on."""

    state: Literal["diverged", "failed", "out_of_memory"]
    reason: str
    """One line."""
    error: str = ""
    """Traceback."""


def out_of_memory(order: Order, reason: str) -> Failure:
    """The failure of `order` for lack of memory, with the batch sizes that it had."""
    sizes = [f"{name} {size}" for name, size in order.config.items() if "batch_size" in name]
    return Failure(state="out_of_memory", reason=", ".join([*sizes, reason]))


@dataclass(frozen=True, kw_only=True)
class Moved:
    """The trial leaves its gang though it is not over; it goes on elsewhere, from its last checkpoint."""

    reason: str
    """One line."""
    deaths: int = 0
    """How often the workers died under it here."""
    storage: Literal["", "full", "away"] = ""
    """What kept its checkpoint from being written or read, if that was it."""
    gang_closed: str = ""
    """Why the gang takes no trial any more; empty where it does."""


#: At the end of a checkpoint's name: of a trial that has left in the middle of the next epoch.
WITHIN = ".within"


def checkpoint_place(order: Order, epoch: int, *, within: bool = False) -> str:
    """Folder, or URL, of the checkpoint after `epoch` epochs, or `within` the one that follows."""
    return under(order.folder, f"{epoch:04d}{WITHIN if within else ''}")
