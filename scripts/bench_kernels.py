#!/usr/bin/env python3
"""Which attention kernel is fastest on this device? Prints every kernel's time, by length and head size, and the fastest.

    python scripts/bench_kernels.py                                          # the GPU if there is one; about a minute
    python scripts/bench_kernels.py --head-sizes 40 --lengths 4608 --heads 24 --batch 2
    python scripts/bench_kernels.py --device cpu --lengths 128 --heads 2

Every kernel of the table that works here, but math, on calls without a mask: as many queries as keys, and a half and an eighth of them, as
where keys are gathered or cross lengths differ. Kernels give their LSE in every call (sdpa has none to give), so one time serves for both "fastest":
of all, and of those with an LSE, which a ring needs. What it finds on a new generation of GPUs belongs into dit_usp/attention/preference.py.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import shlex
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from dit_usp.attention import available
from dit_usp.attention.kernels import KERNELS, Call, run

QUERIES = (1, 2, 8)  # keys per query
MAX_RUNS, CELL_S = 20, 0.25
QUEUE_CYCLES = 20_000_000  # about 10 ms, in which the CPU queues all runs: short kernels are timed, not their launches


@dataclass(frozen=True)
class Shape:
    """One call: (batch, queries, heads, head size) on as many keys as `keys`."""

    batch: int
    heads: int
    head_dim: int
    queries: int
    keys: int

    @property
    def flops(self) -> int:
        """Of the two matrix products."""
        return 4 * self.batch * self.heads * self.queries * self.keys * self.head_dim


def shapes(args: argparse.Namespace) -> list[Shape]:
    """Short ones first: if time runs out, the longest are missing."""
    sizes = itertools.product(args.lengths, args.head_sizes, QUERIES)
    return [Shape(args.batch, args.heads, head_dim, max(1, keys // ratio), keys) for keys, head_dim, ratio in sizes]


def measured(shape: Shape, kernels: list[str], dtype: torch.dtype, device: torch.device, deadline: float) -> Iterator[tuple[str, float | str]]:
    """(kernel, median seconds or why there are none)."""
    generator = torch.Generator(device).manual_seed(0)
    q, k, v = (
        torch.randn(shape.batch, length, shape.heads, shape.head_dim, generator=generator, device=device, dtype=dtype)
        for length in (shape.queries, shape.keys, shape.keys)
    )
    for name in kernels:
        if reason := KERNELS[name].refusal(Call(device.type, dtype, shape.head_dim, shape.head_dim, square=shape.queries == shape.keys)):
            yield name, reason
        elif time.perf_counter() > deadline:
            yield name, "no time was left"
        else:
            try:
                yield name, median(functools.partial(run, name, q, k, v), device)
            except RuntimeError as failure:  # a kernel's own refusal, or out of memory
                yield name, (str(failure).splitlines() or [type(failure).__name__])[0]


def median(call: Callable[[], object], device: torch.device) -> float:
    """Seconds a run, the median of as many as a cell may take, at least one."""
    call()  # loads the kernel
    (first,) = times(call, 1, device)
    return statistics.median(times(call, max(1, min(MAX_RUNS, int(CELL_S / max(first, 1e-9)))), device))


def times(call: Callable[[], object], runs: int, device: torch.device) -> list[float]:
    if device.type == "cpu":
        return [clocked(call) for _ in range(runs)]
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(runs)]
    torch.cuda._sleep(QUEUE_CYCLES)
    for start, end in events:
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in events]


def clocked(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main(arguments: list[str] | None = None) -> int:
    args = parsed(arguments)
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    states = available(device)
    kernels = [name for name, state in states.items() if state == "ok" and name != "math"]
    absent = [f"{name} {state}" for name, state in states.items() if state != "ok" and device.type in (KERNELS[name].devices or (device.type,))]
    print(f"$ python scripts/bench_kernels.py {shlex.join(sys.argv[1:] if arguments is None else arguments)}")
    print(f"{environment(device)}, {args.dtype}, batch {args.batch}, {args.heads} heads. Medians of ms (TFLOP/s)")
    print(f"not here: {'; '.join(absent) or 'none'}")
    print(f"{'head':>4}{'queries':>9}{'keys':>8}" + "".join(f"{name:>18}" for name in kernels) + "  fastest; with LSE")
    wins: dict[str, Counter[str]] = {}
    missing: dict[str, None] = {}
    deadline = time.perf_counter() + args.seconds
    for shape in shapes(args):
        found = dict(measured(shape, kernels, dtype, device, deadline))
        missing.update(dict.fromkeys(f"{name}, head size {shape.head_dim}: {why}" for name, why in found.items() if isinstance(why, str)))
        best = tuple(winner(found, lse) for lse in (False, True))
        for name, what in zip(best, ("fastest", "fastest with LSE"), strict=True):
            wins.setdefault(f"head size {shape.head_dim}, {what}", Counter())[name] += 1
        print(row(shape, found) + f"  {'; '.join(best)}", flush=True)
    print("\n".join(["", *(f"{what}: {', '.join(f'{name} in {count}' for name, count in names.most_common())}" for what, names in wins.items())]))
    print("\n".join(f"not measured: {text}" for text in missing))
    return 0


def row(shape: Shape, found: dict[str, float | str]) -> str:
    cells = ["-" if isinstance(took, str) else f"{1e3 * took:.3f} ({shape.flops / took / 1e12:.1f})" for took in found.values()]
    return f"{shape.head_dim:4}{shape.queries:9}{shape.keys:8}" + "".join(f"{cell:>18}" for cell in cells)


def winner(found: dict[str, float | str], lse: bool) -> str:
    timed = {name: took for name, took in found.items() if isinstance(took, float) and (KERNELS[name].lse or not lse)}
    return min(timed, key=timed.__getitem__) if timed else "none"


def environment(device: torch.device) -> str:
    """What the figures hold for."""
    if device.type == "cpu":
        return f"CPU, {torch.get_num_threads()} threads, torch {torch.__version__}"
    capability = "{}.{}".format(*torch.cuda.get_device_capability())
    versions = f"torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    return f"{torch.cuda.get_device_name()}, compute capability {capability}, {versions}"


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--head-sizes", type=int, nargs="+", default=[64, 72, 128])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 16384, 32768, 75600], help="keys")
    parser.add_argument("--heads", type=int, default=24)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60, help="no further kernel is begun after so long")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
