"""The name of this machine's processor, for what is measured on it."""

from __future__ import annotations

import platform
import re
from pathlib import Path


def processor() -> str:
    """As the system gives it, such as `AMD EPYC 7B13`; only the architecture where it does not."""
    try:
        match = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        match = None
    return match.group(1) if match else platform.processor() or platform.machine()
