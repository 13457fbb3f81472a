"""Chroma's tiny pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
from tiny import redraw
from tiny_parts import HEIGHT, WIDTH, Tiny, mask, picture, t5, t5_tokenizer, vae


def chroma(name: str, folder: Path) -> Any:
    transformer = diffusers.ChromaTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=4, joint_attention_dim=24,
        axes_dims_rope=(4, 6, 6), approximator_num_channels=16, approximator_hidden_dim=32, approximator_layers=1,
    )  # fmt: skip
    transformer.register_to_config(guidance_embeds=False)  # an entry of the published config.json that the inpainting pipeline reads
    return getattr(diffusers, name)(
        transformer=redraw(transformer), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=vae(shift_factor=0.1), text_encoder=t5(),
        tokenizer=t5_tokenizer(),
    )  # fmt: skip


CALL = dict(prompt="a red heart", negative_prompt="cat", height=HEIGHT, width=WIDTH, max_sequence_length=9)
TINY = {
    "ChromaPipeline": Tiny(chroma, CALL),
    "ChromaImg2ImgPipeline": Tiny(chroma, lambda: CALL | dict(image=picture(), strength=0.9)),
    "ChromaInpaintPipeline": Tiny(chroma, lambda: CALL | dict(image=picture(), mask_image=mask(), strength=0.9)),
}
