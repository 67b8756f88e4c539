"""The owner's side of gangs: start them, lend them to trials, take them back, close them.

A gang is one Ray Train run that serves trial after trial (`trainables.gang.serve`). Its owner is an actor
without resources of its own that keeps the gang's mailbox and keeps `TorchTrainer.fit()` going: Ray Train
replaces dead workers, the owner replaces a dead Train controller, Ray restarts a dead owner.
"""

from __future__ import annotations

import contextlib
import gc
import secrets
import threading
import time
import traceback
from typing import Any

import ray
from ray import PlacementGroupID
from ray.util import placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup

from trainables.gang import serve
from tuning.gangs.mailbox import Mailbox
from tuning.gangs.obituary import Obituary
from tuning.gangs.resources import GangPlan
from tuning.gangs.watchdog import Watchdog

#: A Train controller looks after its workers this often; Ray's default of 2 s only delays recovery.
TRAIN_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # It would end the workers on a node that is taken away in mid-epoch; the owner lets them finish it.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
}
CLOSE_TIMEOUT_S = 20.0
WATCH_S = 1.0  # how often an owner looks whether its workers still get on
#: A Train controller may live on for 5 s after its owner, and in these start workers anew.
LAST_BREATH_S = 7.0


class GangOwner(Mailbox):
    """The actor: a mailbox, and a thread that keeps the gang's Ray Train run alive.

    Args:
        name: the gang's name, as dashboard and tables show it.
        max_failures: how often workers may die under one trial.
        hang_timeout_s: see `Watchdog`.
        scratch: folder for Ray Train's own records, readable on every node.
    """

    def __init__(
        self, name: str, plan: GangPlan, max_failures: int, hang_timeout_s: float | None, scratch: str
    ):
        super().__init__(max_failures, Watchdog(hang_timeout_s))
        self._name, self._plan, self._scratch = name, plan, scratch
        self._workers: dict[int, tuple[Any, str]] = {}  # by rank: actor's handle, and the node where it is
        context = ray.get_runtime_context()
        self._myself, self._restarted = context.current_actor, context.was_current_actor_reconstructed
        self._thread = threading.Thread(target=self._keep_training, name=name, daemon=True)
        self._thread.start()
        threading.Thread(target=self._keep_watch, daemon=True).start()

    def join(self, rank: int, worker: Any, node: str) -> None:
        """A worker is there: its rank, its actor's handle, and the id of the node where it is."""
        self._workers[rank] = worker, node

    def __repr__(self) -> str:  # in the dashboard's table of actors, and before each line that it prints
        return f"gang {self._name}"

    def close_and_wait(self, timeout_s: float) -> bool:
        """Send the workers home; True when all of them are gone in time."""
        self.close()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _keep_training(self) -> None:
        if self._restarted:
            time.sleep(LAST_BREATH_S)
            with contextlib.suppress(Exception):  # Ray Train's own cleaner mostly suffices
                remove_orphaned_groups()
        while not self._closed:
            try:
                self._trainer().fit()
            except BaseException as error:  # whatever happened to the controller costs a new one
                traceback.print_exc()
                self._could_not_start(error)
                time.sleep(0.5)
            # What `fit` raised holds its own frame, with the controller that holds the gang's cores.
            gc.collect()

    def _could_not_start(self, error: BaseException) -> None:
        """No room on the cluster is no fault of the gang's."""
        cause = getattr(error, "controller_failure", error)
        if type(cause).__name__ not in (
            "WorkerGroupStartupTimeoutError",
            "InsufficientClusterResourcesError",
        ):
            self.workers_died(f"{type(cause).__name__}: {cause}".splitlines()[0])

    def _keep_watch(self) -> None:
        """Kill workers that hang, or whose node is taken away: Ray Train replaces them as any that died."""
        while not self._closed:
            time.sleep(WATCH_S)
            if hang := self._watchdog.hang():
                self.suspect(self._lease, hang)
                self._kill_workers()
            elif any(node in draining_nodes() for _, node in list(self._workers.values())):
                self.leave("its node is taken away")
                if self.may_end:
                    self._kill_workers()

    def _kill_workers(self) -> None:
        self._watchdog.rest()
        workers, self._workers = self._workers, {}
        for worker, _ in workers.values():
            ray.kill(worker)

    def _trainer(self) -> Any:
        from ray import train
        from ray.train.torch import TorchTrainer

        return TorchTrainer(
            serve,
            train_loop_config={"owner": self._myself, "cpus": self._plan.cpus_per_worker},
            scaling_config=train.ScalingConfig(
                num_workers=self._plan.workers,
                use_gpu=self._plan.gpus_per_worker > 0,
                resources_per_worker={
                    "CPU": self._plan.cpus_per_worker,
                    **({"GPU": self._plan.gpus_per_worker} if self._plan.gpus_per_worker else {}),
                },
            ),
            run_config=train.RunConfig(
                # A new name each time: a controller that died left its records behind under the old one.
                name=f"{self._name}-{time.time_ns()}",
                storage_path=self._scratch,
                # The owner starts anew what cannot be started, and counts how often.
                failure_config=train.FailureConfig(max_failures=-1, controller_failure_limit=0),  # type: ignore[call-arg]
                callbacks=[Obituary(self._myself)],  # type: ignore[list-item]
            ),
        )


class Gangs:
    """All gangs of one experiment, seen from the driver. Use as a context manager."""

    def __init__(
        self,
        plan: GangPlan,
        *,
        experiment: str,
        max_failures: int,
        hang_timeout_s: float | None,
        scratch: str,
    ):
        self._placement_groups_before = _placement_groups()
        self._lent: dict[str, str] = {}  # gang -> run_id
        self._on_trial: dict[str, str] = {}  # gang -> trial to be tried on another first
        owner = ray.remote(GangOwner)
        # Ray Train's cleaner asks the state API, which finds no address by itself where a machine has several
        # Rays: after a kill the dead gang's placement group would then hold its cores for ever.
        environment = TRAIN_ENVIRONMENT | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
        self._owners: dict[str, Any] = {
            name: owner.options(
                name=name,
                num_cpus=0,
                max_concurrency=16,  # questions stay open for seconds
                max_restarts=-1,
                runtime_env={"env_vars": environment},
            ).remote(name, plan, max_failures, hang_timeout_s, scratch)
            # The suffix keeps two experiments of one name apart on a shared cluster.
            for suffix in [secrets.token_hex(2)]
            for name in (f"{experiment}-{suffix}-gang-{index}" for index in range(plan.gangs))
        }

    def __enter__(self) -> Gangs:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def any_free(self) -> bool:
        """Whether `lend` would find a gang."""
        return bool(self._free())

    @property
    def none_left(self) -> bool:
        """Whether all gangs were closed."""
        return not self._owners

    def lend(self, run_id: str, trial_id: str) -> str:
        """Give a free gang to `run_id`, of `trial_id`: the name of its owner's actor."""
        name = self._free()[0]
        self._lent[name] = run_id
        self._on_trial = {gang: left for gang, left in self._on_trial.items() if left != trial_id}
        return name

    def _free(self) -> list[str]:
        """Gangs to be lent. One that a trial left in trouble rests until another gang has that trial."""
        free = [name for name in self._owners if name not in self._lent]
        ready = [name for name in free if name not in self._on_trial]
        return ready or (free if not self._lent else [])

    def suspect(self, name: str, trial_id: str) -> None:
        """Workers died under `trial_id` again and again: it is to be tried on another gang first."""
        self._on_trial[name] = trial_id

    def close_one(self, name: str) -> None:
        """Close the gang `name`, which fails whatever trial it has."""
        self._lent.pop(name, None)
        self._on_trial.pop(name, None)
        ray.kill(self._owners.pop(name))  # its Train run ends with it

    def take_back(self, run_id: str) -> None:
        """The trial is over or was stopped: its gang is free at once. Unknown runs are ignored."""
        for name, borrower in list(self._lent.items()):
            if borrower == run_id:
                self._owners[name].take_back.remote(run_id)
                del self._lent[name]

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """End all gangs and wait until Ray has their resources back.

        Gangs that are between epochs leave by themselves; one in the middle of an epoch is given a moment
        and is then killed, with its Train run: the epoch's work is lost, no checkpoint is.
        """
        owners = list(self._owners.values())
        leaving = [owner.close_and_wait.remote(timeout_s) for owner in owners]
        ray.wait(leaving, num_returns=len(leaving), timeout=timeout_s if not self._lent else 1.0)
        for owner in owners:
            ray.kill(owner)
        self._owners.clear()
        deadline = time.monotonic() + timeout_s
        while _placement_groups() - self._placement_groups_before and time.monotonic() < deadline:
            time.sleep(0.1)


def draining_nodes() -> set[str]:
    """Ids of the nodes that are about to be taken away, by a spot notice, an autoscaler or a person."""
    with contextlib.suppress(Exception):  # the head is being restarted
        return set(ray._private.state.state.get_draining_nodes())
    return set()


def remove_orphaned_groups() -> None:
    """Give back the cores of placement groups in which nothing lives.

    Ray Train's cleaner takes a controller for dead when Ray does, some seconds before its process ends; what
    placement group that process makes in the meantime nobody would remove, and the next gang would wait for
    its cores for ever.
    """
    from ray.util.state import list_actors

    here = ray.get_runtime_context().gcs_address
    actors = list_actors(address=here, filters=[("state", "!=", "DEAD")], detail=True, limit=10_000)
    inhabited = {actor.placement_group_id for actor in actors}
    for key, group in placement_group_table().items():
        holds_cores = any("CPU" in bundle for bundle in group["bundles"].values())
        if group["state"] == "CREATED" and holds_cores and key not in inhabited:
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(key))))


def _placement_groups() -> set[str]:
    """Ids of the placement groups that hold resources or wait for some."""
    return {key for key, group in placement_group_table().items() if group["state"] != "REMOVED"}
