"""Gangs for which the cluster has no room: Ray's autoscaler is asked for it.

They are asked for by placement groups that Ray cannot place: its autoscaler counts these as demand beside
everybody else's, and they vanish with whoever made them.
"""

from __future__ import annotations

import time

from ray.util import placement_group, placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup

from tuning.gangs.resources import GangPlan
from tuning.gangs.room import WAITS

REST_S = 30.0  # after room was found, for gangs to take it


class Demand:
    """Nothing is asked for yet.

    Args:
        name: unlike any gang's.
        plan: what each of the gangs looks like.
    """

    def __init__(self, name: str, plan: GangPlan):
        self._name, self._plan = f"{name}{WAITS}", plan
        self._groups: list[PlacementGroup] = []
        self._rests_until = 0.0

    def ask(self, gangs: int) -> None:
        """Let room for so many gangs be what is asked for now.

        Where some was found, nothing is for a while: it is there to be used, and not to be handed on from one
        question to the next.
        """
        now = time.monotonic()
        if self._groups and self._found():
            self._rests_until = now + REST_S
        gangs = gangs if now >= self._rests_until else 0
        for group in self._groups[gangs:]:
            remove_placement_group(group)
        del self._groups[gangs:]
        while len(self._groups) < gangs:
            bundles, name = [self._plan.bundle] * self._plan.workers, f"{self._name}{time.time_ns()}"
            self._groups.append(placement_group(bundles, strategy="PACK", name=name))

    def close(self) -> None:
        """Ask for nothing any more."""
        self.ask(0)

    def _found(self) -> bool:
        known = placement_group_table()
        return any(known.get(group.id.hex(), {}).get("state") == "CREATED" for group in self._groups)
