"""Whose fault the exception is that ended a trial: want of memory's, a lost worker's, or its own."""

from __future__ import annotations

import re

import torch
import torch.distributed as dist


def in_one_line(error: Exception) -> str:
    """Its type and the first line of what it says."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def lacks_memory(error: Exception) -> bool:
    """Whether memory was refused, on a GPU or a CPU (of which torch raises a plain RuntimeError)."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return "DefaultCPUAllocator: can't allocate memory" in str(error)


def peer_died(error: Exception) -> bool:
    """Whether a collective broke because another worker is gone (gloo raises plain RuntimeErrors)."""
    words = r"\b(ProcessGroup)?(gloo|nccl)\b|connection closed by peer"
    return isinstance(error, dist.DistError) or bool(re.search(words, str(error), re.IGNORECASE))
