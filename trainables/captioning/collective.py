"""The few collectives that a trial needs, on the group that carries its gradients; without one, no-ops.

Everything travels as tensors, so that the same calls work on gloo and on NCCL. Each must be called by
every worker of the gang, in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Workers that train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This worker's number, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def summed(values: Sequence[Tensor | float], device: torch.device) -> list[float]:
    """Each of `values` (scalars) summed over the workers, in float64."""
    tensor = torch.stack([torch.as_tensor(v, dtype=torch.float64, device=device) for v in values])
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor.tolist()


def agree(figures: Mapping[str, float], names: Sequence[str], device: torch.device) -> dict[str, float]:
    """Rank 0's `figures`, on every rank; `names` are their keys, which the other ranks need not have."""
    tensor = torch.tensor([figures.get(name, 0.0) for name in names], dtype=torch.float64, device=device)
    if world_size() > 1:
        dist.broadcast(tensor, src=0)
    return dict(zip(names, tensor.tolist(), strict=True))


def merged(
    rows: Mapping[int, Sequence[int]], shape: tuple[int, int], device: torch.device
) -> list[list[int]]:
    """The rows of all workers, `shape[0]` in number, each filled up with zeros to `shape[1]`.

    `rows` holds this worker's; each row must be with exactly one worker, for they are added up.
    """
    table = torch.zeros(shape, dtype=torch.int64)
    for number, row in rows.items():
        table[number, : len(row)] = torch.tensor(row, dtype=torch.int64)
    table = table.to(device)
    if world_size() > 1:
        dist.all_reduce(table)
    return table.tolist()
