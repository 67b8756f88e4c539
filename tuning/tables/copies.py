"""Local copies of an experiment whose `storage` is a URL: where they lie, and how they are fetched.

A driver works in one copy, which `mirror.py` sends to the URL; readers have another, which is fetched anew
whenever results are loaded. What is large, models and checkpoints, is fetched where somebody wants it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from trainables.checkpoint_files import SUFFIX, download_checkpoint
from trainables.machine_cache import machine_cache
from trainables.store import Store, under

#: In a copy: what it is a copy of. Like all that begins with a dot, it is never sent.
ORIGIN = ".origin.json"
#: At the URL: says that the folder `best` is whole.
BEST_IS_WHOLE = "best.complete"
#: Read first of all: what is sent later is then never older than what it tells of.
TRIALS_FIRST = ("trials.parquet", "epochs.parquet")


def copy_folder(storage: str, name: str, purpose: Literal["working", "reading"]) -> Path:
    """Where this machine keeps its copy of experiment `name` at the URL `storage`."""
    digest = hashlib.blake2b(under(storage).encode(), digest_size=6).hexdigest()
    host = urlsplit(storage).netloc.rpartition("@")[2]
    return machine_cache() / "storage" / f"{host}-{digest}" / purpose / name


def origin_of(folder: Path) -> str | None:
    """The URL that `folder` is a copy of; None where it is the experiment's own folder."""
    return _origin(folder).get("url")


def split_url(url: str) -> tuple[str, str]:
    """An experiment's URL as that of its storage and its name."""
    start, question, options = url.partition("?")
    storage, _, name = start.rstrip("/").rpartition("/")
    return storage + question + options, name


def fetch_for_reading(storage: str, name: str) -> Path | None:
    """A fresh copy of experiment `name` at the URL `storage`, without models; None where there is none.

    Raises:
        OSError: the store cannot be reached, or refuses.
    """
    url = under(storage, name)
    store = Store(url)
    names = store.files(deep=False)
    if "experiment.yaml" not in names:
        return None
    folder = copy_folder(storage, name, "reading")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ORIGIN).write_text(json.dumps({"url": url}))
    for path in folder.iterdir():
        if path.is_file() and path.name[0] != "." and path.name not in names:
            path.unlink()
    download(store, names, folder)
    return folder


def download(store: Store, names: Iterable[str], folder: Path) -> None:
    """Fetch files into `folder`, each whole or not at all; one that has just been deleted is left out."""
    first = {name: place for place, name in enumerate(TRIALS_FIRST)}
    for name in sorted(names, key=lambda name: (first.get(name, len(first)), name)):
        path = folder / name
        aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            store.download(name, aside)
            os.replace(aside, path)
        except FileNotFoundError:
            path.unlink(missing_ok=True)
        finally:
            aside.unlink(missing_ok=True)


def best_in(folder: Path) -> Path | None:
    """The folder `best` of the experiment in `folder`, fetched into a reader's copy; None if there is none.

    Raises:
        OSError: the store cannot be reached, or refuses.
    """
    best, origin = folder / "best", _origin(folder)
    if origin and "copy" not in origin:  # not the folder that a driver works in
        store = Store(origin["url"])
        shutil.rmtree(best, ignore_errors=True)
        if store.has(BEST_IS_WHOLE):
            download(store, store.files("best"), folder)
    return best if best.is_dir() else None


def checkpoint_in(folder: Path, name: str) -> Path:
    """The checkpoint `name` of the experiment in `folder`, fetched into a copy; perhaps it does not exist.

    Raises:
        OSError: the store cannot be reached, or refuses.
    """
    url = origin_of(folder)
    if url is not None:
        shutil.rmtree(folder / name, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            download_checkpoint(Store(url), name, folder / name)
    return folder / name


def checkpoints_in(folder: Path, names: Iterable[str]) -> list[bool]:
    """For each of `names`, whether there is such a checkpoint. Raises as `checkpoint_in` does."""
    url = origin_of(folder)
    if url is None:
        return [(folder / name).is_dir() for name in names]
    names, store = list(names), Store(url)
    listed = {name.partition("checkpoints/")[0] + "checkpoints" for name in names}
    there = {file for each in listed for file in store.files(each)}
    return [name + SUFFIX in there for name in names]


def _origin(folder: Path) -> dict[str, str]:
    try:
        return json.loads((folder / ORIGIN).read_text())
    except FileNotFoundError:
        return {}
