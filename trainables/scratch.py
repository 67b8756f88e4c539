"""Folders for the time being, which outlive their process only until the next worker begins.

A process that is killed leaves its folders behind, with up to a whole checkpoint in them. Their names tell
machine and process: a temporary folder may be shared by containers, which cannot see each other's processes.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import tempfile
from pathlib import Path

import psutil


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """A new one, among the machine's temporary files; goes at the end of the block, or of the process."""
    return tempfile.TemporaryDirectory(prefix=f"{_prefix()}{os.getpid()}-")


def sweep() -> None:
    """Remove those of processes of this machine that are no more."""
    for folder in Path(tempfile.gettempdir()).glob("captune-*"):
        found = re.fullmatch(re.escape(_prefix()) + r"(\d+)-[^-]+", folder.name)
        if found and not psutil.pid_exists(int(found[1])):
            shutil.rmtree(folder, ignore_errors=True)


def _prefix() -> str:
    try:
        processes = os.stat("/proc/self/ns/pid").st_ino  # whose numbers one sees
    except OSError:
        processes = 0
    return f"captune-{socket.gethostname()}-{processes}-"
