"""A tiny pipeline of every class in the table, nothing downloaded. Each family's are in its own tiny_<family>.py, found by its name."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import diffusers
import torch
from tiny_parts import Tiny

_FAMILIES = (path.stem for path in sorted(Path(__file__).parent.glob("tiny_*.py")) if path.stem not in ("tiny_parts", "tiny_pipelines"))
TINY: dict[str, Tiny] = {name: tiny for family in _FAMILIES for name, tiny in getattr(importlib.import_module(family), "TINY", {}).items()}


def build(name: str, folder: Path) -> Any:
    """The tiny pipeline of diffusers class `name`, its weights drawn alike each time."""
    torch.manual_seed(0)
    return TINY[name].build(name, folder)


def default_call(name: str) -> dict[str, Any]:
    """Arguments that make a picture in 2 steps."""
    call = TINY[name].call
    steps = {"num_inference_steps": 2} if "num_inference_steps" in inspect.signature(getattr(diffusers, name).__call__).parameters else {}
    return steps | (call if isinstance(call, dict) else call())
