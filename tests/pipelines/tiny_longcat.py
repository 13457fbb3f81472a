"""LongCat-Image's tiny pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
from tiny import redraw
from tiny_image_parts import qwen2_processor, qwen2_vl, qwen_tokenizer, smaller
from tiny_parts import HEIGHT, WIDTH, Tiny, vae
from tiny_video_parts import chat_tokenizer, qwen_vl_text
from tiny_video_parts import picture as photo
from transformers import Qwen2_5_VLTextModel

smaller("longcat_image.pipeline_longcat_image_edit")


def parts() -> dict[str, Any]:
    transformer = diffusers.LongCatImageTransformer2DModel(
        in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=4, joint_attention_dim=16,
        pooled_projection_dim=16, axes_dims_rope=[4, 6, 6],
    )  # fmt: skip
    return dict(transformer=redraw(transformer), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=vae(16, shift_factor=0.1))


def longcat(name: str, folder: Path) -> Any:
    encoder = Qwen2_5_VLTextModel(qwen_vl_text()).eval()
    pipe = diffusers.LongCatImagePipeline(text_encoder=encoder, tokenizer=chat_tokenizer(), text_processor=None, **parts())
    pipe.prompt_template_encode_prefix, pipe.prompt_template_encode_suffix, pipe.tokenizer_max_length = "big", "on the", 9
    return pipe


def edit(name: str, folder: Path) -> Any:
    pipe = diffusers.LongCatImageEditPipeline(text_encoder=qwen2_vl(), tokenizer=qwen_tokenizer(), text_processor=qwen2_processor(), **parts())
    pipe.prompt_template_encode_prefix = "big <|vision_start|><|image_pad|><|vision_end|>"
    pipe.prompt_template_encode_suffix, pipe.tokenizer_max_length = "on the", 9
    return pipe


CALL = dict(prompt="a red heart 'dog'", negative_prompt="cat")
TINY = {
    "LongCatImagePipeline": Tiny(longcat, CALL | dict(height=HEIGHT, width=WIDTH, enable_prompt_rewrite=False)),
    "LongCatImageEditPipeline": Tiny(edit, lambda: CALL | dict(image=photo())),
}
