"""In which order `auto` tries the kernels: what was measured on a generation of devices, else the default order."""

from __future__ import annotations

from dataclasses import dataclass

from dit_usp.attention.kernels import HALF, Call

# sdpa is torch's own pick. Then those that are written for a GPU's generation, FlashAttention 2 of its package and of torch, and the older ones.
# cuDNN's needs compute capability 9.0 (see KERNELS), so FlashAttention 2 comes first on Ampere and Ada. sage computes in 8 bits: only by name.
DEFAULT = ("sdpa", "cudnn", "flash-attn-4", "flash-attn-3", "flash-attn-2", "flash", "efficient", "xformers", "cpu", "math")
HEAD_DIMS = (64, 72, 128)  # measured: those of nearly every diffusion transformer


@dataclass(frozen=True)
class Measured:
    """What `scripts/bench_kernels.py` found on one generation of devices, for 16-bit calls without a mask.

    Attributes:
        on: the device and the torch.
        whole, with_lse: kernels, fastest first, for calls without and with an LSE. No other one was faster in more than one shape.
        slower: the others that were measured. A kernel in none of the three was not installed.
    """

    on: str
    whole: tuple[str, ...]
    with_lse: tuple[str, ...]
    slower: tuple[str, ...]


# By the major compute capability. One entry serves every head size: on the H100 (bfloat16, 24 heads, 1k to 75k keys, as many queries, a half and an
# eighth of them) cuDNN, with its LSE, is first in 44 of 45 shapes of head size 64, 72 and 128, and 4 % behind flash in one of 0.02 ms. In ms, square:
#   16384 tokens, head size  64: cudnn 3.33, flash 5.41, efficient 12.0
#   16384 tokens, head size  72: cudnn 4.96, flash 7.73, efficient 18.4; padding 72 to 80, 96 or 128 was slower at 4k
#   16384 tokens, head size 128: cudnn 4.92, flash 9.23, efficient 18.2
# Without an LSE torch's own pick is cuDNN's too, and it takes any mask. All figures: examples/benchmarks/kernels_h100_2026-11-24.md
MEASURED = {9: Measured("H100, torch 2.11", whole=("sdpa", "cudnn"), with_lse=("cudnn",), slower=("flash", "efficient"))}


def preferences(call: Call, capability: tuple[int, int] | None) -> dict[str, str]:
    """The kernels in the order in which `auto` tries them, each with the reason for its place.

    Args:
        capability: the CUDA compute capability; None: no CUDA device.
    """
    where = "compute capability {}.{}".format(*capability) if capability else call.device
    measured = MEASURED.get(capability[0]) if capability else None
    if measured is None:
        return dict.fromkeys(DEFAULT, f"not measured on {where}: the default order")
    if unlike := _unlike(call):
        return dict.fromkeys(DEFAULT, f"not measured {unlike}: the default order")
    fastest = measured.with_lse if call.lse else measured.whole
    first = dict.fromkeys(fastest, f"measured fastest on {where} ({measured.on}), before {', '.join(measured.slower)}")
    return first | dict.fromkeys((name for name in DEFAULT if name not in first), f"not measured fastest on {where}: the default order")


def _unlike(call: Call) -> str:
    """In what a call differs from all that was measured; empty if it does not."""
    differences = {
        f"in {call.dtype}": call.dtype not in HALF,
        f"for head size {call.head_dim}": call.head_dim not in HEAD_DIMS,
        "for values of another head size": call.value_dim != call.head_dim,
        "with a mask": call.masked,
        "with is_causal": call.causal,
    }
    return next((text for text, differs in differences.items() if differs), "")
