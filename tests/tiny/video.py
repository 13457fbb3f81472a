"""Tiny video transformers."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import nn

from tiny.tools import HEIGHT, WIDTH, Inputs, rand, resize_without_torchvision, text_mask, times

FRAMES, TALL, WIDE = 3, 5, 7  # latent patches; 105 tokens
AUDIO = 11  # moments


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


def consisid(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """CogVideoX's blocks, and a face that the video's tokens look at after every second one."""
    model = diffusers.ConsisIDTransformer3DModel(
        num_attention_heads=3, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=16, text_embed_dim=24, num_layers=2,
        sample_width=2 * WIDTH, sample_height=2 * HEIGHT, sample_frames=9, max_text_seq_length=7, use_rotary_positional_embeddings=True,
        is_train_face=True, cross_attn_dim_head=8, cross_attn_num_heads=2, LFE_id_dim=6, LFE_vit_dim=8, LFE_depth=2, LFE_dim_head=4, LFE_num_heads=2,
        LFE_num_id_token=2, LFE_num_querie=3, LFE_output_dim=32, LFE_num_scale=2,
    )  # fmt: skip
    angles = rand(3 * HEIGHT * WIDTH, 16, seed=4)
    return model, dict(
        hidden_states=rand(batch, 3, 4, 2 * HEIGHT, 2 * WIDTH),
        encoder_hidden_states=rand(batch, 7, 24, seed=2),
        timestep=torch.full((batch,), 300),
        image_rotary_emb=(angles.cos(), angles.sin()),
        id_cond=rand(batch, 6, seed=5),
        id_vit_hidden=[rand(batch, 4, 8, seed=6), rand(batch, 4, 8, seed=7)],
    )


def ltx(batch: int = 2) -> tuple[nn.Module, Inputs]:
    model = diffusers.LTXVideoTransformer3DModel(
        in_channels=6, out_channels=6, num_attention_heads=4, attention_head_dim=8, cross_attention_dim=32, num_layers=2, caption_channels=16
    )
    return model, dict(
        hidden_states=rand(batch, FRAMES * TALL * WIDE, 6),
        encoder_hidden_states=rand(batch, 9, 16, seed=2),
        timestep=1000 * times(batch),
        encoder_attention_mask=text_mask(batch, 9),
        num_frames=FRAMES,
        height=TALL,
        width=WIDE,
    )


def ltx_i2v(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """A time for every token, and their coordinates from outside."""
    model, inputs = ltx(batch)
    tokens = FRAMES * TALL * WIDE
    times = torch.linspace(0, 900, tokens).expand(batch, -1).contiguous()
    return model, inputs | dict(timestep=times, video_coords=rand(batch, 3, tokens, seed=3).abs())


def ltx_one_time(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """One time a sample, in a dim of its own: the condition pipeline without a condition."""
    model, inputs = ltx(batch)
    return model, inputs | dict(timestep=1000 * times(batch)[:, None])


def ltx2(batch: int = 2, **config: Any) -> tuple[nn.Module, Inputs]:
    model = diffusers.LTX2VideoTransformer3DModel(
        in_channels=6, out_channels=6, num_attention_heads=4, attention_head_dim=8, cross_attention_dim=32, audio_in_channels=5,
        audio_out_channels=5, audio_num_attention_heads=4, audio_attention_head_dim=4, audio_cross_attention_dim=16, num_layers=2,
        caption_channels=12, **config,
    )  # fmt: skip
    return model, dict(
        hidden_states=rand(batch, FRAMES * TALL * WIDE, 6),
        audio_hidden_states=rand(batch, AUDIO, 5, seed=3),
        encoder_hidden_states=rand(batch, 9, 12, seed=2),
        audio_encoder_hidden_states=rand(batch, 9, 12, seed=4),
        timestep=1000 * times(batch),
        sigma=times(batch),
        encoder_attention_mask=text_mask(batch, 9),
        audio_encoder_attention_mask=text_mask(batch, 9),
        num_frames=FRAMES,
        height=TALL,
        width=WIDE,
        audio_num_frames=AUDIO,
    )


def ltx2_condition(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """Everything LTX-2's pipelines pass: times a token, tokens that do not see one another, key frames, perturbed blocks."""
    model, inputs = ltx2(
        batch, rope_type="split", gated_attn=True, audio_gated_attn=True, cross_attn_mod=True, audio_cross_attn_mod=True, perturbed_attn=True,
        use_keyframes_abs_pos_embedding=True,
    )  # fmt: skip
    tokens = FRAMES * TALL * WIDE
    return model, inputs | dict(
        timestep=torch.linspace(0, 900, tokens).expand(batch, -1).contiguous(),
        audio_timestep=torch.linspace(0, 900, AUDIO).expand(batch, -1).contiguous(),
        video_self_attention_mask=(rand(batch, tokens, tokens, seed=5) > 0).float(),
        video_keyframes_mask=(rand(batch, tokens, 1, seed=6) > 0).float(),
        spatio_temporal_guidance_blocks=[1],
        perturbation_mask=torch.arange(batch) % 2.0,
        use_cross_timestep=True,
    )


def mochi(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """Every sample attends to its own number of words."""
    model = diffusers.MochiTransformer3DModel(
        num_attention_heads=4, attention_head_dim=8, num_layers=2, pooled_projection_dim=12, in_channels=4, text_embed_dim=16, time_embed_dim=8,
    )  # fmt: skip
    return model, dict(
        hidden_states=rand(batch, 4, FRAMES, 2 * TALL, 2 * WIDE),
        encoder_hidden_states=rand(batch, 9, 16, seed=2),
        timestep=1000 * times(batch),
        encoder_attention_mask=text_mask(batch, 9).bool(),
    )


def cosmos(batch: int = 2, **config: Any) -> tuple[nn.Module, Inputs]:
    resize_without_torchvision("diffusers.models.transformers.transformer_cosmos")
    model = diffusers.CosmosTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=4, attention_head_dim=12, num_layers=2, mlp_ratio=2, text_embed_dim=16, adaln_lora_dim=6,
        max_size=(4, 16, 16), **config,
    )  # fmt: skip
    return model, dict(
        hidden_states=rand(batch, 4, FRAMES, 2 * TALL, 2 * WIDE),
        timestep=1000 * times(batch),
        encoder_hidden_states=rand(batch, 9, 16, seed=2),
        padding_mask=torch.zeros(1, 1, 2 * TALL, 2 * WIDE),
        fps=16,
    )


def cosmos_v2w(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """A time for every frame, a picture beside the text, residuals of a ControlNet: Cosmos 2.5."""
    model, inputs = cosmos(
        batch, extra_pos_embed_type=None, controlnet_block_every_n=1, img_context_dim_in=10, img_context_num_tokens=3, img_context_dim_out=48
    )
    return model, inputs | dict(
        hidden_states=rand(batch, 3, FRAMES, 2 * TALL, 2 * WIDE),
        condition_mask=(rand(batch, 1, FRAMES, 2 * TALL, 2 * WIDE, seed=3) > 0).float(),
        timestep=torch.linspace(0, 900, batch * FRAMES).view(batch, 1, FRAMES, 1, 1),
        encoder_hidden_states=(rand(batch, 9, 16, seed=2), rand(batch, 3, 10, seed=4)),
        block_controlnet_hidden_states=[rand(batch, FRAMES * TALL * WIDE, 48, seed=seed) for seed in (5, 6)],
    )


def allegro(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """A mask over the video's own tokens, and positions as three lists."""
    model = diffusers.AllegroTransformer3DModel(
        num_attention_heads=4, attention_head_dim=12, num_layers=2, cross_attention_dim=48, caption_channels=16, sample_height=2 * TALL,
        sample_width=2 * WIDE, sample_frames=FRAMES,
    )  # fmt: skip
    grid = torch.cartesian_prod(torch.arange(FRAMES), torch.arange(TALL), torch.arange(WIDE)).T
    tables = [(rand(n, 4, seed=n).cos(), rand(n, 4, seed=n).sin()) for n in (FRAMES, TALL, WIDE)]
    return model, dict(
        hidden_states=rand(batch, 4, FRAMES, 2 * TALL, 2 * WIDE),
        encoder_hidden_states=rand(batch, 9, 16, seed=2),
        timestep=1000 * times(batch),
        attention_mask=(rand(batch, FRAMES, 2 * TALL, 2 * WIDE, seed=3) > 1).long(),
        encoder_attention_mask=text_mask(batch, 9),
        image_rotary_emb=(tuple(tables), tuple(positions[None] for positions in grid)),
    )


def latte(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """Blocks over space and blocks over time by turns."""
    model = diffusers.LatteTransformer3DModel(
        num_attention_heads=4, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, cross_attention_dim=32, sample_size=16,
        patch_size=2, norm_type="ada_norm_single", norm_elementwise_affine=False, caption_channels=16, video_length=FRAMES, attention_bias=True,
    )  # fmt: skip
    return model, dict(
        hidden_states=rand(batch, 4, FRAMES, 2 * TALL, 2 * WIDE),
        timestep=1000 * times(batch),
        encoder_hidden_states=rand(batch, 9, 16, seed=2),
    )


def easyanimate(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """Both text encoders, the picture to fill in and the control beside the latents; the last block has one stream's weights for both."""
    model = diffusers.EasyAnimateTransformer3DModel(
        num_attention_heads=3, attention_head_dim=16, in_channels=7, out_channels=4, patch_size=2, sample_width=2 * WIDE, sample_height=2 * TALL,
        num_layers=2, mmdit_layers=1, time_embed_dim=8, text_embed_dim=12, text_embed_dim_t5=10,
    )  # fmt: skip
    shape = (FRAMES, 2 * TALL, 2 * WIDE)
    return model, dict(
        hidden_states=rand(batch, 4, *shape),
        timestep=1000 * times(batch),
        encoder_hidden_states=rand(batch, 6, 12, seed=2),
        encoder_hidden_states_t5=rand(batch, 5, 10, seed=3),
        inpaint_latents=rand(batch, 2, *shape, seed=4),
        control_latents=rand(batch, 1, *shape, seed=5),
    )


TINY = {
    make.__name__: make
    for make in (
        cogvideox,
        cogvideox_2b,
        consisid,
        ltx,
        ltx_i2v,
        ltx_one_time,
        ltx2,
        ltx2_condition,
        mochi,
        cosmos,
        cosmos_v2w,
        allegro,
        latte,
        easyanimate,
    )
}
