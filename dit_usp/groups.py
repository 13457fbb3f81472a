# mypy: disable-error-code="override, assignment, attr-defined"
"""Process groups written in Python: torch's collectives, eager and compiled, end in two methods of theirs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch._dynamo
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup


class Done(dist.Work):
    """A collective under way. Holds its tensors until someone has waited for it: until then their memory is not to be used again."""

    def __init__(self, ready: Callable[[], Any] | None = None, *held: Tensor) -> None:
        super().__init__()
        self.ready, self.held = ready, held

    def wait(self, timeout: Any = None) -> bool:
        if self.ready:
            self.ready()
        self.held = ()
        return True

    def is_completed(self) -> bool:
        return not self.held


class PythonGroup(ProcessGroup):
    """The collectives that dit-usp uses, under the names that torch 2.11 to 2.15 call them by."""

    NAME = ""
    supports_splitting = False  # torch asks its backend for this where ranks are bound to devices
    supports_time_estimate = False

    def _get_backend(self, device: torch.device) -> PythonGroup:
        return self

    def exchange(self, output: Tensor, input: Tensor, output_sizes: Sequence[int], input_sizes: Sequence[int]) -> Done:
        """all_to_all_single of flat tensors."""
        raise NotImplementedError

    def collect(self, output: Tensor, input: Tensor) -> Done:
        """all_gather_into_tensor."""
        raise NotImplementedError

    def getBackendName(self) -> str:
        return self.NAME

    @property
    def group_name(self) -> str:
        return dist.distributed_c10d._world.pg_names[self]

    def all_to_all_single(self, output: Tensor, input: Tensor, output_sizes: Sequence[int], input_sizes: Sequence[int], opts: Any = None) -> Any:
        ranks = self.size()
        return self.exchange(
            output.view(-1), input.view(-1), output_sizes or [output.numel() // ranks] * ranks, input_sizes or [input.numel() // ranks] * ranks
        )

    def all_gather_single(self, output: Tensor, input: Tensor, opts: Any = None) -> Any:
        return self.collect(output.view(self.size(), -1), input.reshape(1, -1))

    def all_gather_single_coalesced(self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], opts: Any = None) -> Any:
        works = [self.all_gather_single(output, input) for output, input in zip(outputs, inputs, strict=True)]
        return Done(lambda: [work.wait() for work in works])

    alltoall_base = all_to_all_single
    _allgather_base = all_gather_single
    allgather_into_tensor_coalesced = all_gather_single_coalesced


def register(kind: type[PythonGroup], make: Callable[[dist.Store, int, int, Any], ProcessGroup]) -> None:
    """Let torch make groups of this kind by its name, until something else is registered for it."""
    # torch.compile before 2.13 takes no subclass for a process group, and would break its graphs at every collective.
    if known := getattr(torch._dynamo.variables.distributed, "ProcessGroupVariable", None):
        known.is_process_group = staticmethod(lambda value: isinstance(value, ProcessGroup))
    dist.Backend.register_backend(kind.NAME, make, devices=["cpu", "cuda"])
