"""A gang's Ray Train run: what `TorchTrainer` does, without what a gang has no use for.

`TorchTrainer` imports torch wherever it is mentioned: in a gang's owner and in Ray Train's controller, too,
which train nothing. One after the other, that was a third of a gang's start. So a gang is a plain
`DataParallelTrainer` with a backend of its own; what happens on the workers is as with `TorchTrainer`. Nor is
there a process that shares out Ray's data sets.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import ray
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

LEAVE_S = 30.0  # how long workers may take to leave


def serve(setup: Mapping[str, Any]) -> None:
    """`trainables.gang.serve`, imported where it runs."""
    from trainables.gang import serve

    serve(setup)


class GangTrainer(DataParallelTrainer):
    """Takes what `DataParallelTrainer` does, but for what is trained and how the workers find each other."""

    def __init__(self, setup: Mapping[str, Any], **options: Any):
        super().__init__(serve, train_loop_config=dict(setup), backend_config=ProcessGroupConfig(), **options)

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [each for each in callbacks if not isinstance(each, DatasetsCallback)]


class ProcessGroupConfig(BackendConfig):
    """NCCL where workers have GPUs, else gloo; Ray Train reads the rest from here."""

    @property
    def backend_cls(self) -> type[Backend]:
        """Who sets it up."""
        return ProcessGroup

    @property
    def train_func_context(self) -> Any:
        """What surrounds `serve` on each worker."""
        return _on_its_device


class ProcessGroup(Backend):
    """Called by Ray Train's controller."""

    share_cuda_visible_devices = True  # as NCCL wants it, between workers on one node

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        """Let all workers join a new process group."""
        address, port = worker_group.execute_single(0, get_address_and_port)
        backend = "nccl" if worker_group.get_resources_per_worker().get("GPU", 0) > 0 else "gloo"
        size = len(worker_group)
        ray.get(
            [
                worker_group.execute_single_async(rank, _join, backend, rank, size, address, port)
                for rank in range(size)
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:
        """Let them leave it."""
        left = worker_group.execute_async(_leave, len(worker_group) > 1)
        ray.wait(left, num_returns=len(left), timeout=LEAVE_S)


def _join(backend: str, rank: int, size: int, address: str, port: int) -> None:
    from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group

    os.environ |= {"MASTER_ADDR": address, "MASTER_PORT": str(port)}
    _set_torch_distributed_env_vars()
    _setup_torch_process_group(backend, rank, size, "env://")


def _leave(destroy: bool) -> None:
    from ray.train.torch.config import _shutdown_torch

    _shutdown_torch(destroy_process_group=destroy)


def _on_its_device() -> AbstractContextManager:
    from ray.train.torch.config import TorchConfigContextManager

    return TorchConfigContextManager()
