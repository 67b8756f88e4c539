"""The worker's side of a gang: take a trial, run its epochs, report, obey.

`serve` is the training function of one long-lived Ray Train run. Workers, process group and CUDA context
outlive the trials that they run, so a trial costs milliseconds to start and to stop. This file knows Ray
Train and the trial protocol; who sends the trials, and why one stops, is left to the gang's owner
(`tuning/gangs/owner.py`).

Rank 0 talks to the owner; what it hears reaches the other ranks over a gloo group of its own, never over
the group that carries gradients, so that waiting for work cannot collide with training.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import gc
import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, Literal, Protocol

import ray
import torch
import torch.distributed as dist
from ray import train
from ray.exceptions import RayActorError
from ray.train.torch import get_device

from trainables.blame import in_one_line, lacks_memory, peer_died
from trainables.checkpoint_files import (
    has_checkpoint,
    read_checkpoint,
    weighing,
    with_folders,
    write_checkpoint,
)
from trainables.figures import figures
from trainables.leaving import leaving
from trainables.order import Failure, Moved, Order, Report, checkpoint_place, out_of_memory
from trainables.patience import StorageFailed, patiently
from trainables.peak_memory import peak_memory_mb, reset_peak_memory
from trainables.places import missing_data
from trainables.scratch import sweep
from trainables.seeding import seed_everything
from trainables.store import is_url
from trainables.trial import (
    LeftEarly,
    SettingsError,
    Trainable,
    TrialContext,
    TrialDiverged,
    resolve_trainable,
)

POLL_S = 5.0  # how long one question to the owner may stay open
SETUP_S = 6 * 3600.0  # a trial that is not set up by then is stuck
MEET_S = 20.0  # how far apart the ranks may come out of a trial that diverged


class Owner(Protocol):
    """What a worker asks of its gang's owner, an actor handle; every method answers with an object ref."""

    join: Any
    """(rank, the worker's actor handle, id of its node) -> None: whom to kill where the gang hangs."""
    next_order: Any
    """(lease | None, timeout_s) -> (lease, Order) | "close" | None."""
    push: Any
    """(lease, Report) -> None."""
    may_go_on: Any
    """(lease, epoch, timeout_s) -> True | False | None (ask again)."""
    fail: Any
    """(lease, Failure) -> None."""
    alive: Any
    """(lease) -> None: a sign of life amid something that is no epoch."""
    suspect: Any
    """(lease, reason) -> None: the workers break off, though the trial seems not to be at fault."""


def serve(setup: Mapping[str, Any]) -> None:
    """Run trials until the owner closes the gang: the `train_loop_per_worker` of a gang's Ray Train run.

    `setup` holds `owner` (an actor handle, see `Owner`) and `cpus` (cores of this worker).
    """
    torch.set_num_threads(setup["cpus"])
    logging.basicConfig(format="%(asctime)s %(message)s")
    logging.getLogger("trainables").setLevel(logging.INFO)  # who prepares data on this node, who waits for it
    sweep()  # what a worker before this one may have left
    gang = Gang(owner=setup["owner"], cpus=setup["cpus"])
    me = ray.get_runtime_context()
    ray.get(gang.owner.join.remote(gang.rank, me.current_actor, me.get_node_id()))
    # Whatever is loaded by now stays for good: without the freeze each collection costs 0.36 s.
    gc.collect()
    gc.freeze()
    lease: int | None = None
    while True:
        answer = gang.ask(lambda lease=lease: gang.owner.next_order.remote(lease, POLL_S))  # type: ignore[misc]
        if answer == "close":
            return
        if answer is None:
            continue
        lease, order = answer
        gang.run(lease, order)


class Gang:
    """One worker's membership of its gang."""

    def __init__(self, *, owner: Owner, cpus: int):
        self.owner = owner
        self.cpus = cpus
        worker = train.get_context()
        self.rank, self.world_size = worker.get_world_rank(), worker.get_world_size()
        self.device = get_device()
        self.node = ray.util.get_node_ip_address()
        # Half a day: a gang may wait that long for its next trial, and a dead peer closes the sockets anyway.
        patience = datetime.timedelta(hours=12)
        self.control = dist.new_group(backend="gloo", timeout=patience) if self.world_size > 1 else None

    def ask(self, question: Callable[[], Any]) -> Any:
        """Rank 0 puts `question` (it returns an object ref) to the owner; every rank gets the answer."""
        return self._agreed(ray.get(question()) if self.rank == 0 else None)

    def _agreed(self, answer: Any) -> Any:
        """Rank 0's `answer`, on every rank."""
        answers = [answer]
        if self.control is not None:
            dist.broadcast_object_list(answers, src=0, group=self.control)
        return answers[0]

    def run(self, lease: int, order: Order) -> None:
        """Run one trial to its end, or to where the owner stops it.

        A failure of the trial's own code is reported and ends the trial only. It is raised on where a
        collective of the gang could be half done: Ray Train then builds the workers and their process
        group anew. Divergence and refused settings are raised on every rank alike, so nothing is pending;
        that all ranks came out is checked.
        """
        try:
            self._epochs(lease, order)
        except TrialDiverged as error:
            if self.rank == 0 or not is_url(order.folder):  # rank 0 has reported what it was uploading first
                self._fail(lease, Failure(state="diverged", reason=str(error)))
            self._meet()
        except SettingsError as error:
            reason = missing_data(order.data, self.node) or str(error)
            failure = Failure(state="failed", reason=reason, error=traceback.format_exc())
            self._fail(lease, failure)
            self._meet()
        except StorageFailed as error:  # no fault of the trial's
            state: Literal["full", "away"] = "full" if error.full else "away"
            self._fail(lease, Moved(reason=str(error), storage=state))
            if self.world_size > 1:
                raise
        except RayActorError:
            raise  # the owner is gone
        except Exception as error:
            reason = in_one_line(error)
            if lacks_memory(error):
                self._fail(lease, out_of_memory(order, reason))
            elif self.world_size > 1 and peer_died(error):
                # Not the trial's fault, as it seems: the next workers take it up again.
                ray.get(self.owner.suspect.remote(lease, reason))
            else:
                self._fail(lease, Failure(state="failed", reason=reason, error=traceback.format_exc()))
            if self.world_size > 1:
                raise
        finally:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _fail(self, lease: int, failure: Failure | Moved) -> None:
        ray.get(self.owner.fail.remote(lease, failure))  # from whichever rank; the first word counts

    def _meet(self) -> None:
        """Wait for the other ranks to come out of the trial, too.

        Raises:
            RuntimeError: one does not, it may be stuck in a collective that this rank has left.
        """
        if self.control is not None:
            dist.monitored_barrier(self.control, timeout=datetime.timedelta(seconds=MEET_S))

    def _epochs(self, lease: int, order: Order) -> None:
        context = TrialContext(
            trial_id=order.trial_id,
            rank=self.rank,
            world_size=self.world_size,
            device=str(self.device),
            precision=resolve_precision(order.precision, self.device),
            seed=order.seed,
            cpus=self.cpus,
            max_epochs=order.max_epochs,
            data=order.data,
            leaving=leaving,
        )
        reset_peak_memory(self.device)
        seed_everything(order.seed)
        trial = resolve_trainable(order.trainable)()
        try:
            with self._signs_of_life(lease):  # the first trial on a node may build its cache for long
                trial.setup(with_folders(order.config), context)
                self._take_up(order, trial)  # or wait for a store that is away
            with ThreadPoolExecutor(max_workers=1) as behind:  # is waited for where the trial raises, too
                self._train(lease, order, trial, behind)
        finally:
            trial.close()

    def _take_up(self, order: Order, trial: Trainable) -> None:
        """Go on where the trial was: within an epoch, if it left its last gang there."""
        within = checkpoint_place(order, order.epoch, within=True)
        # One rank looks for all: file systems may show a new folder here and not yet there.
        there = self.rank == 0 and patiently(functools.partial(has_checkpoint, within))
        place = within if self._agreed(there) else checkpoint_place(order, order.epoch)
        if place == within or order.epoch:
            patiently(functools.partial(read_checkpoint, trial.load, place))

    def _train(self, lease: int, order: Order, trial: Trainable, behind: Executor) -> None:
        """Run what is left of the trial's epochs, until it is told to stop.

        An upload goes on behind the next epoch where nobody is to decide between the two. If somebody does,
        that epoch was for nothing, and the trial stands where it was reported.
        """
        told: Future[bool] | None = None  # on rank 0: of the last epoch, whether to go on
        hears_later = False
        for epoch in range(order.epoch + 1, order.max_epochs + 1):
            started = time.perf_counter()
            # Per epoch and rank, so that going on from a checkpoint needs no random state in it.
            seed_everything(order.seed, epoch, self.rank)
            try:
                metrics = figures("train_epoch", trial.train_epoch())
            except LeftEarly:
                if not hears_later or self._goes_on(told):
                    self._leave(lease, order, trial, epoch - 1)
                return
            metrics |= figures("evaluate", trial.evaluate(full=epoch in order.full_epochs))
            if hears_later and not self._goes_on(told):
                return
            if self.rank == 0:
                # Before the report: whoever hears of an epoch may go on from its checkpoint.
                save, place = weighing(trial.save, metrics), checkpoint_place(order, epoch)
                upload = patiently(functools.partial(write_checkpoint, save, place))
            seconds = time.perf_counter() - started
            metrics |= {
                "seconds": seconds,
                "worker_s": seconds * self.world_size,
                "peak_memory_mb": peak_memory_mb(self.device),
            }
            report = Report(epoch=epoch, metrics=metrics, attempt=order.attempt, node=self.node)
            last = epoch == order.max_epochs
            if self.rank == 0:
                told = behind.submit(self._conclude, lease, report, upload, last)
            hears_later = is_url(order.folder) and epoch not in order.full_epochs and not last
            if not hears_later and not self._goes_on(told):
                return

    def _leave(self, lease: int, order: Order, trial: Trainable, epoch: int) -> None:
        """Keep what was trained of the epoch after `epoch`, and let the trial go on elsewhere."""
        if self.rank == 0:
            place = checkpoint_place(order, epoch, within=True)
            with self._signs_of_life(lease):
                patiently(functools.partial(write_checkpoint, trial.save, place))()
            self._fail(lease, Moved(reason="its node is taken away, in the middle of an epoch"))

    def _conclude(self, lease: int, report: Report, upload: Callable[[], None], last: bool) -> bool:
        """On rank 0: end an epoch, and hear from the owner whether there is to be another."""
        with self._signs_of_life(lease):
            upload()
        ray.get(self.owner.push.remote(lease, report))
        while not last:
            go_on = ray.get(self.owner.may_go_on.remote(lease, report.epoch, POLL_S))
            if go_on is not None:
                return go_on
        return False

    def _goes_on(self, told: Future[bool] | None) -> bool:
        """What rank 0 was told, on every rank."""
        return bool(self._agreed(told.result() if told is not None else None))

    @contextlib.contextmanager
    def _signs_of_life(self, lease: int) -> Iterator[None]:
        """Let the owner hear from this worker while the block runs, for `SETUP_S` at most."""
        done = threading.Event()

        def tell() -> None:
            for _ in range(int(SETUP_S / POLL_S)):
                if done.wait(POLL_S):
                    return
                self.owner.alive.remote(lease)

        teller = threading.Thread(target=tell, daemon=True)
        teller.start()
        try:
            yield
        finally:
            done.set()
            teller.join()


def resolve_precision(asked: str, device: torch.device) -> str:
    """`auto` is bf16 on GPUs that have it, fp16 on older ones, fp32 on CPUs."""
    if asked != "auto":
        return asked
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
