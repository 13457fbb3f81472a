"""Tiny audio transformers."""

from __future__ import annotations

import diffusers
from torch import nn

from tiny.tools import Inputs, rand, text_mask, times

MOMENTS = 37


def stable_audio(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """A token with the time and the length goes before the others."""
    model = diffusers.StableAudioDiTModel(
        sample_size=MOMENTS, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4, num_key_value_attention_heads=2,
        out_channels=4, cross_attention_dim=16, time_proj_dim=8, global_states_input_dim=10, cross_attention_input_dim=12,
    )  # fmt: skip
    angles = rand(MOMENTS + 1, 4, seed=3)
    return model, dict(
        hidden_states=rand(batch, 4, MOMENTS),
        timestep=times(batch),
        encoder_hidden_states=rand(batch, 9, 12, seed=2),
        global_hidden_states=rand(batch, 1, 10, seed=4),
        rotary_embedding=(angles.cos(), angles.sin()),
    )


def stable_audio_masked(batch: int = 2) -> tuple[nn.Module, Inputs]:
    model, inputs = stable_audio(batch)
    return model, inputs | dict(attention_mask=text_mask(batch, MOMENTS).bool())


def stable_audio3(batch: int = 2, memory: int = 5) -> tuple[nn.Module, Inputs]:
    """Memory tokens first, two attentions whose difference counts, and a condition for every moment."""
    model = diffusers.StableAudio3DiTModel(
        io_channels=4, embed_dim=64, depth=2, num_heads=4, cond_token_dim=12, global_cond_dim=10, local_add_cond_dim=5, timestep_features_dim=8,
        ff_mult=2.0, num_memory_tokens=memory,
    )  # fmt: skip
    return model, dict(
        hidden_states=rand(batch, 4, MOMENTS),
        timestep=times(batch),
        encoder_hidden_states=rand(batch, 9, 12, seed=2),
        global_hidden_states=rand(batch, 10, seed=4),
        encoder_attention_mask=text_mask(batch, 9),
        local_add_cond=rand(batch, 5, MOMENTS, seed=5),
    )


def stable_audio3_plain(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """No memory, no condition."""
    model, inputs = stable_audio3(batch, memory=0)
    inputs.pop("local_add_cond")
    return model, inputs


def ace_step(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """Every second layer looks at near moments only; two key heads for four of queries; an odd length, padded."""
    model = diffusers.AceStepTransformer1DModel(
        hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8, in_channels=10,
        audio_acoustic_hidden_dim=4, sliding_window=3, encoder_hidden_size=12,
    )  # fmt: skip
    return model, dict(
        hidden_states=rand(batch, MOMENTS, 4),
        timestep=times(batch),
        timestep_r=times(batch) / 2,
        encoder_hidden_states=rand(batch, 9, 12, seed=2),
        context_latents=rand(batch, MOMENTS, 6, seed=3),
    )


def longcat_audio(batch: int = 2, masked: bool = True) -> tuple[nn.Module, Inputs]:
    """Samples of different lengths."""
    model = diffusers.LongCatAudioDiTTransformer(dit_dim=32, dit_depth=2, dit_heads=4, dit_text_dim=12, latent_dim=4, ff_mult=2.0)
    return model, dict(
        hidden_states=rand(batch, MOMENTS, 4),
        encoder_hidden_states=rand(batch, 9, 12, seed=2),
        encoder_attention_mask=text_mask(batch, 9).bool(),
        timestep=times(batch),
        attention_mask=text_mask(batch, MOMENTS).bool() if masked else None,
        latent_cond=rand(batch, MOMENTS, 4, seed=3),
    )


def longcat_audio_unmasked(batch: int = 2) -> tuple[nn.Module, Inputs]:
    return longcat_audio(batch, masked=False)


def minimax_music3(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """A token with the time goes before the others."""
    model = diffusers.MiniMaxMusic3Transformer1DModel(
        in_channels=4, condition_dim=6, num_layers=2, num_attention_heads=4, attention_head_dim=8, ff_inner_dim=24, rotary_dim=4,
        fourier_embedding_dim=8,
    )  # fmt: skip
    return model, dict(hidden_states=rand(batch, 4, MOMENTS), timestep=times(batch), encoder_hidden_states=rand(batch, MOMENTS, 6, seed=2))


TINY = {
    make.__name__: make
    for make in (
        stable_audio,
        stable_audio_masked,
        stable_audio3,
        stable_audio3_plain,
        ace_step,
        longcat_audio,
        longcat_audio_unmasked,
        minimax_music3,
    )
}
