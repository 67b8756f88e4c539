"""What several experiments get of one cluster: pure arithmetic over their claims and its nodes.

Dominant resource fairness by progressive filling (Ghodsi et al. 2011), weighted by priority: gang by gang the
next goes to the experiment that would hold the smallest share, an experiment's share being that of the
resource of which it takes most. Every driver computes the same from the same claims: nobody has to preside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tuning.gangs.resources import GangPlan, NodeResources, Room


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a running experiment would have of the cluster."""

    name: str
    """Unlike any other's."""
    plan: GangPlan
    """The kind of its gangs, and how many are of use to it at most."""
    priority: float = 1.0


def fair_gangs(claims: Sequence[Claim], nodes: Sequence[NodeResources]) -> dict[str, int]:
    """How many gangs each experiment may have, by its name.

    Everybody gets a first one before anybody gets a second; where there is no room for that, those with the
    smallest gangs for their priority have it. What one cannot use is left to the others.
    """
    room, gangs = Room(nodes), {claim.name: 0 for claim in claims}
    shares = {claim.name: _share(claim.plan, nodes) / claim.priority for claim in claims}
    asking = {claim.name: claim for claim in claims}
    while asking:
        name = min(asking, key=lambda name: (gangs[name] > 0, (gangs[name] + 1) * shares[name], name))
        if gangs[name] < asking[name].plan.most_gangs and room.take(asking[name].plan):
            gangs[name] += 1
        else:
            del asking[name]
    return gangs


def _share(plan: GangPlan, nodes: Sequence[NodeResources]) -> float:
    """The share of the cluster that one gang takes, of the resource of which it is the largest."""
    totals = {kind: sum(node.get(kind, 0.0) for node in nodes) for kind in plan.bundle}
    return max(plan.workers * each / (totals[kind] or 1.0) for kind, each in plan.bundle.items())
