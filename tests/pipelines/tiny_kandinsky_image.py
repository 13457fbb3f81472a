"""Kandinsky 5's image pipelines. They know certain sizes only: here a small one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
from tiny import redraw
from tiny_image_parts import qwen2_processor, qwen2_vl
from tiny_kandinsky_video import SIZES
from tiny_parts import Tiny, clip, clip_tokenizer, vae
from tiny_video_parts import picture
from transformers import CLIPTextModel

HEIGHT, WIDTH = 96, 160


def kandinsky5(name: str, folder: Path) -> Any:
    tokenizer = clip_tokenizer(folder / "clip")
    transformer = diffusers.Kandinsky5Transformer3DModel(**SIZES | dict(visual_cond="I2I" in name))
    pipe = getattr(diffusers, name)(
        transformer=redraw(transformer), vae=vae(blocks=4), text_encoder=qwen2_vl(), tokenizer=qwen2_processor(),
        text_encoder_2=clip(tokenizer, CLIPTextModel, tokens=77), tokenizer_2=tokenizer, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip
    pipe.resolutions, pipe.prompt_template_encode_start_idx = [(WIDTH, HEIGHT)], 20
    return pipe


CALL = dict(prompt="a red heart", negative_prompt="dog", height=HEIGHT, width=WIDTH, guidance_scale=2.0)

TINY = {
    "Kandinsky5T2IPipeline": Tiny(kandinsky5, CALL),
    "Kandinsky5I2IPipeline": Tiny(kandinsky5, lambda: CALL | dict(image=picture(height=HEIGHT, width=WIDTH))),
}
