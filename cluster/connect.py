"""Join a Ray cluster, or start one on this machine.

`tuning` reaches this by the entry point `captune.cluster`, so that it never depends on where it runs.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cluster.metadata import job_metadata
from cluster.token import ensure_token

if TYPE_CHECKING:
    from tuning.experiment import Experiment


@contextlib.contextmanager
def connect(
    address: str | None = None, *, cpus: int | None = None, experiment: Experiment | None = None
) -> Iterator[None]:
    """Be connected to Ray inside the block.

    A connection that is there already is used and left as it is. Otherwise `address`, then `RAY_ADDRESS`,
    is joined; with neither, a cluster of this machine alone is started and shut down at the end. It offers
    `cpus` cores, by default all. Its dashboard listens on loopback, and stays on because Ray Train's cleaner
    of placement groups depends on it; Ray's other ports listen on all interfaces and ask for its token, which
    is shut from other users of the machine. The dashboard tells of `experiment` beside the job.
    """
    # Ray counts processes against cores and warns; gang owners and trial actors use none.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "PYTHON worker processes have been started")
    import ray
    from ray.job_config import JobConfig

    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local" and os.environ.get("RAY_AUTH_MODE", "token") == "token":
        ensure_token()
    local = (
        {"include_dashboard": True, "dashboard_host": "127.0.0.1", "num_cpus": cpus}
        if address == "local"
        else {}
    )
    ray.init(
        address=address,
        namespace="captune",
        log_to_driver=False,
        logging_level=logging.ERROR,
        job_config=JobConfig(metadata=job_metadata(experiment) if experiment else {}),
        **local,  # type: ignore[arg-type]
    )
    try:
        yield
    finally:
        ray.shutdown()
