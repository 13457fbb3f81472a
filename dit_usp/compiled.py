"""torch.compile of a transformer's repeated blocks: one compilation serves all layers of a kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)
# What an exchange needs is computed first, and it is waited for late: work that does not need it then hides it (FLUX's MLP beside its attention).
OPTIONS = {"reorder_for_compute_comm_overlap": True, "reorder_for_compute_comm_overlap_passes": ["raise_comms", "sink_waits"]}


def compile_blocks(transformer: M) -> M:
    """Compile every repeated block, in place, before or after `parallelize`: its exchanges are in the graph.

    Shapes are constants: a new size compiles anew. torch keeps what was compiled for the next process, in a temporary folder unless
    TORCHINDUCTOR_CACHE_DIR names another one.
    """
    for block in repeated_blocks(transformer):
        block.compile(dynamic=False, options=dict(OPTIONS))
    return transformer


def repeated_blocks(transformer: nn.Module) -> Iterator[nn.Module]:
    """The layers of a transformer: members of its outermost lists that hold more than one projection and whose class comes at least twice.

    diffusers' own list of them, `_repeated_blocks`, is empty for many models (PixArt, SD3).
    """
    for child in transformer.children():
        if not isinstance(child, nn.ModuleList):
            yield from repeated_blocks(child)
            continue
        kinds = Counter(type(block) for block in child)
        for block in child:
            if kinds[type(block)] > 1 and sum(1 for _ in block.parameters()) > 2:
                yield block
