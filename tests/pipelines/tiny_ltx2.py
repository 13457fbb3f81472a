"""LTX-2 pipelines, which make pictures and sound: 17 frames at 24 a second are 3 x 3 x 5 tokens and 18 moments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
from diffusers.pipelines.ltx2 import LTX2LatentUpsamplerModel, LTX2TextConnectors, LTX2Vocoder
from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition
from diffusers.pipelines.ltx2.pipeline_ltx2_hdr_lora import LTX2HDRReferenceCondition
from diffusers.pipelines.ltx2.pipeline_ltx2_ic_lora import LTX2ReferenceCondition
from tiny import redraw
from tiny.tools import rand
from tiny_parts import Tiny
from tiny_video_parts import LTX_VIDEO, chat_tokenizer, film, picture
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

WIDTH = 16  # of the text
DFR = ("LTX2DFRPipeline", "LTX2DFRTemporalRefinePipeline")


def gemma() -> Gemma3ForConditionalGeneration:
    text = dict(
        vocab_size=32, hidden_size=WIDTH, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
        sliding_window=8,
    )  # fmt: skip
    vision = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16)
    return Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)).eval()


def transformer(**config: Any) -> diffusers.LTX2VideoTransformer3DModel:
    dit = diffusers.LTX2VideoTransformer3DModel(
        in_channels=6, out_channels=6, num_attention_heads=4, attention_head_dim=8, cross_attention_dim=32, audio_in_channels=8,
        audio_out_channels=8, audio_num_attention_heads=4, audio_attention_head_dim=4, audio_cross_attention_dim=16, num_layers=2,
        caption_channels=WIDTH, rope_type="split", perturbed_attn=True, **config,
    )  # fmt: skip
    return redraw(dit)


def vae() -> diffusers.AutoencoderKLLTX2Video:
    return diffusers.AutoencoderKLLTX2Video(
        latent_channels=6, block_out_channels=(4, 8, 16, 32), decoder_block_out_channels=(8, 16, 32), layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 4, spatial_compression_ratio=32, temporal_compression_ratio=8,
    ).eval()  # fmt: skip


def sound() -> dict[str, Any]:
    """Two channels of four bins are a moment's latents; the waveform has 240 samples for every step of the spectrogram."""
    audio_vae = diffusers.AutoencoderKLLTX2Audio(base_channels=8, ch_mult=(1, 1, 1), num_res_blocks=1, latent_channels=2, mel_bins=16)
    vocoder = LTX2Vocoder(in_channels=32, hidden_channels=32, resnet_kernel_sizes=[3], resnet_dilations=[[1]])
    return dict(audio_vae=audio_vae.eval(), vocoder=vocoder.eval())


def ltx2(name: str, folder: Path) -> Any:
    connectors = LTX2TextConnectors(
        caption_channels=WIDTH, text_proj_in_factor=3, video_connector_num_attention_heads=2, video_connector_attention_head_dim=8,
        video_connector_num_layers=1, video_connector_num_learnable_registers=4, audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=8, audio_connector_num_layers=1, audio_connector_num_learnable_registers=4,
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    more = {}
    if name == "LTX2DFRTemporalRefinePipeline":
        scheduler = diffusers.LTXEulerAncestralRFScheduler(eta=0.5)
        more["temporal_latent_upsampler"] = LTX2LatentUpsamplerModel(
            in_channels=6, mid_channels=32, num_blocks_per_stage=1, spatial_upsample=False, temporal_upsample=True
        ).eval()
    return getattr(diffusers, name)(
        scheduler=scheduler, vae=vae(), **sound(), text_encoder=gemma(), tokenizer=chat_tokenizer(), connectors=connectors.eval(),
        transformer=transformer(use_keyframes_abs_pos_embedding=name in DFR), **more,
    )  # fmt: skip


def condition() -> LTX2VideoCondition:
    return LTX2VideoCondition(film(9, 1), index=1, strength=0.7)


def refined() -> dict[str, Any]:
    """What an earlier pass of 25 frames gave, with its key frame at the end."""
    return dict(
        latents=rand(1, 6, 4, 3, 5), keyframes_latents=rand(1, 6, 1, 3, 5, seed=1), keyframe_positions=[24], audio_latents=rand(1, 2, 26, 4, seed=2)
    )


CALL = LTX_VIDEO | dict(max_sequence_length=12, guidance_scale=3.0)
ALL_GUIDANCE = CALL | dict(stg_scale=0.5, modality_scale=2.0, spatio_temporal_guidance_blocks=[1])
ONE_PASS = LTX_VIDEO | dict(max_sequence_length=12, sigmas=[1.0, 0.6])

TINY = {
    "LTX2Pipeline": Tiny(ltx2, ALL_GUIDANCE),
    "LTX2ImageToVideoPipeline": Tiny(ltx2, lambda: ALL_GUIDANCE | dict(image=picture())),
    "LTX2ConditionPipeline": Tiny(ltx2, lambda: ALL_GUIDANCE | dict(conditions=[condition()])),
    "LTX2InContextPipeline": Tiny(
        ltx2,
        lambda: (
            ALL_GUIDANCE
            | dict(conditions=[condition()], reference_conditions=[LTX2ReferenceCondition(film(17), 0.8)], conditioning_attention_strength=0.5)
        ),
    ),
    "LTX2HDRPipeline": Tiny(ltx2, lambda: CALL | dict(reference_conditions=[LTX2HDRReferenceCondition(film(17), 0.8)])),
    "LTX2DFRPipeline": Tiny(ltx2, lambda: ONE_PASS | dict(conditions=[condition()])),
    "LTX2DFRTemporalRefinePipeline": Tiny(ltx2, lambda: ONE_PASS | dict(num_frames=25) | refined()),
}
