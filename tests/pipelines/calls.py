"""Calling tiny pipelines, in the test's process by diffusers and on the ranks by dit-usp."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from tiny_pipelines import default_call

from dit_usp import pipelines
from dit_usp.config import ParallelConfig
from dit_usp.inject import unparallelize
from dit_usp.pipelines.base import sharded_parts

_LOADED: dict[str, Any] = {}  # a process loads each folder once
Degrees = tuple[int, ...]


def plain(name: str, path: str) -> Any:
    """diffusers' own pipeline."""
    if path not in _LOADED:
        _LOADED[path] = getattr(diffusers, name).from_pretrained(path, dtype=torch.float32)
        _LOADED[path].set_progress_bar_config(disable=True)
    return _LOADED[path]


@contextmanager
def shared(name: str, path: str, degrees: Degrees) -> Iterator[Any]:
    """The same pipeline shared over ranks; plain again afterwards."""
    pipe = getattr(pipelines, f"USP{name}").from_pipe(plain(name, path), parallel=ParallelConfig(*degrees))
    pipe.set_progress_bar_config(disable=True)
    try:
        yield pipe
    finally:
        for part in sharded_parts(pipe):
            unparallelize(part)


def arguments(name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The default call with changes; `seeds` becomes `generator`: a number one generator, a list one each."""
    torch.manual_seed(9 + (dist.get_rank() if dist.is_initialized() else 0))  # the first rank's default generator counts
    call = default_call(name) | changes
    seeds = call.pop("seeds", None)
    if seeds is not None:
        generators = [torch.Generator().manual_seed(seed) for seed in ([seeds] if isinstance(seeds, int) else seeds)]
        call["generator"] = generators[0] if isinstance(seeds, int) else generators
    return call


def expected(name: str, path: str, **changes: Any) -> Any:
    """What diffusers makes on one process."""
    return array(plain(name, path)(**arguments(name, {"seeds": 5, "output_type": "latent", **changes}))[0])


def made(name: str, path: str, degrees: Degrees, changes: dict[str, Any]) -> Any:
    """On a rank: what dit-usp makes, None on all but the first."""
    with shared(name, path, degrees) as pipe:
        output = pipe(**arguments(name, {"seeds": 5, "output_type": "latent", **changes}))
    field = next(iter(vars(output)))
    return array(getattr(output, field))


def array(result: Any) -> Any:
    if isinstance(result, list):
        return np.stack([array(item) for item in result])
    return result if result is None else np.asarray(result)


def error(out: Any, wanted: Any) -> float:
    """Largest difference relative to the largest value wanted."""
    assert out.shape == wanted.shape
    return float(abs(out - wanted).max() / abs(wanted).max())


def tensors(output: Any) -> list[torch.Tensor]:
    """Every tensor, array and picture of an output, in order."""
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, (np.ndarray, Image.Image)):
        return [torch.from_numpy(np.array(output)).float()]
    items = output.values() if isinstance(output, dict) else output if isinstance(output, (list, tuple)) else ()
    return [tensor for item in items for tensor in tensors(item)]
