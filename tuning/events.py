"""What happens in an experiment, as values: the one stream that tables, progress and resume are made of.

The runner emits events in order; listeners (the results writer, the progress display) only handle them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol

TrialState = Literal["running", "paused", "completed", "stopped", "diverged", "failed", "out_of_memory"]

#: States in which a trial never runs again.
FINAL_STATES = frozenset({"completed", "stopped", "diverged", "failed", "out_of_memory"})


@dataclass(frozen=True, kw_only=True)
class TrialStarted:
    """A trial got its configuration and was handed to a gang; also sent when a resumed run takes it up."""

    trial_id: str
    config: Mapping[str, Any]
    """Searched hyperparameters by dotted name; a conditional one that is not active is absent."""
    at: datetime
    """UTC, timezone-aware."""
    why: str = ""
    """One line for a person: why it starts or goes on now."""
    chosen: str = ""
    """Likewise: why it has this configuration."""
    parent: str | None = None
    """trial_id of the trial from whose checkpoint it goes on; None: it starts from nothing."""
    parent_epoch: int = 0
    """Epochs of that checkpoint; its own are numbered on from there."""
    halvings: int = 0
    """How often its micro batch is halved, for lack of memory."""


@dataclass(frozen=True, kw_only=True)
class EpochReported:
    """A trial finished an epoch; its checkpoint is on storage."""

    trial_id: str
    epoch: int
    """1-based number of epochs done."""
    attempt: int
    """1, and one more for each time that a worker of the trial had to be replaced."""
    metrics: Mapping[str, float]
    """Figures of the trainable plus the gang's own: seconds, worker_s, peak_memory_mb."""
    checkpoint: str
    """Folder of the checkpoint, relative to the experiment's folder."""
    gang: str
    node: str
    at: datetime
    rung: int | None = None
    """Index of the rung (0 is the lowest) where the scheduler compared the trial here; None between rungs."""
    lost_worker_s: float = 0.0
    """Seconds of work, summed over workers, of those that began the same epoch and had to be replaced."""


@dataclass(frozen=True, kw_only=True)
class TrialEnded:
    """A trial reached a final state, or was put aside (`paused`)."""

    trial_id: str
    state: TrialState
    reason: str
    """One line for a person: "rung 1: 0.21 is below the cut at 0.25", "all 9 epochs done"."""
    at: datetime
    error: str = field(default="")
    """Traceback, where there was one."""
    lost_worker_s: float = 0.0
    """Seconds of work since its last epoch, summed over workers: it came to nothing."""


@dataclass(frozen=True, kw_only=True)
class GangClosed:
    """A gang failed whatever trial it had, and takes none any more."""

    gang: str
    reason: str
    """One line."""
    at: datetime


Event = TrialStarted | EpochReported | TrialEnded | GangClosed


class Listener(Protocol):
    """Anything that follows an experiment."""

    def handle(self, event: Event) -> None:
        """Take notice of `event`. Must not block: it runs in the driver's loop."""

    def tick(self) -> None:
        """Called several times a second, also while nothing happens: put off work is done here."""

    def close(self) -> None:
        """The run is over, finished or interrupted."""
