"""Kandinsky's video pipelines: Qwen2.5-VL's and CLIP's text; the sixth makes sound too, or sharpens a video tile by tile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
from tiny import redraw
from tiny_parts import Tiny, clip, clip_tokenizer
from tiny_video_parts import VIDEO, chat_tokenizer, film, hunyuan_vae, picture, qwen_vl
from transformers import CLIPTextModel

SIZES = dict(
    in_visual_dim=4, out_visual_dim=4, in_text_dim=16, in_text_dim2=12, time_dim=8, model_dim=48, ff_dim=32, num_text_blocks=1, num_visual_blocks=1,
    axes_dims=(4, 4, 4), visual_cond=True,
)  # fmt: skip


def text(folder: Path) -> dict[str, Any]:
    tokenizer = clip_tokenizer(folder / "clip")
    second = dict(text_encoder_2=clip(tokenizer, CLIPTextModel, tokens=77), tokenizer_2=tokenizer)
    return dict(text_encoder=qwen_vl(), tokenizer=chat_tokenizer(), **second)


def kandinsky5(name: str, folder: Path) -> Any:
    dit = redraw(diffusers.Kandinsky5Transformer3DModel(**SIZES))
    return getattr(diffusers, name)(transformer=dit, vae=hunyuan_vae(), **text(folder), scheduler=diffusers.FlowMatchEulerDiscreteScheduler())


def kandinsky6(name: str, folder: Path) -> Any:
    """23 moments of sound, 32 samples each way of a moment's two halves."""
    dit = diffusers.Kandinsky6Transformer3DModel(
        **SIZES, in_audio_dim=5, out_audio_dim=5, model_dim_a=32, ff_dim_a=24, axes_dims_a=(2, 2, 4), visual_token_type_num_embeddings=2
    )
    audio_vae = diffusers.MMAudioVAE(mel_bins=8, latent_channels=5, hidden_channels=8, layers_per_block=1, sample_rate=3900, n_fft=64, hop_length=32)
    vocoder = diffusers.MMAudioVocoder(
        num_mels=8, upsample_initial_channel=8, upsample_rates=(8, 4), upsample_kernel_sizes=(16, 8), resblock_kernel_sizes=(3,),
        resblock_dilation_sizes=((1,),),
    )  # fmt: skip
    return diffusers.Kandinsky6TI2VAPipeline(
        transformer=redraw(dit), vae=hunyuan_vae(), **text(folder), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), audio_vae=audio_vae.eval(),
        vocoder=vocoder.eval(),
    )  # fmt: skip


def kandinsky6_sr(name: str, folder: Path) -> Any:
    """Two tiles side by side, 3 frames of 8 x 8 latents each."""
    dit = diffusers.Kandinsky6SRTransformer3DModel(
        in_visual_dim=4, out_visual_dim=4, time_dim=8, model_dim=48, ff_dim=32, num_visual_blocks=1, axes_dims=(4, 6, 6), nabla_window=(1, 1, 1),
        tile_sizes=((64, 64),),
    )  # fmt: skip
    vae = diffusers.Kandinsky6SRVAE(latent_channels=4, encoder_block_out_channels=(4,) * 4, decoder_block_out_channels=(4,) * 4, layers_per_block=1)
    return diffusers.Kandinsky6SRPipeline(transformer=redraw(dit), vae=vae.eval(), scheduler=diffusers.FlowMatchEulerDiscreteScheduler())


TEXT = VIDEO | dict(max_sequence_length=40, guidance_scale=3.0, negative_prompt="a dog")

TINY = {
    "Kandinsky5T2VPipeline": Tiny(kandinsky5, TEXT),
    "Kandinsky5I2VPipeline": Tiny(kandinsky5, lambda: TEXT | dict(image=picture(), num_frames=25)),
    "Kandinsky6TI2VAPipeline": Tiny(kandinsky6, lambda: TEXT | dict(image=picture())),
    "Kandinsky6SRPipeline": Tiny(kandinsky6_sr, lambda: dict(video=film(height=32, width=48), resolution_scale=2, num_inference_steps=2)),
}
