"""Tiny ControlNets."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import nn

from tiny.image_more import zimage
from tiny.tools import HEIGHT, WIDTH, Inputs, rand, resize_without_torchvision, text_mask, times
from tiny.video import FRAMES, TALL, WIDE

TOKENS = HEIGHT * WIDTH


def _latents(batch: int, seed: int = 0) -> torch.Tensor:
    return rand(batch, 4, 2 * HEIGHT, 2 * WIDTH, seed=seed)


def flux_controlnet(batch: int = 2, **config: Any) -> tuple[nn.Module, Inputs]:
    model = diffusers.FluxControlNetModel(
        **dict(in_channels=8, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=4, joint_attention_dim=24) | config,
        pooled_projection_dim=20,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )
    return model, dict(
        hidden_states=rand(batch, TOKENS, 8),
        controlnet_cond=rand(batch, TOKENS, 8, seed=1),
        conditioning_scale=0.7,
        encoder_hidden_states=rand(batch, 7, 24, seed=2),
        pooled_projections=rand(batch, 20, seed=3),
        timestep=times(batch),
        guidance=torch.full((batch,), 4.0),
        img_ids=torch.cartesian_prod(torch.zeros(1), torch.arange(HEIGHT).float(), torch.arange(WIDTH).float()),
        txt_ids=torch.zeros(7, 3),
    )


def flux_controlnet_union(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """A token that names the kind of control goes before the text. No single blocks, as in most of them."""
    model, inputs = flux_controlnet(batch, num_mode=3, num_single_layers=0)
    return model, inputs | dict(controlnet_mode=1 + torch.arange(batch)[:, None] % 2)


def flux_controlnet_hint(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """The condition is a picture, eight times as large as the latents."""
    model, inputs = flux_controlnet(batch, in_channels=16, conditioning_embedding_channels=16)
    return model, inputs | dict(hidden_states=rand(batch, TOKENS, 16), controlnet_cond=rand(batch, 3, 8 * HEIGHT, 8 * WIDTH, seed=1))


def sd3_controlnet(batch: int = 2, **config: Any) -> tuple[nn.Module, Inputs]:
    config = dict(joint_attention_dim=24, dual_attention_layers=(0,), qk_norm="rms_norm") | config
    model = diffusers.SD3ControlNetModel(
        sample_size=16, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4, caption_projection_dim=32,
        pooled_projection_dim=20, pos_embed_max_size=16, extra_conditioning_channels=1, **config,
    )  # fmt: skip
    return model, dict(
        hidden_states=_latents(batch),
        controlnet_cond=rand(batch, 5, 2 * HEIGHT, 2 * WIDTH, seed=1),
        encoder_hidden_states=rand(batch, 7, 24, seed=2),
        pooled_projections=rand(batch, 20, seed=3),
        timestep=1000 * times(batch),
    )


def sd35_controlnet(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """SD 3.5 large's: no text, and tokens instead of latents."""
    model, inputs = sd3_controlnet(batch, joint_attention_dim=None, use_pos_embed=False, dual_attention_layers=(), qk_norm=None)
    return model, inputs | dict(hidden_states=rand(batch, TOKENS, 32), encoder_hidden_states=None)


def qwen_controlnet(batch: int = 2) -> tuple[nn.Module, Inputs]:
    model = diffusers.QwenImageControlNetModel(
        in_channels=8, num_layers=2, attention_head_dim=16, num_attention_heads=4, joint_attention_dim=24, axes_dims_rope=(4, 6, 6)
    )
    return model, dict(
        hidden_states=rand(batch, TOKENS, 8),
        controlnet_cond=rand(batch, TOKENS, 8, seed=1),
        encoder_hidden_states=rand(batch, 9, 24, seed=2),
        encoder_hidden_states_mask=text_mask(batch, 9),
        timestep=times(batch),
        img_shapes=[[(1, HEIGHT, WIDTH)]] * batch,
    )


def hunyuan_dit_controlnet(batch: int = 2) -> tuple[nn.Module, Inputs]:
    model = diffusers.HunyuanDiT2DControlNetModel(
        num_attention_heads=4, attention_head_dim=16, in_channels=4, patch_size=2, sample_size=16, hidden_size=64, transformer_num_layers=6,
        mlp_ratio=2.0, cross_attention_dim=24, cross_attention_dim_t5=16, pooled_projection_dim=16, text_len=7, text_len_t5=5,
    )  # fmt: skip
    angles = rand(TOKENS, 16, seed=9)
    return model, dict(
        hidden_states=_latents(batch),
        timestep=1000 * times(batch),
        controlnet_cond=_latents(batch, seed=1),
        encoder_hidden_states=rand(batch, 7, 24, seed=2),
        text_embedding_mask=text_mask(batch, 7),
        encoder_hidden_states_t5=rand(batch, 5, 16, seed=3),
        text_embedding_mask_t5=text_mask(batch, 5),
        image_meta_size=rand(batch, 6, seed=4),
        style=torch.zeros(batch, dtype=torch.long),
        image_rotary_emb=(angles.cos(), angles.sin()),
    )


def cosmos_controlnet(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """A time for every frame; learned positions; every block is handed the latents."""
    resize_without_torchvision("diffusers.models.controlnets.controlnet_cosmos")
    model = diffusers.CosmosControlNetModel(
        n_controlnet_blocks=2, in_channels=10, latent_channels=6, model_channels=48, num_attention_heads=4, attention_head_dim=12, mlp_ratio=2.0,
        text_embed_dim=16, adaln_lora_dim=6, max_size=(4, 16, 16), extra_pos_embed_type="learnable",
    )  # fmt: skip
    shape = (FRAMES, 2 * TALL, 2 * WIDE)
    return model, dict(
        controls_latents=rand(batch, 4, *shape),
        latents=rand(batch, 4, *shape, seed=1),
        timestep=torch.linspace(0, 900, batch * FRAMES).view(batch, 1, FRAMES, 1, 1),
        encoder_hidden_states=rand(batch, 9, 16, seed=2),
        condition_mask=(rand(batch, 1, *shape, seed=3) > 0).float(),
        padding_mask=torch.zeros(1, 1, 2 * TALL, 2 * WIDE),
        conditioning_scale=[0.5, 1.0],
        fps=16,
    )


def zimage_controlnet(batch: int = 2, refiner: str | None = None) -> tuple[nn.Module, Inputs]:
    """It shares the transformer's embedders; its layers hand on a stack, one residual higher each time."""
    transformer, inputs = zimage(batch)
    model = diffusers.ZImageControlNetModel(
        control_layers_places=[0, 1], control_refiner_layers_places=[0], control_in_dim=5, add_control_noise_refiner=refiner, dim=64,
        n_refiner_layers=1, n_heads=4, n_kv_heads=4,
    )  # fmt: skip
    model = diffusers.ZImageControlNetModel.from_transformer(model, transformer)
    context = [rand(5, *sample.shape[1:], seed=30 + i) for i, sample in enumerate(inputs["x"])]
    return model, inputs | dict(control_context=context)


def zimage_controlnet_twice(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """Its layers run over the picture first, then over picture and text."""
    return zimage_controlnet(batch, refiner="control_layers")


def zimage_controlnet_refiner(batch: int = 2) -> tuple[nn.Module, Inputs]:
    return zimage_controlnet(batch, refiner="control_noise_refiner")


def sana_controlnet(batch: int = 2) -> tuple[nn.Module, Inputs]:
    model = diffusers.SanaControlNetModel(
        in_channels=4, out_channels=4, num_attention_heads=4, attention_head_dim=8, num_layers=2, num_cross_attention_heads=2,
        cross_attention_head_dim=16, cross_attention_dim=32, caption_channels=24, sample_size=8, patch_size=2,
    )  # fmt: skip
    return model, dict(
        hidden_states=_latents(batch),
        encoder_hidden_states=rand(batch, 9, 24, seed=2),
        timestep=1000 * times(batch),
        controlnet_cond=_latents(batch, seed=1),
        encoder_attention_mask=text_mask(batch, 9),
    )


CASES = (flux_controlnet, flux_controlnet_union, flux_controlnet_hint, sd3_controlnet, sd35_controlnet, qwen_controlnet, hunyuan_dit_controlnet)
CASES += (cosmos_controlnet, zimage_controlnet, zimage_controlnet_twice, zimage_controlnet_refiner, sana_controlnet)
TINY = {make.__name__: make for make in CASES}
