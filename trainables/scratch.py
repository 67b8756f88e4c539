"""Folders for the time being, which outlive their process only until the next worker begins.

A process that is killed leaves its folders behind, with up to a whole checkpoint in them. Their names tell
machine and process: a temporary folder may be shared by containers, which cannot see each other's processes.
"""

from __future__ import annotations

import os
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
    for folder in Path(tempfile.gettempdir()).glob(f"{_prefix()}*"):
        pid = folder.name.removeprefix(_prefix()).partition("-")[0]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _prefix() -> str:
    return f"captune-{socket.gethostname()}-"
