"""What happens in an experiment, as metrics of Ray: `cluster/metrics.py` says which, this file sets them.

A listener of the events, beside tables and progress: it decides nothing. `tuning` finds it by the entry
points `captune.listeners`. Ray's agent on the driver's node exports what is set here, and forgets a gauge
that was not set anew for 20 s.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, get_args

from cluster.metrics import METRICS
from trainables.store import is_url
from tuning.events import EpochReported, Event, TrialEnded, TrialStarted, TrialState
from tuning.search.search import LOST
from tuning.tables.comparison import WENT_WRONG
from tuning.tables.ledger import Ledger
from tuning.tables.schema import figure_column

if TYPE_CHECKING:
    from tuning.experiment import Experiment

#: Seconds between two times that all gauges are set; Ray exports them every 10 s.
REFRESH_S = 3.0
#: Seconds between two looks at the size of the checkpoints.
WEIGH_S = 30.0
TAGS = {each.name: each.tags for each in METRICS}

#: What is counted as a fault.
FAULTS = ("restart", "lost", "gang_closed", *sorted(WENT_WRONG))


class Gauge(Protocol):
    """`ray.util.metrics.Gauge`, or what stands in for it."""

    def set(self, value: float, tags: dict[str, str]) -> None:
        """Remember `value` for these tags."""


def ray_gauges() -> dict[str, Gauge]:
    """All metrics by name, as Ray's."""
    from ray.util import metrics

    return {each.name: metrics.Gauge(each.name, each.meaning, each.tags) for each in METRICS}


class MetricsListener:
    """Keeps the metrics of an experiment.

    Args:
        experiment: what runs; where its folder has tables, the trials in them count.
        title: the tag `experiment`, by default the experiment's name.
        gauges: by metric's name.
        clock: seconds that only grow.
        now: the time of day, UTC.
    """

    def __init__(
        self,
        experiment: Experiment,
        title: str = "",
        *,
        gauges: Mapping[str, Gauge] | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ):
        self._title, self._gauges, self._clock = title or experiment.name, gauges or ray_gauges(), clock
        self._objectives = [each.metric for each in experiment.objectives]
        self._ledger = Ledger(experiment)
        self._ledger.take_up(experiment.folder)
        for row in self._ledger.trials.values():
            if row["state"] == "running":  # before the interruption; it runs again when it is started again
                row["state"] = "paused"
        self._attempts = {trial: row["restarts"] + 1 for trial, row in self._ledger.trials.items()}
        self._waiting_since: dict[str, datetime] = {}  # by trial
        # Of an object store nobody knows what is in it without listing all.
        self._storage = None if is_url(experiment.storage) else Storage(experiment.folder)
        self._last_refresh = self._last_weighing = -float("inf")
        # By metric, and by the value of its tag beside `experiment`, where it has one.
        self._values: dict[tuple[str, str], float] = {
            ("captune_last_epoch_timestamp_seconds", ""): now().timestamp(),
            ("captune_runs", ""): 0.0,
            ("captune_queue_wait_seconds", ""): 0.0,
            **{
                ("captune_faults", kind): 0.0
                for kind in ("restart", "lost", "gang_closed", *sorted(WENT_WRONG))
            },
        }
        if (quota_gb := experiment.checkpoints.max_gb) is not None:
            self._values["captune_checkpoint_quota_bytes", ""] = quota_gb * 1e9

    def handle(self, event: Event) -> None:
        """Count the event."""
        self._ledger.apply(event)
        if isinstance(event, TrialStarted):
            self._waiting_since.setdefault(event.trial_id, event.at)
        elif isinstance(event, EpochReported):
            self._epoch(event)
        elif isinstance(event, TrialEnded):
            self._end(event)
        else:
            self._add("captune_faults", 1, "gang_closed")
        self.tick()

    def tick(self) -> None:
        """Set all gauges, if it is time."""
        now = self._clock()
        if self._storage is not None and now - self._last_weighing >= WEIGH_S:
            self._last_weighing = now
            self._storage.weigh()
        if now - self._last_refresh >= REFRESH_S:
            self._last_refresh = now
            self._refresh()

    def close(self) -> None:
        """Set all gauges a last time."""
        if self._storage is not None:
            self._storage.close()
        self._refresh()

    def _epoch(self, event: EpochReported) -> None:
        gang, seconds = event.gang, event.metrics.get("seconds", 0.0)
        since = self._waiting_since.pop(event.trial_id, None)
        if since is not None:  # the first epoch of this run
            self._add("captune_runs", 1)
            waited_s = (event.at - since).total_seconds() - seconds
            self._add("captune_queue_wait_seconds", max(0.0, waited_s))
        restarts = event.attempt - self._attempts.get(event.trial_id, 1)
        self._attempts[event.trial_id] = event.attempt
        self._add("captune_faults", restarts, "restart")
        self._add("captune_gang_restarts", restarts, gang)
        self._add("captune_epochs", 1, gang)
        self._add("captune_gang_busy_seconds", seconds, gang)
        self._values["captune_gang_epoch_seconds", gang] = seconds
        if (speed := event.metrics.get("images_per_s")) is not None:
            self._values["captune_gang_images_per_second", gang] = speed
        self._values["captune_last_epoch_timestamp_seconds", ""] = event.at.timestamp()

    def _end(self, event: TrialEnded) -> None:
        self._waiting_since.pop(event.trial_id, None)
        if event.state in WENT_WRONG:
            self._add("captune_faults", 1, event.state)
        elif event.state == "paused" and event.reason.startswith(LOST):
            self._add("captune_faults", 1, "lost")
            self._attempts[event.trial_id] = self._attempts.get(event.trial_id, 1) + 1
            self._waiting_since[event.trial_id] = event.at

    def _refresh(self) -> None:
        states = Counter(row["state"] for row in self._ledger.trials.values())
        for state in get_args(TrialState):
            self._values["captune_trials", state] = states[state]
        if (best := self._ledger.best()) is not None:
            for metric in self._objectives:
                self._values["captune_best_objective", metric] = best[figure_column(metric)]
        if self._storage is not None and (size := self._storage.size) is not None:
            self._values["captune_checkpoint_bytes", ""] = size.checkpoints
            self._values["captune_storage_free_bytes", ""] = size.free
        for (name, value_of_tag), value in self._values.items():
            tags = zip(TAGS[name], (self._title, value_of_tag), strict=False)
            self._gauges[name].set(float(value), dict(tags))

    def _add(self, name: str, amount: float, value_of_tag: str = "") -> None:
        self._values[name, value_of_tag] = self._values.get((name, value_of_tag), 0.0) + amount


class Size(NamedTuple):
    """What an experiment's folder holds, in bytes."""

    checkpoints: int
    free: int
    """Left on its file system."""


class Storage:
    """Weighs an experiment's folder in a thread: storage may be slow, and the driver's loop must not wait."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._thread = ThreadPoolExecutor(1, "storage")
        self._weighing: Future[None] | None = None
        self.size: Size | None = None
        """As of the last look; None before there was one."""

    def weigh(self) -> None:
        """Look again, unless it is being looked at."""
        if self._weighing is None or self._weighing.done():
            self._weighing = self._thread.submit(self._weigh)

    def close(self) -> None:
        """Look a last time, and wait for it."""
        self._thread.submit(self._weigh)
        self._thread.shutdown()

    def _weigh(self) -> None:
        free = shutil.disk_usage(self._folder).free
        self.size = Size(folder_bytes(self._folder / "checkpoints"), free)


def folder_bytes(folder: Path) -> int:
    """Size of all files in `folder`; 0 where there is none, and for what is deleted meanwhile."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except OSError:
                continue
    return total
