"""The table of local attention kernels, under one contract.

    function(q (B,S,H,D), k (B,T,H,D), v (B,T,H,D), mask, scale, causal) -> out (B,S,H,D), lse (B,H,S)

lse is the natural logarithm of the softmax's denominator, fp32. Kernels see no empty tensors, no query without a key and as many
key/value heads as query heads (unless they take GQA): `run` arranges that, for every kernel alike. Causal is SDPA's: query i sees keys j <= i.
Each kernel is imported inside its own function; a package that is absent or does not load costs nothing and is named with its reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_usp.collectives import wants_grad

aten = torch.ops.aten
HALF = (torch.float16, torch.bfloat16)
EXACT = 1e-5


@dataclass(frozen=True)
class Call:
    """What a kernel must know of a call to say whether it can take it. Plain values: constants under torch.compile."""

    device: str
    dtype: torch.dtype
    head_dim: int
    value_dim: int
    masked: bool = False
    causal: bool = False
    square: bool = True  # as many keys as queries
    lse: bool = False
    grad: bool = False

    def __str__(self) -> str:
        sizes = f"{self.head_dim}" if self.value_dim == self.head_dim else f"{self.head_dim} (values {self.value_dim})"
        told = {
            "a mask": self.masked,
            "is_causal": self.causal,
            "another number of keys": not self.square,
            "an LSE": self.lse,
            "gradients": self.grad,
        }
        extras = [name for name, has in told.items() if has]
        dtype = str(self.dtype).removeprefix("torch.")
        return f"head size {sizes}, {dtype} on {self.device}" + (f", with {', '.join(extras)}" if extras else "")


@dataclass(frozen=True)
class Kernel:
    """One entry of the table: the function, and the calls it takes.

    Attributes:
        function: see the module's contract; without `lse` it returns None in its place.
        lse, mask, gqa, grad: whether it gives an LSE, takes a mask, takes fewer key/value heads, and has a gradient (of its LSE too, if any).
        devices, dtypes: where and with what it runs; dtypes () is any.
        head_dim: the largest head size; multiple: what head sizes are multiples of.
        rectangular_causal: whether causal works with another number of keys than queries.
        value_dim: whether the values may have another head size.
        capability: least CUDA compute capability.
        package: what is imported.
        tolerance: error the self-test allows in 16 bits, relative to fp32; EXACT in fp32.
    """

    function: Callable[..., tuple[Tensor, Tensor | None]]
    lse: bool = True
    mask: bool = False
    gqa: bool = False
    grad: bool = False
    devices: tuple[str, ...] = ("cuda",)
    dtypes: tuple[torch.dtype, ...] = HALF
    head_dim: int = 256
    multiple: int = 8
    rectangular_causal: bool = False
    value_dim: bool = False
    capability: tuple[int, int] = (8, 0)
    package: str = ""
    tolerance: float = 2e-2

    def refusal(self, call: Call) -> str:
        """Why it does not take the call; empty if it does."""
        reasons = {
            f"runs on {', '.join(self.devices)}, not {call.device}": self.devices and call.device not in self.devices,
            f"does not take {call.dtype}": self.dtypes and call.dtype not in self.dtypes,
            f"takes head sizes up to {self.head_dim} that are multiples of {self.multiple}, not {call.head_dim}": (
                self.head_dim and (call.head_dim > self.head_dim or call.head_dim % self.multiple)
            ),
            "takes no mask": call.masked and not self.mask,
            "takes causal only with as many keys as queries": call.causal and not call.square and not self.rectangular_causal,
            "needs values of the keys' head size": call.value_dim != call.head_dim and not self.value_dim,
            "gives no LSE": call.lse and not self.lse,
            "has no gradient here": call.grad and not self.grad,
        }
        return next((text for text, refused in reasons.items() if refused), "")


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, causal: bool) -> tuple[Tensor, None]:
    """torch's own choice of kernel (cuDNN on Hopper)."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    gqa = q.shape[1] != k.shape[1]
    mask = mask if mask is None or mask.dtype == torch.bool else _aligned(mask)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=gqa).transpose(1, 2), None


def _math(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    """The reference: fp32 (fp64 for fp64), whole score matrix, gradients by autograd. aten's math kernel gives no LSE."""
    wide = torch.promote_types(q.dtype, torch.float32)
    q, k, v = (x.transpose(1, 2).to(wide) for x in (q, k, v))
    scores = (q * scale) @ k.transpose(2, 3)
    if causal:
        scores = scores.masked_fill(~_causal(scores.shape[2], scores.shape[3], q.device), -torch.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    lse = torch.logsumexp(scores, dim=3)
    return (torch.exp(scores - lse.unsqueeze(3)) @ v).transpose(1, 2), lse


def _causal(queries: int, keys: int, device: torch.device) -> Tensor:
    return torch.arange(keys, device=device) <= torch.arange(queries, device=device).unsqueeze(1)


def _cpu(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    """aten's flash kernel for the CPU."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, attn_mask=_bias(mask, q, k), scale=scale)
    return out.transpose(1, 2), lse


def _cudnn(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out, lse, *_ = aten._scaled_dot_product_cudnn_attention(q, k, v, _bias(mask, q, k), True, 0.0, causal, False, scale=scale)
    return out.transpose(1, 2), lse.squeeze(-1) if lse.ndim == 4 else lse  # (B,H,S,1) from torch 2.9 on


def _flash(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    """aten's FlashAttention 2."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out, lse, *_ = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False, scale=scale)
    return out.transpose(1, 2), lse


def _efficient(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    """aten's memory-efficient kernel (from xformers). Its LSE is padded to a multiple of 32 queries."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out, lse, *_ = aten._scaled_dot_product_efficient_attention(q, k, v, _bias(mask, q, k), True, 0.0, causal, scale=scale)
    return out.transpose(1, 2), lse[:, :, : q.shape[2]]


def _flash_attn_2(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    from flash_attn import flash_attn_func

    out, lse, _ = flash_attn_func(q, k, v, softmax_scale=scale, causal=causal, return_attn_probs=True)
    return out, lse


def _flash_attn_3(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    import flash_attn_interface

    out, lse, *_ = flash_attn_interface.flash_attn_func(q, k, v, softmax_scale=scale, causal=causal, return_attn_probs=True)
    return out, lse


def _flash_attn_4(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    from flash_attn.cute import flash_attn_func

    out, lse, *_ = flash_attn_func(q, k, v, softmax_scale=scale, causal=causal, return_lse=True)
    return out, lse


def _xformers(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    from xformers.ops import LowerTriangularMask, fmha

    out, lse = fmha.memory_efficient_attention_forward_requires_grad(q, k, v, attn_bias=LowerTriangularMask() if causal else None, scale=scale)
    return out, lse[:, :, : q.shape[1]]


def _sage(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    """8-bit attention. Its LSE must undo the smoothing of K by its mean; versions differ in that, so the self-test decides."""
    from sageattention import sageattn

    return sageattn(q, k, v, tensor_layout="NHD", is_causal=causal, sm_scale=scale, return_lse=True)


def _bias(mask: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    """The mask as an additive one of the queries' type, (B, H, S, T), expanded without a copy."""
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -torch.inf)
    elif mask.dtype != q.dtype:  # a narrower type would make -inf of a finite value, and a row without keys of a row of those
        mask = torch.where(mask == -torch.inf, mask, mask.clamp(torch.finfo(q.dtype).min))
    return _aligned(mask.to(q.dtype)).expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])


def _aligned(mask: Tensor) -> Tensor:
    """The mask with rows that begin at multiples of 16 elements: kernels read vectors, and a block of columns may begin anywhere in memory.

    Compiled it is always copied: where it begins cannot be asked there.
    """
    if mask.device.type == "cpu" or mask.shape[-1] == 1:
        return mask
    if not torch.compiler.is_compiling() and mask.stride(-1) == 1:
        steps = [stride for stride, size in zip(mask.stride()[:-1], mask.shape[:-1], strict=True) if size > 1]
        if not any(step % 16 for step in (mask.storage_offset(), *steps)):
            return mask
    return F.pad(mask, (0, 16 - mask.shape[-1] % 16))[..., : mask.shape[-1]]


KERNELS: dict[str, Kernel] = {
    "sdpa": Kernel(_sdpa, lse=False, mask=True, gqa=True, grad=True, devices=(), dtypes=(), head_dim=0, rectangular_causal=True, value_dim=True),
    "cudnn": Kernel(_cudnn, mask=True, head_dim=128, capability=(9, 0)),
    "flash-attn-4": Kernel(_flash_attn_4, gqa=True, head_dim=128, capability=(9, 0), package="flash_attn.cute"),
    "flash-attn-3": Kernel(_flash_attn_3, gqa=True, capability=(9, 0), package="flash_attn_interface"),
    "flash-attn-2": Kernel(_flash_attn_2, gqa=True, package="flash_attn"),
    "flash": Kernel(_flash),
    "efficient": Kernel(_efficient, mask=True, dtypes=(*HALF, torch.float32), head_dim=512, capability=(5, 0)),
    "xformers": Kernel(_xformers, package="xformers"),
    "sage": Kernel(_sage, gqa=True, head_dim=128, package="sageattention", tolerance=1e-1),
    "cpu": Kernel(_cpu, mask=True, devices=("cpu",), dtypes=(*HALF, torch.float32, torch.float64), head_dim=0),
    "math": Kernel(_math, mask=True, grad=True, devices=(), dtypes=(), head_dim=0, rectangular_causal=True, value_dim=True),
}


def run(
    name: str,
    q_BSHD: Tensor,
    k_BTGD: Tensor,
    v_BTGD: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
    causal: bool = False,
    has_key: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Attention by the kernel `name`: out (B, S, H, D), lse (B, H, S) or None. Queries without a key give 0 and an lse of -inf.

    Args:
        k_BTGD, v_BTGD: G key/value heads, a divisor of H.
        mask: bool (True: attend) or additive, broadcastable to (B, H, S, T).
        has_key: the second result of `open_empty_rows`, when the mask is the first.
    """
    kernel = KERNELS[name]
    scale = q_BSHD.shape[-1] ** -0.5 if scale is None else scale
    if 0 in (*q_BSHD.shape, *k_BTGD.shape):
        return nothing(q_BSHD, k_BTGD, v_BTGD)
    if q_BSHD.shape[2] != k_BTGD.shape[2] and not kernel.gqa:
        k_BTGD, v_BTGD = (x.repeat_interleave(q_BSHD.shape[2] // k_BTGD.shape[2], dim=2) for x in (k_BTGD, v_BTGD))
    if mask is None:
        return kernel.function(q_BSHD, k_BTGD, v_BTGD, None, scale, causal)
    if has_key is None:
        mask, has_key = open_empty_rows(mask)
    out, lse = kernel.function(q_BSHD, k_BTGD, v_BTGD, mask, scale, causal)
    return torch.where(has_key.transpose(1, 2), out, 0), None if lse is None else torch.where(has_key.squeeze(3), lse, -torch.inf)


def open_empty_rows(mask: Tensor) -> tuple[Tensor, Tensor]:
    """The mask with the rows that allow no key opened to all, and which rows have a key: (B, H, S, 1).

    Kernels disagree about a row without keys (0, NaN, the mean of the values; +inf or garbage as LSE), and NaN spreads backwards even through
    a `where`. So they never see one, and the caller zeroes the row.
    """
    if mask.dtype == torch.bool:
        has_key = mask.any(dim=3, keepdim=True)
        return mask | ~has_key, has_key
    has_key = (mask != -torch.inf).any(dim=3, keepdim=True)
    return torch.where(has_key, mask, 0), has_key


def nothing(q_BSHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor) -> tuple[Tensor, Tensor]:
    """Attention without queries or without keys: zeros, and an lse of -inf."""
    out = q_BSHD.new_zeros(*q_BSHD.shape[:3], v_BTGD.shape[3])
    lse = torch.full((q_BSHD.shape[0], q_BSHD.shape[2], q_BSHD.shape[1]), -torch.inf, dtype=torch.float32, device=q_BSHD.device)
    return keep_in_graph(out, q_BSHD, k_BTGD, v_BTGD), lse


def keep_in_graph(out: Tensor, *inputs: Tensor) -> Tensor:
    """`out`, with `inputs` among its ancestors: their gradient from here is zero, but their backward runs, as it does on the other ranks."""
    if not wants_grad(*inputs):
        return out
    return _KeepInGraph.apply(out, *inputs)


class _KeepInGraph(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, out: Tensor, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)
        return out.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0], *(torch.zeros_like(x) for x in ctx.saved_tensors)
