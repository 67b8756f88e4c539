"""Ray Train's cleaners that have nothing to clean any more, and would live as long as the cluster.

A Train controller starts a detached actor that is to remove its placement group when it dies. If the
controller is killed before its first order reached that actor, the actor watches nobody and never ends (Ray
2.60; nobody has a handle on it, nor has it a name). So a task on its node ends its process.
"""

from __future__ import annotations

import contextlib

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

CLEANER, CONTROLLER = "PlacementGroupCleaner", "TrainController"
PATIENCE_S = 20.0


def end_idle_cleaners() -> None:
    """End the cleaners of this driver, and of drivers that have ended, for which no controller is left.

    To be called when this driver's gangs are gone, and what they held is given back.
    """
    from ray.util.state import list_actors, list_jobs

    context = ray.get_runtime_context()
    here, mine = context.gcs_address, context.get_job_id()
    with contextlib.suppress(Exception):  # a run does not fail for what costs it nothing
        actors = list_actors(address=here, filters=[("state", "!=", "DEAD")], detail=True, limit=10_000)
        if not any(actor.class_name == CLEANER for actor in actors):
            return
        others = {
            job.job_id
            for job in list_jobs(address=here, limit=10_000)
            if job.status in ("PENDING", "RUNNING")
        }
        at_work = {actor.job_id for actor in actors if actor.class_name == CONTROLLER} | others - {mine}
        ended = [
            _end_process.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(actor.node_id, soft=False)
            ).remote(actor.pid)
            for actor in actors
            if actor.class_name == CLEANER and actor.job_id not in at_work and actor.node_id and actor.pid
        ]
        ray.wait(ended, num_returns=len(ended), timeout=PATIENCE_S)


@ray.remote(num_cpus=0, max_retries=0)
def _end_process(pid: int) -> None:
    """On the cleaner's node: the process `pid`, if it is still a cleaner's."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if CLEANER in " ".join(process.cmdline()):
            process.kill()
