#!/usr/bin/env python3
"""How long the exchanges of some ranks take alone, by the MiB that each rank brings. On GPUs as recorded in a CUDA graph
(this part has not run yet).

    torchrun --nproc-per-node 2 scripts/bench_exchange.py
    NCCL_MIN_CTAS=64 torchrun --nproc-per-node 2 scripts/bench_exchange.py --mib 14 100

gather: every rank's keys and values to all. in place: the same, read from where it is written. pass: all of them to the next rank of a ring.
all-to-all: a share to each, as Ulysses does.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from dit_usp.attention.ring import neighbours
from dit_usp.collectives import gather_into
from dit_usp.launch import join

CALLS, TURNS = 20, 5


def exchanges(mib: int, device: torch.device) -> dict[str, Callable[[], Any]]:
    """The calls, on buffers of `mib` MiB a rank in bfloat16."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    size = mib * 2**20 // 2 // ranks * ranks
    own, arrived = (torch.randn(size, device=device).bfloat16() for _ in range(2))
    every = torch.empty(ranks * size, dtype=torch.bfloat16, device=device)
    to_next, from_last = neighbours(size, size, dist.group.WORLD)
    return {
        "gather": lambda: gather_into(every, own),
        "in place": lambda: gather_into(every, every[rank * size : (rank + 1) * size]),
        "pass": lambda: dist.all_to_all_single(arrived, own, from_last, to_next),
        "all-to-all": lambda: dist.all_to_all_single(arrived, own),
    }


def microseconds(call: Callable[[], Any], device: torch.device) -> list[float]:
    """Of one call, in each of some turns of many."""
    for _ in range(5):
        call()
    if device.type == "cpu":
        return [_clocked(call) for _ in range(TURNS)]
    graph = torch.cuda.CUDAGraph()
    _meet()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # NCCL's own thread may ask the driver meanwhile
        for _ in range(CALLS):
            call()
    graph.replay()
    return [_replayed(graph) for _ in range(TURNS)]


def _meet() -> None:
    torch.cuda.synchronize()
    dist.barrier()
    torch.cuda.synchronize()


def _replayed(graph: torch.cuda.CUDAGraph) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    _meet()
    begin.record()
    graph.replay()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) * 1000 / CALLS


def _clocked(call: Callable[[], Any]) -> float:
    dist.barrier()
    start = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - start) * 1e6 / CALLS


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, nargs="+", metavar="N", default=[14, 28, 100, 200])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    device = join(device_type=args.device).device
    if dist.get_rank() == 0:
        where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
        print(f"{dist.get_world_size()} ranks, {where}, torch {torch.__version__}; microseconds: median (least to most)", flush=True)
    for mib in args.mib:
        for name, call in exchanges(mib, device).items():
            taken = microseconds(call, device)
            if dist.get_rank() == 0:
                spread = f"{statistics.median(taken):9.1f} ({min(taken):.1f} to {max(taken):.1f})"
                print(f"{mib:5} MiB  {name:11}{spread}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
