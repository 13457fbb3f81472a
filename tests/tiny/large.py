"""Tiny transformers with latents larger than the size in their config: 11 x 19 patches, an odd number, not square. Videos: 5 frames of 7 x 13."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from diffusers.models.embeddings import get_2d_rotary_pos_embed, get_2d_rotary_pos_embed_lumina
from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import get_resize_crop_region_for_grid
from torch import nn

from tiny import image, image_more, image_rest, video, video_wan
from tiny.tools import Inputs, rand, redraw

HEIGHT, WIDTH = 11, 19
FRAMES, TALL, WIDE = 5, 7, 13
Made = tuple[nn.Module, Inputs]


def enlarged(make: Callable[..., Made], inputs: Inputs, without: str = "", **config: Any) -> Made:
    """What `make` builds, with another config and these inputs in place of its own."""
    model, others = make()
    others.pop(without, None)  # residuals of a ControlNet, made for the usual size
    own = {name: value for name, value in model.config.items() if not name.startswith("_")}
    return redraw(type(model)(**own | config)), others | inputs


def latents(height: int = HEIGHT, width: int = WIDTH) -> Inputs:
    return dict(hidden_states=rand(2, 4, 2 * height, 2 * width))


def clip(frames: int = FRAMES) -> Inputs:
    return dict(hidden_states=rand(2, frames, 4, 2 * TALL, 2 * WIDE))


def pixart() -> Made:
    """Sines at interpolated places."""
    return enlarged(image.pixart, latents(), sample_size=8, interpolation_scale=2)


def dit() -> Made:
    return enlarged(image.dit, latents(11, 11), sample_size=8)  # square by design


def sd3() -> Made:
    """The middle of the table."""
    return enlarged(image.sd3, latents(), sample_size=8, pos_embed_max_size=20)


def auraflow() -> Made:
    return enlarged(image_rest.auraflow, latents(), sample_size=8, pos_embed_max_size=400)


def cogview3() -> Made:
    return enlarged(image_rest.cogview3, latents(), sample_size=8, pos_embed_max_size=20)


def sana() -> Made:
    return enlarged(image_rest.sana, latents(), "controlnet_block_samples", sample_size=4, interpolation_scale=2)


def hunyuan_dit() -> Made:
    """Both tables: sines at interpolated places, and rotation as its pipeline makes it, cut from a square of 4 patches and resized."""
    places = get_resize_crop_region_for_grid((HEIGHT, WIDTH), 4)
    rotation = get_2d_rotary_pos_embed(16, places, (HEIGHT, WIDTH), output_type="pt")
    return enlarged(image_rest.hunyuan_dit, latents() | dict(image_rotary_emb=rotation), "controlnet_block_samples", sample_size=8)


def lumina_next() -> Made:
    """Positions stretched as its pipeline does late in the denoising."""
    return enlarged(image_rest.lumina_next, latents() | dict(image_rotary_emb=get_2d_rotary_pos_embed_lumina(16, 32, 32, ntk_factor=2.0)))


def lumina2() -> Made:
    return enlarged(image_more.lumina2, latents(), sample_size=8)


def qwen() -> Made:
    """Rows and columns count from the middle, and the text begins after them."""
    inputs = dict(hidden_states=rand(2, HEIGHT * WIDTH, 16), img_shapes=[[(1, HEIGHT, WIDTH)]] * 2)
    return enlarged(image_more.qwen, inputs, "controlnet_block_samples")


def latte() -> Made:
    return enlarged(video.latte, dict(hidden_states=rand(2, 4, 3, 2 * TALL, 2 * WIDE)), sample_size=8)


def wan() -> Made:
    return enlarged(video_wan.wan, dict(hidden_states=rand(2, 4, FRAMES, 2 * TALL, 2 * WIDE)))


def cogvideox_2b() -> Made:
    """Sines in three dimensions, interpolated."""
    return enlarged(video.cogvideox_2b, clip(), sample_height=4, sample_width=8, sample_frames=5)


def cogvideox() -> Made:
    return _rotated(clip(), FRAMES)


def cogvideox15() -> Made:
    """Patches of two frames, at places in a grid that may not be exceeded."""
    return _rotated(clip(6), 6, patch_size_t=2, patch_bias=False, sample_height=16, sample_width=28)


def _rotated(inputs: Inputs, frames: int, **config: Any) -> Made:
    """CogVideoX with rotation as its pipeline makes it."""
    sizes = dict(attention_head_dim=16, sample_height=4, sample_width=8, sample_frames=5)
    model, inputs = enlarged(video.cogvideox, inputs, **sizes | config)
    pipe = SimpleNamespace(transformer=model, vae_scale_factor_spatial=8)
    positions = diffusers.CogVideoXPipeline._prepare_rotary_positional_embeddings(pipe, 16 * TALL, 16 * WIDE, frames, torch.device("cpu"))
    return model, inputs | dict(image_rotary_emb=positions)


LARGE = {
    make.__name__: make
    for make in (
        pixart,
        dit,
        sd3,
        auraflow,
        cogview3,
        sana,
        hunyuan_dit,
        lumina_next,
        lumina2,
        qwen,
        latte,
        wan,
        cogvideox_2b,
        cogvideox,
        cogvideox15,
    )
}


def sd3_tall() -> Made:
    return enlarged(image.sd3, latents(21, 10), pos_embed_max_size=20)


def sd3_wide() -> Made:
    return enlarged(image.sd3, latents(10, 21), pos_embed_max_size=20)


def omnigen() -> Made:
    return enlarged(image_more.omnigen, latents(17, 10))


def cogvideox_learned() -> Made:
    """CogVideoX-5B image-to-video: its table fits one size."""
    return enlarged(
        video.cogvideox_2b, clip(), sample_height=4, sample_width=8, sample_frames=17,
        use_rotary_positional_embeddings=True, use_learned_positional_embeddings=True,
    )  # fmt: skip


def wan_long() -> Made:
    return enlarged(video_wan.wan, dict(hidden_states=rand(2, 4, 33, 2, 4)))


def lumina2_tall() -> Made:
    return enlarged(image_more.lumina2, latents(33, 2))


def hidream() -> Made:
    return enlarged(image_rest.hidream, latents(10, 12))


TOO_LARGE = {make.__name__: make for make in (sd3_tall, sd3_wide, omnigen, cogvideox_learned, wan_long, lumina2_tall, hidream)}
