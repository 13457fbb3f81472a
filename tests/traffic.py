"""Counting collectives and their bytes."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from dit_usp.mesh import Mesh


class Traffic(TorchDispatchMode):
    """Counts collectives and the bytes that this rank sends to others."""

    def __init__(self, mesh: Mesh) -> None:
        super().__init__()
        self.ranks = {group.group_name: group for group in (mesh.ulysses, mesh.ring, mesh.sequence)}
        self.collectives: list[str] = []
        self.sent = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name == "_c10d_functional::all_to_all_single":
            flat, _, send_sizes, group = args
            own = self.ranks[group].rank()
            self.sent += sum(size for rank, size in enumerate(send_sizes) if rank != own) * flat.itemsize
            self.collectives.append("all_to_all")
        elif name == "_c10d_functional::all_gather_into_tensor":
            flat, ranks, _ = args
            self.sent += flat.numel() * flat.itemsize * (ranks - 1)
            self.collectives.append("all_gather")
        elif "c10d" in name and "wait_tensor" not in name:
            self.collectives.append(name)
        return func(*args, **(kwargs or {}))
