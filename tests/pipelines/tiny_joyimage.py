"""JoyImage's tiny pipelines. They know certain sizes only: here small ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
from diffusers.pipelines.joyimage.image_processor import BUCKETS
from tiny import redraw
from tiny_image_parts import qwen3_processor, qwen3_vl, qwen_tokenizer
from tiny_parts import Tiny
from tiny_video_parts import picture, wan_vae
from transformers import Qwen3VLForConditionalGeneration

BUCKETS[1024] = [(96, 160), (160, 96), (128, 128)]


def joyimage(name: str, folder: Path) -> Any:
    kind = diffusers.JoyImageEditPlusTransformer3DModel if "Plus" in name else diffusers.JoyImageEditTransformer3DModel
    transformer = kind(in_channels=4, hidden_size=64, num_attention_heads=4, text_dim=16, mlp_width_ratio=2.0, num_layers=1, rope_dim_list=[4, 6, 6])
    return getattr(diffusers, name)(
        transformer=redraw(transformer), vae=wan_vae(), text_encoder=qwen3_vl(Qwen3VLForConditionalGeneration), tokenizer=qwen_tokenizer(),
        processor=qwen3_processor(), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip


CALL = dict(prompt="a red heart", negative_prompt="dog", guidance_scale=2.0, height=96, width=160)

TINY = {
    "JoyImageEditPipeline": Tiny(joyimage, lambda: CALL | dict(image=picture())),
    "JoyImageEditPlusPipeline": Tiny(joyimage, lambda: CALL | dict(images=[picture(), picture(1, 80, 48)])),
}
