"""Video pipelines with a VAE or text encoder of their own: Mochi, Allegro, Latte, EasyAnimate, Motif-Video."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import diffusers
import torch
from tiny import redraw
from tiny.tools import rand
from tiny_parts import Tiny, t5, t5_tokenizer, vae
from tiny_video_parts import VIDEO, chat_tokenizer, picture, qwen_vl_text, siglip_processor, wan_vae
from transformers import (
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    T5Gemma2Encoder,
    T5Gemma2EncoderConfig,
)

FLOW = dict(prediction_type="flow_prediction", use_flow_sigmas=True)
TEXT = VIDEO | dict(guidance_scale=3.0, negative_prompt="a dog")
WORDS = TEXT | dict(max_sequence_length=9)


def mochi(name: str, folder: Path) -> Any:
    """Shrinks time 6 times."""
    dit = diffusers.MochiTransformer3DModel(
        num_attention_heads=4, attention_head_dim=8, num_layers=2, pooled_projection_dim=12, text_embed_dim=24, time_embed_dim=8,
    )  # fmt: skip
    decoder = diffusers.AutoencoderKLMochi(
        encoder_block_out_channels=(32,) * 4, decoder_block_out_channels=(32,) * 4, layers_per_block=(1,) * 5
    )  # fmt: skip
    return diffusers.MochiPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=decoder.eval(),
        text_encoder=t5(),
        tokenizer=t5_tokenizer(),
        transformer=redraw(dit),
    )


def allegro(name: str, folder: Path) -> Any:
    """Four frames for each of the latents'."""
    dit = diffusers.AllegroTransformer3DModel(
        num_attention_heads=4, attention_head_dim=12, num_layers=1, cross_attention_dim=48, caption_channels=24, sample_height=6, sample_width=10,
        sample_frames=3,
    )  # fmt: skip
    decoder = diffusers.AutoencoderKLAllegro(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4)
    decoder.enable_tiling()  # it knows nothing else
    decoder.kernel = decoder.stride = (12, 48, 80)
    return diffusers.AllegroPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(),
        vae=decoder.eval(),
        transformer=redraw(dit),
        scheduler=diffusers.DPMSolverMultistepScheduler(**FLOW),
    )


def latte(name: str, folder: Path) -> Any:
    dit = diffusers.LatteTransformer3DModel(
        num_attention_heads=4, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, cross_attention_dim=32, sample_size=16,
        patch_size=2, norm_type="ada_norm_single", norm_elementwise_affine=False, caption_channels=24, video_length=3, attention_bias=True,
    )  # fmt: skip
    return diffusers.LattePipeline(t5_tokenizer(), t5(), vae(), redraw(dit), diffusers.DPMSolverMultistepScheduler(**FLOW))


def easyanimate(name: str, folder: Path) -> Any:
    """Beside the video's latents those of a mask and of what it leaves, or of a control and a reference."""
    without_unknown_argument()
    beside = 0 if name == "EasyAnimatePipeline" else 8
    dit = diffusers.EasyAnimateTransformer3DModel(
        num_attention_heads=3, attention_head_dim=16, in_channels=4 + beside, out_channels=4, patch_size=2, sample_width=10, sample_height=6,
        num_layers=2, mmdit_layers=1, time_embed_dim=8, text_embed_dim=16, text_embed_dim_t5=None, resize_inpaint_mask_directly=False,
    )  # fmt: skip
    decoder = diffusers.AutoencoderKLMagvit(latent_channels=4, block_out_channels=[8, 8, 8, 8], layers_per_block=1, norm_num_groups=4)
    text = dict(qwen_vl_text().to_dict(), model_type="qwen2_vl_text")
    vision = dict(depth=1, embed_dim=8, hidden_size=16, num_heads=2, mlp_ratio=2)
    return getattr(diffusers, name)(
        vae=decoder.eval(), text_encoder=Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision)).eval(),
        tokenizer=chat_tokenizer(), transformer=redraw(dit), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip


def without_unknown_argument() -> None:
    """diffusers 0.42.1's control pipeline passes its encode_prompt an argument it does not have, and has no decode_latents: it stops there."""
    encode = diffusers.EasyAnimateControlPipeline.encode_prompt
    if "text_encoder_index" not in inspect.signature(encode).parameters:
        diffusers.EasyAnimateControlPipeline.encode_prompt = lambda self, *args, text_encoder_index, **kwargs: encode(self, *args, **kwargs)


def motif(name: str, folder: Path) -> Any:
    """The text encoder sees the picture too."""
    image = dict(image_embed_dim=8) if "Image" in name else {}
    dit = diffusers.MotifVideoTransformer3DModel(
        in_channels=9, out_channels=4, num_attention_heads=4, attention_head_dim=8, num_layers=1, num_single_layers=2, num_decoder_layers=1,
        mlp_ratio=2.0, text_embed_dim=16, rope_axes_dim=(2, 2, 4), enable_text_cross_attention_dual=True, **image,
    )  # fmt: skip
    text = dict(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        dropout_rate=0.0,
    )
    vision = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16)
    encoder = T5Gemma2Encoder(T5Gemma2EncoderConfig(text_config=text, vision_config=vision, mm_tokens_per_image=4))
    return getattr(diffusers, name)(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=wan_vae(), text_encoder=encoder.eval(), tokenizer=t5_tokenizer(),
        transformer=redraw(dit), guider=diffusers.AdaptiveProjectedGuidance(guidance_scale=3.0), feature_extractor=siglip_processor(),
    )  # fmt: skip


def pixels(seed: int = 0, channels: int = 3) -> torch.Tensor:
    return rand(1, channels, 9, 48, 80, seed=seed).sigmoid()


MOTIF = VIDEO | dict(max_sequence_length=9, negative_prompt="a dog")

TINY = {
    "MochiPipeline": Tiny(mochi, WORDS | dict(num_frames=13)),
    "AllegroPipeline": Tiny(allegro, WORDS | dict(num_frames=12, clean_caption=False)),
    "LattePipeline": Tiny(latte, dict(prompt="a red heart", height=24, width=40, video_length=3, guidance_scale=3.0, clean_caption=False)),
    "EasyAnimatePipeline": Tiny(easyanimate, TEXT),
    "EasyAnimateControlPipeline": Tiny(easyanimate, lambda: TEXT | dict(control_video=pixels(), ref_image=pixels(1)[:, :, :1], output_type="latent")),
    "EasyAnimateInpaintPipeline": Tiny(
        easyanimate, lambda: TEXT | dict(video=pixels(), mask_video=255.0 * (pixels(1, 1) > 0.5), strength=0.9, num_inference_steps=3)
    ),
    "MotifVideoPipeline": Tiny(motif, MOTIF),
    "MotifVideoImage2VideoPipeline": Tiny(motif, lambda: MOTIF | dict(image=picture())),
}
