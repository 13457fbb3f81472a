"""The slices beyond the edges of this rank's piece, for convolutions between tokens."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from dit_usp import collectives
from dit_usp.errors import UnsupportedError


def widen(tensor: Tensor, dim: int, n: int, group: dist.ProcessGroup, smallest: int) -> Tensor:
    """Add the last n slices of the rank before and the first n of the rank after. The outer ranks have no neighbour there, and get none.

    Args:
        smallest: slices on the rank that has fewest.

    Raises:
        UnsupportedError: a rank holds fewer than n slices.
    """
    if smallest < n:
        raise UnsupportedError(
            f"a convolution over {n} neighbouring rows or frames needs {n} on every rank; one of {group.size()} ranks has {smallest}."
        )
    rank, ranks = group.rank(), group.size()
    first, last = tensor.narrow(dim, 0, n), tensor.narrow(dim, tensor.shape[dim] - n, n)
    neighbours = {rank - 1: first, rank + 1: last}
    sizes = [neighbours[r].numel() if r in neighbours else 0 for r in range(ranks)]
    sent = torch.cat([neighbours[r].reshape(-1) for r in range(ranks) if r in neighbours])
    received = iter(collectives.exchange(sent, sizes, sizes, group).split([size for size in sizes if size]))
    before = [next(received).view(first.shape)] if rank > 0 else []
    after = [next(received).view(first.shape)] if rank < ranks - 1 else []
    return torch.cat([*before, tensor, *after], dim)


def narrow(tensor: Tensor, dim: int, n: int, group: dist.ProcessGroup) -> Tensor:
    """Take off what `widen` added."""
    before, after = n * (group.rank() > 0), n * (group.rank() < group.size() - 1)
    return tensor.narrow(dim, before, tensor.shape[dim] - before - after)
