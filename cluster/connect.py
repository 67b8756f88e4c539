"""Join a Ray cluster, or start one on this machine.

`tuning` reaches this by the entry point `captune.cluster`, so that it never depends on where it runs.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import urllib.parse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cluster.metadata import job_metadata
from cluster.token import ensure_token
from tuning.experiment_file import ExperimentError

if TYPE_CHECKING:
    from tuning.experiment import Experiment

#: Seconds in which a cluster's head node answers; Ray itself asks for minutes, without a word.
ANSWER_S = 5.0


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

    Raises:
        ExperimentError: an address that is none, or `RAY_AUTH_TOKEN_PATH` names no file.
        ConnectionError: nothing answers there, or Ray did not start.
    """
    # Ray counts processes against cores and warns; gang owners and trial actors use none.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "PYTHON worker processes have been started")
    import ray
    from ray.job_config import JobConfig

    if ray.is_initialized():
        yield
        return
    origin = "address" if address else "RAY_ADDRESS"
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local" and os.environ.get("RAY_AUTH_MODE", "token") == "token":
        try:
            ensure_token()
        except FileNotFoundError as error:
            raise ExperimentError([str(error)]) from error
    if address not in ("local", "auto"):
        _refuse_unreachable(address, origin)
    local: dict[str, Any] = (
        {"include_dashboard": True, "dashboard_host": "127.0.0.1", "num_cpus": cpus}
        if address == "local"
        else {}
    )
    try:
        ray.init(
            address=address,
            namespace="captune",
            log_to_driver=False,
            logging_level=logging.ERROR,
            job_config=JobConfig(metadata=job_metadata(experiment) if experiment else {}),
            **local,
        )
    except Exception as error:  # a plain one where the raylet is not up in time
        what = "Ray did not start here" if local else f"{origin}: cannot join the Ray at {address!r}"
        raise ConnectionError(f"{what}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _refuse_unreachable(address: str, origin: str) -> None:
    """Refuse an `address` that is none, or at which nothing listens; `origin` is where it was said."""
    try:
        place = urllib.parse.urlsplit(f"//{address.removeprefix('ray://')}")
        host, port = place.hostname, place.port
    except ValueError:  # a port that is none
        host = port = None
    if not host or not port:
        rule = "must be HOST:PORT of the cluster's head node, as in head:6379, or auto, or local"
        raise ExperimentError([f"{origin}: got {address!r}: {rule}"])
    try:
        socket.create_connection((host, port), timeout=ANSWER_S).close()
    except OSError as error:
        remedy = "name a cluster that is up, or unset it: then a Ray is started here"
        raise ConnectionError(f"{origin}: no Ray answers at {address!r} ({error}); {remedy}") from error
