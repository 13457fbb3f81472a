"""AuraFlow, Lumina and PRX: a language model's text, pictures in pieces of 2 x 2 latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
from tiny import build, redraw
from tiny_parts import Tiny, gemma2, t5_tokenizer, vae
from tiny_sana import dc_vae
from tiny_video_parts import umt5


def auraflow(name: str, folder: Path) -> Any:
    transformer, _ = build("auraflow")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return diffusers.AuraFlowPipeline(t5_tokenizer(), umt5(24), vae(), transformer, scheduler)


def lumina(name: str, folder: Path) -> Any:
    transformer, _ = build("lumina_next")
    return diffusers.LuminaPipeline(transformer, diffusers.FlowMatchEulerDiscreteScheduler(), vae(), gemma2(), t5_tokenizer())


def lumina2(name: str, folder: Path) -> Any:
    transformer, _ = build("lumina2")
    return diffusers.Lumina2Pipeline(transformer, diffusers.FlowMatchEulerDiscreteScheduler(), vae(shift_factor=0.1), gemma2(), t5_tokenizer())


def prx(name: str, folder: Path) -> Any:
    transformer, _ = build("prx")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return diffusers.PRXPipeline(transformer, scheduler, gemma2(), t5_tokenizer(), dc_vae())


def prx_pixel(name: str, folder: Path) -> Any:
    """No VAE: the transformer paints pixels."""
    transformer = diffusers.PRXTransformer2DModel(
        in_channels=3, context_in_dim=24, hidden_size=64, mlp_ratio=2.0, num_heads=4, depth=2, axes_dim=[8, 8]
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return diffusers.PRXPixelPipeline(redraw(transformer), scheduler, gemma2(), t5_tokenizer(), prompt_max_tokens=9)


CALL = dict(prompt="a red heart", height=32, width=48)
TINY = {
    "AuraFlowPipeline": Tiny(auraflow, CALL | dict(max_sequence_length=9)),
    "LuminaPipeline": Tiny(lumina, CALL | dict(clean_caption=False)),
    "Lumina2Pipeline": Tiny(lumina2, CALL | dict(system_prompt="big", max_sequence_length=9)),
    "PRXPipeline": Tiny(prx, CALL | dict(use_resolution_binning=False)),
    "PRXPixelPipeline": Tiny(prx_pixel, dict(prompt="a red heart", height=12, width=20, use_resolution_binning=False)),
}
