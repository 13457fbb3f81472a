"""What the tiny models share: sizes, random tensors, weights drawn anew."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

HEIGHT, WIDTH = 6, 10  # patches
Inputs = dict[str, Any]


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def redraw(model: nn.Module) -> nn.Module:
    """Draw every parameter anew, alike on every rank; norms stay near one, so that no activation dies out."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        fan_in = parameter.shape[-1] if parameter.ndim > 1 else 16
        base = 1.0 if "norm" in name and name.endswith("weight") and parameter.ndim == 1 else 0.0
        parameter.data = base + noise * (1.5 / fan_in**0.5)
    return model.eval()


def text_mask(batch: int, tokens: int) -> Tensor:
    """1 for the words of captions of different lengths: (batch, tokens)."""
    lengths = torch.tensor([tokens - 2 * (i % 2) - 1 for i in range(batch)])
    return (torch.arange(tokens)[None] < lengths[:, None]).long()
