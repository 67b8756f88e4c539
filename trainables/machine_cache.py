"""What a machine keeps of what can be made or fetched again: folders built once, whole or not at all.

Each has a manifest that lists every file's length and checksum. It is built beside its place and renamed into
it, under a lock, so that any number of processes may ask for it at once; one that a crash or a full disk left
incomplete fails its manifest and is built again. Knows nothing of what is in it.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

MANIFEST = "manifest.json"
_SAMPLES = 64
_BLOCK = 1 << 20

log = logging.getLogger(__name__)


def machine_cache() -> Path:
    """`$CAPTUNE_CACHE`, else `~/.cache/captune`; perhaps it is not there yet."""
    return Path(os.environ.get("CAPTUNE_CACHE") or "~/.cache/captune").expanduser()


def build_once(folder: Path, build: Callable[[Path], None]) -> bool:
    """Make `folder` by `build(empty folder)`, unless it is there and whole.

    Returns:
        Whether this call built it.

    Raises:
        Whatever `build` raises; nothing is left in place then.
    """
    if is_whole(folder):
        return False
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))  # the system frees it when its holder is killed
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("another process is preparing %s: waiting for it", folder)
        lock.acquire()
    try:
        if is_whole(folder):
            return False
        # One name: under the lock, a leftover is a dead one's.
        aside = folder.with_name(f"{folder.name}.building")
        for stale in (aside, folder):
            if stale.exists():
                log.warning("%s is incomplete or corrupt: preparing it again", stale)
                shutil.rmtree(stale)
        aside.mkdir()
        log.info("preparing %s", folder)
        try:
            build(aside)
            _write_manifest(aside)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        os.replace(aside, folder)
        return True
    finally:
        lock.release()


def is_whole(folder: Path) -> bool:
    """Whether every file that the manifest lists is there with its length and checksum."""
    try:
        files: dict[str, dict[str, Any]] = json.loads((folder / MANIFEST).read_text())["files"]
        return all(_facts(folder / name) == facts for name, facts in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _write_manifest(folder: Path) -> None:
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = {str(path.relative_to(folder)): _facts(path) for path in found}
    (folder / MANIFEST).write_text(json.dumps({"files": files}, indent=1))


def _facts(path: Path) -> dict[str, int]:
    """Length and CRC-32: of everything up to 64 MB, of 64 spread blocks of 1 MB beyond.

    Opening must stay quick with hundreds of gigabytes. What really happens to a cache (cut short, holes of
    zeros after a power cut, another file's pages) shows in the blocks; a single flipped bit may not.
    """
    length, checksum = path.stat().st_size, 0
    with path.open("rb") as file:
        if length <= _SAMPLES * _BLOCK:
            while block := file.read(_BLOCK):
                checksum = zlib.crc32(block, checksum)
        else:
            for sample in range(_SAMPLES):
                file.seek((length - _BLOCK) * sample // (_SAMPLES - 1))
                checksum = zlib.crc32(file.read(_BLOCK), checksum)
    return {"bytes": length, "crc32": checksum}
