"""The metrics of an experiment, defined once: name, tags, meaning.

README's table, the Grafana dashboard and the alert rules (`cluster/monitoring/`) are held to this list by
`tests/test_monitoring.py`; `cluster/metrics_listener.py` sets them. Ray puts `ray_` before the names and adds
tags of its own. Units are in the names, as Prometheus has it.

All are gauges, also those that only grow. Ray keeps a counter's series until the node ends, one for every
gang that ever was, and cannot start it at 0, so that `increase` would never see the first fault. A gauge that
is no longer set is gone after 20 s, with the run that it tells of.
"""

from __future__ import annotations

from dataclasses import dataclass

#: What Ray puts before a metric's name.
PREFIX = "ray_"


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric, a gauge."""

    name: str
    tag: str = ""
    """Its tag beside `experiment`, if it has one."""
    meaning: str
    grows: bool = False
    """It never falls while its run lasts: `rate` and `increase` mean something."""

    @property
    def tags(self) -> tuple[str, ...]:
        """Names of all its tags."""
        return ("experiment", self.tag) if self.tag else ("experiment",)


METRICS = (
    Metric(
        name="captune_trials",
        tag="state",
        meaning="trials by state, those of earlier runs of the experiment among them",
    ),
    Metric(
        name="captune_best_objective", tag="metric", meaning="the objectives' values of the best trial so far"
    ),
    Metric(
        name="captune_last_epoch_timestamp_seconds",
        meaning="when an epoch was last reported, Unix time; before the first, when the run began",
    ),
    Metric(name="captune_runs", meaning="times that a trial began to run on a gang", grows=True),
    Metric(
        name="captune_queue_wait_seconds",
        meaning="what these waited in all, each from its turn (or from when a fault put it aside) "
        "until its first epoch began",
        grows=True,
    ),
    Metric(name="captune_epochs", tag="gang", meaning="epochs that the gang reported", grows=True),
    Metric(
        name="captune_gang_busy_seconds",
        tag="gang",
        meaning="what these epochs took; its `rate` is the share of the time that the gang is busy",
        grows=True,
    ),
    Metric(name="captune_gang_epoch_seconds", tag="gang", meaning="duration of the gang's latest epoch"),
    Metric(
        name="captune_gang_images_per_second",
        tag="gang",
        meaning="training image-caption pairs per second in it, where the trainable tells",
    ),
    Metric(
        name="captune_gang_restarts",
        tag="gang",
        meaning="times that the gang's workers had to be replaced under a trial",
        grows=True,
    ),
    Metric(
        name="captune_faults",
        tag="kind",
        meaning="`restart` (workers replaced), `lost` (the trial's actor died, or it was moved to another "
        "gang), `gang_closed`, and trials that ended `diverged`, `failed` or `out_of_memory`",
        grows=True,
    ),
    Metric(
        name="captune_checkpoint_bytes",
        meaning="size of the checkpoints, where `storage` is a folder; looked at every 30 s",
    ),
    Metric(name="captune_checkpoint_quota_bytes", meaning="`checkpoints.max_gb`, where it is given"),
    Metric(
        name="captune_storage_free_bytes",
        meaning="what is free on the file system, where `storage` is a folder",
    ),
)
