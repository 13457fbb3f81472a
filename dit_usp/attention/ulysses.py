"""Ulysses: trade heads for tokens by one all-to-all, and back by another (DeepSpeed-Ulysses, arXiv 2309.14509).

Dimensions: B batch, L this rank's tokens, N all tokens of the Ulysses group, H all heads, h this rank's heads, D head size, U ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from dit_usp.collectives import exchange, split_sizes


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
    q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor, group: ProcessGroup, lengths: Sequence[int] | None = None, kv_lengths: Sequence[int] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Give up heads to gain sequence: (B, L, H, D) -> (B, N, h, D), by one all-to-all.

    Args:
        q_BLHD, k_BLHD, v_BLHD: this rank's tokens, all heads; k and v may have fewer heads, another length, and v another head size.
        lengths, kv_lengths: query and key tokens on each rank of the group (None: all equal to this rank's).

    Returns:
        All the group's tokens in rank order, with this rank's heads (`split_heads`).
    """
    if group.size() == 1:
        return q_BLHD, k_BLHD, v_BLHD
    heads = split_heads(q_BLHD.shape[2], k_BLHD.shape[2], group.size())
    if heads.repeats > 1:
        k_BLHD, v_BLHD = (x.repeat_interleave(heads.repeats, dim=2) for x in (k_BLHD, v_BLHD))
    lengths = lengths or [q_BLHD.shape[1]] * group.size()
    kv_lengths = kv_lengths or [k_BLHD.shape[1]] * group.size()
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
    if group.size() == 1:
        return out_BNhD
    batch, tokens, own_heads, size = out_BNhD.shape
    lengths = lengths or split_sizes(tokens, group.size())
    own_length = lengths[group.rank()]
    flat = out_BNhD.transpose(0, 1).reshape(-1)  # token-major, so that each rank's tokens lie together
    received = exchange(flat, [n * batch * own_heads * size for n in lengths], [own_length * batch * h * size for h in heads], group)
    if len(set(heads)) == 1:
        return received.view(group.size(), own_length, batch, own_heads, size).permute(2, 1, 0, 3, 4).flatten(2, 3)
    blocks = received.split([own_length * batch * h * size for h in heads])
    return torch.cat([block.view(own_length, batch, h, size) for block, h in zip(blocks, heads, strict=True)], dim=2).transpose(0, 1)


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
    flat, send_sizes = _pack(blocks, rank, group.size())
    widths = [sum(part.heads[rank] * part.x_BLHD.shape[3] for part in block) * block[0].x_BLHD.shape[0] for block in blocks]
    pieces = [[block[0].lengths[source] * width for block, width in zip(blocks, widths, strict=True)] for source in range(group.size())]
    received = exchange(flat, send_sizes, [sum(sizes) for sizes in pieces], group)
    if len(blocks) == 1:
        return _unpack(received, blocks[0], rank)
    arrived = received.split([size for sizes in pieces for size in sizes])
    return [part for index, block in enumerate(blocks) for part in _unpack(torch.cat(arrived[index :: len(blocks)]), block, rank)]


def _blocks(parts: Sequence[Part]) -> list[list[Part]]:
    """Neighbours of equal length and head size together. (torch.compile knows no itertools.groupby over symbolic lengths.)"""
    blocks: list[list[Part]] = []
    for part in parts:
        if blocks and list(blocks[-1][0].lengths) == list(part.lengths) and blocks[-1][0].x_BLHD.shape[3] == part.x_BLHD.shape[3]:
            blocks[-1].append(part)
        else:
            blocks.append([part])
    return blocks


def _pack(blocks: list[list[Part]], rank: int, ranks: int) -> tuple[Tensor, list[int]]:
    """The send buffer, and the elements for each rank."""
    if len(blocks) == 1 and all(len(set(part.heads)) == 1 for part in blocks[0]):  # one copy: (U, L, B, heads, D)
        dealt = [part.x_BLHD.unflatten(2, (ranks, part.heads[0])).permute(2, 1, 0, 3, 4) for part in blocks[0]]
        flat = torch.cat(dealt, dim=3).reshape(-1)
        return flat, [flat.numel() // ranks] * ranks
    pieces = [
        torch.cat([part.x_BLHD.split(list(part.heads), dim=2)[destination] for part in block], dim=2).transpose(0, 1).reshape(-1)
        for destination in range(ranks)
        for block in blocks
    ]
    sizes = [piece.numel() for piece in pieces]
    return torch.cat(pieces), [sum(sizes[i : i + len(blocks)]) for i in range(0, len(sizes), len(blocks))]


def _unpack(flat: Tensor, block: list[Part], rank: int) -> list[Tensor]:
    """Views (B, N, h, D) of one block (N, B, heads of all its parts, D)."""
    heads = [part.heads[rank] for part in block]
    tokens, batch, size = sum(block[0].lengths), block[0].x_BLHD.shape[0], block[0].x_BLHD.shape[3]
    return list(flat.view(tokens, batch, sum(heads), size).transpose(0, 1).split(heads, dim=2))
