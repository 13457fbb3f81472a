"""SANA's tiny pipelines: linear attention, a language model's text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
from tiny import redraw
from tiny_parts import Tiny, gemma2, picture, t5_tokenizer

SIZES = dict(
    in_channels=4, out_channels=4, num_attention_heads=4, attention_head_dim=8, num_layers=2, num_cross_attention_heads=2,
    cross_attention_head_dim=16, cross_attention_dim=32, caption_channels=24, sample_size=8, patch_size=2,
)  # fmt: skip
AUTOENCODER = dict(
    latent_channels=4, attention_head_dim=2, encoder_block_types=("ResBlock", "EfficientViTBlock"), scaling_factor=0.5,
    decoder_block_types=("ResBlock", "EfficientViTBlock"), encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
    encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)), encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
    downsample_block_type="conv", upsample_block_type="interpolate", decoder_norm_types="rms_norm",
)  # fmt: skip


def dc_vae() -> Any:
    return diffusers.AutoencoderDC(**AUTOENCODER).eval()


def parts(**config: Any) -> dict[str, Any]:
    return dict(tokenizer=t5_tokenizer(), text_encoder=gemma2(), vae=dc_vae(), transformer=redraw(diffusers.SanaTransformer2DModel(**SIZES | config)))


def sana(name: str, folder: Path) -> Any:
    return getattr(diffusers, name)(**parts(), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0))


def with_net(name: str, folder: Path) -> Any:
    controlnet = redraw(diffusers.SanaControlNetModel(**SIZES))
    return getattr(diffusers, name)(**parts(), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0), controlnet=controlnet)


def sprint(name: str, folder: Path) -> Any:
    return getattr(diffusers, name)(**parts(qk_norm="rms_norm_across_heads", guidance_embeds=True), scheduler=diffusers.SCMScheduler())


CALL = dict(
    prompt="a red heart", height=32, width=64, use_resolution_binning=False, complex_human_instruction=None, max_sequence_length=9,
)  # fmt: skip
TINY = {
    "SanaPipeline": Tiny(sana, CALL),
    "SanaPAGPipeline": Tiny(sana, CALL | dict(guidance_scale=2.0, pag_scale=1.0)),
    "SanaControlNetPipeline": Tiny(with_net, lambda: CALL | dict(control_image=picture())),
    "SanaSprintPipeline": Tiny(sprint, CALL),
    "SanaSprintImg2ImgPipeline": Tiny(sprint, lambda: CALL | dict(image=picture(), strength=0.9, num_inference_steps=3, intermediate_timesteps=None)),
}
