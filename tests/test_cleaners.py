"""Ray Train's cleaners that nobody sent to work are ended; those at work are not. On a real Ray."""

import time

import pytest
import ray
from ray.train.v2._internal.execution.controller.placement_group_cleaner import PlacementGroupCleaner
from ray.util.state import list_actors

from tuning.gangs.cleaners import end_idle_cleaners

pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.timeout(60)]


class TrainController:
    """One that is told by its class's name."""


def start_cleaner():
    """As a Train controller does, which is killed before it gives the first order."""
    cleaner = ray.remote(num_cpus=0)(PlacementGroupCleaner).options(lifetime="detached")
    handle = cleaner.remote("0" * 32, 1.0, 10, 2.0)
    ray.get(handle.__ray_ready__.remote())
    return handle._actor_id.hex()


def state_of(actor_id):
    here = ray.get_runtime_context().gcs_address
    (actor,) = list_actors(address=here, filters=[("actor_id", "=", actor_id)])
    return actor.state


def test_a_cleaner_whose_controller_is_gone_is_ended():
    idle = start_cleaner()
    end_idle_cleaners()
    deadline = time.monotonic() + 10
    while state_of(idle) != "DEAD" and time.monotonic() < deadline:
        time.sleep(0.2)
    assert state_of(idle) == "DEAD"


def test_where_a_controller_is_at_work_its_cleaner_is_left_alone():
    controller = ray.remote(num_cpus=0)(TrainController).remote()
    ray.get(controller.__ray_ready__.remote())
    cleaner = start_cleaner()
    try:
        end_idle_cleaners()
        time.sleep(1)
        assert state_of(cleaner) == "ALIVE"
    finally:
        ray.kill(controller)
        time.sleep(1)
        end_idle_cleaners()
