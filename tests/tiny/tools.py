"""What the tiny models share: sizes, random tensors, weights drawn anew."""

from __future__ import annotations

import importlib
import importlib.util
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEIGHT, WIDTH = 6, 10  # patches
Inputs = dict[str, Any]


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def times(batch: int) -> Tensor:
    """A time for each sample, of 1: bf16 holds those of two, and a thousand times as much."""
    return torch.linspace(0.25, 0.5, batch)


def redraw(model: nn.Module) -> nn.Module:
    """Draw every parameter anew, alike on every rank; norms stay near one, so that no activation dies out."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(1)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, device=device)
        fan_in = parameter[0].numel() if parameter.ndim > 3 else parameter.shape[-1] if parameter.ndim > 1 else 16  # convolutions sum over more
        base = 1.0 if "norm" in name and name.endswith("weight") and parameter.ndim == 1 else 0.0
        parameter.data = base + noise * (1.5 / fan_in**0.5)
    return model.eval()


def text_mask(batch: int, tokens: int) -> Tensor:
    """1 for the words of captions of different lengths: (batch, tokens)."""
    lengths = torch.tensor([tokens - 2 * (i % 2) - 1 for i in range(batch)])
    return (torch.arange(tokens)[None] < lengths[:, None]).long()


def resize_without_torchvision(module: str) -> None:
    """diffusers' Cosmos models take one function from torchvision, a nearest resize. Where that is not installed, torch's own stands in."""
    if importlib.util.find_spec("torchvision") is None:
        resize = lambda image, size, interpolation: F.interpolate(image, size, mode=interpolation)  # noqa: E731
        stand_in = SimpleNamespace(functional=SimpleNamespace(resize=resize), InterpolationMode=SimpleNamespace(NEAREST="nearest"))
        importlib.import_module(module).transforms = stand_in  # type: ignore[attr-defined]
