"""What else there is on the Ray cluster that this process is connected to: its nodes, other experiments.

Every experiment that runs has a claim there, held by a small actor of its driver's: Ray ends it with the
driver, however that ends, so no claim outlives its experiment.
"""

from __future__ import annotations

import contextlib
from typing import Any

import ray

from tuning.gangs.resources import NodeResources
from tuning.gangs.sharing import Claim

#: Ray's namespace in which nothing but claims has a name.
NAMESPACE = "captune-claims"
MEET_S = 5.0  # how long a new experiment waits for the claims of the others


def alive_nodes() -> list[NodeResources]:
    """What each node that lives, and is to live on, has, whoever uses it."""
    draining = draining_nodes()
    return [node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in draining]


def draining_nodes() -> set[str]:
    """Ids of the nodes that are about to be taken away, by a spot notice, an autoscaler or a person."""
    with contextlib.suppress(Exception):  # the head is being restarted
        return set(ray._private.state.state.get_draining_nodes())
    return set()


class Claimant:
    """The actor that holds a claim."""

    def __init__(self, claim: Claim):
        self._claim = claim

    def claim(self) -> Claim:
        """What was claimed."""
        return self._claim


class Neighbours:
    """The experiments on the cluster, of which this is one from now until it leaves.

    Those that are there already are known from the start.
    """

    def __init__(self, claim: Claim):
        self._known = {claim.name: claim}
        self._questions: dict[Any, str] = {}  # still open -> whose claim is asked for
        self._claimant: Any = (
            ray.remote(Claimant)
            .options(name=claim.name, namespace=NAMESPACE, num_cpus=0, max_restarts=-1)
            .remote(claim)
        )
        self.claims()
        ray.wait(list(self._questions), num_returns=len(self._questions), timeout=MEET_S)

    def claims(self) -> list[Claim]:
        """All claims known now, this experiment's first; a new one is known soon after. Does not wait."""
        mine, *_ = self._known
        actors = ray.util.list_named_actors(all_namespaces=True)
        there = {actor["name"] for actor in actors if actor["namespace"] == NAMESPACE} | {mine}
        answers, _ = ray.wait(list(self._questions), num_returns=len(self._questions), timeout=0)
        for answer in answers:
            name = self._questions.pop(answer)
            try:
                self._known[name] = ray.get(answer)
            except ray.exceptions.RayError:
                continue  # gone, or soon back and asked again
        self._known = {name: claim for name, claim in self._known.items() if name in there}
        for name in there - self._known.keys() - set(self._questions.values()):
            try:
                claimant = ray.get_actor(name, namespace=NAMESPACE)
            except ValueError:
                continue  # has just left
            self._questions[claimant.claim.remote()] = name
        return list(self._known.values())

    def leave(self) -> None:
        """Claim nothing any more."""
        ray.kill(self._claimant)
