"""All gangs of one experiment, seen from the driver: start them, lend them, take them back, end them.

What a gang does by itself is in `owner.py`; which are lent, to whom, and which must go, in `roster.py`; how
many there may be, in `sharing.py`. Here that is carried out.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Set
from typing import Any

import ray

from tuning.gangs.cleaners import end_idle_cleaners
from tuning.gangs.demand import Demand
from tuning.gangs.neighbours import Neighbours, alive_nodes
from tuning.gangs.owner import LAST_BREATH_S, GangOwner
from tuning.gangs.resources import GangPlan, NoRoom, needs_text, nodes_text
from tuning.gangs.room import leave_off, own_groups, remove_orphaned_groups
from tuning.gangs.roster import Roster
from tuning.gangs.sharing import Claim, fair_gangs
from tuning.gangs.waiting import SAY_S
from tuning.render import count, duration

#: A Train controller looks after its workers this often; Ray's default of 2 s only delays recovery.
TRAIN_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # It would end the workers on a node that is taken away in mid-epoch; the owner lets them finish it.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    # Where workers cannot be replaced so soon, the gang has lost its room: its owner takes over the wait.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
}
CLOSE_TIMEOUT_S = 20.0
ASK_S = 0.5  # how often the owners are asked whether their gangs serve
RESIZE_S = 3.0  # how often the cluster is looked at
LIMIT_S = 600.0  # how long a run without any gang goes on where `training.wait_for_resources` says nothing


class Gangs:
    """All gangs of one experiment, seen from the driver. Use as a context manager.

    Their number follows the cluster and the other experiments on it: call `look_after` often.

    Args:
        say: told, line by line, what a person should know of gangs that wait.
        resized: told how many gangs serve, whenever that changes.
        priority: weight of this experiment among those that share the cluster.
        patience_s: how long the run may be without any gang.
    """

    def __init__(
        self,
        plan: GangPlan,
        *,
        experiment: str,
        max_failures: int,
        hang_timeout_s: float | None,
        scratch: str,
        say: Callable[[str], None] = lambda line: None,
        resized: Callable[[int], None] = lambda gangs: None,
        priority: float = 1.0,
        patience_s: float = LIMIT_S,
    ):
        self._plan = plan
        self._groups_before = own_groups()
        # The suffix keeps two experiments of one name apart on a shared cluster.
        self._name, self._started = f"{experiment}-{secrets.token_hex(2)}", 0
        self._neighbours = Neighbours(Claim(name=self._name, plan=plan, priority=priority))
        self._arguments = (plan, max_failures, hang_timeout_s, scratch)
        self._demand, self._asked = Demand(self._name, plan), False
        self._owners: dict[str, Any] = {}
        self._questions: dict[Any, str] = {}  # what state a gang is in, still open -> gang
        self._ending: dict[Any, tuple[str, Any, float]] = {}  # its leave-taking -> gang, owner, deadline
        self._roster = Roster()
        self._say, self._resized, self._patience_s = say, resized, patience_s
        self._placed_at = self._said_at = time.monotonic()
        self._ask_at = self._resize_at = 0.0
        self.look_after()

    def __enter__(self) -> Gangs:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def any_free(self) -> bool:
        """Whether `lend` would find a gang."""
        return self._roster.any_free

    @property
    def lent(self) -> bool:
        """Whether a trial has a gang."""
        return self._roster.lent

    @property
    def none_left(self) -> bool:
        """Whether all gangs were closed."""
        return self._roster.none_left

    @property
    def names(self) -> Set[str]:
        """Those that there are; whoever is ending is none of them any more."""
        return self._owners.keys()

    def lend(self, run_id: str, trial_id: str) -> str:
        """Give a free gang to `run_id`, of `trial_id`: the name of its owner's actor."""
        return self._roster.lend(run_id, trial_id)

    def suspect(self, name: str, trial_id: str) -> None:
        """Workers died under `trial_id` again and again: it is to be tried on another gang first."""
        self._roster.suspect(name, trial_id)

    def close_one(self, name: str) -> None:
        """Close the gang `name`, which fails whatever trial it has; no other takes its place."""
        self._roster.close(name)
        self._end(name, 0.0)

    def take_back(self, run_id: str) -> None:
        """The trial is over or was stopped: its gang is free at once. Unknown runs are ignored."""
        name = self._roster.take_back(run_id)
        if name is not None:
            self._owners[name].take_back.remote(run_id)

    def look_after(self, more: float = math.inf) -> None:
        """Start and end gangs as the cluster grows and shrinks. Costs nothing most of the time.

        Args:
            more: for how many further gangs the search would have trials, if the cluster had these.

        Raises:
            NoRoom: no gang has had room for too long.
        """
        now = time.monotonic()
        if now >= self._resize_at:
            self._resize_at = now + RESIZE_S
            allowed = self._allowed()
            start, ended = self._roster.resize(allowed)
            # Not while one of its own is placed: the room that it is about to take would be what is found.
            growing = self._roster.all_in_use and self._roster.complete
            self._ask_for(int(min(self._plan.asked_gangs - allowed, more)) if growing else 0)
            for _ in range(start):
                self._start()
            for name in ended:
                self._end(name)
        if now >= self._ask_at:
            self._ask_at = now + ASK_S
            self._hear()
            self._bury()
            self._complain(now)

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """End all gangs and wait until Ray has their resources back.

        Gangs that are between epochs leave by themselves; one in the middle of an epoch is given a moment
        and is then killed, with its Train run: the epoch's work is lost, no checkpoint is.
        """
        for name in list(self._owners):
            self._end(name, timeout_s)
        leaving = list(self._ending)
        ray.wait(leaving, num_returns=len(leaving), timeout=1.0 if self._roster.lent else timeout_s)
        self._bury(at_once=True)
        self._demand.close()
        self._neighbours.leave()
        begun, waited = time.monotonic(), 0.0
        while own_groups() - self._groups_before and waited < timeout_s:
            if waited > LAST_BREATH_S:  # what Ray Train would remove is gone
                remove_orphaned_groups()
            time.sleep(0.1)
            waited = time.monotonic() - begun
        end_idle_cleaners()

    def _allowed(self) -> int:
        """This experiment's share of the cluster: at least one gang, that waits where there is no room."""
        return max(1, fair_gangs(self._neighbours.claims(), alive_nodes())[self._name])

    def _ask_for(self, gangs: int) -> None:
        """Let an autoscaler know of so many gangs that are missing; the first time a line says so."""
        if gangs > 0 and not self._asked:
            self._asked = True
            what = f"{count(gangs, 'more gang')} of {needs_text(self._plan)}"
            self._say(f"asking Ray's autoscaler, if there is one, for room for {what}")
        self._demand.ask(max(0, gangs))

    def _start(self) -> None:
        name, self._started = f"{self._name}-gang-{self._started}", self._started + 1
        # Ray Train's cleaner asks the state API, which finds no address by itself where a machine has several
        # Rays: after a kill the dead gang's placement group would then hold its cores for ever.
        environment = TRAIN_ENVIRONMENT | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
        owner = ray.remote(GangOwner).options(
            name=name,
            num_cpus=0,
            max_concurrency=16,  # questions stay open for seconds
            max_restarts=-1,
            runtime_env={"env_vars": environment},
        )
        self._owners[name] = owner.remote(name, *self._arguments)
        self._roster.add(name)

    def _end(self, name: str, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        owner = self._owners.pop(name)
        leaving = owner.close_and_wait.remote(timeout_s)
        self._ending[leaving] = name, owner, time.monotonic() + timeout_s

    def _bury(self, *, at_once: bool = False) -> None:
        """Kill the owners of gangs that have left, or should have."""
        left, _ = ray.wait(list(self._ending), num_returns=len(self._ending), timeout=0)
        now = time.monotonic()
        for leaving, (name, owner, deadline) in list(self._ending.items()):
            if at_once or leaving in left or now > deadline:
                ray.kill(owner)
                leave_off(name)
                del self._ending[leaving]

    def _hear(self) -> None:
        """Take in which gangs serve, and ask anew."""
        before = self._roster.serving
        answers, _ = ray.wait(list(self._questions), num_returns=len(self._questions), timeout=0)
        for answer in answers:
            name = self._questions.pop(answer)
            try:
                self._roster.hear(name, ray.get(answer))
            except ray.exceptions.RayError:  # the owner is being restarted, or was just ended
                self._roster.hear(name, "waiting")
        asked = set(self._questions.values())
        for name, owner in self._owners.items():
            if name not in asked:
                self._questions[owner.state.remote()] = name
        if self._roster.serving != before:
            self._resized(self._roster.serving)

    def _complain(self, now: float) -> None:
        """Say now and then that no gang has room; give up in the end."""
        if self._roster.placed:
            self._placed_at = self._said_at = now
            return
        waited = now - self._placed_at
        if waited < self._patience_s and now - self._said_at < SAY_S:
            return
        self._said_at = now
        wanted = f"room for {needs_text(self._plan)}, the cluster has {nodes_text(alive_nodes())}"
        if waited >= self._patience_s:
            raise NoRoom(f"waited {duration(waited)} for {wanted}: all of it in use, or nodes are gone")
        self._say(f"waiting for {wanted}: {duration(waited)} of {duration(self._patience_s)}")
