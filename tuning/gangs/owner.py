"""The owner of one gang: an actor that keeps the gang's mailbox, and keeps its workers going.

A gang is one Ray Train run that serves trial after trial (`trainables.gang.serve`). Its owner needs no
resources of its own. It waits for room on the cluster, then keeps a trainer's `fit()` going: Ray Train
replaces dead workers, the owner replaces a dead Train controller, Ray restarts a dead owner.
"""

from __future__ import annotations

import contextlib
import gc
import threading
import time
import traceback
from typing import Any

import ray

from trainables.leaving import leave_early
from tuning.gangs.mailbox import Mailbox
from tuning.gangs.neighbours import draining_nodes
from tuning.gangs.obituary import Obituary
from tuning.gangs.resources import GangPlan
from tuning.gangs.room import find_room, leave_off, remove_orphaned_groups
from tuning.gangs.watchdog import Watchdog

KEEPS_TRIAL_S = 10.0  # how long a gang that looks for room keeps a trial from others
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
            clear_up()
            with contextlib.suppress(Exception):
                leave_off(self._name)
        while not self._closed:
            self.workers_gone("waiting")
            strategy = find_room(self._name, self._plan, self._waits_on)
            if not strategy:
                return
            self.workers_gone("starting")
            try:
                self._trainer(strategy).fit()
            except BaseException as error:  # whatever happened to the controller costs a new one
                traceback.print_exc()
                self._could_not_start(error)
                # Beside the next start, which mostly needs no waiting for it.
                threading.Thread(target=clear_up, daemon=True).start()
                time.sleep(0.5)

    def _could_not_start(self, error: BaseException) -> None:
        """No room on the cluster is no fault of the gang's."""
        cause = getattr(error, "controller_failure", error)
        if type(cause).__name__ not in (
            "WorkerGroupStartupTimeoutError",
            "InsufficientClusterResourcesError",
        ):
            self.workers_died(f"{type(cause).__name__}: {cause}".splitlines()[0])

    def _waits_on(self, waited_s: float) -> bool:
        """Whether to wait for room any longer; the trial that this gang had is given to others in time."""
        if waited_s > KEEPS_TRIAL_S:
            self.displace("its gang has no room on the cluster any more")
        return not self._closed

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
                else:
                    self._hurry()

    def _hurry(self) -> None:
        """Have the workers break off their epoch, if the trial can go on in the middle of one."""
        for worker, _ in list(self._workers.values()):
            worker.execute.remote(leave_early)

    def _kill_workers(self) -> None:
        self._watchdog.rest()
        workers, self._workers = self._workers, {}
        for worker, _ in workers.values():
            ray.kill(worker)

    def _trainer(self, strategy: str) -> Any:
        from ray import train

        from trainables.gang_trainer import GangTrainer

        return GangTrainer(
            {"owner": self._myself, "cpus": self._plan.cpus_per_worker},
            scaling_config=train.ScalingConfig(
                num_workers=self._plan.workers,
                use_gpu=self._plan.gpus_per_worker > 0,
                resources_per_worker=self._plan.bundle,
                placement_strategy=strategy,
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


def clear_up() -> None:
    """Give back what a Train run that ended badly still holds; takes some seconds."""
    gc.collect()  # what `fit` raised holds its own frame, and that the controller
    time.sleep(LAST_BREATH_S)
    with contextlib.suppress(Exception):  # Ray Train's own cleaner mostly suffices
        remove_orphaned_groups()
