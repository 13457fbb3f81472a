"""LTX pipelines. The VAE shrinks space 32 times and time 8 times: 17 frames of 96 x 160 pixels are 3 x 3 x 5 tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition
from tiny import redraw
from tiny_parts import Tiny, t5, t5_tokenizer
from tiny_video_parts import LTX_VIDEO, film, ltx_vae, picture


def ltx(name: str, folder: Path) -> Any:
    dit = diffusers.LTXVideoTransformer3DModel(
        in_channels=6, out_channels=6, num_attention_heads=4, attention_head_dim=8, cross_attention_dim=32, num_layers=1, caption_channels=24
    )
    long = name == "LTXI2VLongMultiPromptPipeline"
    scheduler = diffusers.LTXEulerAncestralRFScheduler() if long else diffusers.FlowMatchEulerDiscreteScheduler()
    return getattr(diffusers, name)(scheduler=scheduler, vae=ltx_vae(), text_encoder=t5(), tokenizer=t5_tokenizer(), transformer=redraw(dit))


def conditions() -> list[LTXVideoCondition]:
    return [
        LTXVideoCondition(image=picture(), frame_index=0),
        LTXVideoCondition(video=film(9, 1), frame_index=8, strength=0.7),
    ]


CALL = LTX_VIDEO | dict(max_sequence_length=9, guidance_scale=3.0)
SECTIONS = dict(prompt="a red heart | a blue dog", num_frames=33, temporal_tile_size=16, temporal_overlap=8, decode_horizontal_tiles=2)

TINY = {
    "LTXPipeline": Tiny(ltx, CALL),
    "LTXImageToVideoPipeline": Tiny(ltx, lambda: CALL | dict(image=picture())),
    "LTXConditionPipeline": Tiny(ltx, lambda: CALL | dict(conditions=conditions())),
    "LTXI2VLongMultiPromptPipeline": Tiny(ltx, lambda: CALL | SECTIONS | dict(cond_image=picture())),
}
