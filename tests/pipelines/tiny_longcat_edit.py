"""LongCat-Image-Edit's tiny pipeline: the picture is read by the language model, and its latents come after the new one's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
from tiny_image_parts import qwen2_processor, qwen2_vl, qwen_tokenizer
from tiny_longcat import CALL, parts
from tiny_parts import HEIGHT, WIDTH, Tiny
from tiny_video_parts import picture


def edit(name: str, folder: Path) -> Any:
    pipe = diffusers.LongCatImageEditPipeline(text_encoder=qwen2_vl(), tokenizer=qwen_tokenizer(), text_processor=qwen2_processor(), **parts())
    pipe.tokenizer_max_length = 9
    return pipe


TINY = {"LongCatImageEditPipeline": Tiny(edit, lambda: CALL | dict(image=picture(height=HEIGHT, width=WIDTH)))}
