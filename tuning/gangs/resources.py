"""How many gangs an experiment runs on a cluster: pure arithmetic over what the cluster says it has.

This file knows the `training` section; it neither starts nor asks Ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainables.trial import SettingsError

if TYPE_CHECKING:
    from tuning.experiment import Training


@dataclass(frozen=True, kw_only=True)
class GangPlan:
    """What the gangs of a run look like; all are alike."""

    gangs: int
    workers: int
    """Workers of one gang."""
    cpus_per_worker: int
    gpus_per_worker: float


def plan_gangs(training: Training, trials: int | None, cluster_resources: Mapping[str, float]) -> GangPlan:
    """Size the gangs. `gangs: auto` takes as many as fit, but no more than there are trials.

    Args:
        training: the experiment's `training` section.
        trials: the budget's number of trials, if it has one.
        cluster_resources: as `ray.cluster_resources()` returns it; `CPU` and `GPU` are read.

    Raises:
        trainables.trial.SettingsError: one gang, or as many as asked for, do not fit.
    """
    cpus, gpus = int(cluster_resources.get("CPU", 0)), cluster_resources.get("GPU", 0)
    gpus_per_worker = training.gpus_per_worker
    if gpus_per_worker == "auto":
        gpus_per_worker = 1.0 if gpus else 0.0
    if 0 < gpus_per_worker < 1 and training.workers > 1:
        raise SettingsError(
            ("training", "gpus_per_worker"),
            f"got {gpus_per_worker:g}: several workers of one trial cannot share a GPU (NCCL refuses); "
            "give 1, or workers: 1",
        )

    fitting = {"CPU": cpus // training.cpus_per_worker}  # workers, by what limits them
    if gpus_per_worker:
        fitting["GPU"] = int(gpus / gpus_per_worker + 1e-9)
    kind = min(fitting, key=lambda kind: fitting[kind])
    workers = fitting[kind]
    if workers < training.workers:
        raise _too_many_workers(training, kind, gpus_per_worker, workers, cpus if kind == "CPU" else gpus)

    gangs = workers // training.workers
    if training.gangs == "auto":
        gangs = min(gangs, trials or gangs)
    elif training.gangs > gangs:
        have = f"{cpus} CPU" + (f", {gpus:g} GPU" if gpus_per_worker else "")
        raise SettingsError(
            ("training", "gangs"),
            f"got {training.gangs}: gangs of {training.workers} worker(s) need {kind}s that the cluster "
            f"({have}) does not have; the largest possible value is {gangs}",
        )
    else:
        gangs = training.gangs
    return GangPlan(
        gangs=gangs,
        workers=training.workers,
        cpus_per_worker=training.cpus_per_worker,
        gpus_per_worker=gpus_per_worker,
    )


def _too_many_workers(
    training: Training, kind: str, gpus_per_worker: float, workers: int, available: float
) -> SettingsError:
    each = training.cpus_per_worker if kind == "CPU" else gpus_per_worker
    if workers:
        key, value = "workers", f"{training.workers}"
        remedy = f"the largest possible value is {workers}"
    else:  # not even one worker: its own size is at fault
        key, value = ("cpus_per_worker" if kind == "CPU" else "gpus_per_worker"), f"{each:g}"
        remedy = f"the largest possible value is {available / training.workers:g}"
        if kind == "CPU":
            remedy = f"the largest possible value is {int(available) // training.workers}"
    return SettingsError(
        ("training", key),
        f"got {value}: {training.workers} worker(s) with {each:g} {kind} each need "
        f"{training.workers * each:g} {kind}, the cluster has {available:g}; {remedy}",
    )
