"""How many gangs an experiment runs on a cluster: pure arithmetic over what the cluster's nodes have.

A worker must fit on one node; the workers of a gang may sit on several. This file knows the `training`
section; it neither starts nor asks Ray. What several experiments get of one cluster is in `sharing.py`.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainables.trial import SettingsError
from tuning.render import count

if TYPE_CHECKING:
    from tuning.experiment import Training

#: What one node has: `{"CPU": 8.0, "GPU": 1.0}`, Ray's names; others are not read.
NodeResources = Mapping[str, float]

EPSILON = 1e-9  # three thirds of a GPU are a GPU


class DoesNotFit(SettingsError):
    """The cluster as it is cannot hold what the experiment asks for; a larger one could."""


class NoRoom(RuntimeError):
    """The cluster has no room for a single gang, nor got any in the time that was given."""


@dataclass(frozen=True, kw_only=True)
class GangPlan:
    """What the gangs of a run look like; all are alike."""

    gangs: int
    """As many as the cluster can hold of those that are wanted, if nobody else wants any."""
    most_gangs: float
    """More are never wanted, however large the cluster; inf where nothing limits them."""
    asked_gangs: int
    """So many are asked of an autoscaler while the cluster is too small for them."""
    workers: int
    """Workers of one gang."""
    cpus_per_worker: int
    gpus_per_worker: float

    @property
    def bundle(self) -> dict[str, float]:
        """What one worker takes, in Ray's names."""
        gpus = {"GPU": self.gpus_per_worker} if self.gpus_per_worker else {}
        return {"CPU": float(self.cpus_per_worker), **gpus}


class Room:
    """What is free on the nodes of a cluster, for gangs to be taken from it."""

    def __init__(self, nodes: Iterable[NodeResources]):
        # GPUs one by one: of one with 0.4 free and another with 0.4, nobody gets 0.8.
        self._nodes = [(int(node.get("CPU", 0)), [1.0] * int(node.get("GPU", 0))) for node in nodes]

    def workers(self, plan: GangPlan) -> list[int]:
        """How many workers fit on each node."""
        return [self._fitting(cpus, gpus, plan) for cpus, gpus in self._nodes]

    def take(self, plan: GangPlan) -> bool:
        """Take one gang's resources: from one node, the fullest that will do, else from as few as possible.

        False, and nothing is taken, where it does not fit.
        """
        fitting = self.workers(plan)
        if sum(fitting) < plan.workers:
            return False
        whole = [index for index, workers in enumerate(fitting) if workers >= plan.workers]
        if whole:
            self._place(min(whole, key=lambda index: fitting[index]), plan.workers, plan)
            return True
        left = plan.workers
        for index in sorted(range(len(fitting)), key=lambda index: -fitting[index]):
            here = min(left, fitting[index])
            self._place(index, here, plan)
            left -= here
        return True

    @staticmethod
    def _fitting(cpus: int, gpus: Sequence[float], plan: GangPlan) -> int:
        fitting, share = cpus // plan.cpus_per_worker, plan.gpus_per_worker
        if share >= 1:
            return min(fitting, sum(free > 1 - EPSILON for free in gpus) // int(share))
        if share > 0:
            return min(fitting, sum(int(free / share + EPSILON) for free in gpus))
        return fitting

    def _place(self, index: int, workers: int, plan: GangPlan) -> None:
        cpus, gpus = self._nodes[index]
        for _ in range(workers):
            wanted = plan.gpus_per_worker
            gpus.sort()  # broken ones first, so that whole ones stay whole
            for gpu, free in enumerate(gpus):
                part = min(wanted, 1.0)
                if part > EPSILON and free > part - EPSILON:
                    gpus[gpu] = free - part
                    wanted -= part
        self._nodes[index] = (cpus - workers * plan.cpus_per_worker, gpus)


def plan_gangs(training: Training, trials: int | None, nodes: Sequence[NodeResources]) -> GangPlan:
    """Size the gangs. `gangs: auto` takes as many as fit, but no more than there are trials.

    Args:
        training: the experiment's `training` section.
        trials: the budget's number of trials, if it has one.
        nodes: what each node of the cluster has.

    Raises:
        DoesNotFit: one gang, or as many as asked for, do not fit.
        trainables.trial.SettingsError: they would fit on no cluster.
    """
    plan = least_plan(training, trials, nodes)
    fitting = gangs_that_fit(plan, nodes)
    if not fitting:
        raise _too_large(plan, nodes)
    if fitting < plan.gangs:
        raise DoesNotFit(
            ("training", "gangs"),
            f"got {plan.gangs}: so many gangs of {needs_text(plan)} do not fit on the cluster "
            f"({nodes_text(nodes)}); the largest possible value is {fitting}",
        )
    return dataclasses.replace(plan, gangs=int(min(fitting, plan.most_gangs)))


def least_plan(training: Training, trials: int | None, nodes: Sequence[NodeResources]) -> GangPlan:
    """The fewest gangs with which the experiment would begin, on a cluster with nodes such as these.

    Arguments and errors as of `plan_gangs`, but it may be too large.
    """
    gpus_per_worker = training.gpus_per_worker
    if gpus_per_worker == "auto":
        gpus_per_worker = 1.0 if any(node.get("GPU") for node in nodes) else 0.0
    if 0 < gpus_per_worker < 1 and training.workers > 1:
        raise SettingsError(
            ("training", "gpus_per_worker"),
            f"got {gpus_per_worker:g}: several workers of one trial cannot share a GPU (NCCL refuses); "
            "give 1, or workers: 1",
        )
    if training.gangs == "auto":
        gangs, most = 1, min(trials or math.inf, training.max_gangs or math.inf)
        asked = int(most) if training.max_gangs else 1
    else:
        gangs, most = training.gangs, float(training.gangs)
        asked = training.gangs
    return GangPlan(
        gangs=gangs,
        most_gangs=most,
        asked_gangs=asked,
        workers=training.workers,
        cpus_per_worker=training.cpus_per_worker,
        gpus_per_worker=gpus_per_worker,
    )


def gangs_that_fit(plan: GangPlan, nodes: Sequence[NodeResources]) -> int:
    """How many such gangs an empty cluster holds; all workers are alike, so none is in another's way."""
    return sum(Room(nodes).workers(plan)) // plan.workers


def needs_text(plan: GangPlan) -> str:
    """`2 workers with 1 CPU and 1 GPU each`."""
    gpus = f" and {plan.gpus_per_worker:g} GPU" if plan.gpus_per_worker else ""
    return f"{count(plan.workers, 'worker')} with {plan.cpus_per_worker} CPU{gpus} each"


def nodes_text(nodes: Sequence[NodeResources]) -> str:
    """`8 CPU and 1 GPU`, or `nodes: 2 of 8 CPU, 1 of 4 CPU and 2 GPU`."""
    kinds = Counter(
        f"{node.get('CPU', 0):g} CPU" + (f" and {node['GPU']:g} GPU" if node.get("GPU") else "")
        for node in nodes
    )
    if len(nodes) == 1:
        return next(iter(kinds))
    return "nodes: " + (", ".join(f"{number} of {kind}" for kind, number in kinds.most_common()) or "none")


def _too_large(plan: GangPlan, nodes: Sequence[NodeResources]) -> DoesNotFit:
    """Not one gang fits: the key that is to blame, and its largest possible value beside the others."""
    most = {kind: int(max((node.get(kind, 0) for node in nodes), default=0)) for kind in ("CPU", "GPU")}

    def largest(key: str, values: Iterable[int]) -> int:
        smaller = (dataclasses.replace(plan, **{key: value}) for value in values)  # type: ignore[arg-type]
        return next((getattr(each, key) for each in smaller if gangs_that_fit(each, nodes)), 0)

    workers = sum(Room(nodes).workers(plan))
    cpus = largest("cpus_per_worker", range(most["CPU"], 0, -1))
    if workers:
        key, value, remedy = "workers", f"{plan.workers}", workers
    elif cpus or not plan.gpus_per_worker:
        key, value, remedy = "cpus_per_worker", f"{plan.cpus_per_worker}", cpus
    else:
        gpus = largest("gpus_per_worker", range(most["GPU"], 0, -1))
        key, value, remedy = "gpus_per_worker", f"{plan.gpus_per_worker:g}", gpus
    return DoesNotFit(
        ("training", key),
        f"got {value}: {needs_text(plan)} do not fit on the cluster ({nodes_text(nodes)}); "
        f"the largest possible value is {remedy}",
    )
