"""How fast is one transformer step on the ranks at hand, and is it the same step?

    torchrun --nproc-per-node 2 scripts/bench_ranks.py --models flux,pixart --dtype bfloat16
    torchrun --nproc-per-node 2 scripts/bench_ranks.py --layers 2 --dtype float32 --runs 1          # correctness at real width

Real configurations with random weights, nothing downloaded. Each rank first times the plain model, then every layout that fits the ranks, in the same
process. Prints milliseconds (median, least, most), the speed-up over one rank, and the relative error against the plain model's output.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import torch
import torch.distributed as dist
from torch import Tensor, nn

from dit_usp import ParallelConfig, init_mesh, parallelize, unparallelize
from dit_usp.launch import join

Inputs = dict[str, Any]


def flux(layers: int | None, size: int, rand: Callable[..., Tensor]) -> tuple[type[nn.Module], Inputs, Inputs]:
    """FLUX.1: 57 layers, 24 heads of 128, one call a step."""
    tokens, text, counts = (size // 16) ** 2, 512, dict(num_layers=layers or 19, num_single_layers=layers or 38)
    side = torch.arange(size // 16).float()
    return (
        diffusers.FluxTransformer2DModel,
        dict(guidance_embeds=True, **counts),
        dict(
            hidden_states=rand(1, tokens, 64),
            encoder_hidden_states=rand(1, text, 4096),
            pooled_projections=rand(1, 768),
            timestep=torch.tensor([0.5]),
            guidance=torch.tensor([3.5]),
            img_ids=torch.cartesian_prod(torch.zeros(1), side, side),
            txt_ids=torch.zeros(text, 3),
        ),
    )


def pixart(layers: int | None, size: int, rand: Callable[..., Tensor]) -> tuple[type[nn.Module], Inputs, Inputs]:
    """PixArt-XL: 28 layers, 16 heads of 72, both halves of the guidance in one call."""
    config = dict(sample_size=128, num_layers=layers or 28, caption_channels=4096, cross_attention_dim=1152, out_channels=8)
    inputs = dict(
        hidden_states=rand(2, 4, size // 8, size // 8),
        encoder_hidden_states=rand(2, 300, 4096),
        timestep=torch.tensor([500, 500]),
        added_cond_kwargs={"resolution": torch.full((2, 2), float(size)), "aspect_ratio": torch.ones(2, 1)},
    )
    return diffusers.PixArtTransformer2DModel, config, inputs


def sd3(layers: int | None, size: int, rand: Callable[..., Tensor]) -> tuple[type[nn.Module], Inputs, Inputs]:
    """SD3.5-large: 38 layers, 38 heads of 64, both halves of the guidance in one call."""
    config = dict(
        sample_size=128,
        num_layers=layers or 38,
        num_attention_heads=38,
        caption_projection_dim=2432,
        in_channels=16,
        pos_embed_max_size=192,
        qk_norm="rms_norm",
    )
    inputs = dict(
        hidden_states=rand(2, 16, size // 8, size // 8),
        encoder_hidden_states=rand(2, 333, 4096),
        pooled_projections=rand(2, 2048),
        timestep=torch.tensor([500, 500]),
    )
    return diffusers.SD3Transformer2DModel, config, inputs


def cogvideox(layers: int | None, size: int, rand: Callable[..., Tensor]) -> tuple[type[nn.Module], Inputs, Inputs]:
    """CogVideoX-5B: 42 layers, 48 heads of 64, 13 latent frames of size x 3/2 size, both halves of the guidance in one call."""
    height, width = size // 8, size // 8 * 3 // 2 // 2 * 2
    config = dict(num_layers=layers or 42, num_attention_heads=48, use_rotary_positional_embeddings=True, sample_height=height, sample_width=width)
    angles = rand(13 * height * width // 4, 64).float()
    inputs = dict(
        hidden_states=rand(2, 13, 16, height, width),
        encoder_hidden_states=rand(2, 226, 4096),
        timestep=torch.tensor([500, 500]),
        image_rotary_emb=(angles.cos(), angles.sin()),
    )
    return diffusers.CogVideoXTransformer3DModel, config, inputs


MODELS = {make.__name__: make for make in (flux, pixart, sd3, cogvideox)}


def build(name: str, layers: int | None, size: int, dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, Inputs]:
    """The model, its weights drawn on the device alike on every rank and none of them zero, and its inputs."""
    generator = torch.Generator().manual_seed(1)
    cls, config, inputs = MODELS[name](layers, size, lambda *shape: torch.randn(*shape, generator=generator).to(dtype))
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with torch.device(device):
        model = cls(**config).eval().requires_grad_(False)
    torch.set_default_dtype(torch.float32)
    for parameter in model.parameters():
        if not parameter.any():
            parameter.normal_(std=0.02)
    return model, _to(inputs, device)


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, tuple):
        return tuple(_to(item, device) for item in value)
    if isinstance(value, dict):
        return {key: _to(item, device) for key, item in value.items()}
    return value.to(device) if isinstance(value, Tensor) else value


def layouts(ranks: int, guided: bool) -> Iterator[ParallelConfig]:
    """Each pure layout of the ranks, and the mixed ones that have four or more."""
    yield ParallelConfig(ulysses_degree=ranks)
    yield ParallelConfig(ring_degree=ranks, ring_method="gather")
    yield ParallelConfig(ring_degree=ranks)
    if guided and ranks % 2 == 0:
        yield ParallelConfig(ulysses_degree=ranks // 2, cfg_degree=2)
    if ranks >= 4 and ranks % 2 == 0:
        yield ParallelConfig(ulysses_degree=ranks // 2, ring_degree=2)


def timed(model: nn.Module, inputs: Inputs, runs: int, device: torch.device) -> tuple[Tensor, list[float]]:
    """The output and the milliseconds of each run, after two to warm up."""
    times = []
    for _ in range(runs + 2):
        dist.barrier()
        _wait(device)
        start = time.perf_counter()
        out = model(**inputs, return_dict=False)[0]
        _wait(device)
        times.append(1000 * (time.perf_counter() - start))
    return out, times[2:]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compile_blocks(model: nn.Module) -> None:
    for blocks in model.children():
        if isinstance(blocks, nn.ModuleList):
            for block in blocks:
                block.compile(fullgraph=True)


@torch.no_grad()
def bench(name: str, options: argparse.Namespace, device: torch.device) -> None:
    dtype = getattr(torch, options.dtype)
    model, inputs = build(name, options.layers, options.size, dtype, device)
    if options.compile:
        compile_blocks(model)
    expected, plain = timed(model, inputs, options.runs, device)
    report(name, "one rank", plain, plain, 0.0)
    for config in layouts(dist.get_world_size(), name != "flux"):
        parallelize(model, init_mesh(config, device.type))
        out, times = timed(model, inputs, options.runs, device)
        unparallelize(model)
        label = f"{config} ({config.ring_method})" if config.ring_degree > 1 else str(config)
        report(name, label, times, plain, ((out - expected).float().norm() / expected.float().norm()).item())


def report(name: str, layout: str, times: list[float], plain: list[float], error: float) -> None:
    if dist.get_rank() == 0:
        median = statistics.median(times)
        spread = f"{median:8.1f} ms ({min(times):.1f} to {max(times):.1f})"
        print(f"{name:10} {layout:48} {spread:34} {statistics.median(plain) / median:5.2f}x  error {error:.1e}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help="of " + ", ".join(MODELS))
    parser.add_argument("--size", type=int, default=1024, help="pixels of a side")
    parser.add_argument("--layers", type=int, help="fewer layers than the real model")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--compile", action="store_true", help="compile every block")
    options = parser.parse_args()
    device = join(ParallelConfig(ulysses_degree=int(os.environ.get("WORLD_SIZE", "1")))).device
    if dist.get_rank() == 0:
        hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        print(f"{dist.get_world_size()} x {hardware}, torch {torch.__version__}, diffusers {diffusers.__version__}, {options.dtype}, random weights")
    for name in options.models.split(","):
        bench(name, options, device)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
