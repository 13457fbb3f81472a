#!/usr/bin/env python3
"""Is every shard plan right on these devices? Prints each transformer's errors against one process, and exits 1 if any is too large.

    torchrun --nproc-per-node 2 scripts/check_plans.py                               # all classes, fp32 and bf16, NCCL on GPUs
    torchrun --nproc-per-node 2 scripts/check_plans.py --mode compile+graph          # a few classes of each kind
    torchrun --nproc-per-node 2 scripts/check_plans.py --mode graph --only flux WanTransformer3DModel
    torchrun --nproc-per-node 2 scripts/check_plans.py --device cpu --tiny           # gloo, the tests' own widths
    python scripts/check_plans.py                                                    # one rank: nothing is shared

The models are the tests' (tests/tiny), at the heads and the hidden sizes that they are published with: two layers of each kind, random weights,
uneven numbers of tokens. Each layout is held against the plain model on the same rank: fp32 within 2e-5 (relative, of norms; one model that amplifies
rounding: 1e-3), bf16 no further from the plain fp32 model than twice what the plain bf16 model is. "refused": no layout for this model, which
is no failure.
"""

from __future__ import annotations

import argparse
import functools
import gc
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import torch
import torch._dynamo
import torch.distributed as dist
from test_parity import forward
from tiny import TINY, build
from tiny.wide import moved, odd_pictures, wide
from torch import Tensor, nn
from torch.utils._pytree import tree_map_with_path

from dit_usp import ParallelConfig, UnsupportedError, init_mesh, parallelize, unparallelize
from dit_usp.compiled import compile_blocks, repeated_blocks
from dit_usp.graph import graph, graph_of
from dit_usp.inject import mesh_of, plan_of
from dit_usp.mesh import Mesh

EXACT = 2e-5
ROUGH = {"sana_wm": 1e-3}  # its recurrence amplifies rounding: the plain tiny model in fp32 is 6e-4 from the same in fp64
CAST = {"history_key_scale"}  # of Helios: in fp32, as its author keeps it, it makes keys fp32, and attention refuses them beside bf16 queries
FLOOR = 1e-3  # of bf16: where the plain model is as good as exact
MODES = ("eager", "compile", "graph", "compile+graph")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
COMPILED = ("pixart", "sd35", "flux", "qwen", "zimage", "sana", "wan", "hunyuan_video", "cogvideox", "ltx", "ace_step", "flux_controlnet")
WAIT = timedelta(seconds=180)  # a rank that waits longer for another ends all
PRECISE = ("rotary", "rope", "ids", "coords")  # inputs that pipelines leave in fp32, by parts of their names
Inputs = dict[str, Any]


@dataclass
class Row:
    """What was found of one class.

    Attributes:
        errors: the worst, and what is allowed, by layout and type.
        notes: failures, refusals, and calls that were not replayed.
    """

    name: str
    errors: dict[str, tuple[float, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    failed: bool = False
    seconds: float = 0.0

    def __str__(self) -> str:
        worst = "".join(map(self._worst, DTYPES))
        return f"{'FAILED' if self.failed else 'ok':7}{self.name:58}{worst}{self.seconds:5.1f} s  {'; '.join(dict.fromkeys(self.notes))}"

    def _worst(self, dtype: str) -> str:
        found = {layout: pair for layout, pair in self.errors.items() if layout.startswith(dtype)}
        if not found:
            return ""
        layout, (error, allowed) = max(found.items(), key=lambda item: item[1][0] / item[1][1])
        return f"{dtype} {error:.1e} of {allowed:.1e} {'(' + layout.removeprefix(dtype + ', ') + ')':18}"


@dataclass(frozen=True)
class Check:
    """How every model is run.

    Attributes:
        meshes: by the names of their layouts. Built once: every mesh brings communicators of its own.
    """

    device: torch.device
    meshes: dict[str, Mesh]
    mode: str = "eager"
    dtypes: Sequence[str] = tuple(DTYPES)
    tiny: bool = False

    @property
    def calls(self) -> int:
        """Lengths are learnt in the first; a graph is recorded in the third and compared in the fourth."""
        return 5 if "graph" in self.mode else 2

    def build(self, name: str) -> tuple[nn.Module, Inputs]:
        """The model and its inputs, of numbers that bf16 holds: types then differ by their arithmetic alone."""
        with odd_pictures():
            model, inputs = build(name) if self.tiny else wide(name, self.device)
        model, inputs = model.to(self.device), moved(inputs, self.device)
        for dtype in (torch.bfloat16, torch.float32):
            _cast(model, dtype)
            inputs = _cast_inputs(inputs, dtype)
        return model, inputs

    def row(self, name: str) -> Row:
        start, made, row = time.perf_counter(), [], Row(name)
        if not self._agreed(row, "plain", lambda: made.append(self._plain(name))):
            model, inputs, exact = made[0]
            row.name = f"{type(model).__name__} ({name}{', tiny' if self.tiny else ''})"
            for dtype in self.dtypes:
                self._layouts(row, model, inputs, exact, dtype, ROUGH.get(name, EXACT))
        row.seconds = time.perf_counter() - start
        return row

    def _plain(self, name: str) -> tuple[nn.Module, Inputs, list[Tensor]]:
        model, inputs = self.build(name)
        exact = forward(model, inputs)
        assert all(out.isfinite().all() and out.any() for out in exact), "an output of the plain model is zero or not finite"
        return model, inputs, exact

    def _layouts(self, row: Row, model: nn.Module, inputs: Inputs, exact: list[Tensor], dtype: str, exactness: float) -> None:
        """Every layout in one type, which the model keeps."""
        allowed: list[float] = []

        def cast() -> None:
            nonlocal inputs
            if dtype == "bf16":
                _cast(model, torch.bfloat16)
                inputs = _cast_inputs(inputs, torch.bfloat16)
                allowed.extend(2 * error + FLOOR for error in errors(forward(model, inputs), exact))
            else:
                allowed.extend(exactness for _ in exact)

        if self._agreed(row, f"{dtype}, plain", cast):
            return
        for layout, mesh in self.meshes.items():
            if mesh.cfg.size() == 1 or plan_of(model).guidance == "batch":
                self._layout(row, f"{dtype}, {layout}", lambda mesh=mesh: self._sharded(model, inputs, exact, mesh, row), allowed)

    def _layout(self, row: Row, layout: str, sharded: Callable[[], list[list[float]]], allowed: list[float]) -> None:
        found: list[list[float]] = []
        if self._agreed(row, layout, lambda: found.extend(sharded())):
            return
        mine = max(((error, limit) for call in found for error, limit in zip(call, allowed, strict=True)), key=lambda pair: pair[0] / pair[1])
        row.errors[layout] = max(gathered(mine), key=lambda pair: pair[0] / pair[1])
        row.failed |= not row.errors[layout][0] <= row.errors[layout][1]

    def _sharded(self, model: nn.Module, inputs: Inputs, exact: list[Tensor], mesh: Mesh, row: Row) -> list[list[float]]:
        """The errors of every call's outputs on this rank."""
        torch._dynamo.reset()
        try:
            parallelize(model, mesh)
            if "compile" in self.mode:
                compile_blocks(model)
            if "graph" in self.mode:
                graph(model, mesh, when=True)
            found = [errors(forward(model, inputs), exact) for _ in range(self.calls)]
            if graphed := graph_of(model):
                row.notes += [f"not replayed: {reason}" for reason in graphed.report() if reason != "replayed"]
            return found
        finally:
            if mesh_of(model):
                unparallelize(model)
            for block in repeated_blocks(model):
                block._compiled_call_impl = None

    def _agreed(self, row: Row, stage: str, work: Callable[[], Any]) -> bool:
        """Do some work; whether it failed on any rank, alike on all of them, or one that goes on would wait for the others."""
        try:
            work()
            failure = ""
        except UnsupportedError as refusal:
            failure = f"refused: {refusal}"
        except Exception as error:
            failure = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        told = {failure: rank for rank, failure in reversed(list(enumerate(gathered(failure)))) if failure}
        row.notes += [f"{stage}, rank {rank}: {failure}" for failure, rank in told.items()]
        row.failed |= any(not failure.startswith("refused") for failure in told)
        return bool(told)


def gathered(value: Any) -> list[Any]:
    """What every rank has."""
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def errors(outputs: list[Tensor], exact: list[Tensor]) -> list[float]:
    """Of each output: the norm of its error, relative; infinite for another shape or a number that is none."""
    if [out.shape for out in outputs] != [expected.shape for expected in exact]:
        raise AssertionError(f"outputs of {[tuple(out.shape) for out in outputs]} instead of {[tuple(expected.shape) for expected in exact]}")
    found = [((out.float() - expected).norm() / expected.norm()).item() for out, expected in zip(outputs, exact, strict=True)]
    return [error if error == error else float("inf") for error in found]


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    """As `from_pretrained(torch_dtype=...)` leaves it: what is saved is cast, but for what its author keeps; tables that are computed stay."""
    saved, kept = model.state_dict().keys(), set(getattr(model, "_keep_in_fp32_modules", None) or ()) - CAST
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in saved and tensor.is_floating_point() and not kept & set(name.split(".")):
            tensor.data = tensor.data.to(dtype)


def _cast_inputs(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    def cast(path: tuple[Any, ...], item: Any) -> Any:
        kept = not isinstance(item, Tensor) or not item.is_floating_point() or any(part in str(path[0]) for part in PRECISE)
        return item if kept else item.to(dtype)

    return tree_map_with_path(cast, inputs)


def layouts(ranks: int) -> dict[str, ParallelConfig]:
    """All ways to lay out so many ranks that exchange differently."""
    if ranks == 1:
        return {"alone": ParallelConfig()}
    found = {
        f"ulysses {ranks}": ParallelConfig(ranks),
        f"ring {ranks}": ParallelConfig(1, ranks),
        f"ring {ranks} gather": ParallelConfig(1, ranks, ring_method="gather"),
    }
    if ranks % 2 == 0:
        found[f"cfg 2 x {ranks // 2}"] = ParallelConfig(ranks // 2, cfg_degree=2)
        if ranks > 2:
            found[f"ulysses 2 x ring {ranks // 2}"] = ParallelConfig(2, ranks // 2)
    return found


@functools.cache
def class_of(case: str) -> str:
    return type(TINY[case]()[0]).__name__


def case_of(name: str) -> str:
    """A case, or the first one of a class."""
    found = name if name in TINY else next((case for case in TINY if class_of(case) == name), "")
    if not found:
        raise SystemExit(f"{name} is no case of tests/tiny and no class with a plan")
    return found


def cases(only: Sequence[str], skip: Sequence[str]) -> list[str]:
    """Those that are named, or else the first case of every class."""
    chosen = [case_of(name) for name in only] or list({class_of(case): case for case in reversed(TINY)}.values())[::-1]
    left_out = {case_of(name) for name in skip}
    return [case for case in chosen if case not in left_out]


def run(check: Check, names: Sequence[str], limit: float) -> tuple[list[Row], list[str]]:
    """The rows of these cases, printed by rank 0 as they come, and those for which there was no time left."""
    start, rows = time.perf_counter(), []
    gc.freeze()  # what imports have left need not be looked through again
    for index, name in enumerate(names):
        if max(gathered(time.perf_counter() - start)) > limit:
            return rows, list(names[index:])
        rows.append(check.row(name))
        gc.collect()  # hooks and models hold each other
        if dist.get_rank() == 0:
            print(rows[-1], flush=True)
    return rows, []


def summary(rows: Sequence[Row], left: Sequence[str], seconds: float) -> str:
    failed = [row.name for row in rows if row.failed]
    lines = [f"{len(rows)} models in {seconds:.0f} s, {len(failed)} failed"]
    lines += [f"FAILED: {', '.join(failed)}"] if failed else []
    lines += [f"NOT RUN, no time left: {' '.join(left)}"] if left else []
    return "\n".join(lines)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--mode", choices=MODES, default="eager")
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=list(DTYPES))
    parser.add_argument("--tiny", action="store_true", help="the tests' own widths instead of the published ones")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", default=[], help="cases of tests/tiny or classes; None: one of every class, or a few to compile"
    )
    parser.add_argument("--skip", nargs="+", metavar="NAME", default=[])
    parser.add_argument("--time-limit", type=float, metavar="SECONDS", default=float("inf"), help="begin no other model after so long")
    args = parser.parse_args(argv)
    if "graph" in args.mode and args.device == "cpu":
        parser.error("--mode graph needs a GPU: there are no CUDA graphs on the CPU")
    return args


def prepare(device: torch.device) -> None:
    """A group of all ranks, and arithmetic that hides nothing."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if dist.is_initialized():
        return
    alone = {} if "WORLD_SIZE" in os.environ else dict(store=dist.HashStore(), rank=0, world_size=1)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=WAIT, **alone)


@torch._dynamo.config.patch(recompile_limit=64)  # blocks of a kind may differ
def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    started = not dist.is_initialized()
    prepare(torch.device(args.device))
    configs = layouts(dist.get_world_size())
    meshes = {name: init_mesh(config, args.device) for name, config in configs.items()}
    device = next(iter(meshes.values())).device
    names = cases(args.only or (COMPILED if "compile" in args.mode else ()), args.skip)
    start, first = time.perf_counter(), dist.get_rank() == 0
    if first:
        where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
        print(
            f"torch {torch.__version__}, {where}, {dist.get_world_size()} {dist.get_backend()} ranks: {', '.join(configs)}; {args.mode}", flush=True
        )
    rows, left = run(Check(device, meshes, args.mode, args.dtype, args.tiny), names, args.time_limit)
    if first:
        print(summary(rows, left, time.perf_counter() - start), flush=True)
    if started:
        dist.destroy_process_group()
    return int(any(row.failed for row in rows))


if __name__ == "__main__":
    sys.exit(main())
