"""The calls of a module from outside: what tells one kind of call from another, and where a call is caught."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec

PLAIN = (int, float, bool, str, type(None), torch.dtype, torch.device)


def kind_of_call(leaves: Sequence[Any], spec: TreeSpec) -> Any:
    """What a call's work depends on beside the values in its tensors.

    Not strides: ranks may hold the same values in other strides.
    """
    autocast = [(torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in ("cuda", "cpu")]
    return kinds_of(leaves), str(spec), tuple(autocast), torch.is_inference_mode_enabled()


def kinds_of(leaves: Sequence[Any]) -> tuple[Any, ...]:
    """Each tensor's shape, type and device, and the plain values."""
    return tuple((tuple(x.shape), x.dtype, x.device) if isinstance(x, Tensor) else (type(x), x) for x in leaves)


def odd_argument(leaves: Sequence[Any]) -> str:
    """The type of an argument, or of a result, that is neither a tensor nor a plain value, such as a cache; "" if there is none."""
    return next((type(leaf).__name__ for leaf in leaves if not isinstance(leaf, (Tensor, *PLAIN))), "")


def slot_of(module: nn.Module) -> Any:
    """What has the `_compiled_call_impl` that runs on this rank: the module, or what deals its calls out to ranks (`dit_usp.guidance`)."""
    outer = module._compiled_call_impl
    return outer if hasattr(outer, "_compiled_call_impl") else module
