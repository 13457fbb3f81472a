"""HiDream's tiny pipeline: four text encoders, and all pictures of one area."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
from tiny import redraw
from tiny_parts import HEIGHT, WIDTH, Tiny, clip, clip_tokenizer, t5, t5_tokenizer, vae
from tiny_video_parts import llama
from transformers import CLIPTextModelWithProjection, LlamaForCausalLM


def hidream(name: str, folder: Path) -> Any:
    """Not square: the image's tokens are padded."""
    transformer = diffusers.HiDreamImageTransformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=4,
        caption_channels=[24, 16], text_emb_dim=24, axes_dims_rope=(4, 6, 6), max_resolution=(16, 20), llama_layers=[0, 1],
    )  # fmt: skip
    tokenizer = clip_tokenizer(folder / "clip")
    language = LlamaForCausalLM(llama()).eval()
    language.set_attn_implementation("eager")  # its attention is asked for as well
    pipe = diffusers.HiDreamImagePipeline(
        transformer=redraw(transformer), vae=vae(shift_factor=0.1), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        text_encoder=clip(tokenizer, CLIPTextModelWithProjection, tokens=128), tokenizer=tokenizer,
        text_encoder_2=clip(tokenizer, CLIPTextModelWithProjection, tokens=128), tokenizer_2=tokenizer, text_encoder_3=t5(),
        tokenizer_3=t5_tokenizer(), text_encoder_4=language, tokenizer_4=t5_tokenizer(),
    )  # fmt: skip
    pipe.default_sample_size = 16
    return pipe


TINY = {"HiDreamImagePipeline": Tiny(hidream, dict(prompt="a red heart", negative_prompt="dog", height=HEIGHT, width=WIDTH, guidance_scale=2.0))}
