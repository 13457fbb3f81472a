"""Pipelines of the Wan family: UMT5's text, Wan's VAE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
from tiny import redraw
from tiny_parts import Tiny, t5_tokenizer
from tiny_video_parts import HEIGHT, VIDEO, WIDTH, clip_processor, clip_vision, film, picture, umt5, wan_vae, without_frames

IMAGE = dict(in_channels=12, image_dim=10, added_kv_proj_dim=36)  # latents, a mask of 4 and a picture's latents; CLIP's tokens
FLOW = dict(prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0)


def transformer(kind: Any, **config: Any) -> Any:
    sizes = dict(num_attention_heads=3, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16, freq_dim=16, ffn_dim=24, num_layers=1)
    return redraw(kind(**sizes | dict(rope_max_seq_len=64) | config))


def text() -> dict[str, Any]:
    return dict(tokenizer=t5_tokenizer(), text_encoder=umt5())


def seen() -> dict[str, Any]:
    return dict(image_encoder=clip_vision(), image_processor=clip_processor())


def wan(name: str, folder: Path) -> Any:
    """Two transformers, for the noisy steps and for the others: Wan 2.2."""
    parts = {part: transformer(diffusers.WanTransformer3DModel) for part in ("transformer", "transformer_2")}
    scheduler = diffusers.UniPCMultistepScheduler(**FLOW)
    return getattr(diffusers, name)(**text(), **parts, vae=wan_vae(), scheduler=scheduler, boundary_ratio=0.875)


def wan_i2v(name: str, folder: Path) -> Any:
    dit = transformer(diffusers.WanTransformer3DModel, **IMAGE)
    return diffusers.WanImageToVideoPipeline(
        **text(), **seen(), transformer=dit, vae=wan_vae(), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0)
    )


def wan_v2v(name: str, folder: Path) -> Any:
    dit = transformer(diffusers.WanTransformer3DModel)
    return diffusers.WanVideoToVideoPipeline(**text(), transformer=dit, vae=wan_vae(), scheduler=diffusers.UniPCMultistepScheduler(**FLOW))


def wan_vace(name: str, folder: Path) -> Any:
    kind = diffusers.WanVACETransformer3DModel
    parts = {part: transformer(kind, num_layers=2, vace_layers=[0, 1], vace_in_channels=2 * 4 + 64) for part in ("transformer", "transformer_2")}
    return diffusers.WanVACEPipeline(**text(), **parts, vae=wan_vae(), scheduler=diffusers.UniPCMultistepScheduler(**FLOW), boundary_ratio=0.875)


def wan_animate(name: str, folder: Path) -> Any:
    dit = transformer(
        diffusers.WanAnimateTransformer3DModel, **IMAGE, latent_channels=4, motion_encoder_channel_sizes={"4": 4, "8": 4, "16": 4},
        motion_encoder_size=16, motion_style_dim=4, motion_dim=3, motion_encoder_dim=6, face_encoder_hidden_dim=8, face_encoder_num_heads=2,
        inject_face_latents_blocks=1,
    )  # fmt: skip
    return diffusers.WanAnimatePipeline(**text(), **seen(), transformer=dit, vae=wan_vae(), scheduler=diffusers.UniPCMultistepScheduler(**FLOW))


def lucy(name: str, folder: Path) -> Any:
    dit = transformer(diffusers.WanTransformer3DModel, in_channels=8)
    return diffusers.LucyEditPipeline(
        **text(), transformer=dit, vae=wan_vae(), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0), expand_timesteps=True
    )


def chronoedit(name: str, folder: Path) -> Any:
    """Thinks in many frames, then goes on with the first and the last of them."""
    dit = transformer(diffusers.ChronoEditTransformer3DModel, **IMAGE, rope_temporal_skip_len=4)
    return diffusers.ChronoEditPipeline(**text(), **seen(), transformer=dit, vae=wan_vae(), scheduler=diffusers.UniPCMultistepScheduler(**FLOW))


def skyreels(name: str, folder: Path) -> Any:
    image = name == "SkyReelsV2ImageToVideoPipeline"
    parts = dict(image_encoder=clip_vision(), image_processor=clip_processor()) if image else {}
    dit = transformer(diffusers.SkyReelsV2Transformer3DModel, **IMAGE if image else {}, inject_sample_info="ForcingVideo" in name)
    return getattr(diffusers, name)(**text(), **parts, transformer=dit, vae=wan_vae(), scheduler=diffusers.UniPCMultistepScheduler(**FLOW))


def helios(name: str, folder: Path) -> Any:
    sizes = dict(num_attention_heads=3, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16, freq_dim=16, ffn_dim=24, num_layers=1)
    dit = redraw(diffusers.HeliosTransformer3DModel(**sizes, rope_dim=(4, 4, 4), is_amplify_history=True))
    stages = 2 if "Pyramid" in name else 1
    scheduler = diffusers.HeliosScheduler(
        stages=stages, stage_range=[0, 0.5, 1] if stages == 2 else [0, 1], gamma=0.3
    )  # 1/3 is not quite positive definite
    return getattr(diffusers, name)(**text(), transformer=dit, vae=wan_vae(), scheduler=scheduler)


def anyflow(name: str, folder: Path) -> Any:
    dit = transformer(diffusers.AnyFlowTransformer3DModel)
    return diffusers.AnyFlowPipeline(**text(), transformer=dit, vae=wan_vae(), scheduler=diffusers.FlowMapEulerDiscreteScheduler())


def anyflow_far(name: str, folder: Path) -> Any:
    dit = transformer(
        diffusers.AnyFlowFARTransformer3DModel, patch_size=(1, 2, 2), compressed_patch_size=(1, 4, 4), full_chunk_limit=2, chunk_partition=[1, 1, 1]
    )
    return diffusers.AnyFlowFARPipeline(**text(), transformer=dit, vae=wan_vae(), scheduler=diffusers.FlowMapEulerDiscreteScheduler())


TEXT = VIDEO | dict(max_sequence_length=9, guidance_scale=3.0)
IMAGE_FIRST = VIDEO | dict(guidance_scale=3.0)  # 512 words: an image's tokens are what the text leaves
ANIMATED = dict(prompt="a red heart", height=HEIGHT, width=WIDTH, segment_frame_length=9, guidance_scale=2.0)
LONG = dict(num_frames=17, base_num_frames=13, overlap_history=9)  # two sections
HISTORY = dict(num_frames=18, num_latent_frames_per_chunk=3, history_sizes=[4, 2, 1])  # two chunks of 9 frames

TINY = {
    "WanPipeline": Tiny(wan, TEXT | dict(guidance_scale_2=2.0)),
    "WanImageToVideoPipeline": Tiny(wan_i2v, lambda: IMAGE_FIRST | dict(image=picture())),
    "WanVideoToVideoPipeline": Tiny(wan_v2v, lambda: without_frames(TEXT) | dict(video=film(), strength=0.9, num_inference_steps=3)),
    "WanVACEPipeline": Tiny(wan_vace, lambda: TEXT | dict(video=film(), mask=film(seed=1), reference_images=picture(2), conditioning_scale=0.7)),
    "WanAnimatePipeline": Tiny(wan_animate, lambda: ANIMATED | dict(image=picture(), pose_video=film(14), face_video=film(14, 1, 16, 16))),
    "LucyEditPipeline": Tiny(lucy, lambda: TEXT | dict(video=film())),
    "ChronoEditPipeline": Tiny(
        chronoedit, lambda: IMAGE_FIRST | dict(image=picture(), enable_temporal_reasoning=True, num_temporal_reasoning_steps=1)
    ),
    "SkyReelsV2Pipeline": Tiny(skyreels, TEXT),
    "SkyReelsV2ImageToVideoPipeline": Tiny(skyreels, lambda: IMAGE_FIRST | dict(image=picture())),
    "SkyReelsV2DiffusionForcingPipeline": Tiny(skyreels, TEXT | LONG | dict(ar_step=1, causal_block_size=1, addnoise_condition=20)),
    "SkyReelsV2DiffusionForcingImageToVideoPipeline": Tiny(skyreels, lambda: TEXT | dict(image=picture(), last_image=picture(1))),
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline": Tiny(skyreels, lambda: TEXT | LONG | dict(video=film())),
    "HeliosPipeline": Tiny(helios, TEXT | HISTORY),
    "HeliosPyramidPipeline": Tiny(helios, TEXT | HISTORY | dict(width=96, height=64, pyramid_num_inference_steps_list=[1, 1])),
    "AnyFlowPipeline": Tiny(anyflow, TEXT),
    "AnyFlowFARPipeline": Tiny(anyflow_far, TEXT | dict(height=32, width=64)),
}
