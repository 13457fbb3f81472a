"""Counting collectives and their bytes."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode


class Traffic(TorchDispatchMode):
    """Counts collectives and the bytes that this rank sends to others."""

    def __init__(self) -> None:
        super().__init__()
        self.collectives: list[str] = []
        self.sent = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name == "c10d::alltoall_base_":
            flat, group, send_sizes = args[1], dist.ProcessGroup.unbox(args[2]), args[4]
            send_sizes = send_sizes or [flat.numel() // group.size()] * group.size()
            self.sent += (sum(send_sizes) - send_sizes[group.rank()]) * flat.itemsize
            self.collectives.append("all_to_all")
        elif name == "c10d::_allgather_base_":
            flat, group = args[1], dist.ProcessGroup.unbox(args[2])
            self.sent += flat.numel() * flat.itemsize * (group.size() - 1)
            self.collectives.append("all_gather")
        elif "c10d" in name and "wait_tensor" not in name:
            self.collectives.append(name)
        return func(*args, **(kwargs or {}))
