"""Tiny video transformers."""

from __future__ import annotations

import diffusers
import torch
from torch import nn

from tiny.tools import HEIGHT, WIDTH, Inputs, rand


def cogvideox(batch: int = 2) -> tuple[nn.Module, Inputs]:
    model = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        time_embed_dim=16,
        text_embed_dim=24,
        num_layers=2,
        sample_width=2 * WIDTH,
        sample_height=2 * HEIGHT,
        sample_frames=9,
        patch_size=2,
        max_text_seq_length=7,
        use_rotary_positional_embeddings=True,
    )
    angles = rand(3 * HEIGHT * WIDTH, 8, seed=4)
    return model, dict(
        hidden_states=rand(batch, 3, 4, 2 * HEIGHT, 2 * WIDTH),
        encoder_hidden_states=rand(batch, 7, 24, seed=2),
        timestep=torch.full((batch,), 300),
        image_rotary_emb=(angles.cos(), angles.sin()),
    )


def cogvideox_2b(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """Absolute positions, no rotary embedding."""
    model = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=3, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=16, text_embed_dim=24, num_layers=2,
        sample_width=2 * WIDTH, sample_height=2 * HEIGHT, sample_frames=9, max_text_seq_length=7,
    )  # fmt: skip
    return model, dict(
        hidden_states=rand(batch, 3, 4, 2 * HEIGHT, 2 * WIDTH), encoder_hidden_states=rand(batch, 7, 24, seed=2), timestep=torch.full((batch,), 300)
    )


TINY = {make.__name__: make for make in (cogvideox, cogvideox_2b)}
