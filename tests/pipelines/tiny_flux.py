"""FLUX's tiny pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
from tiny import redraw
from tiny_parts import HEIGHT, WIDTH, Tiny, clip, clip_tokenizer, mask, picture, t5, t5_tokenizer, vae
from transformers import CLIPTextModel


def flux(name: str, folder: Path) -> Any:
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=4, joint_attention_dim=24,
        pooled_projection_dim=12, guidance_embeds=True, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    tokenizer = clip_tokenizer(folder / "clip")
    return getattr(diffusers, name)(
        transformer=redraw(transformer), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=vae(shift_factor=0.1),
        text_encoder=clip(tokenizer, CLIPTextModel), tokenizer=tokenizer, text_encoder_2=t5(), tokenizer_2=t5_tokenizer(),
    )  # fmt: skip


CALL = dict(prompt="a red heart", height=HEIGHT, width=WIDTH, max_sequence_length=9)
TINY = {
    "FluxPipeline": Tiny(flux, CALL),
    "FluxImg2ImgPipeline": Tiny(flux, lambda: CALL | dict(image=picture(), strength=0.9)),
    "FluxInpaintPipeline": Tiny(flux, lambda: CALL | dict(image=picture(), mask_image=mask(), strength=1.0)),
}
