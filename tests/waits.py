"""Counting what makes the CPU wait for a GPU, on a machine that has none."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Operators whose result, or its size, is read by the CPU.
READS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal", "bincount")
# These read a tensor of the CPU without an operator; and make one of the CPU's numbers, which on a GPU waits for the copy.
CALLS = (Tensor.tolist, Tensor.numpy, Tensor.cpu, torch.tensor, torch.as_tensor, Tensor.new_tensor)


class Waits(TorchDispatchMode):
    """Counts the operators and the calls at which the CPU would wait, were the tensors on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.met: Counter[str] = Counter()
        self._calls = _Calls(self.met)

    def __enter__(self) -> Any:
        self._calls.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._calls.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        by_mask = name in ("index", "index_put", "index_put_") and any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
        by_counts = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
        if name in READS or by_mask or by_counts:
            self.met[name] += 1
        return func(*args, **(kwargs or {}))


class _Calls(TorchFunctionMode):
    def __init__(self, met: Counter[str]) -> None:
        super().__init__()
        self.met = met

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in CALLS:
            self.met[func.__name__] += 1
        return func(*args, **(kwargs or {}))
