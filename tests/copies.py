"""Counting the bytes that copies read and write."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

COPIES = ("cat", "stack", "copy_", "clone", "_to_copy", "contiguous", "repeat", "index_select", "constant_pad_nd", "_foreach_copy_")


class Copies(TorchDispatchMode):
    """Counts bytes that copying operators read and write, and lists the operators. Collectives move theirs without them."""

    def __init__(self) -> None:
        super().__init__()
        self.read = self.written = 0
        self.operators: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        if name in COPIES:
            self.operators.append(name)
            sources = args[1:] if name.endswith("copy_") else args
            self.read += sum(x.nbytes for x in tree_iter(sources) if isinstance(x, Tensor))
            self.written += sum(x.nbytes for x in tree_iter(result) if isinstance(x, Tensor))
        return result
