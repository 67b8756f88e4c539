"""A trial's checkpoints, as the workers save and read them: there whole, or not at all.

Where `storage` is a folder, each is a folder that gets its name last. Where it is a URL, the folder that a
trainable saves goes up as one tar file, so that half a checkpoint is never taken for one, and deleting it is
one request.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from trainables.machine_cache import build_once, machine_cache
from trainables.patience import patiently
from trainables.scratch import scratch_folder
from trainables.store import Store, is_url, store_is_away
from trainables.trial import Metrics

#: Seconds for which a worker waits for a store that is away before the run ends.
PATIENCE_S = 600.0
SUFFIX = ".tar"


def weighing(save: Callable[[Path], None], metrics: Metrics) -> Callable[[Path], None]:
    """A trainable's `save` that notes in `metrics` how much it wrote."""

    def save_and_weigh(folder: Path) -> None:
        save(folder)
        files = (path for path in folder.rglob("*") if path.is_file())
        metrics["checkpoint_mb"] = sum(path.stat().st_size for path in files) / 1e6

    return save_and_weigh


def write_checkpoint(save: Callable[[Path], None], place: str) -> Callable[[], None]:
    """Let `save` fill a folder aside, put it on disk, then give it its name: seen whole or not at all.

    Returns:
        What is left to do for it, from any thread: nothing where `place` is no URL.
    """
    if is_url(place):
        return saved_for_upload(save, place)
    folder = Path(place)
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        save(aside)
        for path in aside.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        if folder.exists():  # an epoch that is repeated after a crash
            shutil.rmtree(folder)
        aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)  # on a full disk it would take the room that is made
        raise
    return lambda: None


def saved_for_upload(save: Callable[[Path], None], url: str) -> Callable[[], None]:
    """Let `save` fill a folder here, and return the call that puts it at `url`: once, from any thread.

    Raises:
        StorageFailed: by the returned call: the store is away for `PATIENCE_S`, or a copy has no room here.
    """
    scratch = scratch_folder()
    folder, packed = Path(scratch.name, "checkpoint"), Path(scratch.name, "packed")
    try:
        folder.mkdir()
        save(folder)
    except BaseException:
        scratch.cleanup()
        raise
    store, name = _file_of(url)

    def send() -> None:
        with tarfile.open(packed, "w") as tar:
            tar.add(folder, arcname=".")
        store.upload(packed, name)

    def upload() -> None:
        with scratch:
            patiently(send, patience_s=PATIENCE_S, away=store_is_away)

    return upload


def has_checkpoint(place: str) -> bool:
    """Whether there is one at `place`, a folder or a URL."""
    if not is_url(place):
        return Path(place).is_dir()
    store, name = _file_of(place)
    return patiently(lambda: store.has(name), patience_s=PATIENCE_S, away=store_is_away)


def read_checkpoint(load: Callable[[Path], None], place: str) -> None:
    """Let `load` read the checkpoint at `place`, a folder or a URL."""
    with checkpoint_at(place) as folder:
        load(folder)


@contextlib.contextmanager
def checkpoint_at(place: str) -> Iterator[Path]:
    """The checkpoint at `place`, a folder or a URL, as a folder here.

    Raises:
        FileNotFoundError: there is none at that URL.
        StorageFailed: the store is away for `PATIENCE_S`.
    """
    if not is_url(place):
        yield Path(place)
        return
    with scratch_folder() as scratch:
        folder = Path(scratch, "checkpoint")
        store, name = _file_of(place)
        download_checkpoint(store, name.removesuffix(SUFFIX), folder)
        yield folder


class CheckpointUrl(str):
    """Another trial's checkpoint at a URL, named in a configuration: the trainable sees a folder instead."""


def with_folders(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with a folder of this machine's cache for each `CheckpointUrl`, fetched by the first who asks.

    Raises:
        FileNotFoundError, StorageFailed: as `checkpoint_at` does.
    """
    return {
        name: str(_fetched(value)) if isinstance(value, CheckpointUrl) else value
        for name, value in config.items()
    }


def _fetched(url: str) -> Path:
    store, name = _file_of(url)
    version = patiently(lambda: store.version(name), patience_s=PATIENCE_S, away=store_is_away)
    digest = hashlib.blake2b(f"{url} {version}".encode(), digest_size=12).hexdigest()
    root = machine_cache() / f"parents-{digest}"
    inside = Path(*url.partition("?")[0].split("/")[-3:])  # checkpoints/TRIAL/EPOCH
    build_once(root, lambda aside: download_checkpoint(store, name.removesuffix(SUFFIX), aside / inside))
    return root / inside


def download_checkpoint(store: Store, name: str, folder: Path) -> None:
    """Make `folder`, which is not there, the checkpoint `name`; raises as `checkpoint_at` does."""
    with scratch_folder() as scratch:
        packed = Path(scratch, "packed")
        patiently(lambda: store.download(name + SUFFIX, packed), patience_s=PATIENCE_S, away=store_is_away)
        with tarfile.open(packed) as tar:
            tar.extractall(folder, filter="data")


def _file_of(url: str) -> tuple[Store, str]:
    """The store that holds a checkpoint, and the checkpoint's file there."""
    start, question, options = url.partition("?")
    parent, _, name = start.rpartition("/")
    return Store(parent + question + options), name + SUFFIX
