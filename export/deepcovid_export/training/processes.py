"""The processes of one training run: one, or as many as `torchrun` started.

Every process holds the whole network and reads its share of each batch. Gradients are averaged
(torch's DistributedDataParallel), so all make the same step. Only the first writes and prints.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from inspect import signature
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from deepcovid_edge.errors import UsageError

Value = TypeVar("Value")
_DEVICE = re.compile("cpu|cuda(:[0-9]+)?")
_PATIENCE = timedelta(minutes=30)
"""Longest wait of a process for what another has to add; it fails then, and torchrun ends all."""


@dataclass(frozen=True)
class Processes:
    """This process among those of the run: its number, from 0, and how many there are."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def share_of(self, batch_size: int) -> int:
        """Images of a batch that this process reads.

        Raises:
            UsageError: The batch cannot be divided evenly.
        """
        if batch_size % self.count:
            raise UsageError(
                f"fit.batch_size: got {batch_size}, expected a multiple of the {self.count} "
                f"processes: --set fit.batch_size={-(-batch_size // self.count) * self.count}"
            )
        return batch_size // self.count

    def joint(self, network: nn.Module) -> nn.Module:
        """The network with gradients averaged over all processes."""
        if self.count == 1:
            return network
        # Within an epoch each process has its own buffers; `average_buffers` joins them after it.
        known = signature(DistributedDataParallel).parameters
        renamed = "forward_sync_buffers"  # in torch 2.13
        option = renamed if renamed in known else "broadcast_buffers"
        keep: dict[str, Any] = {option: False}
        return DistributedDataParallel(network, **keep)

    def total(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        if self.count > 1:
            dist.all_reduce(value)
        return value

    def gathered(self, value: Value) -> list[Value]:
        """The value of each process, in the order of their ranks."""
        if self.count == 1:
            return [value]
        values: list[Value | None] = [None] * self.count
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def average_buffers(self, network: nn.Module | None) -> None:
        """Give all processes the mean of their running statistics.

        The mean of the processes' moving averages is the moving average over all images.
        """
        if network is None or self.count == 1:
            return
        for buffer in network.buffers():
            if buffer.is_floating_point():
                buffer.copy_(self.total(buffer.clone()) / self.count)


def check_device(device: str) -> None:
    """Check that torch can compute on a device.

    Raises:
        UsageError: It is neither `cpu`, `cuda` nor `cuda:N`, or torch does not see it.
    """
    if not _DEVICE.fullmatch(device):
        raise UsageError(f"--device: got {device!r}, expected cpu, cuda or cuda:N")
    if device == "cpu":
        return
    if not torch.cuda.is_available():
        raise UsageError(f"--device: got {device}, but torch sees no CUDA device: use cpu")
    seen = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    if device not in ("cuda", *seen):
        raise UsageError(f"--device: got {device}, but torch sees {', '.join(seen)}")


@contextmanager
def joined(device: str) -> Iterator[tuple[Processes, str]]:
    """Join the processes that torchrun started until the block ends; without torchrun, one process.

    Args:
        device: `cpu`, `cuda` or `cuda:N`.

    Yields:
        This process among the others, and its own device.

    Raises:
        UsageError: The device is not there, or all processes were given the same GPU.
    """
    check_device(device)
    if not dist.is_torchelastic_launched():
        yield Processes(), device
        return
    backend = "gloo"
    if device.startswith("cuda"):
        if device != "cuda":
            raise UsageError(
                f"--device: got {device}, expected cuda: torchrun gives each process its own GPU"
            )
        backend, device = "nccl", f"cuda:{os.environ['LOCAL_RANK']}"
        check_device(device)
        torch.cuda.set_device(device)
    dist.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size()), device
    finally:
        dist.destroy_process_group()
