# mypy: disable-error-code="override"
"""One rank of many on its own: a process group whose peers are copies of this rank.

An exchange or a gather moves as many bytes as it receives, within this device's memory, in line with the kernels: a step costs what one rank's share
costs with communication at the speed of memory and nothing of it hidden. Sums and broadcasts move nothing. What is computed from the peers'
tokens is of course not the model's output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor

from dit_usp.groups import Done, PythonGroup, register


class Alone(PythonGroup):
    """Rank 0 of so many ranks, the others of which do not exist."""

    NAME = "alone"

    def exchange(self, output: Tensor, input: Tensor, output_sizes: Sequence[int], input_sizes: Sequence[int]) -> Done:
        filled = 0
        while filled < output.numel():  # an uneven share may receive more than it sends
            size = min(input.numel(), output.numel() - filled)
            output[filled : filled + size].copy_(input[:size])
            filled += size
        return Done()

    def collect(self, output: Tensor, input: Tensor) -> Done:
        output.copy_(input.expand(self.size(), -1))
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

    allreduce_coalesced = allreduce


def start(world_size: int) -> None:
    """Make this process rank 0 of so many ranks, the others of which do not exist.

    Raises:
        ValueError: this process is a rank already.
    """
    if dist.is_initialized():
        raise ValueError("a share is measured in a process of its own; this one is a rank of others already.")
    register(Alone, lambda store, rank, size, timeout: Alone(rank, size))  # type: ignore[call-arg]
    dist.init_process_group(Alone.NAME, rank=0, world_size=world_size, store=dist.HashStore())
