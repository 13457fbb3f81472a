"""Tiny image transformers."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import nn

from tiny.tools import HEIGHT, WIDTH, Inputs, rand, text_mask


def dit(batch: int = 2) -> tuple[nn.Module, Inputs]:
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=14, patch_size=2, num_embeds_ada_norm=10
    )
    return model, dict(  # square by design: 49 tokens
        hidden_states=rand(batch, 4, 14, 14), timestep=torch.full((batch,), 7), class_labels=torch.arange(batch)
    )


def pixart(batch: int = 2) -> tuple[nn.Module, Inputs]:
    model = diffusers.PixArtTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=32,
        sample_size=16,
        caption_channels=24,
    )
    return model, dict(
        hidden_states=rand(batch, 4, 2 * HEIGHT, 2 * WIDTH),
        encoder_hidden_states=rand(batch, 9, 24, seed=2),
        encoder_attention_mask=text_mask(batch, 9),
        timestep=torch.full((batch,), 300.0),
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
    )


def pixart_masked(batch: int = 2) -> tuple[nn.Module, Inputs]:
    model, inputs = pixart(batch)
    return model, inputs | dict(attention_mask=(rand(batch, HEIGHT * WIDTH, seed=5) > -0.5).long())


def pixart_conditions(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """As the 1024 model: each picture's size and shape are embedded with the time."""
    model = diffusers.PixArtTransformer2DModel(
        num_attention_heads=4, attention_head_dim=12, in_channels=4, out_channels=8, num_layers=2, cross_attention_dim=48, sample_size=16,
        caption_channels=24, use_additional_conditions=True,
    )  # fmt: skip
    sizes = {"resolution": torch.tensor([[512.0, 768.0], [96.0, 160.0], [64.0, 64.0]])[:batch], "aspect_ratio": rand(batch, 1, seed=6).abs()}
    return model, pixart(batch)[1] | dict(added_cond_kwargs=sizes)


def sd3(batch: int = 2, **config: Any) -> tuple[nn.Module, Inputs]:
    config = dict(qk_norm=None, dual_attention_layers=()) | config
    model = diffusers.SD3Transformer2DModel(
        sample_size=16,
        in_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=24,
        caption_projection_dim=32,
        pooled_projection_dim=20,
        out_channels=4,
        pos_embed_max_size=16,
        **config,
    )
    return model, dict(
        hidden_states=rand(batch, 4, 2 * HEIGHT, 2 * WIDTH),
        encoder_hidden_states=rand(batch, 7, 24, seed=2),
        pooled_projections=rand(batch, 20, seed=3),
        timestep=torch.full((batch,), 300.0),
    )


def sd35(batch: int = 2) -> tuple[nn.Module, Inputs]:
    model, inputs = sd3(batch, qk_norm="rms_norm", dual_attention_layers=(0, 1))
    residuals = [rand(batch, HEIGHT * WIDTH, 32, seed=seed) for seed in (6, 7)]
    return model, inputs | dict(block_controlnet_hidden_states=residuals)


def sd3_skip(batch: int = 1) -> tuple[nn.Module, Inputs]:
    model, inputs = sd3(batch)
    return model, inputs | dict(skip_layers=[1])


def flux(batch: int = 2, text: int = 7, **config: Any) -> tuple[nn.Module, Inputs]:
    model = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=8,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=24,
        pooled_projection_dim=20,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
        **config,
    )
    rows = torch.cartesian_prod(torch.zeros(1), torch.arange(HEIGHT).float(), torch.arange(WIDTH).float())
    return model, dict(
        hidden_states=rand(batch, HEIGHT * WIDTH, 8),
        encoder_hidden_states=rand(batch, text, 24, seed=2),
        pooled_projections=rand(batch, 20, seed=3),
        timestep=torch.full((batch,), 0.25),
        guidance=torch.full((batch,), 4.0),
        img_ids=rows,
        txt_ids=torch.zeros(text, 3),
    )


def flux_masked(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """A key mask over [text | image], as callers pass it through joint_attention_kwargs."""
    model, inputs = flux(batch)
    keys = torch.cat([text_mask(batch, 7).bool(), rand(batch, HEIGHT * WIDTH, seed=5) > -1], 1)
    return model, inputs | dict(joint_attention_kwargs={"attention_mask": keys[:, None, None, :]})


def flux_controlled(batch: int = 2) -> tuple[nn.Module, Inputs]:
    model, inputs = flux(batch, text=2)  # fewer words than ranks
    residuals = [rand(batch, HEIGHT * WIDTH, 64, seed=seed) for seed in (6, 7)]
    return model, inputs | dict(controlnet_block_samples=residuals, controlnet_single_block_samples=residuals[:1])


TINY = {make.__name__: make for make in (dit, pixart, pixart_masked, pixart_conditions, sd3, sd35, sd3_skip, flux, flux_masked, flux_controlled)}
