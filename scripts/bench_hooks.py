"""What our hooks and our attention cost the CPU in one step: published numbers of layers, widths that take no time, one rank alone.

python scripts/bench_hooks.py pixart flux

The last column is what a step of the parallel model takes beyond the model alone; the others say where our share of it goes, and an attention's.
Time of this thread on the CPU, so that other programs disturb little. Communication is a copy within this process.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import dit_usp.attention
import dit_usp.attention.ring
import dit_usp.attention.ulysses
import dit_usp.sharding
from dit_usp.bench import alone
from dit_usp.bench.cases import CASES, Case, Inputs, Rand, again, build
from dit_usp.config import ParallelConfig
from dit_usp.inject import Injection, parallelize
from dit_usp.mesh import init_mesh
from dit_usp.sharding import Sharding

LAYOUTS = (ParallelConfig(), ParallelConfig(2), ParallelConfig(1, 2, ring_method="gather"), ParallelConfig(1, 2), ParallelConfig(2, 2))
# What is timed, by the place where it is looked up. Time inside of another of them counts there.
TIMED: tuple[tuple[str, Any, tuple[str, ...]], ...] = (
    ("hooks", Injection, ("_enter", "_leave", "_cut", "_collect", "_localise_one")),
    ("attend", Sharding, ("attend",)),
    ("pack", dit_usp.attention, ("heads_to_sequence", "sequence_to_heads")),
    ("pack", dit_usp.attention.ring, ("gather_keys", "rotate")),
    ("send", dit_usp.attention.ulysses, ("exchange",)),
    ("send", dit_usp.attention.ring, ("gather", "post", "wait")),
    ("kernel", dit_usp.attention, ("run",)),
)
PARTS = ("hooks", "attend", "pack", "send", "kernel")


class Clock:
    """The time spent in functions, without that in others of them which they call."""

    def __init__(self) -> None:
        self.spent = dict.fromkeys(PARTS, 0.0)
        self.calls = dict.fromkeys(PARTS, 0)
        self._inside: list[str] = []
        self._since = 0.0

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            self._turn()
            self._inside.append(part)
            self.calls[part] += 1
            try:
                return function(*args, **kwargs)
            finally:
                self._turn()
                self._inside.pop()

        return call

    def _turn(self) -> None:
        now = time.thread_time()
        if self._inside:
            self.spent[self._inside[-1]] += now - self._since
        self._since = now


def _pixart(rand: Rand) -> Inputs:
    return dict(
        hidden_states=rand(2, 4, 16, 16), encoder_hidden_states=rand(2, 8, 16), timestep=torch.tensor([500, 500]),
        added_cond_kwargs={"resolution": torch.full((2, 2), 64.0), "aspect_ratio": torch.ones(2, 1)},
    )  # fmt: skip


def _flux(rand: Rand) -> Inputs:
    return dict(
        hidden_states=rand(1, 64, 16), encoder_hidden_states=rand(1, 8, 16), pooled_projections=rand(1, 16), timestep=torch.tensor([0.5]),
        guidance=torch.tensor([3.5]), img_ids=torch.zeros(64, 3), txt_ids=torch.zeros(8, 3),
    )  # fmt: skip


def _sd3(rand: Rand) -> Inputs:
    return dict(
        hidden_states=rand(2, 16, 16, 16), encoder_hidden_states=rand(2, 8, 16), pooled_projections=rand(2, 16), timestep=torch.tensor([500, 500])
    )


def _wan(rand: Rand) -> Inputs:
    return dict(hidden_states=rand(1, 16, 2, 12, 12), encoder_hidden_states=rand(1, 8, 16), timestep=torch.tensor([500]))


def _thin(name: str, inputs: Callable[[Rand], Inputs], **config: Any) -> Case:
    return replace(CASES[name], config=dict(CASES[name].config) | dict(num_attention_heads=4, attention_head_dim=16) | config, inputs=inputs)


THIN = {
    "pixart": _thin("pixart-1024", _pixart, caption_channels=16, cross_attention_dim=96, attention_head_dim=24),
    "flux": _thin("flux-1024", _flux, in_channels=16, joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=(4, 6, 6)),
    "sd3": _thin("sd35-1024", _sd3, caption_projection_dim=64, joint_attention_dim=16, pooled_projection_dim=16, pos_embed_max_size=16),
    "wan": _thin("wan1.3b-480p", _wan, ffn_dim=64, text_dim=16, freq_dim=32),
}


def _step_ms(model: nn.Module, inputs: Inputs) -> float:
    start = time.thread_time()
    model(**inputs, return_dict=False)
    return 1000 * (time.thread_time() - start)


def _parts(model: nn.Module, inputs: Inputs, runs: int) -> tuple[dict[str, float], int]:
    """ms a step in each part, and attentions across ranks in a step."""
    clock = Clock()
    kept = [(owner, name, getattr(owner, name)) for _, owner, names in TIMED for name in names]
    for part, owner, names in TIMED:
        for name in names:
            setattr(owner, name, clock.timed(part, getattr(owner, name)))
    try:
        for _ in range(runs):
            model(**inputs, return_dict=False)
    finally:
        for owner, name, function in kept:
            setattr(owner, name, function)
    return {part: 1000 * spent / runs for part, spent in clock.spent.items()}, clock.calls["attend"] // runs


@torch.no_grad()
def measure(name: str, layout: ParallelConfig, runs: int) -> None:
    """Print one line: the steps of both models by turns, so that another program on this machine slows both."""
    alone.start(layout.world_size)
    mesh = init_mesh(layout, "cpu")
    plain, inputs = build(THIN[name], None, torch.float32, torch.device("cpu"))
    model = parallelize(again(plain, THIN[name], None), mesh)
    pairs = [(_step_ms(plain, inputs), _step_ms(model, inputs)) for _ in range(runs + 3)][3:]
    parts, attentions = _parts(model, inputs, runs)
    dist.destroy_process_group()
    alone_ms, more = statistics.median(a for a, _ in pairs), statistics.median(b - a for a, b in pairs)
    ours = sum(parts.values()) - parts["kernel"]
    each = 1000 * (ours - parts["hooks"]) / attentions if attentions else 0.0
    ring = f" {layout.ring_method}" if layout.ring_degree > 1 else ""
    columns = "".join(f"{parts[part]:8.2f}" for part in PARTS[:-1])
    print(f"{name:8}{f'{layout.ulysses_degree} x {layout.ring_degree}{ring}':14}{alone_ms:8.2f}{columns}{each:10.1f}{more:8.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", choices=THIN)
    parser.add_argument("--runs", type=int, default=30)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'ms a step':8}{' ulysses x ring':14}{'plain':>7}{''.join(f'{part:>8}' for part in PARTS[:-1])}{'us each':>10}{'more':>8}")
    for name in arguments.models:
        for layout in LAYOUTS:
            measure(name, layout, arguments.runs)


if __name__ == "__main__":
    main()
