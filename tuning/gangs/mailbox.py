"""Where a gang and a trial meet: orders one way, reports the other. Pure, thread-safe, no Ray.

The trial's side asks for the report of one epoch at a time, and by asking allows the gang to run that
epoch; the gang's side never runs an epoch that nobody asked for. So a scheduler's decision always comes
before the work that depends on it, and stopping a trial is no more than not asking again.

Every hand-out of an order to the workers is a *lease* with a new number. What arrives under an old number
(a worker that was given up for dead, a trial that was taken back) is ignored.
"""

from __future__ import annotations

import dataclasses
import secrets
import threading
from typing import Literal

from trainables.order import Failure, Moved, Order, Report, out_of_memory
from tuning.gangs.quarantine import Quarantine
from tuning.gangs.watchdog import Watchdog

#: It has no room on the cluster; has room, and its workers begin; they have come for work.
GangState = Literal["waiting", "starting", "serving"]


class Mailbox:
    """One gang's mailbox.

    Args:
        max_failures: how often the workers may die under one trial before it counts as failed.
        watchdog: told of the workers' signs of life.
    """

    def __init__(self, max_failures: int, watchdog: Watchdog | None = None):
        self._max_failures = max_failures
        self._watchdog = watchdog or Watchdog()
        self._changed = threading.Condition()
        self._order: Order | None = None
        # Not from 0: a worker that outlived its owner must not hold a lease of the next owner's.
        self._lease = secrets.randbits(48)
        self._handed_out = False
        self._deaths = 0  # of workers under the order
        self._allowed_epoch = 0
        self._reports: dict[int, Report] = {}
        self._end: Failure | Moved | None = None  # the answer once the reports are told
        self._quarantine = Quarantine()
        self._workers_came = False  # since any died
        self._leaving = ""  # why the workers' node is left
        self._suspicion = ""
        self._taken_back: set[str] = set()
        self._closed = False
        self._state: GangState = "waiting"

    # The trial's side.

    def await_report(self, order: Order, epoch: int, timeout_s: float) -> Report | Failure | Moved | None:
        """Let the gang run `order` up to `epoch` and wait for that epoch's report.

        Idempotent: asking again after a lost answer, from a restarted trial or of a restarted owner, gives
        the same report, or starts the order anew from the checkpoint that it names.

        Returns:
            The report, the failure that ended the trial, that it is to go elsewhere, or None after
            `timeout_s`: ask again.
        """
        with self._changed:
            if order.run_id not in self._taken_back:  # else a trial given up for lost would oust its heir
                if self._order is None or self._order.run_id != order.run_id:
                    self._begin(order)
                self._allowed_epoch = max(self._allowed_epoch, epoch)
                self._changed.notify_all()
            self._changed.wait_for(lambda: self._answer(order, epoch) is not None, timeout_s)
            return self._answer(order, epoch)

    def take_back(self, run_id: str) -> None:
        """Stop `run_id` where it stands, if the gang is still at it."""
        with self._changed:
            self._taken_back.add(run_id)
            if self._order is not None and self._order.run_id == run_id:
                self._order = None
            self._changed.notify_all()

    def state(self) -> GangState:
        """Whether there are workers."""
        return self._state

    def workers_gone(self, state: GangState) -> None:
        """There are no workers until some come for work; the gang is `waiting` or `starting`."""
        with self._changed:
            self._state = state
            self._watchdog.rest()

    def displace(self, reason: str) -> None:
        """There are no workers, nor will be soon: the trial that waits for them is to go elsewhere."""
        with self._changed:
            if self._order is not None and self._end is None:
                self._end = Moved(reason=reason)
                self._changed.notify_all()

    def close(self) -> None:
        """Send the workers home as soon as they ask."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _answer(self, order: Order, epoch: int) -> Report | Failure | Moved | None:
        if order.run_id in self._taken_back:
            return Failure(state="failed", reason="it was taken back from this gang")
        if self._order is None or self._order.run_id != order.run_id:
            return None
        return self._reports.get(epoch, self._end)

    def _begin(self, order: Order) -> None:
        self._order = order
        self._lease += 1  # from here on the workers' old lease is void
        self._handed_out = False
        self._deaths = 0
        self._allowed_epoch = order.epoch
        self._reports = {}
        self._end = self._closing()
        self._watchdog.watch(order.slowest_epoch_s)

    # The workers' side.

    def next_order(self, lease: int | None, timeout_s: float) -> tuple[int, Order] | Literal["close"] | None:
        """The order to run next, with its lease; "close" to go home; None: ask again.

        Workers that are new (`lease` is None) while an order is out replace dead ones: they get the same
        order, to go on from its last report.
        """
        with self._changed:
            self._watchdog.heard()
            self._state = "serving"
            if lease is None:
                leaving, self._leaving, self._workers_came = bool(self._leaving), "", True
                self._replaced(leaving)
            self._changed.wait_for(lambda: self._closed or self._has_work(), timeout_s)
            if self._closed:
                return "close"
            if not self._has_work():
                return None
            return self._hand_out()

    def alive(self, lease: int) -> None:
        """Take a sign of life from a worker that is busy with something that is no epoch."""
        with self._changed:
            if self._current(lease):
                self._watchdog.heard()

    def push(self, lease: int, report: Report) -> None:
        """Take the report of an epoch; a stale lease's is dropped."""
        with self._changed:
            if self._current(lease):
                self._watchdog.heard(report.metrics.get("seconds", 0.0))
                self._quarantine.worked()
                self._reports[report.epoch] = report
                self._move_on()
                self._changed.notify_all()

    def may_go_on(self, lease: int, epoch: int, timeout_s: float) -> bool | None:
        """Whether to train on after `epoch`; None: nobody has decided yet, ask again."""
        with self._changed:
            self._watchdog.heard()
            self._changed.wait_for(
                lambda: self._closed or not self._goes_on(lease) or self._allowed_epoch > epoch, timeout_s
            )
            if self._closed or not self._goes_on(lease):
                return False
            return True if self._allowed_epoch > epoch else None

    def fail(self, lease: int, failure: Failure | Moved) -> None:
        """Take note that the trial ended badly, or cannot go on here; the first word counts."""
        with self._changed:
            if self._current(lease) and self._end is None:
                self._end = failure
                self._changed.notify_all()

    def suspect(self, lease: int, reason: str) -> None:
        """Take note of what the workers broke off with, no fault of the trial's as it seems.

        Where they do so again and again, the last such reason explains why the trial counts as failed.
        """
        with self._changed:
            if self._current(lease):
                self._suspicion = reason

    def leave(self, reason: str) -> None:
        """The workers are to end where their node is taken away: the trial moves once its epoch is done."""
        with self._changed:
            self._leaving = reason
            if not self._in_an_epoch():
                self._move_on()
            self._changed.notify_all()

    @property
    def may_end(self) -> bool:
        """Whether the workers, told to leave, have done the epoch in which they were."""
        with self._changed:
            return bool(self._leaving) and not self._in_an_epoch()

    def workers_died(self, reason: str, no_memory: bool = False) -> None:
        """Take note of what workers died of; those that never came were not even started."""
        with self._changed:
            if no_memory and self._handed_out and self._order is not None:
                self._end = self._end or out_of_memory(self._order, reason)
            self._suspicion = self._suspicion or reason
            if not self._workers_came:
                self._quarantine.died()
                self._end = self._end or self._closing()
            self._workers_came = False
            self._state = "starting"
            self._changed.notify_all()

    def _goes_on(self, lease: int) -> bool:
        return self._current(lease) and self._end is None

    def _in_an_epoch(self) -> bool:
        order = self._order
        if order is None or not self._handed_out or self._end is not None:
            return False
        return self._last_epoch(order) < min(self._allowed_epoch, order.max_epochs)

    def _move_on(self) -> None:
        """After an epoch, or between two: where the workers leave, the trial does."""
        if self._leaving and self._order is not None:
            self._end = self._end or Moved(reason=self._leaving)

    def _current(self, lease: int) -> bool:
        return self._order is not None and lease == self._lease

    def _has_work(self) -> bool:
        return (
            self._order is not None
            and not self._handed_out
            and not self._leaving
            and self._end is None
            and self._last_epoch(self._order) < self._order.max_epochs
        )

    def _last_epoch(self, order: Order) -> int:
        return max(self._reports, default=order.epoch)

    def _replaced(self, leaving: bool) -> None:
        """New workers are there: where an order is out, others died under it."""
        if not self._handed_out:
            return
        self._handed_out = False
        if self._order is None or self._end is not None:  # or broke off, when it was over
            return
        if leaving:  # their node was taken before the epoch was done: nobody's fault
            return
        self._deaths += 1
        self._quarantine.died(self._order.trial_id)
        self._end = self._verdict(self._order)
        self._changed.notify_all()

    def _verdict(self, order: Order) -> Failure | Moved | None:
        at_last = self._at_last()
        deaths = order.lost + self._deaths
        if deaths > self._max_failures:
            return Failure(
                state="failed",
                reason=f"its workers died {deaths} times, "
                f"training.max_failures allows {self._max_failures}{at_last}",
            )
        if self._quarantine.moves(order.trial_id):
            times = f"its workers died {self._deaths} times on one gang{at_last}"
            return self._closing() or Moved(reason=times, deaths=self._deaths)
        return None

    def _closing(self) -> Moved | None:
        """What any trial is told once the gang is to be closed."""
        verdict = self._quarantine.verdict()
        if not verdict:
            return None
        closed = f"{verdict}{self._at_last()}"
        return Moved(reason="its gang was closed", deaths=self._deaths, gang_closed=closed)

    def _at_last(self) -> str:
        return f"; at last: {self._suspicion}" if self._suspicion else ""

    def _hand_out(self) -> tuple[int, Order]:
        assert self._order is not None
        self._handed_out = True
        self._suspicion = ""
        self._lease += 1
        return self._lease, dataclasses.replace(
            self._order,
            epoch=self._last_epoch(self._order),
            attempt=self._order.attempt + self._deaths,
        )
