"""Audio pipelines: 37 moments, of 8 samples each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.pipelines.ace_step import AceStepConditionEncoder
from diffusers.pipelines.stable_audio import StableAudioProjectionModel
from diffusers.pipelines.stable_audio_3.modeling_stable_audio_3 import StableAudio3DurationEmbedder
from tiny import redraw
from tiny.tools import rand
from tiny_parts import Tiny, t5, t5_tokenizer
from tiny_video_parts import umt5
from transformers import Qwen3Config, Qwen3Model, T5GemmaConfig, T5GemmaEncoderModel

RATE = 100  # samples a second
SECONDS = 2.9


def oobleck(rate: int = RATE) -> diffusers.AutoencoderOobleck:
    return diffusers.AutoencoderOobleck(
        encoder_hidden_size=8, downsampling_ratios=[2, 4], channel_multiples=[1, 2], decoder_channels=4, decoder_input_channels=4, sampling_rate=rate
    ).eval()


def stable_audio(name: str, folder: Path) -> Any:
    dit = diffusers.StableAudioDiTModel(
        sample_size=37, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=4, num_key_value_attention_heads=2, out_channels=4,
        cross_attention_dim=16, time_proj_dim=8, global_states_input_dim=24, cross_attention_input_dim=12,
    )  # fmt: skip
    projection = StableAudioProjectionModel(text_encoder_dim=24, conditioning_dim=12, min_value=0, max_value=10)
    return diffusers.StableAudioPipeline(
        vae=oobleck(), text_encoder=t5(), projection_model=projection.eval(), tokenizer=t5_tokenizer(), transformer=redraw(dit),
        scheduler=diffusers.EDMDPMSolverMultistepScheduler(solver_order=2, prediction_type="v_prediction", sigma_data=1.0),
    )  # fmt: skip


def stable_audio3(name: str, folder: Path) -> Any:
    """Draws noise at every step; the latents and mask to fill in are a condition of every moment."""
    dit = diffusers.StableAudio3DiTModel(
        io_channels=4, embed_dim=64, depth=1, num_heads=4, cond_token_dim=12, global_cond_dim=12, local_add_cond_dim=5, timestep_features_dim=8,
        ff_mult=2.0, num_memory_tokens=5,
    )  # fmt: skip
    vae = diffusers.AutoencoderSAME(
        patch_size=4, encoder_channels=8, encoder_c_mults=(2,), encoder_strides=(2,), encoder_transformer_depths=(1,), latent_dim=4, dim_heads=8,
        sampling_rate=RATE,
    )  # fmt: skip
    text = dict(
        vocab_size=32, hidden_size=12, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
        sliding_window=8,
    )  # fmt: skip
    config = T5GemmaConfig(encoder=text, decoder=text, is_encoder_decoder=False)
    return getattr(diffusers, name)(
        vae=redraw(vae), text_encoder=T5GemmaEncoderModel(config).eval(), tokenizer=t5_tokenizer(),
        duration_embedder=StableAudio3DurationEmbedder(output_dim=12, fourier_dim=8), transformer=redraw(dit),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
    )  # fmt: skip


def ace_step(name: str, folder: Path) -> Any:
    """Five moments a second: the timbre is read from 30 seconds of silence."""
    dit = diffusers.AceStepTransformer1DModel(
        hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8, in_channels=12,
        audio_acoustic_hidden_dim=4, sliding_window=3, encoder_hidden_size=12,
    )  # fmt: skip
    condition = AceStepConditionEncoder(
        hidden_size=12, intermediate_size=16, text_hidden_dim=16, timbre_hidden_dim=4, num_lyric_encoder_hidden_layers=1,
        num_timbre_encoder_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    text = Qwen3Config(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=8
    )
    return diffusers.AceStepPipeline(
        vae=oobleck(40), text_encoder=Qwen3Model(text).eval(), tokenizer=t5_tokenizer(), transformer=redraw(dit), condition_encoder=redraw(condition),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip


def longcat(name: str, folder: Path) -> Any:
    dit = diffusers.LongCatAudioDiTTransformer(dit_dim=32, dit_depth=1, dit_heads=4, dit_text_dim=16, latent_dim=4, ff_mult=2.0)
    vae = diffusers.LongCatAudioDiTVae(
        channels=4, c_mults=[1, 2], strides=[2, 4], latent_dim=4, encoder_latent_dim=8, downsampling_ratio=8, sample_rate=RATE
    )
    return diffusers.LongCatAudioDiTPipeline(
        vae=vae.eval(), text_encoder=umt5(), tokenizer=t5_tokenizer(), transformer=redraw(dit),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0, invert_sigmas=True),
    )  # fmt: skip


def sound() -> torch.Tensor:
    return rand(1, 2, int(SECONDS * RATE)).tanh()


DOG = dict(prompt="a big dog", duration=SECONDS)

TINY = {
    "StableAudioPipeline": Tiny(stable_audio, dict(prompt="a big dog", audio_end_in_s=2.5, guidance_scale=3.0, negative_prompt="a cat")),
    "StableAudio3Pipeline": Tiny(stable_audio3, DOG | dict(guidance_scale=3.0)),
    "StableAudio3AudioToAudioPipeline": Tiny(stable_audio3, lambda: DOG | dict(audio=sound(), init_noise_level=0.8)),
    "StableAudio3InpaintPipeline": Tiny(stable_audio3, lambda: DOG | dict(audio=sound(), mask_start_seconds=1.0, mask_end_seconds=2.0)),
    "AceStepPipeline": Tiny(
        ace_step, dict(prompt="a big dog", lyrics="the dog on the left", audio_duration=7.4, max_text_length=12, max_lyric_length=16)
    ),
    "LongCatAudioDiTPipeline": Tiny(longcat, dict(prompt="a big dog", negative_prompt="a cat", audio_duration_s=3.0)),
}
