"""The ring: every rank attends to every rank's keys, passed on block by block (rotate) or collected first (gather).

Ring Attention (arXiv 2310.01889) with whole-block merging by log-sum-exp; balanced causal order as in zigzag ring attention
(the "zigzag" of zhuzilin/ring-flash-attention; striped attention, arXiv 2311.09431, is the token-wise form).

Dimensions: B batch, N this rank's queries, T this rank's keys, S all keys, h and g query and key/value heads, D head size, R ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from dit_usp.attention.kernels import keep_in_graph, nothing
from dit_usp.attention.merge import merge
from dit_usp.collectives import exchange, gather, post, split_sizes, wait, wants_grad

Block = Callable[[Tensor, Tensor, Tensor, Tensor | None, bool], tuple[Tensor, Tensor]]  # a kernel with its scale: q, k, v, mask, causal -> out, lse


def gather_keys(k_BTgD: Tensor, v_BTgD: Tensor, lengths: Sequence[int], group: ProcessGroup) -> tuple[Tensor, Tensor]:
    """Every rank's keys and values, in rank order: (B, T, g, D) -> (B, S, g, D), by one collective."""
    size = k_BTgD.shape[3]
    kv = torch.cat([k_BTgD.transpose(0, 1), v_BTgD.transpose(0, 1)], dim=3)  # token-major: what arrives needs no reordering
    kv = gather(kv, 0, lengths, group).transpose(0, 1)
    return kv[..., :size], kv[..., size:]


def rotate(
    q_BNhD: Tensor,
    k_BTgD: Tensor,
    v_BTgD: Tensor,
    kernel: Block,
    group: ProcessGroup,
    kv_lengths: Sequence[int],
    mask: Tensor | None = None,
    shared: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Attend to every rank's keys, one block a step, while the next block is on its way: (B, N, h, D), fp32.

    Args:
        kv_lengths: keys on each rank of the ring.
        mask: (B, h, N, keys), broadcastable; columns: the shared keys, then all keys in rank order.
        shared: keys and values that every rank has, attended to with this rank's own block.
    """
    shared_length = shared[0].shape[1] if shared else 0
    starts = [shared_length + start for start in _starts(kv_lengths)]
    out = lse = None
    for owner, k_block, v_block in passed_blocks(k_BTgD, v_BTgD, kv_lengths, group):
        block_mask = mask if mask is None else mask[..., starts[owner] : starts[owner + 1]]
        if shared and owner == group.rank():
            k_block, v_block = (torch.cat(pair, dim=1) for pair in zip(shared, (k_block, v_block), strict=True))
            block_mask = mask if mask is None or block_mask is None else torch.cat([mask[..., :shared_length], block_mask], dim=3)
        out, lse = merge(out, lse, *kernel(q_BNhD, k_block, v_block, block_mask, False))
    assert out is not None
    return out


def rotate_causal_cross(
    q_BNhD: Tensor, k_BTgD: Tensor, v_BTgD: Tensor, kernel: Block, group: ProcessGroup, lengths: Sequence[int], kv_lengths: Sequence[int]
) -> Tensor:
    """`rotate` where query i sees keys j <= i and the keys are another sequence: blocks are whole, masked or skipped by their positions."""
    rank, starts = group.rank(), _starts(kv_lengths)
    rows = range(_starts(lengths)[rank], _starts(lengths)[rank + 1])
    out, lse = nothing(q_BNhD, k_BTgD, v_BTgD)
    for owner, k_block, v_block in passed_blocks(k_BTgD, v_BTgD, kv_lengths, group):
        columns = range(starts[owner], starts[owner + 1])
        if columns and rows and columns.start < rows.stop:
            mask = None if columns.stop <= rows.start + 1 else causal_mask(rows, columns, q_BNhD.device)
            out, lse = merge(out, lse, *kernel(q_BNhD, k_block, v_block, mask, False))
        else:
            out = keep_in_graph(out, k_block, v_block)
    return out


def causal_mask(rows: range, columns: range, device: torch.device) -> Tensor:
    """(1, 1, rows, columns), True where the column's position is at most the row's."""
    row_positions = torch.arange(rows.start, rows.stop, device=device).unsqueeze(1)
    return (torch.arange(columns.start, columns.stop, device=device) <= row_positions)[None, None]


def rotate_causal(q_BNhD: Tensor, k_BNgD: Tensor, v_BNgD: Tensor, kernel: Block, group: ProcessGroup, lengths: Sequence[int]) -> Tensor:
    """`rotate` where query i sees keys j <= i, balanced: the sequence is cut in 2R chunks and rank r works on chunks r and 2R-1-r.

    One exchange deals the chunks and one brings the result back. Every step is then half a block or the diagonal, on every rank: chunk r comes
    before every chunk of the ranks after it, and 2R-1-r after every chunk of those.
    """
    rank, ranks = group.rank(), group.size()
    chunks = split_sizes(sum(lengths), 2 * ranks)
    q, k, v = _deal_zigzag((q_BNhD, k_BNgD, v_BNgD), group, lengths)
    early = chunks[rank]
    out = lse = None
    for owner, k_block, v_block in passed_blocks(k, v, [chunks[r] + chunks[-1 - r] for r in range(ranks)], group):
        if out is None or lse is None:
            out, lse = merge(None, None, *kernel(q, k_block, v_block, None, True))
        elif owner < rank:
            out, lse = merge(out, lse, *kernel(q, k_block[:, : chunks[owner]], v_block[:, : chunks[owner]], None, False))
        else:
            late_out, late_lse = merge(out[:, early:], lse[:, :, early:], *kernel(q[:, early:], k_block, v_block, None, False))
            out, lse = torch.cat([out[:, :early], late_out], dim=1), torch.cat([lse[:, :, :early], late_lse], dim=2)
    assert out is not None
    return _collect_zigzag(out.to(q.dtype), group, lengths)


def _overlaps(lengths: Sequence[int], owner: int, worker: int) -> list[range]:
    """The positions that rank `owner` holds and rank `worker` works on, chunk r before chunk 2R-1-r. Empty ranges where there are none."""
    starts, chunks = _starts(lengths), _starts(split_sizes(sum(lengths), 2 * len(lengths)))
    pairs = [(chunks[chunk], chunks[chunk + 1]) for chunk in (worker, 2 * len(lengths) - 1 - worker)]
    return [range(max(start, starts[owner]), max(start, starts[owner], min(stop, starts[owner + 1]))) for start, stop in pairs]


def _deal_zigzag(tensors: Sequence[Tensor], group: ProcessGroup, lengths: Sequence[int]) -> list[Tensor]:
    """Contiguous pieces (B, N, h, D) -> this rank's two chunks, in order; q, k and v in one exchange.

    What arrives is in order as it is: pieces ascend by rank, and a rank that still holds tokens of the late chunk's beginning is the last to hold any
    of the early chunk.
    """
    rank, ranks = group.rank(), group.size()
    tokens = torch.cat([x.transpose(0, 1).flatten(2) for x in tensors], dim=2)  # (N, B, all heads * D)
    start = _starts(lengths)[rank]
    pieces = [
        tokens[part.start - start : part.stop - start] if part else tokens[:0] for worker in range(ranks) for part in _overlaps(lengths, rank, worker)
    ]
    send_sizes = [sum(map(len, _overlaps(lengths, rank, worker))) for worker in range(ranks)]
    receive_sizes = [sum(map(len, _overlaps(lengths, owner, rank))) for owner in range(ranks)]
    arrived = _exchange_rows(torch.cat(pieces), send_sizes, receive_sizes, group)
    widths = [x.shape[2] * x.shape[3] for x in tensors]
    return [part.unflatten(2, x.shape[2:]).transpose(0, 1) for part, x in zip(arrived.split(widths, dim=2), tensors, strict=True)]


def _collect_zigzag(out_BMhD: Tensor, group: ProcessGroup, lengths: Sequence[int]) -> Tensor:
    """This rank's two chunks -> its contiguous piece (B, N, h, D): the inverse of `_deal_zigzag`."""
    rank, ranks = group.rank(), group.size()
    parts = [part for worker in range(ranks) for part in _overlaps(lengths, rank, worker)]
    send_sizes = [sum(map(len, _overlaps(lengths, owner, rank))) for owner in range(ranks)]
    receive_sizes = [sum(map(len, parts[i : i + 2])) for i in range(0, len(parts), 2)]
    arrived = _exchange_rows(out_BMhD.transpose(0, 1).flatten(2), send_sizes, receive_sizes, group).split([len(part) for part in parts])
    order = sorted(range(len(parts)), key=lambda index: parts[index].start)
    return torch.cat([arrived[index] for index in order]).unflatten(2, out_BMhD.shape[2:]).transpose(0, 1)


def _exchange_rows(rows: Tensor, send_sizes: Sequence[int], receive_sizes: Sequence[int], group: ProcessGroup) -> Tensor:
    """`exchange` of whole rows (tokens, B, F)."""
    width = rows.shape[1] * rows.shape[2]
    flat = exchange(rows.reshape(-1), [n * width for n in send_sizes], [n * width for n in receive_sizes], group)
    return flat.view(sum(receive_sizes), *rows.shape[1:])


def _starts(lengths: Sequence[int]) -> list[int]:
    """Where each piece starts, and where the last one ends."""
    return list(accumulate(lengths, initial=0))


def passed_blocks(k_BTgD: Tensor, v_BTgD: Tensor, lengths: Sequence[int], group: ProcessGroup) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield (owner, its keys, its values): this rank's own first, then those of the ranks before it as they come round.

    K and V travel in one buffer. The next pass is on its way while the caller attends to this block; R - 1 passes in all.
    """
    rank, ranks = group.rank(), group.size()
    batch, _, heads, size = k_BTgD.shape
    per_token = [batch * heads * size, batch * heads * v_BTgD.shape[3]]
    kv = _one_buffer(k_BTgD, v_BTgD)
    for step in range(ranks):
        owner = (rank - step) % ranks
        arriving = None
        if step < ranks - 1:
            arriving = post(kv, *neighbours(kv.numel(), lengths[owner - 1] * sum(per_token), group), group)
        k, v = kv.split([lengths[owner] * width for width in per_token])
        yield owner, k.view(batch, lengths[owner], heads, size), v.view(batch, lengths[owner], heads, v_BTgD.shape[3])
        if arriving is not None:
            kv = wait(arriving)


def _one_buffer(k_BTgD: Tensor, v_BTgD: Tensor) -> Tensor:
    """K, then V, flat; by one copy, also of the strided views that Ulysses gives."""
    if k_BTgD.shape == v_BTgD.shape:
        return torch.stack([k_BTgD, v_BTgD]).view(-1)
    if torch.compiler.is_compiling() or wants_grad(k_BTgD, v_BTgD):
        return torch.cat([k_BTgD.reshape(-1), v_BTgD.reshape(-1)])  # what is written into views has no gradient
    flat = k_BTgD.new_empty(k_BTgD.numel() + v_BTgD.numel())
    for x, place in zip((k_BTgD, v_BTgD), flat.split([k_BTgD.numel(), v_BTgD.numel()]), strict=True):
        place.view(x.shape).copy_(x)
    return flat


def neighbours(sent: int, received: int, group: ProcessGroup) -> tuple[list[int], list[int]]:
    """Split sizes of a pass: everything to the next rank, everything from the one before."""
    send_sizes, receive_sizes = [0] * group.size(), [0] * group.size()
    send_sizes[(group.rank() + 1) % group.size()] = sent
    receive_sizes[group.rank() - 1] = received
    return send_sizes, receive_sizes
