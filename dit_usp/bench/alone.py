# mypy: disable-error-code="override, assignment, attr-defined"
"""One rank of many on its own: a process group whose peers are copies of this rank.

An exchange or a gather moves as many bytes as it receives, within this device's memory, in line with the kernels: a step costs what one rank's share
costs with communication at the speed of memory and nothing of it hidden. Sums and broadcasts move nothing. What is computed from the peers'
tokens is of course not the model's output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch._dynamo
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup


class Done(dist.Work):
    """A collective that has ended."""

    def wait(self, timeout: Any = None) -> bool:
        return True

    def is_completed(self) -> bool:
        return True


class Alone(ProcessGroup):
    """Rank 0 of so many ranks, the others of which do not exist. torch calls its collectives by different names in its versions 2.11 to 2.15."""

    NAME = "alone"

    def exchange(self, output: Tensor, input: Tensor) -> Done:
        """Fill `output` with `input`, as often as it takes: an uneven share may receive more than it sends. Both flat."""
        filled = 0
        while filled < output.numel():
            size = min(input.numel(), output.numel() - filled)
            output[filled : filled + size].copy_(input[:size])
            filled += size
        return Done()

    def collect(self, output: Tensor, input: Tensor) -> Done:
        """Fill each row of `output` with `input`, which is flat."""
        for row in output:  # each a copy from memory to memory, which a profile tells from the model's own
            row.copy_(input)
        return Done()

    def getBackendName(self) -> str:
        return self.NAME

    @property
    def group_name(self) -> str:
        return dist.distributed_c10d._world.pg_names[self]

    def all_to_all_single(self, output: Tensor, input: Tensor, output_sizes: Sequence[int], input_sizes: Sequence[int], opts: Any = None) -> Any:
        return self.exchange(output.view(-1), input.view(-1))

    def all_gather_single(self, output: Tensor, input: Tensor, opts: Any = None) -> Any:
        return self.collect(output.view(self.size(), -1), input.reshape(-1))

    def all_gather_single_coalesced(self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], opts: Any = None) -> Any:
        for output, input in zip(outputs, inputs, strict=True):
            self.all_gather_single(output, input)
        return Done()

    def allgather(self, outputs: Sequence[Sequence[Tensor]], inputs: Sequence[Tensor], opts: Any = None) -> Any:
        for pieces, input in zip(outputs, inputs, strict=True):
            for piece in pieces:
                piece.copy_(input)
        return Done()

    def allreduce(self, tensors: Sequence[Tensor], opts: Any = None) -> Any:
        return Done()

    def broadcast(self, tensors: Sequence[Tensor], opts: Any = None) -> Any:
        return Done()

    def barrier(self, opts: Any = None) -> Any:
        return Done()

    alltoall_base = all_to_all_single
    _allgather_base = all_gather_single
    allgather_into_tensor_coalesced = all_gather_single_coalesced
    allreduce_coalesced = allreduce


def start(world_size: int) -> None:
    """Make this process rank 0 of so many ranks, the others of which do not exist.

    Raises:
        ValueError: this process is a rank already.
    """
    if dist.is_initialized():
        raise ValueError("a share is measured in a process of its own; this one is a rank of others already.")
    # torch.compile before 2.13 takes no subclass for a process group, and would break its graphs at every collective.
    if known := getattr(torch._dynamo.variables.distributed, "ProcessGroupVariable", None):
        known.is_process_group = staticmethod(lambda value: isinstance(value, ProcessGroup))
    if not hasattr(dist.Backend, Alone.NAME.upper()):
        dist.Backend.register_backend(Alone.NAME, _make, devices=["cpu", "cuda"])
    dist.init_process_group(Alone.NAME, rank=0, world_size=world_size, store=dist.HashStore())


def _make(store: dist.Store, rank: int, size: int, timeout: Any) -> ProcessGroup:
    return Alone(rank, size)  # type: ignore[call-arg]
