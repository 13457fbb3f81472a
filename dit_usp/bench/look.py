"""Where one step's milliseconds go on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from dit_usp.bench import alone

ATTENTION = ("flash", "fmha", "attention", "sdpa", "cudnn_generated")  # in the names of attention kernels, but not of inductor's
COMMUNICATION = ("nccl", "c10d")
Span = tuple[str, float, float]  # a kernel's name, and when it began and ended in microseconds


def trace(step: Callable[[], Any]) -> list[Span]:
    """What the GPU did during one step."""
    from torch.profiler import ProfilerActivity, profile

    dist.barrier()  # else one rank's wait for another one's profiler looks like communication
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    events = [event for event in profiler.events() or () if event.device_type == torch.autograd.DeviceType.CUDA]
    return [(event.name, event.time_range.start, event.time_range.end) for event in events]


def parts(spans: Sequence[Span]) -> dict[str, float]:
    """Milliseconds by kind of work, and the gaps between. Communication counts as far as nothing else runs meanwhile."""
    if not spans:
        return {}
    times: dict[str, list[tuple[float, float]]] = {"attention": [], "other": [], "communication": []}
    for name, start, end in spans:
        times[_kind(name)].append((start, end))
    attention, computing = _busy(times["attention"]), _busy(times["attention"] + times["other"])
    everything = [time for kind in times.values() for time in kind]
    whole = max(end for _, end in everything) - min(start for start, _ in everything)
    lengths = {
        "attention": attention,
        "other compute": computing - attention,
        "exposed communication": _busy(everything) - computing,
        "gaps": whole - _busy(everything),
    }
    return {name: length / 1000 for name, length in lengths.items()}


def kernels(spans: Sequence[Span]) -> dict[str, tuple[float, int]]:
    """Each kernel's milliseconds and calls; those that take longest come first."""
    found: dict[str, tuple[float, int]] = {}
    for name, start, end in spans:
        ms, calls = found.get(name, (0.0, 0))
        found[name] = (ms + (end - start) / 1000, calls + 1)
    return dict(sorted(found.items(), key=lambda item: -item[1][0]))


def _kind(kernel: str) -> str:
    name = kernel.lower()
    # A lone rank's copies stand for its exchanges; in a recording they are called memcpy128 or the like.
    own_copy = "memcpy" in name and not any(way in name for way in ("htod", "dtoh"))
    if any(word in name for word in COMMUNICATION) or (own_copy and dist.get_backend() == alone.Alone.NAME):
        return "communication"
    if name.startswith("triton"):
        return "other"
    return "attention" if any(word in name for word in ATTENTION) else "other"


def _busy(times: Sequence[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(times):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
