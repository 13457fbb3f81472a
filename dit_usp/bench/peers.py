"""Others' ways to run the same module on several ranks. What is not installed, or lacks a model, raises: a result that says why."""
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from dit_usp.compiled import compile_blocks
from dit_usp.config import ParallelConfig


@dataclass(frozen=True)
class Peer:
    """One of them.

    Attributes:
        parallelize: put it on a module of diffusers, in place.
        fits: which layouts it has; none has the halves of guidance apart.
        compile: as its authors advise.
        patches: it replaces functions of diffusers for the whole process, other modules' and ours included: it is measured after all of these.
    """

    parallelize: Callable[[Any, ParallelConfig], Any]
    fits: Callable[[ParallelConfig], bool]
    compile: Callable[[nn.Module], Any] = compile_blocks
    patches: bool = False


def _diffusers(model: Any, layout: ParallelConfig) -> None:
    from diffusers import ContextParallelConfig

    model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=layout.ulysses_degree, ring_degree=layout.ring_degree))


def _cache_dit(model: Any, layout: ParallelConfig, ulysses_async: bool = False) -> None:
    """Its parallelism alone: without a cache_config it skips no work."""
    os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "error")
    import cache_dit

    if layout.ring_degree > 1 and (model.device.type != "cuda" or model.dtype == torch.float32):  # found out with a pass under way, it may hang gloo
        raise ValueError("its ring needs torch's FlashAttention: a GPU, and bfloat16 or float16")

    if ulysses_async:
        from cache_dit.distributed.async_ulysses import AsyncUlyssesRegistry

        AsyncUlyssesRegistry.get_planner(model)  # raises for a model without it, which would run as if it were not asked for
    sizes = dict(ulysses_size=layout.ulysses_degree, ring_size=layout.ring_degree)
    config = cache_dit.ParallelismConfig(**sizes, ulysses_async=ulysses_async)
    cache_dit.enable_cache(model, parallelism_config=config)


def _cache_dit_compile(model: nn.Module) -> None:
    """Its settings of inductor, for the whole process; the blocks by our list, as diffusers' own is empty for some models."""
    import cache_dit

    cache_dit.set_compile_configs()
    compile_blocks(model)


PEERS = {
    "diffusers": Peer(_diffusers, lambda layout: layout.ring_degree == 1 or layout.ring_method == "gather"),
    "cache-dit": Peer(_cache_dit, lambda layout: layout.ring_degree == 1 or layout.ring_method == "rotate", _cache_dit_compile, patches=True),
    # Its overlap of projections and exchanges attends to this rank's ring alone.
    "cache-dit-async": Peer(partial(_cache_dit, ulysses_async=True), lambda layout: layout.ring_degree == 1, _cache_dit_compile, patches=True),
}
