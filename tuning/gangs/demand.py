"""Gangs for which the cluster has no room: Ray's autoscaler is asked for it.

They are asked for by placement groups that Ray cannot place: its autoscaler counts these as demand beside
everybody else's, and they vanish with whoever made them.
"""

from __future__ import annotations

import time

from ray.util import placement_group, remove_placement_group
from ray.util.placement_group import PlacementGroup

from tuning.gangs.resources import GangPlan
from tuning.gangs.room import WAITS

REST_S = 30.0  # after room was found, for whoever looks at the cluster to see that it has grown


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
        """Let room for so many gangs be what is asked for now; what was found is given back, to be used."""
        now = time.monotonic()
        found = [group for group in self._groups if group.wait(0)]
        self._rests_until = now + REST_S if found else self._rests_until
        self._groups = [group for group in self._groups if group not in found]
        for group in (*found, *self._groups[gangs:]):
            remove_placement_group(group)
        del self._groups[gangs:]
        while len(self._groups) < gangs and now >= self._rests_until:
            bundles, name = [self._plan.bundle] * self._plan.workers, f"{self._name}{time.time_ns()}"
            self._groups.append(placement_group(bundles, strategy="PACK", name=name))

    def close(self) -> None:
        """Ask for nothing any more."""
        self.ask(0)
