"""Time one transformer step in several variants, run by turns in one process set."""

from __future__ import annotations

import json
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import groupby, pairwise

import diffusers
import torch
import torch._dynamo
import torch.distributed as dist
from torch import Tensor, nn

from dit_usp.bench import look
from dit_usp.bench.cases import CASES, Case, Inputs, again, build, calls_of, run_step
from dit_usp.bench.exact import reference
from dit_usp.bench.peers import PEERS
from dit_usp.collectives import split_sizes
from dit_usp.compiled import compile_blocks
from dit_usp.config import ParallelConfig
from dit_usp.graph import graph, graph_of, ungraph
from dit_usp.inject import parallelize
from dit_usp.mesh import init_mesh

SHOWN = 12  # kernels of a variant, after the table
FIRST, FLOAT32 = "the first variant's output", "the output of diffusers in float32"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Variant:
    """One way to run the step.

    Attributes:
        parallel: the layout; None: diffusers alone, on this rank.
        peer: whose parallelism, of PEERS, with these degrees; "": ours.
        compile: every block.
        graph: the whole call as a CUDA graph.
    """

    parallel: ParallelConfig | None = None
    peer: str = ""
    compile: bool = False
    graph: bool = False

    def __str__(self) -> str:
        if self.parallel is None:
            who = "diffusers, one rank"
        else:
            ring = f" ({self.parallel.ring_method})" if self.parallel.ring_degree > 1 else ""
            who = f"{self.peer or 'dit-usp'}, {self.parallel}{ring}"
        return who + (", compiled" if self.compile else "") + (", graph" if self.graph else "")

    @property
    def phase(self) -> str:
        """Variants of one phase take turns; a peer that patches diffusers comes after the others, alone."""
        return self.peer if self.peer and PEERS[self.peer].patches else ""


@dataclass
class Result:
    """What was measured of one variant.

    Attributes:
        ms: of each step.
        error: relative to `against`; None where there is nothing to compare.
        first_s: of the first call, with its compilation.
        held_gib: memory that the variant keeps beside the weights: its recording, and what torch has reserved for it.
        parts: ms of one step by kind of GPU work, and the gaps between.
        kernels: of one step, by name: ms and calls of each; those that take longest come first.
        note: why it is not what was asked for.
    """

    case: str
    variant: str
    ms: list[float] = field(default_factory=list)
    error: float | None = None
    against: str = ""
    first_s: float = 0.0
    held_gib: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    kernels: dict[str, tuple[float, int]] = field(default_factory=dict)
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.ms)


@dataclass
class _Subject:
    """The model that every variant runs, by a module of its own that shares the weights.

    Attributes:
        expected: what the outputs are compared with; None: the first of them.
    """

    name: str
    case: Case
    layers: int | None
    model: nn.Module
    calls: tuple[Inputs, ...]
    device: torch.device
    expected: Tensor | None
    against: str


@dataclass
class _Running:
    variant: Variant
    model: nn.Module
    calls: tuple[Inputs, ...]
    result: Result


@torch._dynamo.config.patch(recompile_limit=64)  # every variant compiles the same blocks anew
@torch.no_grad()
def measure(
    name: str,
    variants: Sequence[Variant],
    *,
    layers: int | None,
    dtype: torch.dtype,
    device: torch.device,
    runs: int,
    compare: bool,
    exact: bool,
    profile: bool,
    told: Callable[[list[Result]], None] = lambda results: None,
) -> list[Result]:
    """Time each variant of a case, `runs` steps each in turns of a few; a variant that fails says why.

    Args:
        compare: the outputs are the model's (not so for a share alone).
        exact: compare with float32, where memory suffices for it; else with the first variant.
        profile: look into one step of each variant on a GPU.
        told: called with the results so far, as soon as there are more: a peer's variant may never end.
    """
    model, inputs = build(CASES[name], layers, dtype, device)
    calls = calls_of(CASES[name], inputs)
    expected = reference(model, calls, dtype) if exact else None
    against = FLOAT32 if expected is not None else FIRST + (": float32 does not fit in this GPU's memory" if exact else "")
    subject = _Subject(name, CASES[name], layers, model, calls, device, expected, against)
    results = []
    for _, phase in groupby(sorted(variants, key=lambda variant: variant.phase), lambda variant: variant.phase):
        running = [_start(subject, variant, compare) for variant in phase]
        _take_turns([one for one in running if one.result.first_s], runs, device)
        for one in running:
            if profile and one.result.ms and device.type == "cuda":
                spans = look.trace(partial(run_step, one.model, one.calls))
                one.result.parts, one.result.kernels = look.parts(spans), look.kernels(spans)
        for one in running:
            ungraph(one.model)
        results += [one.result for one in running]
        told(results)
    return results


def _start(subject: _Subject, variant: Variant, compare: bool) -> _Running:
    """Prepare a variant and run it until its steps take what they will take."""
    result, device = Result(subject.name, str(variant)), subject.device
    own = again(subject.model, subject.case, subject.layers)
    reserved = _reserved(device)
    try:
        start = time.perf_counter()
        own = _prepared(own, variant, device)
        output = run_step(own, subject.calls)
        _wait(device)
        first_s = time.perf_counter() - start
        for _ in range(5):  # a graph is recorded at the third call and compared at the fourth
            output = run_step(own, subject.calls)
        _wait(device)
        if graphed := graph_of(own):
            result.note = "; ".join(reason for reason in graphed.report() if reason != "replayed")
        result.first_s, result.held_gib = first_s, _reserved(device) - reserved
    except Exception as error:  # a peer that does not run is a result too
        result.note = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        logger.debug("%s", variant, exc_info=True)
    if _failed_anywhere(not result.first_s, device):
        result.first_s, result.note = 0.0, result.note or "it failed on another rank"
    if compare and result.first_s:
        subject.expected = output.float() if subject.expected is None else subject.expected
        result.error = ((output.float() - subject.expected).norm() / subject.expected.norm()).item()
        result.against = subject.against
    return _Running(variant, own, subject.calls, result)


def _prepared(model: nn.Module, variant: Variant, device: torch.device) -> nn.Module:
    mesh = None
    if variant.peer:
        assert variant.parallel
        PEERS[variant.peer].parallelize(model, variant.parallel)
    elif variant.parallel:
        mesh = init_mesh(variant.parallel, device.type)
        parallelize(model, mesh)
    if variant.compile:
        PEERS[variant.peer].compile(model) if variant.peer else compile_blocks(model)
    return graph(model, mesh, when=True) if variant.graph else model


def _take_turns(running: Sequence[_Running], runs: int, device: torch.device) -> None:
    """A few steps of each, then again, so that a GPU that grows warm slows all alike."""
    for size in split_sizes(runs, min(3, runs)):
        for one in running:
            one.result.ms += _timed(one, size, device)


def _timed(one: _Running, steps: int, device: torch.device) -> list[float]:
    """Milliseconds of each of some steps in a row, as a denoising loop makes them: all ranks are ready, and one more step has gone before."""
    _wait(device)
    if dist.is_initialized():
        dist.barrier()
    _wait(device)
    run_step(one.model, one.calls)
    if device.type != "cuda":
        stamps = [time.perf_counter()]
        for _ in range(steps):
            run_step(one.model, one.calls)
            stamps.append(time.perf_counter())
        return [1000 * (end - begin) for begin, end in pairwise(stamps)]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
    events[0].record()
    for event in events[1:]:
        run_step(one.model, one.calls)
        event.record()
    _wait(device)
    return [begin.elapsed_time(end) for begin, end in pairwise(events)]


def _reserved(device: torch.device) -> float:
    """GiB that torch holds of the GPU."""
    if device.type != "cuda":
        return 0.0
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved(device) / 2**30


def _failed_anywhere(here: bool, device: torch.device) -> bool:
    """Whether a variant failed on any rank: then none runs it, or the others would wait."""
    if dist.get_world_size() == 1:
        return here
    failed = torch.tensor([float(here)], device=device)
    dist.all_reduce(failed)
    return bool(failed.item())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def layouts(ranks: int, halves: bool) -> list[ParallelConfig]:
    """Each pure layout of the ranks, and the mixed ones that have four or more."""
    found = [ParallelConfig(ulysses_degree=ranks)]
    if ranks > 1:
        found += [ParallelConfig(ring_degree=ranks, ring_method="gather"), ParallelConfig(ring_degree=ranks)]
    if halves and ranks % 2 == 0:
        found.append(ParallelConfig(ulysses_degree=ranks // 2, cfg_degree=2))
    if ranks >= 4 and ranks % 2 == 0:
        found.append(ParallelConfig(ulysses_degree=ranks // 2, ring_degree=2))
    return found


def environment(device: torch.device, dtype: torch.dtype, share: int | None) -> str:
    """The line above every table: what it was measured with."""
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    ranks = f"one rank of {share}, no communication" if share else f"{dist.get_world_size() if dist.is_initialized() else 1} rank(s)"
    kind = str(dtype).removeprefix("torch.")
    return f"{hardware}, {ranks}, torch {torch.__version__}, diffusers {diffusers.__version__}, {kind}, random weights"


def as_json(results: Sequence[Result], about: str, command: str) -> str:
    """Everything measured, to be kept."""
    return json.dumps({"about": about, "command": command, "results": [asdict(result) for result in results]}, indent=1)


def as_lines(results: Sequence[Result]) -> list[str]:
    """A table: median and spread, the ratio to the first variant, and what else there is to say."""
    base = next((result.median for result in results if result.ms), 0.0)
    lines = [f"error: relative to {against}" for against in dict.fromkeys(result.against for result in results if result.against)]
    for result in results:
        if not result.ms:
            lines.append(f"{result.case:14} {result.variant:66} not run: {result.note}")
            continue
        spread = f"{result.median:8.2f} ms ({min(result.ms):.2f} to {max(result.ms):.2f})"
        error = "" if result.error is None else f"  error {result.error:.1e}"
        parts = "  " + ", ".join(f"{name} {ms:.1f}" for name, ms in result.parts.items()) if result.parts else ""
        note = f"  [{result.note}]" if result.note else ""
        extra = f"  first {result.first_s:.0f} s, {result.held_gib:+.1f} GiB"
        lines.append(f"{result.case:14} {result.variant:66} {spread:34} {result.median / base:6.3f}x{error}{extra}{parts}{note}")
    return lines


def kernel_lines(results: Sequence[Result]) -> list[str]:
    """For after the table: the kernels that take longest, with their calls in one step."""
    lines = []
    for result in results:
        if result.kernels:
            lines.append(f"{result.case}: {result.variant}: ms and calls of the kernels of one step")
        for kernel, (ms, calls) in list(result.kernels.items())[:SHOWN]:
            lines.append(f"{ms:10.2f} {calls:5}  {kernel[:120]}")
    return lines
