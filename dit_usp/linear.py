"""Linear attention over all ranks: its state is a sum over tokens, so the ranks add up their sums and go on alone.

out_i = (sum_j v_j k_j^T) q_i / (sum_j k_j^T q_i), with q and k made positive by ReLU (SANA, arXiv 2410.10629, section 2.2). The sums are of size
head^2 a head, whatever the number of tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from dit_usp import collectives

# The processors that ours stands for, and of how many parts their batch is where the last one is perturbed (PAG, arXiv 2403.17377): its tokens
# see themselves alone.
LINEAR = {
    "SanaLinearAttnProcessor2_0": 0,
    "SanaLinearAttnProcessor3_0": 0,
    "PAGIdentitySanaLinearAttnProcessor2_0": 2,
    "PAGCFGSanaLinearAttnProcessor2_0": 3,
}
EPS = 1e-15  # diffusers' own, in both processors


class LinearProcessor:
    """Stands for the processors of LINEAR. With rotary_emb (SANA-Video), the state is rotated and the normaliser is not."""

    def __init__(self, group: dist.ProcessGroup, parts: int = 0) -> None:
        self.group, self.parts = group, parts

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        if not self.parts:
            return self._linear(attn, hidden_states, rotary_emb)
        *seeing, perturbed = hidden_states.chunk(self.parts)
        return torch.cat([self._linear(attn, torch.cat(seeing), rotary_emb), _out(attn, attn.to_v(perturbed), rotary_emb)])

    def _linear(self, attn: Any, hidden_states: Tensor, rotary_emb: tuple[Tensor, Tensor] | None) -> Tensor:
        query, key, value = (project(hidden_states) for project in (attn.to_q, attn.to_k, attn.to_v))
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        q, k, v = (tensor.unflatten(-1, (attn.heads, -1)).movedim(1, 2) for tensor in (F.relu(query), F.relu(key), value))  # (B, H, L, D)
        return _out(attn, self._attend(q, k, v, rotary_emb).movedim(2, 1).flatten(2).to(hidden_states.dtype), rotary_emb)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, rotary_emb: tuple[Tensor, Tensor] | None) -> Tensor:
        keys = k if rotary_emb else k.float()  # the normaliser of the rotated kind is in the model's own dtype
        normaliser = collectives.total(keys.sum(2, keepdim=True), self.group)
        turned_q, turned_k = (_rotate(x, *rotary_emb).float() for x in (q, k)) if rotary_emb else (q.float(), k.float())
        state = collectives.total(turned_k.mT @ v.float(), self.group)
        return (turned_q @ state) / (q.to(keys.dtype) @ normaliser.mT + EPS)


def _out(attn: Any, out: Tensor, rotary_emb: tuple[Tensor, Tensor] | None) -> Tensor:
    for layer in attn.to_out:
        out = layer(out)
    return out.clip(-65504, 65504) if rotary_emb is None and out.dtype == torch.float16 else out


def _rotate(x_BHLD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate neighbouring pairs of the head's dims. cos, sin: (1, L, 1, D), each value twice."""
    cos, sin = cos.movedim(1, 2), sin.movedim(1, 2)
    even, odd = x_BHLD.unflatten(-1, (-1, 2)).unbind(-1)
    c, s = cos[..., 0::2], sin[..., 1::2]
    return torch.stack([even * c - odd * s, even * s + odd * c], -1).flatten(-2).type_as(x_BHLD)
