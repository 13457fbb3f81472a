"""Merge attention over two disjoint sets of keys."""

from __future__ import annotations

import torch
from torch import Tensor


def merge(out_BSHD: Tensor | None, lse_BHS: Tensor | None, block_out_BSHD: Tensor, block_lse_BHS: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over the union of two sets of keys, from the attention over each and its log-sum-exp. In fp32 (fp64 for fp64).

    The online softmax of FlashAttention (arXiv 2205.14135, algorithm 1) for whole blocks. The larger lse is subtracted first, and rows that
    neither set has a key for stay (0, -inf): the shorter form with a sigmoid gives NaN there, which poisons the next step.

    Args:
        out_BSHD, lse_BHS: what was merged so far; None at the first block.
    """
    wide = torch.promote_types(block_out_BSHD.dtype, torch.float32)
    if out_BSHD is None or lse_BHS is None:
        return block_out_BSHD.to(wide), block_lse_BHS.to(wide)
    top = torch.maximum(lse_BHS, block_lse_BHS).detach()
    base = torch.where(top == -torch.inf, 0, top)
    weight, block_weight = torch.exp(lse_BHS - base), torch.exp(block_lse_BHS - base)
    total = weight + block_weight
    safe = torch.where(top == -torch.inf, 1, total)
    out = _rows(weight / safe) * out_BSHD + _rows(block_weight / safe) * block_out_BSHD.to(wide)
    return out, top + torch.log(safe)


def _rows(weight_BHS: Tensor) -> Tensor:
    """(B, H, S) -> (B, S, H, 1)"""
    return weight_BHS.transpose(1, 2).unsqueeze(3)
