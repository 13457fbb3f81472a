#!/usr/bin/env python3
"""Is every attention kernel right on this device? Prints the errors of each, against fp64, and exits 1 if any is too large.

    python scripts/check_kernels.py                              # the GPU if there is one
    torchrun --nproc-per-node 2 scripts/check_kernels.py         # and usp_attention on two
    python scripts/check_kernels.py --device cpu --tokens 100

For each kernel of the table that works here: its out and lse, two blocks merged, causal, and masks (one row for all queries, a row each with
some that allow no key, additive, some columns of a wider one), over types and head sizes; "-": the kernel refuses the call. Then usp_attention on
all ranks (NCCL on GPUs), forward and backward, eager and compiled.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import sys
from collections.abc import Iterator

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from dit_usp import ParallelConfig, init_mesh, usp_attention
from dit_usp.attention import available, choose, merge
from dit_usp.attention.kernels import EXACT, HALF, KERNELS, Call, run
from dit_usp.collectives import split_sizes
from dit_usp.mesh import Mesh

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SIZES = (64, 72, 128)
CASES = ("plain", "merged", "causal", "key mask", "row mask", "additive", "block")
Result = tuple[Tensor, Tensor | None]


def tensors(dtype: torch.dtype, size: int, tokens: int, device: torch.device) -> tuple[list[Tensor], dict[str, Tensor]]:
    """q, k, v (B, S, H, D), strided as Ulysses gives them, k and v longer than q; and masks."""
    generator = torch.Generator().manual_seed(size)
    packed = torch.randn(tokens + 24, 2, 12, size, generator=generator).to(device, dtype).transpose(0, 1)
    q, k, v = packed.split(4, dim=2)
    allowed = torch.rand(2, 4, tokens, tokens + 24, generator=generator).to(device) > 0.3
    allowed[0, :, 5] = False
    bias = torch.randn(1, 4, tokens, tokens + 24, generator=generator).to(device, dtype)
    block = bias[..., 3 : 3 + tokens // 16 * 16]  # columns of a ring's block: rows that begin anywhere in memory
    return [q[:, :tokens], k + 0.5, v], {"key mask": allowed[:, :1, :1], "row mask": allowed, "additive": bias, "block": block}


def attention(name: str, case: str, q: Tensor, k: Tensor, v: Tensor, masks: dict[str, Tensor]) -> Result:
    if case == "causal":
        return run(name, q, k[:, : q.shape[1]], v[:, : q.shape[1]], causal=True)
    if case == "block":
        k, v = (x[:, : masks[case].shape[3]] for x in (k, v))
    if case == "merged":
        half = k.shape[1] // 2 - 3
        (out, lse), (other, other_lse) = run(name, q, k[:, :half], v[:, :half]), run(name, q, k[:, half:], v[:, half:])
        assert lse is not None
        assert other_lse is not None
        return merge(*merge(None, None, out, lse), other, other_lse)
    return run(name, q, k, v, masks.get(case))


def error(got: Tensor, want: Tensor) -> float:
    got, want = (x.double().masked_fill(x == -torch.inf, 0) for x in (got, want))
    return ((got - want).abs().max() / want.abs().max()).item()


def rows(device: torch.device, tokens: int) -> Iterator[tuple[str, torch.dtype, int, str, list[float]]]:
    """(kernel, type, head size, case, errors of out and lse); no errors for what the kernel refuses, inf for what it raises."""
    states = available(device)
    for name, dtype, size in itertools.product(KERNELS, DTYPES, SIZES):
        if states[name] != "ok" or (KERNELS[name].dtypes and dtype not in KERNELS[name].dtypes):
            continue
        (q, k, v), masks = tensors(dtype, size, tokens, device)
        for case in CASES:
            call = Call(device.type, dtype, size, size, masked=case in masks, causal=case == "causal", lse=case == "merged")
            if KERNELS[name].refusal(call):
                yield name, dtype, size, case, []
                continue
            expected = attention("math", "plain" if case == "merged" else case, q.double(), k.double(), v.double(), masks)
            try:
                result = attention(name, case, q, k, v, masks)
            except RuntimeError as failure:
                print(f"{name} {dtype} {size} {case}: {str(failure).splitlines()[0]}")
                yield name, dtype, size, case, [float("inf")]
                continue
            yield (
                name,
                dtype,
                size,
                case,
                [error(got, want) for got, want in zip(result, expected, strict=True) if got is not None and want is not None],
            )


def sharded(device: torch.device, compiler: str) -> Iterator[tuple[str, float]]:
    """(layout, largest error of usp_attention over its ranks, forward and backward, eager and compiled), as bf16 errors / 1000 or fp32 errors."""
    ranks = dist.get_world_size()
    layouts = {(ranks, 1, "rotate"), (1, ranks, "rotate"), (1, ranks, "gather"), (2, ranks // 2, "rotate") if ranks > 2 else (ranks, 1, "rotate")}
    for ulysses, ring, method in sorted(layouts) if ranks > 1 else [(1, 1, "rotate")]:
        mesh = init_mesh(ParallelConfig(ulysses, ring, ring_method=method), device.type)
        worst = max(layout_errors(mesh, how) for how in ("", compiler))
        gathered = torch.tensor(worst, device=device)
        dist.all_reduce(gathered, dist.ReduceOp.MAX)
        yield f"ulysses {ulysses} x ring {ring}, {method}", gathered.item()


def layout_errors(mesh: Mesh, compiler: str) -> float:
    """This rank's largest error against SDPA on the whole, over types and masks; lengths are uneven. Compiled unless `compiler` is empty."""
    ranks, rank, device = mesh.sequence.size(), mesh.sequence.rank(), mesh.device
    lengths = split_sizes(100 * ranks + 1, ranks)
    own = slice(sum(lengths[:rank]), sum(lengths[: rank + 1]))
    generator = torch.Generator().manual_seed(0)
    errors = []
    for dtype, masked in ((torch.bfloat16, False), (torch.float32, False), (torch.float32, True)):
        torch.compiler.reset()
        wholes = [torch.randn(2, 4 * ranks, sum(lengths), 64, generator=generator).to(device, dtype) for _ in range(3)]
        mask = (torch.rand(2, 1, 1, sum(lengths), generator=generator) > 0.5).to(device) if masked else None
        pieces = [x[:, :, own].clone().requires_grad_() for x in wholes]
        attention = functools.partial(usp_attention, mesh=mesh, attn_mask=mask, lengths=lengths)
        attention = torch.compile(attention, fullgraph=True, backend=compiler) if compiler else attention
        wide = [x.double().requires_grad_() for x in wholes]
        want = F.scaled_dot_product_attention(*wide, mask)
        with torch.no_grad():
            outs = [attention(*pieces)]  # the kernel that auto picks; with gradients the ring computes by math
        outs.append(attention(*pieces))
        grads, want_grads = torch.autograd.grad(outs[1].sum(), pieces), torch.autograd.grad(want.sum(), wide)
        scale = 1 if dtype == torch.float32 else 1e-3
        errors += [scale * error(out, want[:, :, own]) for out in outs]
        errors += [scale * ((g - w[:, :, own]).abs().max() / w.abs().max().clamp(min=1)).item() for g, w in zip(grads, want_grads, strict=True)]
    return max(errors)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tokens", type=int, default=500)
    parser.add_argument("--compiler", default="aot_eager", help="torch.compile's backend; inductor takes minutes")
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    backend = "nccl" if device.type == "cuda" else "gloo"
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    failed = table(device, args.tokens) if dist.get_rank() == 0 else []
    for layout, worst in sharded(device, args.compiler):
        if dist.get_rank() == 0:
            print(f"usp_attention on {dist.get_world_size()} {backend} ranks, {layout}: {worst:.1e}", flush=True)
            failed += [layout] if not worst <= EXACT else []
    dist.destroy_process_group()
    if failed:
        print("TOO LARGE: " + "; ".join(failed))
    return 1 if failed else 0


def table(device: torch.device, tokens: int) -> list[str]:
    """Print what is there and every kernel's errors; return what is too large."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"torch {torch.__version__}, {name}, {tokens} queries, {tokens + 24} keys")
    for kernel, state in available(device).items():
        print(f"  {kernel}: {state}")
    for dtype, lse in itertools.product(DTYPES, (False, True)):
        print(f"auto, {dtype}, {'ring' if lse else 'one kernel'}: {choose('auto', Call(device.type, dtype, 64, 64, lse=lse))[0]}")
    print(f"{'kernel':14}{'type':10}{'head':>5}  " + "".join(f"{case:>20}" for case in CASES) + "   (out, lse)")
    failed = []
    for (kernel, dtype, size), group in itertools.groupby(rows(device, tokens), key=lambda row: row[:3]):
        line = f"{kernel:14}{str(dtype).removeprefix('torch.'):10}{size:5}  "
        allowed = KERNELS[kernel].tolerance if dtype in HALF else EXACT
        for *_, case, errors in group:
            line += f"{', '.join(f'{e:.1e}' for e in errors) or '-':>20}"
            failed += [f"{kernel} {dtype} {size} {case}"] if not all(e <= allowed for e in errors) else []
        print(line, flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
