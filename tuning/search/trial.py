"""A trial as the search sees it, and one that a driver is to run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass
class Trial:
    """A trial that is not over, as the search sees it."""

    trial_id: str
    config: Mapping[str, Any]
    epoch: int = 0
    """Epochs reported; of a fork at first those of its parent's checkpoint."""
    parent: str | None = None
    """trial_id of the trial from whose checkpoint it starts."""
    parent_epoch: int = 0
    why: str = ""
    """One line: why its configuration was chosen, or why it went on last."""
    attempt: int = 1
    lost: int = 0
    """How often a driver lost the trial (its actor or its node died)."""
    slowest_epoch_s: float = 0.0
    seconds: float = 0.0
    """What its epochs took in all."""
    since: datetime | None = None
    """When its last epoch was reported, or what runs now began."""
    finite: bool = True
    """Whether its last figures can be compared at all."""
    halvings: int = 0
    """How often its micro batch was halved, for lack of memory."""

    @property
    def epoch_s(self) -> float:
        """What an epoch of it takes, seconds; 0.0 before the first."""
        return self.seconds / max(1, self.epoch - self.parent_epoch)

    @property
    def new_fork(self) -> bool:
        """Whether what it goes on from is still its parent's."""
        return self.parent is not None and self.epoch == self.parent_epoch


@dataclass(frozen=True, kw_only=True)
class Run:
    """A trial to be run now, from the epoch after `epoch`."""

    trial_id: str
    config: Mapping[str, Any]
    epoch: int
    attempt: int
    slowest_epoch_s: float
    """Duration of its slowest epoch so far, seconds; 0.0 before the first."""
    lost: int
    """How often it was lost before."""
    halvings: int
    """How often its micro batch is halved, for lack of memory."""
