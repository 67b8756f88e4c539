"""A trial's checkpoints where `storage` is a URL: one file each, saved and read by the workers.

The folder that a trainable saves goes up as one tar file, so that half a checkpoint is never taken for one,
and deleting it is one request. Where `storage` is a folder, nothing of this is used.
"""

from __future__ import annotations

import contextlib
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from trainables.patience import patiently
from trainables.store import Store, is_url, store_is_away

#: Seconds for which a worker waits for a store that is away before the run ends.
PATIENCE_S = 600.0
SUFFIX = ".tar"


def upload_checkpoint(save: Callable[[Path], None], url: str) -> None:
    """Let `save` fill a folder, and put it at `url`.

    Raises:
        StorageFailed: the store is away for `PATIENCE_S`, or there is no room for a copy here.
    """
    with tempfile.TemporaryDirectory(prefix="captune-") as scratch:
        folder, packed = Path(scratch, "checkpoint"), Path(scratch, "packed")
        folder.mkdir()
        save(folder)
        with tarfile.open(packed, "w") as tar:
            tar.add(folder, arcname=".")
        store, name = _file_of(url)
        patiently(lambda: store.upload(packed, name), patience_s=PATIENCE_S, away=store_is_away)


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
    with tempfile.TemporaryDirectory(prefix="captune-") as scratch:
        folder = Path(scratch, "checkpoint")
        store, name = _file_of(place)
        download_checkpoint(store, name.removesuffix(SUFFIX), folder)
        yield folder


def download_checkpoint(store: Store, name: str, folder: Path) -> None:
    """Make `folder`, which is not there, the checkpoint `name`; raises as `checkpoint_at` does."""
    with tempfile.TemporaryDirectory(prefix="captune-") as scratch:
        packed = Path(scratch, "packed")
        patiently(lambda: store.download(name + SUFFIX, packed), patience_s=PATIENCE_S, away=store_is_away)
        with tarfile.open(packed) as tar:
            tar.extractall(folder, filter="data")


def _file_of(url: str) -> tuple[Store, str]:
    """The store that holds a checkpoint, and the checkpoint's file there."""
    start, question, options = url.partition("?")
    parent, _, name = start.rpartition("/")
    return Store(parent + question + options), name + SUFFIX
