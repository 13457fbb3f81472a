"""Stable Diffusion 3's tiny pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
from tiny import redraw
from tiny_parts import HEIGHT, WIDTH, Tiny, clip, clip_tokenizer, mask, picture, t5, t5_tokenizer, vae
from transformers import CLIPTextModelWithProjection


def sd3(name: str, folder: Path) -> Any:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16, in_channels=16, num_layers=2, attention_head_dim=8, num_attention_heads=4, joint_attention_dim=24, caption_projection_dim=32,
        pooled_projection_dim=24, out_channels=16, pos_embed_max_size=16, qk_norm="rms_norm",
    )  # fmt: skip
    tokenizer = clip_tokenizer(folder / "clip")
    return getattr(diffusers, name)(
        transformer=redraw(transformer), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=vae(16, shift_factor=0.1),
        text_encoder=clip(tokenizer, CLIPTextModelWithProjection), tokenizer=tokenizer,
        text_encoder_2=clip(tokenizer, CLIPTextModelWithProjection), tokenizer_2=tokenizer, text_encoder_3=t5(), tokenizer_3=t5_tokenizer(),
    )  # fmt: skip


CALL = dict(prompt="a red heart", guidance_scale=3.0, height=HEIGHT, width=WIDTH, max_sequence_length=9)
TINY = {
    "StableDiffusion3Pipeline": Tiny(sd3, CALL),
    "StableDiffusion3Img2ImgPipeline": Tiny(sd3, lambda: CALL | dict(image=picture(), strength=0.9)),
    "StableDiffusion3InpaintPipeline": Tiny(sd3, lambda: CALL | dict(image=picture(), mask_image=mask(), strength=1.0)),
}
