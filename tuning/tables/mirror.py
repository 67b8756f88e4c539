"""Where `storage` is a URL: the driver works in a folder of its own, and what changes there is sent there.

The files are those of any experiment; who writes them need not know. A thread looks for what has changed and
sends it, with patience while the store is away, so the run waits for nothing. Checkpoints are not among them:
workers send these themselves (`trainables/checkpoint_files.py`); here they are only deleted and handed on.

At the URL, as on a disk, the study is never behind the table of epochs, nor that behind the table of trials,
and no checkpoint is deleted that the tables there need.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from trainables.checkpoint_files import SUFFIX
from trainables.patience import StorageFailed, patiently
from trainables.store import Store, store_is_away
from tuning.experiment_file import ExperimentError
from tuning.tables.copies import BEST_IS_WHOLE, TRIALS_FIRST, download
from tuning.tables.lease import LEASE, ExperimentBusy, Lease, identity, read_lease

#: Seconds between two looks at what has changed, and times as long as the last sending took.
INTERVAL_S, SPACING = 3.0, 5
#: Seconds until the next attempt while the store is away: after the first, and at most.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
#: Seconds for which the end of a run, or a fork, waits for a store that is away.
PATIENCE_S = 300.0


class StorageAway(OSError):
    """The run is over, and the URL does not have all of it. The folder of this machine does."""


class Mirror:
    """Keeps the copy of `folder` at a URL up to date.

    Args:
        folder: where the driver works; see `take_over`.
        store: the experiment's files at the URL.
        say: told when the store is away, and when it is back.
        interval_s: seconds between two looks at what has changed.
        patience_s: seconds for which `close` waits for a store that is away.
    """

    def __init__(
        self,
        folder: Path,
        store: Store,
        *,
        say: Callable[[str], None] = lambda line: None,
        interval_s: float = INTERVAL_S,
        patience_s: float = PATIENCE_S,
    ):
        self._folder, self._store, self._say = folder, store, say
        self._interval_s, self.patience_s = interval_s, patience_s
        self._copy = identity(folder, store.url)
        self._lease = Lease(store, self._copy)
        self._sent: dict[str, tuple[int, ...]] = {}  # by name, what tells a file from its next version
        self._there: defaultdict[str, set[str]] = defaultdict(set)  # checkpoints of earlier runs, by trial
        self._deleted: defaultdict[str, set[str]] = defaultdict(set)
        self._doomed: deque[str] = deque()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def take_over(self, *, alone: bool = False) -> None:
        """Become the one who works on the experiment, and bring what the URL has into the folder.

        A folder that sent last itself is left as it is: it may be ahead, where a run was killed.

        Args:
            alone: nobody else can be at it, whatever its lease says.

        Raises:
            ExperimentBusy: another process works on it.
            OSError: the store cannot be reached, or refuses.
        """
        before = bring_here(self._folder, self._store)
        if before and before.get("copy") != self._copy:  # all that is here is from there
            self._sent = {name: _version(self._folder / name) for name in [*self._names(), *self._best()]}
        self._lease.take({} if alone else before)
        for name in self._store.files("checkpoints"):
            _, _, rest = name.partition("/")
            trial_id, _, file = rest.partition("/")
            self._there[trial_id].add(file.removesuffix(SUFFIX))

    def start(self) -> None:
        """Send what there is, once from here, then whatever changes from a thread.

        Raises:
            StorageFailed: the store is away for `patience_s`.
            OSError: it refuses.
        """
        patiently(self.send, patience_s=self.patience_s, away=store_is_away)
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Be sure that nobody else has it.

        Raises:
            ExperimentBusy: another process has taken the experiment over.
        """
        if self._lease.lost_to:
            raise ExperimentBusy([f"{self._store.url}: {self._lease.lost_to} has taken over this experiment"])

    def clear(self, trial_id: str, keep: Collection[str], reported: Collection[str], over: bool) -> None:
        """Delete checkpoints of a trial as soon as the tables at the URL need them no more.

        Args:
            trial_id: whose.
            keep: names of those that stay.
            reported: names of those that are in the tables.
            over: no gang writes another; delete also what no report speaks of.

        Raises:
            ExperimentBusy: see `check`.
        """
        self.check()
        doomed = set(reported) - self._deleted[trial_id]
        self._deleted[trial_id] |= doomed - set(keep)
        if over:
            doomed |= self._there.pop(trial_id, set())
        self._doomed.extend(f"checkpoints/{trial_id}/{name}{SUFFIX}" for name in sorted(doomed - set(keep)))

    def hand_on(self, parent: str, epoch: int, fork: str) -> None:
        """Give `fork` a copy of the checkpoint of `parent` after `epoch`; nothing if there is none.

        Raises:
            StorageFailed: the store is away for `PATIENCE_S`.
        """
        source, target = (f"checkpoints/{trial_id}/{epoch:04d}{SUFFIX}" for trial_id in (parent, fork))
        with contextlib.suppress(FileNotFoundError):
            patiently(lambda: self._store.copy(source, target), patience_s=PATIENCE_S, away=store_is_away)

    def send(self) -> None:
        """Send what has changed, then delete the checkpoints that were not needed any more before.

        Raises:
            OSError: the store is away; whatever was not done is done next time.
        """
        self._lease.renew()
        if self._lease.lost_to:
            return
        number_of_doomed = len(self._doomed)
        for name, version, content in self._changed():
            self._store.put(name, content)
            self._sent[name] = version
        self._send_best()
        for _ in range(number_of_doomed):
            self._store.delete(self._doomed[0])
            self._doomed.popleft()

    def close(self) -> None:
        """Send the last of it, and let go of the experiment; nothing where `start` did not come through.

        Raises:
            ExperimentBusy: see `check`; nothing is sent.
            StorageAway: the store is away for `patience_s`.
        """
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
        self.check()
        try:
            if self._thread is not None:
                patiently(self.send, patience_s=self.patience_s, away=store_is_away)
            self._lease.release()
        except (OSError, StorageFailed) as error:
            raise StorageAway(
                f"not all results are at {self._store.url}: they are in {self._folder}, and the same command "
                f"(of a run: with --resume) sends them from this machine ({_in_short(error)})"
            ) from error

    def _changed(self) -> list[tuple[str, tuple[int, ...], bytes]]:
        """Name, version and content of the files that have changed, in the order in which they are sent.

        They are read the other way round: so what is sent first is never older than what is sent after it.
        """
        names = self._names()
        names.sort(key=lambda name: TRIALS_FIRST.index(name) if name in TRIALS_FIRST else len(TRIALS_FIRST))
        found = []
        for name in names:
            version = _version(self._folder / name)
            if version != self._sent.get(name):
                found.append((name, version, (self._folder / name).read_bytes()))
        return found[::-1]

    def _send_best(self) -> None:
        """Send the folder `best` if it has changed; meanwhile nobody takes it for whole."""
        here = {name: _version(self._folder / name) for name in self._best()}
        if here == {name: sent for name, sent in self._sent.items() if name.startswith("best/")}:
            return
        self._store.delete(BEST_IS_WHOLE)
        for name in self._store.files("best").keys() - here:
            self._store.delete(name)
        for name in here:
            self._store.upload(self._folder / name, name)
        self._store.put(BEST_IS_WHOLE, b"")
        self._sent = {name: sent for name, sent in self._sent.items() if not name.startswith("best/")} | here

    def _names(self) -> list[str]:
        """Of the files that are kept at the URL, but for those of `best`."""
        files = [path for path in self._folder.iterdir() if path.is_file() and not path.is_symlink()]
        return [path.name for path in files if path.name[0] != "."]  # links are the study's locks

    def _best(self) -> list[str]:
        files = [path for path in (self._folder / "best").rglob("*") if path.is_file()]
        return [str(path.relative_to(self._folder)) for path in files]

    def _work(self) -> None:
        pause, failures = self._interval_s, 0
        while not self._closing.wait(pause):
            begin = time.monotonic()
            try:
                self.send()
            except OSError as error:
                pause = min(FIRST_PAUSE_S * 2**failures, LONGEST_PAUSE_S)
                if failures == 0:
                    self._say(f"storage: {self._store.url} is away, the run goes on: {_in_short(error)}")
                failures += 1
                continue
            if failures:
                self._say(f"storage: {self._store.url} is back and up to date")
            spaced = min(SPACING * (time.monotonic() - begin), LONGEST_PAUSE_S)
            pause, failures = max(self._interval_s, spaced), 0


@contextlib.contextmanager
def mirrored(
    folder: Path, url: str, say: Callable[[str], None], *, within: Mirror | None = None
) -> Iterator[Mirror]:
    """Hold the experiment at `url`, its files in `folder`; at the end all of them are at the URL.

    Args:
        within: of the experiment that this one is a part of: who holds that holds this, and has done so much
            that a store that is away is waited for.

    Raises:
        ExperimentBusy: another process is running it.
        ExperimentError: the store cannot be reached, or refuses.
        StorageFailed: `within` another experiment, the store is away for `PATIENCE_S`.
        StorageAway: at the end, the store is away.
    """
    try:
        mirror = Mirror(folder, Store(url), say=say)
        if within is None:
            mirror.take_over()
        else:
            within.check()
            patiently(lambda: mirror.take_over(alone=True), patience_s=PATIENCE_S, away=store_is_away)
    except ExperimentError:
        raise
    except (OSError, ValueError) as error:
        raise ExperimentError([f"storage: cannot use {url}: {_in_short(error)}"]) from error
    try:
        yield mirror
    except StorageAway:
        mirror.patience_s = 0.0  # it was waited for already
        raise
    finally:
        mirror.close()


def bring_here(folder: Path, store: Store) -> dict[str, Any]:
    """Bring what the URL has into the folder where a driver works, unless it was this folder that sent it.

    Returns:
        What stands in `lease.json`; empty where nobody has worked on the experiment.

    Raises:
        OSError: the store cannot be reached, or refuses.
    """
    before = read_lease(store)
    if before.get("copy") != identity(folder, store.url):
        for path in folder.iterdir():
            if path.name[0] != ".":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        names = store.files(deep=False) if before else {}
        if BEST_IS_WHOLE in names:
            names |= store.files("best")
        download(store, names.keys() - {LEASE, BEST_IS_WHOLE}, folder)
    return before


def _version(path: Path) -> tuple[int, ...]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _in_short(error: Exception) -> str:
    """The first sentence of what pyarrow says, without the request's number."""
    return str(error).partition(" (Request ID")[0].partition("; Details:")[0].splitlines()[0]
