"""What rounding is measured against: the model in float32, with the same weights and inputs."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn

from dit_usp.bench.cases import Inputs, each_tensor, run_step


def reference(model: nn.Module, calls: tuple[Inputs, ...], dtype: torch.dtype) -> Tensor | None:
    """The output in float32, or None where the GPU's memory does not suffice. Rounded back, the weights are what they were.

    All of the type `dtype` is upcast where it is, one tensor after the other, tables and parameters that no layer owns included: beside the float32
    weights, at most one tensor lies in memory twice.
    """
    weights = [tensor for tensor in chain(model.parameters(), model.buffers()) if tensor.dtype == dtype]
    output = None
    try:
        for tensor in weights:
            tensor.data = tensor.data.float()
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # convolutions would round to 10 bits
            output = run_step(model, each_tensor(calls, lambda tensor: tensor.float() if tensor.dtype == dtype else tensor))
    except torch.OutOfMemoryError:
        pass  # what the call held is free once this is handled, so that the weights can be restored
    finally:
        for tensor in weights:
            tensor.data = tensor.data.to(dtype)
    return output
