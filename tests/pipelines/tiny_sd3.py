"""Stable Diffusion 3's tiny pipelines, with ControlNets and perturbed attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
from tiny import redraw
from tiny_parts import HEIGHT, WIDTH, Tiny, clip, clip_tokenizer, mask, picture, t5, t5_tokenizer, vae
from transformers import CLIPTextModelWithProjection

SIZES = dict(
    sample_size=16, in_channels=16, num_layers=2, attention_head_dim=8, num_attention_heads=4, joint_attention_dim=24, caption_projection_dim=32,
    pooled_projection_dim=24, out_channels=16, pos_embed_max_size=16, qk_norm="rms_norm",
)  # fmt: skip


def parts(folder: Path) -> dict[str, Any]:
    tokenizer = clip_tokenizer(folder / "clip")
    return dict(
        transformer=redraw(diffusers.SD3Transformer2DModel(**SIZES)), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae(16, shift_factor=0.1), text_encoder=clip(tokenizer, CLIPTextModelWithProjection), tokenizer=tokenizer,
        text_encoder_2=clip(tokenizer, CLIPTextModelWithProjection), tokenizer_2=tokenizer, text_encoder_3=t5(), tokenizer_3=t5_tokenizer(),
    )  # fmt: skip


def sd3(name: str, folder: Path) -> Any:
    return getattr(diffusers, name)(**parts(folder))


def with_net(name: str, folder: Path) -> Any:
    return getattr(diffusers, name)(**parts(folder), controlnet=redraw(diffusers.SD3ControlNetModel(**SIZES)))


def with_inpainting_net(name: str, folder: Path) -> Any:
    """It is shown the mask as one channel more."""
    return getattr(diffusers, name)(**parts(folder), controlnet=redraw(diffusers.SD3ControlNetModel(**SIZES, extra_conditioning_channels=1)))


CALL = dict(prompt="a red heart", guidance_scale=3.0, height=HEIGHT, width=WIDTH, max_sequence_length=9)
TINY = {
    "StableDiffusion3Pipeline": Tiny(sd3, CALL),
    "StableDiffusion3Img2ImgPipeline": Tiny(sd3, lambda: CALL | dict(image=picture(), strength=0.9)),
    "StableDiffusion3InpaintPipeline": Tiny(sd3, lambda: CALL | dict(image=picture(), mask_image=mask(), strength=1.0)),
    "StableDiffusion3ControlNetPipeline": Tiny(with_net, lambda: CALL | dict(control_image=picture(), controlnet_conditioning_scale=0.7)),
    "StableDiffusion3ControlNetInpaintingPipeline": Tiny(
        with_inpainting_net, lambda: CALL | dict(control_image=picture(), control_mask=mask(), controlnet_conditioning_scale=0.7)
    ),
    "StableDiffusion3PAGPipeline": Tiny(sd3, CALL),
    "StableDiffusion3PAGImg2ImgPipeline": Tiny(sd3, lambda: CALL | dict(image=picture(), strength=0.9)),
}
