"""What a trial took of its worker's memory at most: the GPU's, where there is one, else the process's."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil
import torch


def reset_peak_memory(device: torch.device) -> None:
    """Begin anew: the peak is now what is in use now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        with contextlib.suppress(OSError):  # Linux only: 5 resets VmHWM (proc(5))
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb(device: torch.device) -> float:
    """Peak since the trial began: memory allocated on a GPU, or the process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    return psutil.Process().memory_info().rss / 1e6
