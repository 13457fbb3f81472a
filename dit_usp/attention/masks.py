"""Attention masks on a sharded sequence: what each rank passes, and what its kernel needs.

A rank passes rows for its own queries and columns either for all keys in rank order or, with one row, for its own keys. Its kernel needs rows
for all queries of its Ulysses group, its own heads, and all columns.

Every rank must join the same exchanges. Shapes say which, except where a rank has a single token, or all the keys: then two meanings have one
shape there. Whether any rank is in that position follows from the lengths, which all ranks know; if so, all ranks make the exchange that
serves both meanings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dit_usp.attention.kernels import open_empty_rows
from dit_usp.attention.ulysses import HeadSplit, Part, exchange_heads, split_heads
from dit_usp.collectives import gather
from dit_usp.mesh import Mesh


@dataclass(frozen=True)
class PreparedMask:
    """A mask as this rank's kernel needs it; good for every attention call of a forward with the same lengths and heads.

    Attributes:
        mask: (B or 1, h or 1, N or 1, T + S): this rank's heads, the queries of its Ulysses group; T shared keys, then all S keys in rank order.
            For blocks that are merged, moved towards zero (`near_zero`).
        blind: its rows that hide all scores, if it is additive and for blocks that are merged.
        opened, has_key: the mask for one kernel over all keys, and its rows that have one (`kernels.open_empty_rows`).
    """

    mask: Tensor
    blind: Tensor | None
    opened: Tensor
    has_key: Tensor


def prepare_mask(
    mask: Tensor | None,
    mesh: Mesh,
    *,
    heads: int,
    kv_heads: int | None = None,
    lengths: Sequence[int],
    kv_lengths: Sequence[int] | None = None,
    shared_length: int = 0,
    shared_mask: Tensor | None = None,
) -> PreparedMask | None:
    """Do a mask's exchanges: at most one for its columns and one for its rows.

    Args:
        mask: bool (True: attend) or additive, broadcastable to (B, H, L, S) or, with one row, to (B, H, 1, L_kv); None: all keys.
        heads, kv_heads: of the attention that will use it (kv_heads None: as many).
        lengths, kv_lengths: query and key tokens on each rank of mesh.sequence (kv_lengths None: the same).
        shared_length: T, keys that every rank has, before all others.
        shared_mask: broadcastable to (B, H, L, T); None: all of them.

    Returns:
        None when there is neither mask.

    Raises:
        ValueError: the mask's shape does not fit the lengths.
    """
    if mask is None and shared_mask is None:
        return None
    kv_lengths = lengths if kv_lengths is None else kv_lengths
    if mask is not None:
        mask = _all_columns(_four_dims(mask), mesh, lengths, kv_lengths)
    if shared_length:
        mask = _join(shared_mask if shared_mask is None else _four_dims(shared_mask), shared_length, mask, sum(kv_lengths))
    assert mask is not None
    mask = _all_rows(mask, mesh, split_heads(heads, kv_heads or heads, mesh.ulysses.size()), lengths)
    opened, has_key = open_empty_rows(mask)
    if mesh.ring.size() == 1 or mask.dtype == torch.bool:
        return PreparedMask(mask, None, opened, has_key)
    return PreparedMask(*near_zero(mask), opened, has_key)


# fp32's step is 4e-6 above the first, so that an LSE of that size still tells the blocks of a ring apart to 1e-5; it is 8 above the second.
FAR, HIDING = 64.0, 1e8
LOWEST = -1e30  # finfo.min times log2(e), which kernels of powers of two compute, is -inf: a block of nothing but that had a wrong LSE


def near_zero(mask: Tensor) -> tuple[Tensor, Tensor]:
    """An additive mask whose rows that are far from zero everywhere (-1e9, finfo.min) are moved up or down to end at zero: softmax is the same.

    Keys that a row hides by less than -inf are hidden by LOWEST at the most.

    Also its rows that are so far from zero that fp32 loses every score in the sum: (B, H, S, 1). scaled_dot_product_attention then gives the mean of
    the values; so does a query of zeros on the moved row.
    """
    top = mask.detach().float().amax(dim=3, keepdim=True)
    far = torch.where((top.abs() > FAR) & top.isfinite(), top, 0)
    moved = (mask - far).to(mask.dtype)
    lowest = max(LOWEST, torch.finfo(mask.dtype).min)
    return torch.where(moved == -torch.inf, moved, moved.clamp(lowest)), far.abs() > HIDING


def _four_dims(mask: Tensor) -> Tensor:
    return mask[(None,) * (4 - mask.ndim)]


def _all_columns(mask: Tensor, mesh: Mesh, lengths: Sequence[int], kv_lengths: Sequence[int]) -> Tensor:
    """(.., 1 or L, columns as passed) -> (.., S)"""
    rank, total = mesh.sequence.rank(), sum(kv_lengths)
    own, rows, columns = kv_lengths[rank], mask.shape[2], mask.shape[3]
    _check_shape(mask, lengths[rank], own, total)
    unsure = len(kv_lengths) > 1 and (1 in kv_lengths or total in kv_lengths)
    if not unsure and (columns == total or columns == 1):
        return mask.expand(-1, -1, -1, total)
    piece = mask.narrow(3, sum(kv_lengths[:rank]), own) if columns == total else mask.expand(-1, -1, -1, own)
    if rows != 1:  # such a rank passed all columns and does not read this piece of its
        piece = mask.new_zeros(*mask.shape[:2], 1, own)
    gathered = gather(piece, 3, kv_lengths, mesh.sequence)
    return mask if columns == total else gathered


def _check_shape(mask: Tensor, length: int, own: int, total: int) -> None:
    rows, columns = mask.shape[2:]
    if rows not in (1, length):
        raise ValueError(f"attn_mask has {rows} rows; this rank has {length} queries: pass 1 row or {length}.")
    if columns not in (1, own, total) or (rows != 1 and columns not in (1, total)):
        raise ValueError(
            f"attn_mask has {rows} rows and {columns} columns; pass a column for each of the {total} keys, or one row for this rank's {own}."
        )


def _join(shared_mask: Tensor | None, shared_length: int, mask: Tensor | None, length: int) -> Tensor:
    """[shared columns | all other columns], broadcast against one another; additive if either is."""
    given = [part for part in (shared_mask, mask) if part is not None]
    additive = next((part for part in given if part.dtype != torch.bool), None)
    parts = []
    for part, columns in ((shared_mask, shared_length), (mask, length)):
        if part is None:
            part = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=given[0].device)
        if additive is not None and part.dtype == torch.bool:
            part = torch.zeros_like(part, dtype=additive.dtype).masked_fill(~part, -torch.inf)
        parts.append(part.expand(*part.shape[:3], columns))
    dims = [0 if 0 in sizes else max(sizes) for sizes in zip(*(part.shape[:3] for part in parts), strict=True)]
    return torch.cat([part.expand(*dims, -1) for part in parts], dim=3)


def _all_rows(mask: Tensor, mesh: Mesh, heads: HeadSplit, lengths: Sequence[int]) -> Tensor:
    """(B, H or 1, L or 1, S) -> (B, h or 1, N or 1, S)"""
    group = mesh.ulysses
    if group.size() == 1:
        return mask
    first = mesh.ring.rank() * group.size()
    own_lengths = lengths[first : first + group.size()]
    own_heads = heads.query[group.rank()]
    per_head = mask.shape[1] > 1
    if mask.shape[2] == 1 and 1 not in own_lengths:
        return mask.narrow(1, sum(heads.query[: group.rank()]), own_heads) if per_head else mask
    mask = mask.expand(-1, -1, own_lengths[group.rank()], -1)
    if not per_head:
        return gather(mask, 2, own_lengths, group)
    return exchange_heads([Part(mask.transpose(1, 2), heads.query, own_lengths)], group)[0].transpose(1, 2)
