"""Tiny transformers of the HunyuanVideo family: latents and text attend together, under a mask of the words."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import nn

from tiny.tools import Inputs, rand, text_mask, times
from tiny.video_wan import FRAMES, HEIGHT, WIDTH


def _config(**config: Any) -> dict[str, Any]:
    sizes = dict(in_channels=4, out_channels=4, num_attention_heads=4, attention_head_dim=8, num_layers=2, num_refiner_layers=1, mlp_ratio=2.0)
    return sizes | dict(text_embed_dim=16, rope_axes_dim=(2, 2, 4)) | config


def _inputs(batch: int, text: int) -> Inputs:
    return dict(
        hidden_states=rand(batch, 4, FRAMES, 2 * HEIGHT, 2 * WIDTH),
        timestep=(1000 * times(batch)).long(),
        encoder_hidden_states=rand(batch, text, 16, seed=2),
        encoder_attention_mask=text_mask(batch, text),
        pooled_projections=rand(batch, 12, seed=3),
    )


def hunyuan_video(batch: int = 2, text: int = 9, **config: Any) -> tuple[nn.Module, Inputs]:
    model = diffusers.HunyuanVideoTransformer3DModel(**_config(num_single_layers=2, pooled_projection_dim=12, **config))
    return model, _inputs(batch, text) | dict(guidance=8000 * times(batch))


def hunyuan_video_i2v(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """The first frame is the picture: its tokens have a modulation of their own."""
    return hunyuan_video(batch, image_condition_type="token_replace")


def hunyuan_video_short(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """Fewer words than ranks."""
    model, inputs = hunyuan_video(batch, text=2)
    return model, inputs | dict(encoder_attention_mask=1 - torch.arange(batch)[:, None] % 2 * torch.tensor([0, 1]))


def hunyuan_video15(batch: int = 2, text: int = 7, image: bool = True) -> tuple[nn.Module, Inputs]:
    model = diffusers.HunyuanVideo15Transformer3DModel(**_config(text_embed_2_dim=10, image_embed_dim=6, target_size=16))
    embeds = rand(batch, 3, 6, seed=5) if image else torch.zeros(batch, 3, 6)
    inputs = _inputs(batch, text) | dict(
        hidden_states=rand(batch, 4, FRAMES, HEIGHT, WIDTH),
        timestep=1000 * times(batch),
        encoder_hidden_states_2=rand(batch, 5, 10, seed=4),
        encoder_attention_mask_2=text_mask(batch, 5),
        image_embeds=embeds,
    )
    inputs.pop("pooled_projections")
    return model, inputs


def hunyuan_video15_t2v(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """No picture: its tokens are masked."""
    return hunyuan_video15(batch, image=False)


def framepack(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """A history of frames, the older the coarser, before the latents."""
    model = diffusers.HunyuanVideoFramepackTransformer3DModel(
        **_config(num_single_layers=2, pooled_projection_dim=12, has_image_proj=True, image_proj_dim=6, has_clean_x_embedder=True)
    )
    height, width = 2 * HEIGHT, 2 * WIDTH
    return model, _inputs(batch, 9) | dict(
        guidance=8000 * times(batch),
        image_embeds=rand(batch, 3, 6, seed=4),
        indices_latents=torch.arange(8, 8 + FRAMES),
        latents_clean=rand(batch, 4, 2, height, width, seed=5),
        indices_latents_clean=torch.tensor([0, 7]),
        latents_history_2x=rand(batch, 4, 2, height, width, seed=6),
        indices_latents_history_2x=torch.tensor([5, 6]),
        latents_history_4x=rand(batch, 4, 4, height, width, seed=7),
        indices_latents_history_4x=torch.arange(1, 5),
    )


def framepack_one(batch: int = 1) -> tuple[nn.Module, Inputs]:
    """One sample: the words are trimmed instead of masked."""
    return framepack(batch)


TINY = {
    make.__name__: make
    for make in (hunyuan_video, hunyuan_video_i2v, hunyuan_video_short, hunyuan_video15, hunyuan_video15_t2v, framepack, framepack_one)
}
