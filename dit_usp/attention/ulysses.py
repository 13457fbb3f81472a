"""Ulysses: trade heads for tokens by one all-to-all, and back by another (DeepSpeed-Ulysses, arXiv 2309.14509).

Dimensions: B batch, L this rank's tokens, N all tokens of the Ulysses group, H all heads, h this rank's heads, D head size, U ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from dit_usp.collectives import exchange, split_sizes, wants_grad


class HeadSplit(NamedTuple):
    """Which heads each rank of the group computes.

    Attributes:
        query, kv: heads on each rank, in rank order; query[r] is the same multiple of kv[r] on every rank.
        repeats: copies of each key/value head that are made first, so that no rank is without one.
    """

    query: tuple[int, ...]
    kv: tuple[int, ...]
    repeats: int


def split_heads(heads: int, kv_heads: int, ranks: int) -> HeadSplit:
    """Deal heads by the rule of torch.tensor_split, query heads together with the key/value head that they share.

    Each of the kv heads serves heads / kv_heads query heads in a row (SDPA's enable_gqa). Fewer kv heads than ranks are repeated, by the
    smallest factor that leaves the query heads of one kv head equally many.
    """
    group = heads // kv_heads
    repeats = next(factor for factor in range(1, group + 1) if group % factor == 0 and (kv_heads * factor >= ranks or factor == group))
    kv = split_sizes(kv_heads * repeats, ranks)
    return HeadSplit(tuple(size * (group // repeats) for size in kv), kv, repeats)


def heads_to_sequence(
    q_BLHD: Tensor,
    k_BLHD: Tensor,
    v_BLHD: Tensor,
    group: ProcessGroup,
    lengths: Sequence[int] | None = None,
    kv_lengths: Sequence[int] | None = None,
    heads: HeadSplit | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Give up heads to gain sequence: (B, L, H, D) -> (B, N, h, D), by one all-to-all.

    Args:
        q_BLHD, k_BLHD, v_BLHD: this rank's tokens, all heads; k and v may have fewer heads, another length, and v another head size.
        lengths, kv_lengths: query and key tokens on each rank of the group (None: all equal to this rank's).
        heads: `split_heads` of them, where it is known.

    Returns:
        All the group's tokens in rank order, with this rank's heads (`split_heads`).
    """
    ranks = group.size()
    if ranks == 1:
        return q_BLHD, k_BLHD, v_BLHD
    heads = heads or split_heads(q_BLHD.shape[2], k_BLHD.shape[2], ranks)
    if heads.repeats > 1:
        k_BLHD, v_BLHD = (x.repeat_interleave(heads.repeats, dim=2) for x in (k_BLHD, v_BLHD))
    lengths = lengths or (q_BLHD.shape[1],) * ranks
    kv_lengths = kv_lengths or (k_BLHD.shape[1],) * ranks
    parts = [Part(q_BLHD, heads.query, lengths), Part(k_BLHD, heads.kv, kv_lengths), Part(v_BLHD, heads.kv, kv_lengths)]
    q, k, v = exchange_heads(parts, group)
    return q, k, v


def sequence_to_heads(out_BNhD: Tensor, group: ProcessGroup, heads: Sequence[int], lengths: Sequence[int] | None = None) -> Tensor:
    """Give the sequence back for all heads: (B, N, h, D) -> (B, L, H, D), by one all-to-all.

    Args:
        out_BNhD: all the group's tokens, this rank's heads.
        heads: heads on each rank of the group (`split_heads(...).query`).
        lengths: tokens on each rank of the group (None: all equal).
    """
    rank, ranks = group.rank(), group.size()
    if ranks == 1:
        return out_BNhD
    batch, tokens, own_heads, size = out_BNhD.shape
    lengths = lengths or split_sizes(tokens, ranks)
    own_length, row, per_head = lengths[rank], batch * own_heads * size, lengths[rank] * batch * size
    flat = out_BNhD.transpose(0, 1).reshape(-1)  # token-major, so that each rank's tokens lie together: of one sample no copy
    receive_sizes = [per_head * h for h in heads]
    received = exchange(flat, [n * row for n in lengths], receive_sizes, group)
    if _all_equal(heads):
        return received.view(ranks, own_length, batch, own_heads, size).permute(2, 1, 0, 3, 4).flatten(2, 3)
    blocks = [block.view(own_length, batch, h, size).transpose(0, 1) for block, h in zip(received.split(receive_sizes), heads, strict=True)]
    return torch.cat(blocks, dim=2)


class Part(NamedTuple):
    """One tensor of an exchange: (B, L, H, D), the heads that go to each rank, and the tokens that come from each rank."""

    x_BLHD: Tensor
    heads: Sequence[int]
    lengths: Sequence[int]


def exchange_heads(parts: Sequence[Part], group: ProcessGroup) -> list[Tensor]:
    """Each part (B, L, H, D) -> (B, N, h, D), all of them in one all-to-all.

    The buffer is destination-major. Within a destination, parts of equal length and head size form a block that is token-major,
    (L, B, heads of all its parts, D): what arrives is then (N, B, h, D) for any lengths and any batch, and each part is a view of it.
    """
    rank = group.rank()
    blocks = _blocks(parts)
    flat, send_sizes = _pack(blocks, group.size())
    widths = [sum([part.heads[rank] for part in block]) * block[0].x_BLHD.shape[3] * block[0].x_BLHD.shape[0] for block in blocks]
    if len(blocks) == 1:
        received = exchange(flat, send_sizes, [length * widths[0] for length in blocks[0][0].lengths], group)
        return _unpack(received, blocks[0], rank)
    pieces = [[block[0].lengths[source] * width for block, width in zip(blocks, widths, strict=True)] for source in range(group.size())]
    received = exchange(flat, send_sizes, [sum(sizes) for sizes in pieces], group)
    arrived = received.split([size for sizes in pieces for size in sizes])
    return [part for index, block in enumerate(blocks) for part in _unpack(torch.cat(arrived[index :: len(blocks)]), block, rank)]


def _blocks(parts: Sequence[Part]) -> list[list[Part]]:
    """Neighbours of equal length and head size together. (torch.compile knows no itertools.groupby over symbolic lengths.)"""
    blocks: list[list[Part]] = []
    for part in parts:
        if blocks and tuple(blocks[-1][0].lengths) == tuple(part.lengths) and blocks[-1][0].x_BLHD.shape[3] == part.x_BLHD.shape[3]:
            blocks[-1].append(part)
        else:
            blocks.append([part])
    return blocks


def _pack(blocks: list[list[Part]], ranks: int) -> tuple[Tensor, list[int]]:
    """The send buffer, and the elements for each rank. One copy."""
    if len(blocks) == 1 and all(_all_equal(part.heads) for part in blocks[0]):
        flat = torch.cat(_dealt(blocks[0], ranks), dim=3).reshape(-1)
        return flat, [flat.numel() // ranks] * ranks
    pieces = [piece for destination in zip(*map(_pieces, blocks), strict=True) for piece in destination]  # by destination, in it by block
    sizes = [sum([x.numel() for x in piece]) for piece in pieces]
    send_sizes = [sum(sizes[i : i + len(blocks)]) for i in range(0, len(sizes), len(blocks))]
    if torch.compiler.is_compiling() or wants_grad(*(part.x_BLHD for block in blocks for part in block)):
        return torch.cat([torch.cat(piece, dim=2).reshape(-1) for piece in pieces]), send_sizes  # out= has no gradient; compiled, all is one copy
    flat = blocks[0][0].x_BLHD.new_empty(sum(sizes))
    for piece, place in zip(pieces, flat.split(sizes), strict=True):
        length, batch, _, size = piece[0].shape
        torch.cat(piece, dim=2, out=place.view(length, batch, sum([x.shape[2] for x in piece]), size))
    return flat, send_sizes


def _dealt(block: list[Part], ranks: int) -> list[Tensor]:
    """Views of each part, as many heads for each rank: (U, L, B, heads * D), or with heads and D apart where they do not lie in line.

    CUDA joins up to four dimensions in one kernel, and more in one for each tensor.
    """
    batch, length, _, size = block[0].x_BLHD.shape
    if all(part.x_BLHD.stride()[2:] == (size, 1) for part in block):
        return [part.x_BLHD.view(batch, length, ranks, part.heads[0] * size).permute(2, 1, 0, 3) for part in block]
    return [part.x_BLHD.view(batch, length, ranks, part.heads[0], size).permute(2, 1, 0, 3, 4) for part in block]


def _pieces(block: list[Part]) -> list[list[Tensor]]:
    """For each rank, its heads of every part of a block: (L, B, heads, D)."""
    return [list(pieces) for pieces in zip(*(part.x_BLHD.transpose(0, 1).split(list(part.heads), dim=2) for part in block), strict=True)]


def _all_equal(sizes: Sequence[int]) -> bool:
    return len(set(sizes)) == 1


def _unpack(flat: Tensor, block: list[Part], rank: int) -> list[Tensor]:
    """Views (B, N, h, D) of one block (N, B, heads of all its parts, D)."""
    heads = [part.heads[rank] for part in block]
    tokens, batch, size = sum(block[0].lengths), block[0].x_BLHD.shape[0], block[0].x_BLHD.shape[3]
    return list(flat.view(tokens, batch, sum(heads), size).transpose(0, 1).split(heads, dim=2))
