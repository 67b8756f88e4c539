"""Room for one gang on the cluster: waiting for it, and what became of waiting that was broken off.

Ray Train asks for a placement group and waits for it blindly, with a strategy that never changes. A gang
therefore asks for one itself, first: it knows while it waits that it has no room, it can leave off, and it
learns whether all its workers find room on one node, which Ray's PACK promises nobody.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import ray
from ray import PlacementGroupID
from ray.util import placement_group, placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup

from tuning.gangs.resources import GangPlan

PACKED_S = 1.0  # how long room on one node is waited for, before any will do
WAITS = " waits "  # in the names of groups that are only asked for
SECOND_LOOK_S = 2.0
LOOK_S = 1  # how often a gang that waits looks up; Ray cuts off fractions, and 0 is a wait that never begins


def find_room(gang: str, plan: GangPlan, goes_on: Callable[[float], bool]) -> str:
    """Wait until there is room for a gang.

    Args:
        gang: its name, under which Ray shows that it waits.
        goes_on: given the seconds waited so far, whether to wait on.

    Returns:
        The placement strategy with which it is to be had now; empty where it was given up.
    """
    began = time.monotonic()

    def waits() -> bool:
        return goes_on(time.monotonic() - began)

    def tries() -> bool:
        return waits() and time.monotonic() - began < PACKED_S

    if plan.workers > 1 and _granted(gang, plan, "STRICT_PACK", tries):
        return "STRICT_PACK"
    return "PACK" if _granted(gang, plan, "PACK", waits) else ""


def _granted(gang: str, plan: GangPlan, strategy: str, goes_on: Callable[[], bool]) -> bool:
    """Whether Ray placed such a gang before `goes_on` said no; the room is free again."""
    group = placement_group(
        [plan.bundle] * plan.workers, strategy=strategy, name=f"{gang}{WAITS}{time.time_ns()}"
    )
    try:
        while goes_on():
            if group.wait(LOOK_S):
                return True
        return False
    finally:
        remove_placement_group(group)


def leave_off(gang: str) -> None:
    """Take back what `gang` asked for before it was killed: Ray would keep it until the driver ends."""
    for key, group in placement_group_table().items():
        if group["state"] != "REMOVED" and group["name"].startswith(f"{gang}{WAITS}"):
            remove_group(key)


def remove_orphaned_groups() -> None:
    """Give back the cores of this driver's placement groups in which nothing lives, now and a moment later.

    Ray Train's cleaner takes a controller for dead when Ray does, some seconds before its process ends; what
    placement group that process makes in the meantime nobody would remove. Nor does anybody remove that of
    workers that could not be started. The next gang would wait for its cores for ever.
    """
    orphans = _orphaned_groups()
    if orphans:
        time.sleep(SECOND_LOOK_S)  # one just made has no inhabitants yet
        for key in orphans & _orphaned_groups():
            remove_group(key)


def _orphaned_groups() -> set[str]:
    from ray.util.state import list_actors

    here = ray.get_runtime_context().gcs_address
    actors = list_actors(address=here, filters=[("state", "!=", "DEAD")], detail=True, limit=10_000)
    inhabited = {actor.placement_group_id for actor in actors}
    table = placement_group_table()
    return {
        key
        for key in own_groups() - inhabited
        if (group := table.get(key, {"state": "REMOVED"}))["state"] == "CREATED"
        and WAITS not in group["name"]  # a gang looks whether there is room
    }


def own_groups() -> set[str]:
    """Ids of the placement groups of this driver and its actors that hold cores or wait for some.

    Ray Tune has others, of some bytes, which are there as long as its `Tuner` lives. Empty where Ray's
    dashboard, which is asked, does not answer.
    """
    from ray.util.state import list_placement_groups
    from ray.util.state.exception import RayStateApiException

    context = ray.get_runtime_context()
    try:
        found = list_placement_groups(
            address=context.gcs_address,
            filters=[("creator_job_id", "=", context.get_job_id()), ("state", "!=", "REMOVED")],
            limit=10_000,
        )
    except (RayStateApiException, OSError):
        return set()
    bundles = {key: group["bundles"].values() for key, group in placement_group_table().items()}
    ids = {group.placement_group_id for group in found}
    return {key for key in ids if any("CPU" in bundle for bundle in bundles.get(key, ()))}


def remove_group(key: str) -> None:
    """Remove the placement group with this id, in hexadecimal."""
    remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(key))))
